"""Traces each model once per test run.

Tracing is what an export waits for, a second or more of PyTorch's time, and half of the models that the tests export
were traced before. So a traced graph is kept on disk, for all workers, under everything that it depends on: the
module tree with its settings, the weights, the configuration, the inputs and the opset. Tests of tracing itself call
`capture` directly.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from torch.onnx._internal._lazy_import import onnxscript_apis

_PLAIN = (bool, int, float, str, tuple, Enum, type(None))
_PLACES = ("name_or_path", "_name_or_path")  # of the folder, which changes nothing


def _described(module: torch.nn.Module) -> Iterator[str]:
    for name, part in module.named_modules():
        settings = {
            key: value for key, value in vars(part).items() if isinstance(value, _PLAIN) and key not in _PLACES
        }
        yield f"{name}: {type(part).__qualname__} {settings}"


def _key(folded: Any, sample: dict[str, torch.Tensor], opset: int) -> str:
    config = {name: value for name, value in folded.config.to_dict().items() if name not in _PLACES}
    inputs = [(name, str(tensor.dtype), list(tensor.shape)) for name, tensor in sample.items()]
    digest = hashlib.sha256(json.dumps([config, inputs, opset, *_described(folded)], default=str).encode())
    for name, tensor in sorted(folded.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@pytest.fixture(scope="session", autouse=True)
def traced_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what `build_graph` traces."""
    from adakron_export.graph import build

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if base.name.startswith("popen-") else base) / "traced"  # workers share the parent
    folder.mkdir(exist_ok=True)
    capture = build.capture

    def kept(folded: Any, sample: dict[str, torch.Tensor], *, opset: int) -> ir.Model:
        place = folder / f"{_key(folded, sample, opset)}.onnx"
        if not place.is_file():
            model = capture(folded, sample, opset=opset)
            partial = Path(f"{place}.{base.name}")
            ir.save(model, partial)
            partial.rename(place)
        return ir.load(place)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "capture", kept)
        # PyTorch compiles its 500 translations anew for each model.
        patch.setattr(onnxscript_apis, "get_torchlib_ops", functools.cache(onnxscript_apis.get_torchlib_ops))
        yield
