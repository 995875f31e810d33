"""`adakron-export sign` and `adakron-export verify`."""

from __future__ import annotations

import os
import sys

import click

from .console import echo


@click.command()
@click.argument("folder")
@click.option("--key", "private_key", required=True, metavar="PEM", help="The private key, of an elliptic curve.")
def sign(folder: str, private_key: str) -> None:
    """Sign an artifact or an engine.

    Its users can then tell that it is yours. A password of the key is read from ADAKRON_EXPORT_KEY_PASSWORD.
    """
    from adakron_export.verbs.sign import PASSWORD_VARIABLE
    from adakron_export.verbs.sign import sign as make_signature

    echo(f"signed: {make_signature(folder, private_key, password=os.environ.get(PASSWORD_VARIABLE))}")


@click.command()
@click.argument("folder")
@click.option("--key", "public_key", required=True, metavar="PEM", help="The public key of who should have signed it.")
def verify(folder: str, public_key: str) -> None:
    """Check who signed an artifact or engine.

    Exits with 1 unless every file is what the key's owner signed.
    """
    from adakron_export.errors import BadSignatureError
    from adakron_export.verbs.sign import verify as check

    try:
        check(folder, public_key)
    except BadSignatureError as error:
        echo(f"verify FAILED: {error}")
        sys.exit(1)
    echo(f"{folder}: every file is as it was signed with {public_key}")
