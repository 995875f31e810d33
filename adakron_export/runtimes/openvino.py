"""OpenVINO, on the CPU."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from adakron_export.artifacts.artifact import Artifact
from adakron_export.artifacts.manifest import Manifest
from adakron_export.errors import RunnerError
from adakron_export.extras import require
from adakron_export.runtimes.base import Array, GraphRunner

_PRECISIONS = {"fp32": "f32", "bf16": "bf16"}


class OpenVinoRunner(GraphRunner[Manifest]):
    """An artifact in OpenVINO, in the precision of the artifact: OpenVINO would choose another where it is faster.

    Args:
        artifact: The opened folder, or the manifest and file of one that is being made.
        device: ``openvino``.
        threads: Threads that compute; OpenVINO's choice by default.
        record_launches: ``False``: there are none.

    Raises:
        RunnerError: The artifact is not made for it, the processor has no bf16, or OpenVINO refuses it.
        MissingPackageError: OpenVINO is not installed.
    """

    device = "openvino"
    on_gpu = False

    def __init__(
        self,
        artifact: Artifact,
        *,
        device: str = "openvino",
        threads: int | None = None,
        record_launches: bool = False,
    ) -> None:
        assert (device, record_launches) == ("openvino", False)
        ov = require("openvino", extra="openvino")
        super().__init__(artifact.manifest, artifact.folder)
        manifest = artifact.manifest
        if manifest.float_dtype not in _PRECISIONS or (manifest.spec.dtype == "int8" and not manifest.calibrated_on):
            raise RunnerError(
                f"{artifact.folder} is in {manifest.spec.dtype} for {manifest.spec.target}, which OpenVINO computes "
                "slowly or otherwise; export with --target openvino in fp32, bf16 or, with --data, int8"
            )
        if manifest.bank is not None and manifest.spec.lowered_for.optional_inputs:
            raise RunnerError(
                f"{artifact.folder} is a bank for {manifest.spec.target}; OpenVINO would take the initializers of its "
                "inputs for constants: make the bank with --target openvino"
            )
        if threads is not None and threads < 1:
            raise RunnerError(f"threads is {threads}; it must be at least 1")
        core = ov.Core()
        if manifest.float_dtype == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise RunnerError("this processor has no bf16; export in fp32")
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        settings["INFERENCE_PRECISION_HINT"] = _PRECISIONS[manifest.float_dtype]
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            self._compiled = core.compile_model(str(artifact.model), "CPU", settings)
        except RuntimeError as error:
            raise RunnerError(f"OpenVINO {ov.__version__} refuses {artifact.model}: {_gist(error)}") from error
        self.name = f"openvino {ov.__version__.partition('-')[0]} CPU"
        self._request = self._compiled.create_infer_request()
        self._turn = threading.Lock()

    def hold(self, stacks: Mapping[str, Array]) -> dict[str, Any]:
        """Inputs that stay, in the memory that is handed over; see `HoldingRunner`."""
        ov = require("openvino", extra="openvino")
        return {name: ov.Tensor(array, shared_memory=True) for name, array in stacks.items()}

    def run_feed(
        self, feed: Mapping[str, Array], held: Mapping[str, Any], names: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """Run what `feed` made, beside what `hold` holds; see `HoldingRunner`."""
        with self._turn:
            self._infer(self._request, {**feed, **held})
            return {name: self._request.get_tensor(name).data.copy() for name in names or self.output_names}

    def prepare_feed(self, feed: Mapping[str, Array], held: Mapping[str, Any]) -> Callable[[], float]:
        """A timed run of the same; see `HoldingRunner`."""
        request, every = self._compiled.create_infer_request(), {**feed, **held}

        def once() -> float:
            start = time.perf_counter()
            self._infer(request, every)
            return time.perf_counter() - start

        return once

    def _infer(self, request: Any, feed: dict[str, Any]) -> None:
        try:
            request.infer(feed, share_inputs=True, share_outputs=True)
        except RuntimeError as error:
            raise RunnerError(f"{self.name} cannot run this batch: {_gist(error)}") from error


def _gist(error: RuntimeError) -> str:
    """The last line: those before say where in OpenVINO's source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:400]
