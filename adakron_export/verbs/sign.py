"""Says who made a folder: signatures of OpenSSF's model signing, by a key of one's own and without a network.

The signature covers every file of the folder, as `model_signing verify key` checks it too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adakron_export.artifacts.artifact import is_artifact, open_artifact
from adakron_export.artifacts.engine import is_engine, open_engine
from adakron_export.artifacts.manifest import MANIFEST, SIGNATURE
from adakron_export.errors import AdaKronError, BadSignatureError, SignatureError
from adakron_export.extras import require
from adakron_export.files.staging import folder_lock, write_text

PASSWORD_VARIABLE = "ADAKRON_EXPORT_KEY_PASSWORD"  # noqa: S105, RUF100 - the name of it


def sign(folder: str | Path, private_key: str | Path, *, password: str | None = None) -> Path:
    """Sign an artifact or an engine, which must be whole.

    Args:
        folder: The artifact or engine; ``model.sig`` is written there, in the place of an older signature.
        private_key: A PEM file with a key of an elliptic curve, such as ``openssl ecparam -name prime256v1 -genkey``
            makes.
        password: Password of the key, where it has one.

    Returns:
        The signature's file.

    Raises:
        ArtifactError: The artifact is damaged.
        SignatureError: The key cannot be read.
    """
    path = _opened(folder)
    signing, hashing = _library("signing"), _library("hashing")
    with _said(f"{private_key}: cannot sign with this key"), folder_lock(path):
        config = signing.Config().use_elliptic_key_signer(private_key=_key(private_key), password=password)
        config.set_hashing_config(hashing.Config().set_ignored_paths(paths=_ignored(path)))
        with tempfile.TemporaryDirectory() as elsewhere:
            made = Path(elsewhere) / SIGNATURE
            config.sign(path, made)
            write_text(path / SIGNATURE, made.read_text(encoding="utf-8"))
    return path / SIGNATURE


def verify(folder: str | Path, public_key: str | Path) -> None:
    """Raise unless a folder is, file for file, what the owner of a key signed.

    Args:
        folder: An artifact or an engine.
        public_key: A PEM file, such as ``openssl ec -in KEY -pubout`` makes.

    Raises:
        ArtifactError: The artifact is damaged.
        SignatureError: The folder has no signature, or the key cannot be read.
        BadSignatureError: The signature is by another key, or of other files.
    """
    path = _opened(folder)
    verifying, hashing = _library("verifying"), _library("hashing")
    if not (path / SIGNATURE).is_file():
        raise SignatureError(f"{path}: is not signed ({SIGNATURE} is missing); sign it with `adakron-export sign`")
    with _said(f"{path}: its signature does not hold for {public_key}", BadSignatureError):
        config = verifying.Config().use_elliptic_key_verifier(public_key=_key(public_key))
        config.set_hashing_config(hashing.Config().set_ignored_paths(paths=_ignored(path)))
        config.verify(path, path / SIGNATURE)


def _opened(folder: str | Path) -> Path:
    path = Path(folder)
    if is_engine(path):
        return open_engine(path).folder.resolve()
    if not is_artifact(path):
        raise SignatureError(f"{path}: neither an artifact ({MANIFEST} is missing) nor an engine")
    return open_artifact(path).folder.resolve()  # the library takes relative names for those of the folder


def _ignored(folder: Path) -> list[Path]:
    """The signature itself, and hidden files, which nothing reads."""
    return [folder / SIGNATURE, *(entry for entry in folder.iterdir() if entry.name.startswith("."))]


def _key(file: str | Path) -> Path:
    path = Path(file)
    if not path.is_file():
        raise SignatureError(f"{path}: no such key; make one with `openssl ecparam -name prime256v1 -genkey -noout`")
    return path


def _library(name: str) -> Any:
    return require(f"model_signing.{name}", extra="sign")


@contextmanager
def _said(what: str, kind: type[SignatureError] = SignatureError) -> Iterator[None]:
    try:
        yield
    except AdaKronError:
        raise
    except Exception as error:  # its errors share no base class
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise kind(f"{what}: {reason}") from error
