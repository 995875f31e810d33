"""Fixtures that several test files share."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers share the cores; with more each waits for the others
os.environ["TORCH_FAKE_TENSOR_DISPATCH_CACHE"] = "0"  # looking up tiny models costs more than tracing them
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach for the hub
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from traced import traced_once  # noqa: F401

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "models" / "demo"
REFERENCE = Path(__file__).parent / "reference"
ADAPTERHUB = Path(__file__).parent / "adapterhub"


class _Listener(logging.Handler):
    def __init__(self, act: Callable[[str], None]) -> None:
        super().__init__()
        self.act = act

    def emit(self, record: logging.LogRecord) -> None:
        self.act(record.getMessage())


@contextlib.contextmanager
def stages(act: Callable[[str], None] = lambda _: None) -> Iterator[list[str]]:
    """What the library logs meanwhile; ``act`` is told of each line."""
    said: list[str] = []
    logger, listener = logging.getLogger("adakron_export"), _Listener(lambda line: (said.append(line), act(line)))
    logger.addHandler(listener)
    logger.setLevel(logging.INFO)
    try:
        yield said
    finally:
        logger.removeHandler(listener)
        logger.setLevel(logging.NOTSET)


@dataclass(frozen=True)
class ReferenceCase:
    """A checkpoint of the reference implementation with what it computed."""

    folder: Path
    file: Path
    backbone: Path

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / "inputs.safetensors")

    @property
    def logits(self) -> torch.Tensor:
        return load_file(self.folder / "expected.safetensors")["logits"]


def reference_case(name: str) -> ReferenceCase:
    folder = REFERENCE / name
    return ReferenceCase(folder, next((folder / "checkpoint").iterdir()), folder / "backbone")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    from adakron_export.machine.flavors import has_gpu

    if not has_gpu():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU and its driver; run with `make gpu`"))


REFERENCE_CASES = sorted(folder.name for folder in REFERENCE.iterdir())


@pytest.fixture(params=REFERENCE_CASES)
def case(request: pytest.FixtureRequest) -> ReferenceCase:
    return reference_case(request.param)


@pytest.fixture(scope="session")
def glue_case() -> ReferenceCase:
    return reference_case("bert-glue-r48")


@pytest.fixture(scope="session")
def demo_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model, exported once."""
    from adakron_export import export_onnx

    folder = tmp_path_factory.mktemp("demo") / "artifact"
    assert export_onnx(DEMO, folder).written
    return folder


class Cli:
    """Runs the command in this process."""

    def __call__(self, *arguments: object, code: int | None = 0) -> Result:
        command = next(iter(entry_points(group="console_scripts", name="adakron-export"))).load()
        result = CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)
        assert code is None or result.exit_code == code, f"exit code {result.exit_code}\n{result.output}"
        return result


@pytest.fixture
def cli() -> Cli:
    return Cli()


@pytest.fixture(scope="module")
def module_cli() -> Cli:
    return Cli()


@pytest.fixture
def demo_batch() -> dict[str, np.ndarray]:
    ids = np.array([[2, 20, 30, 40, 3], [2, 50, 3, 0, 0]])
    return {"input_ids": ids, "attention_mask": (ids > 0).astype(np.int64), "token_type_ids": np.zeros_like(ids)}
