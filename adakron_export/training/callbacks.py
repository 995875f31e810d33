"""What happens beside the training steps: the progress bar, saving, stopping, the curves for TensorBoard."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback

from adakron_export.data.metrics import is_better
from adakron_export.errors import TrainingError
from adakron_export.extras import require

History = Sequence[Mapping[str, Any]]


def best_evaluation(history: History, metric: str) -> Mapping[str, Any] | None:
    """The best evaluation in a log, of equal ones that with the smallest loss; ``None`` where no value is a number."""
    best: Mapping[str, Any] | None = None
    for row in history:
        value = row.get(f"eval_{metric}", math.nan)
        if not math.isnan(value) and (best is None or _is_better(metric, row, best)):
            best = row
    return best


def _is_better(metric: str, row: Mapping[str, Any], than: Mapping[str, Any]) -> bool:
    value, other = row[f"eval_{metric}"], than[f"eval_{metric}"]
    if value == other:
        return bool(row.get("eval_loss", math.inf) < than.get("eval_loss", math.inf))
    return is_better(metric, value, other)


def has_stopped(history: History, metric: str, patience: int | None) -> bool:
    """Whether the last ``patience`` evaluations were no better than one before them."""
    evaluations = [row for row in history if f"eval_{metric}" in row]
    if patience is None or len(evaluations) <= patience:
        return False
    best = best_evaluation(evaluations, metric)
    return best is None or all(row["step"] != best["step"] for row in evaluations[-patience:])


class ProgressBar(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """One bar over all steps with loss and metric, on stderr."""

    def __init__(self, metric: str, *, shown: bool) -> None:
        self.metric = metric
        self.shown = shown
        self.bar: tqdm[Any] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show the bar, begun where a resumed run is."""
        self.bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc="train",
            unit="step",
            dynamic_ncols=True,
            disable=not (self.shown and state.is_world_process_zero),
            postfix={},
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count a step."""
        if self.bar is not None:
            self.bar.update(1)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Show the newest loss and metric."""
        if self.bar is None:
            return
        names = {"loss": "loss", f"eval_{self.metric}": self.metric}
        latest = {names[name]: value for row in state.log_history for name, value in row.items() if name in names}
        self.bar.set_postfix({name: f"{value:.4f}" for name, value in latest.items()}, refresh=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the bar as it is."""
        if self.bar is not None:
            self.bar.close()


class Saving(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Saves within an epoch too; where an epoch ends the Trainer does, and never twice into one folder.

    The loss is logged with every save: its running mean is not saved, and the curve of a resumed run is the same.
    """

    def __init__(self, every: int) -> None:
        self.every = every

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a save every so many steps."""
        epoch_ends = abs(state.epoch - round(state.epoch)) < 1e-9 or state.global_step >= state.max_steps
        if state.global_step % self.every == 0 and not epoch_ends:
            control.should_save = control.should_log = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The Trainer saves here."""
        control.should_log = True


class Interruption(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Ctrl-C saves after the step that it meets, and ends the run; a second one ends it at once.

    Of several processes each would stop at a step of its own, so there it does nothing.

    Attributes:
        asked: Whether there was one.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Listen."""
        if args.world_size == 1 and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._ask)

    def _ask(self, *_: Any) -> None:
        self.asked = True
        self.close()

    def close(self) -> None:
        """Listen no more."""
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and stop."""
        if self.asked:
            control.should_save = control.should_log = control.should_training_stop = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """No epoch has ended here: nothing is evaluated, and what was saved stays."""
        if self.asked and state.epoch != round(state.epoch):
            control.should_save = control.should_log = control.should_evaluate = False


class Stopping(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Stops a run that learns no more, or whose loss is no number any more."""

    def __init__(self, metric: str, patience: int | None) -> None:
        self.metric = metric
        self.patience = patience

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Refuse to go on with a broken model."""
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} at step {state.global_step}; lower --learning-rate, or raise --warmup, or with "
                "--dtype fp16 take bf16"
            )

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop where the last evaluations brought nothing."""
        if has_stopped(state.log_history, self.metric, self.patience):
            control.should_training_stop = True


class Clock(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Counts the seconds of the training steps, evaluations left out."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.steps = 0
        self._begun = 0.0
        self._first = 0

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start."""
        self._begun, self._first = time.perf_counter(), state.global_step

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop."""
        self.seconds += time.perf_counter() - self._begun
        self.steps += state.global_step - self._first


class TensorBoard(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Writes the curves as TensorBoard reads them; what a killed run wrote too much is purged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writer: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the file."""
        if state.is_world_process_zero:
            tensorboard = require("torch.utils.tensorboard", extra="train")
            self.writer = tensorboard.SummaryWriter(str(self.folder), purge_step=state.global_step + 1)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Write a point of each curve."""
        for name, value in (logs or {}).items() if self.writer is not None else ():
            group, _, rest = name.partition("_")
            tag = f"eval/{rest}" if group == "eval" else f"train/{name}"
            if isinstance(value, (int, float)):
                self.writer.add_scalar(tag, value, state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the file."""
        if self.writer is not None:
            self.writer.close()
