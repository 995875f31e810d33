"""One runtime in a process of its own, asked over a pipe.

Several runtimes in one process slow one another by a third: their thread pools spin. So a measurement gives each its
own, and lets one compute at a time. Parent and child exchange one line of JSON per request.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Protocol

from adakron_export.errors import AdaKronError, RunnerError

if TYPE_CHECKING:
    from adakron_export.runtimes.base import Runner
    from adakron_export.runtimes.space import InputSpace, NamedBatch
    from adakron_export.subjects.opened import Opened
    from adakron_export.subjects.subject import Subject
    from adakron_export.timing.load import Observed, Scenario

    class Measured(Protocol):
        """What an opener makes; see `Opened`."""

        @property
        def runner(self) -> Runner: ...  # noqa: D102
        @property
        def space(self) -> InputSpace: ...  # noqa: D102

    Opener = Callable[[Subject], Measured]

_REST_S = 0.05  # ONNX Runtime's idle threads spin for some 35 ms after a run (1.32) and take a core from the next side
_STEADY, _STEADY_RUNS = 0.03, 5  # two groups of so many runs have medians that are so near
_LONGEST_WARM_UP_RUNS = 500


class RunnerProcess:
    """A runtime in a process of its own; a context manager.

    Args:
        subject: What to open.
        command: What serves it, through `serve`; this module by default.

    Raises:
        RunnerError: The subject cannot be opened; the message is the one of `open_subject`.
    """

    def __init__(self, subject: Subject, command: Sequence[str] = ("-m", "adakron_export.timing.process")) -> None:
        self.subject = subject
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115, RUF100 - a pipe that nobody reads would fill up
        self._process = subprocess.Popen(
            [sys.executable, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )
        try:
            opened = self.ask("open", **asdict(subject))
        except BaseException:
            self.close()
            raise
        self.name: str = opened["name"]
        self.load_s: float = opened["load_s"]
        self._max_length: int = opened["max_length"]
        self._bounds = [((a, b), (c, d)) for (a, b), (c, d) in opened["bounds"]]

    def __enter__(self) -> RunnerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def nearest(self, shape: tuple[int, int]) -> tuple[int, int]:
        """The shape that it takes and that is most like this one."""
        texts, tokens = shape[0], min(shape[1], self._max_length) or 1
        near = [
            (min(max(texts, low[0]), high[0]), min(max(tokens, low[1]), high[1])) for low, high in self._bounds
        ] or [(texts, tokens)]
        return min(near, key=lambda each: abs(each[0] - texts) + abs(each[1] - tokens))

    def prepare(self, shape: tuple[int, ...], *, seed: int = 0, longest_s: float = 3.0) -> tuple[float, float]:
        """Make a batch, run it for the first time and until it is steady, or for so many seconds.

        A shape with a third number is one after which so many tokens are written.

        Returns:
            Seconds of the first run, and of a steady one.
        """
        texts, tokens, *written = shape
        new = written[0] if written else None
        answer = self.ask("prepare", texts=texts, tokens=tokens, new_tokens=new, seed=seed, longest_s=longest_s)
        return answer["first_s"], answer["steady_s"]

    def time(self, runs: int) -> list[float]:
        """The seconds of so many runs of the batch that was prepared, once the threads of other processes sleep."""
        time.sleep(_REST_S)
        seconds: list[float] = self.ask("time", runs=runs)["seconds"]
        return seconds

    def load(self, scenario: Scenario, seconds: float, *, seed: int, start: float = 0.0) -> Observed:
        """Put the batch under load, once the threads of other processes sleep; see `measure_load`."""
        from adakron_export.timing.load import Observed

        time.sleep(_REST_S)
        return Observed(**self.ask("load", **asdict(scenario), seconds=seconds, seed=seed, start=start))

    def peak_mb(self) -> float | None:
        """The highest resident memory of the process, where the system tells."""
        peak: float | None = self.ask("memory")["peak_mb"]
        return peak

    def ask(self, command: str, **request: Any) -> dict[str, Any]:
        """Send a request and wait for the answer.

        Raises:
            RunnerError: The process says what went wrong, or is gone.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"command": command, **request}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RunnerError(f"{self.subject.path}: its process ended ({self._last_words()})")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RunnerError(answer["error"])
        return answer

    def _last_words(self) -> str:
        code = self._process.wait()
        if code == -9:
            return "killed, perhaps for want of memory"
        self._errors.seek(0)
        lines = [line for line in self._errors if line.strip()]
        return f"exit code {code}: {lines[-1].strip()[:200]}" if lines else f"exit code {code}"

    def close(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()
        self._errors.close()


class _Served:
    """The child's side."""

    def __init__(self, opener: Opener) -> None:
        self.opener = opener
        self.runner: Runner | None = None
        self.space: InputSpace | None = None
        self.batch: NamedBatch | None = None
        self.turn = threading.Lock()
        self.once: Callable[[], float] = lambda: 0.0

    def open(self, **subject: Any) -> dict[str, Any]:
        from adakron_export.subjects.subject import Subject

        start = time.perf_counter()
        opened = self.opener(Subject(**subject))
        self.runner, self.space = opened.runner, opened.space
        seconds = time.perf_counter() - start
        space = self.space
        return {"name": self.runner.name, "load_s": seconds, "max_length": space.max_length, "bounds": space.bounds}

    def prepare(
        self, texts: int, tokens: int, seed: int, longest_s: float, new_tokens: int | None = None
    ) -> dict[str, Any]:  # fmt: skip
        from adakron_export.validation.batches import batch_of

        assert self.runner is not None
        assert self.space is not None
        self.batch = batch_of(self.space, texts, tokens, seed=seed)
        inputs = self.batch.inputs
        self.once = self.runner.prepare(inputs) if new_tokens is None else _writing(self.runner, inputs, new_tokens)
        return {"first_s": self.once(), "steady_s": _warm_up(self.once, longest_s)}

    def time(self, runs: int) -> dict[str, Any]:
        return {"seconds": [self.once() for _ in range(runs)]}

    def load(self, clients: int | None, rate: float | None, seconds: float, seed: int, start: float) -> dict[str, Any]:
        from adakron_export.timing.load import arrivals, closed_loop, open_loop

        if rate is not None:
            return asdict(open_loop(self.once, arrivals(rate, seconds, seed=seed, start=start), seconds))
        return asdict(closed_loop([self._client() for _ in range(clients or 1)], seconds))

    def _client(self) -> Callable[[], float]:
        """A run with inputs and outputs of its own; on a GPU they wait for one another, as recorded launches must."""
        assert self.runner is not None
        assert self.batch is not None
        once = self.runner.prepare(self.batch.inputs)
        once()
        if not self.runner.on_gpu:
            return once

        def alone() -> float:
            with self.turn:
                return once()

        return alone

    def memory(self) -> dict[str, Any]:
        return {"peak_mb": peak_memory_mb()}


def _writing(runner: Any, prompt: Mapping[str, Any], count: int) -> Callable[[], float]:
    """Read a prompt and write so many tokens, the likeliest ones, with the cache."""
    import numpy as np

    from adakron_export.runtimes.decoding import decoder_of, inputs_of, keeps_cache

    if not keeps_cache(runner):
        raise RunnerError(f"{runner.name} keeps no cache, which new_tokens is about; export text-generation-with-past")
    decoder = decoder_of(runner)

    def once() -> float:
        start, mask = time.perf_counter(), prompt["attention_mask"]
        logits, kept = decoder.step(prompt, None)
        for _ in range(count - 1):
            ids = logits[:, -1].argmax(-1)[:, None]
            mask = np.concatenate([mask, np.ones_like(ids)], axis=1)
            logits, kept = decoder.step(inputs_of(runner.input_names, ids, mask), kept)
        return time.perf_counter() - start

    return once


def _open(subject: Subject) -> Opened:
    from adakron_export.subjects.opening import Purpose, open_subject

    return open_subject(subject, Purpose.TIME)


def _warm_up(once: Callable[[], float], longest_s: float) -> float:
    """Run until it is steady, or long enough; the median of the last runs, in seconds."""
    end = time.perf_counter() + longest_s
    seconds: list[float] = []
    while len(seconds) < _LONGEST_WARM_UP_RUNS:
        seconds.append(once())
        if len(seconds) < 2 * _STEADY_RUNS:
            if time.perf_counter() > end and len(seconds) >= 2:
                break
            continue
        last = median(seconds[-_STEADY_RUNS:])
        before = median(seconds[-2 * _STEADY_RUNS : -_STEADY_RUNS])
        if abs(last - before) <= _STEADY * before or time.perf_counter() > end:
            break
    return median(seconds[-_STEADY_RUNS:])


def peak_memory_mb() -> float | None:
    """The highest resident memory of this process; ``None`` where the system does not tell."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)
    return int(found[1]) * 1024 / 1e6 if found else None


def serve(opener: Opener = _open) -> None:
    """Answer requests until the parent is gone.

    Args:
        opener: Opens what is measured.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    served = _Served(opener)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(served, request.pop("command"))(**request)
        except AdaKronError as error:
            answer = {"error": str(error)}
        except MemoryError:
            answer = {"error": "not enough memory for this model or batch; take a smaller shape"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve()
