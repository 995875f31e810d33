"""Steps of a model with a cache in ONNX Runtime: its own buffers go from one step to the next, and are not copied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adakron_export.errors import RunnerError
from adakron_export.runtimes.base import Array, Batch
from adakron_export.runtimes.decoding import Kept, past_name
from adakron_export.runtimes.ort import OrtRunner


class OrtDecoder:
    """Steps of an `OrtRunner`; see `Decoder`.

    Args:
        runner: The runner.
        beside: Other inputs of the graph, which stay the same: those of a bank.
        places: What keeps the places of a bank's adapters from being written to.
    """

    def __init__(self, runner: OrtRunner, beside: Mapping[str, Any] | None = None, places: object = None) -> None:
        self._runner = runner
        self._places = places
        self._beside = dict(beside or {})
        self._outputs = [info.name for info in runner.manifest.outputs]
        self._place = "cuda" if runner.device in ("cuda", "tensorrt") else "cpu"

    def step(self, batch: Batch, kept: Kept | None) -> tuple[Array, Kept]:
        """Read more tokens; see `Decoder.step`."""
        feed = self._runner.feed(batch, past=None if kept is None else (kept.texts, kept.tokens))
        found = self._run(feed, {**self._beside, **(kept.values if kept else {})})
        logits = found.pop("logits").numpy()
        texts, tokens = logits.shape[0], (kept.tokens if kept else 0) + logits.shape[1]
        return logits, Kept({past_name(name): value for name, value in found.items()}, texts, tokens)

    def _run(self, feed: Mapping[str, Array], held: Mapping[str, Any]) -> dict[str, Any]:
        if self._place == "cpu":
            return self._runner.run_values(self._outputs, {**{n: self._value(a) for n, a in feed.items()}, **held})
        binding = self._runner.session.io_binding()
        for name, array in feed.items():
            binding.bind_cpu_input(name, array)
        for name, value in held.items():
            binding.bind_ortvalue_input(name, value)
        for name in self._outputs:
            binding.bind_output(name, "cpu" if name == "logits" else self._place)
        self._runner.run_bound(binding)
        return dict(zip(self._outputs, binding.get_outputs(), strict=True))

    def select(self, kept: Kept, rows: Sequence[int] | Array) -> Kept:
        """What is kept of some rows; see `Decoder.select`."""
        return Kept({name: self._taken(value, (rows,)) for name, value in kept.values.items()}, len(rows), kept.tokens)

    def crop(self, kept: Kept, tokens: int) -> Kept:
        """What is kept of the first tokens; see `Decoder.crop`."""
        if tokens > kept.tokens:
            raise RunnerError(f"{kept.tokens} tokens were read; {tokens} of them cannot be kept")
        part = (slice(None), slice(None), slice(tokens))
        return Kept({name: self._taken(value, part) for name, value in kept.values.items()}, kept.texts, tokens)

    def _taken(self, value: Any, part: tuple[Any, ...]) -> Any:
        return self._value(np.ascontiguousarray(value.numpy()[part]))

    def _value(self, array: Array) -> Any:
        import onnxruntime as ort  # noqa: TID253, RUF100

        return ort.OrtValue.ortvalue_from_numpy(array, self._place, 0)
