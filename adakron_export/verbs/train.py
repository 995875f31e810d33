"""Training: a backbone and labelled text become a checkpoint that is worth exporting."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adakron_export.data.data import check_sources
from adakron_export.errors import BackboneError, TrainingError
from adakron_export.extras import check_installed, package_versions
from adakron_export.files.places import check_there
from adakron_export.files.records import finite, read_json, write_json
from adakron_export.training.recipe import Recipe

if TYPE_CHECKING:
    from adakron_export.data.data import TrainingData
    from adakron_export.training.model import BackboneSource, ParameterCounts
    from adakron_export.training.trainer import AdaKronTrainer

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What a run came to.

    Attributes:
        folder: The checkpoint, as PEFT and `export_onnx` read it.
        metric: The metric that decided what is best.
        metrics: All metrics of the best evaluation.
        best_step: The step that was kept.
        steps: How many were made.
        parameters: How many were trained.
        samples_per_second: Texts per second in the training steps of this process, evaluations left out; ``None``
            where a resumed run had none left to make.
    """

    folder: Path
    metric: str
    metrics: dict[str, float]
    best_step: int
    steps: int
    parameters: ParameterCounts
    samples_per_second: float | None

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "folder": str(self.folder)}


def train(
    recipe: Recipe | None,
    output: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    bar: bool = False,
) -> TrainingResult:
    """Train adapters and head on a frozen backbone.

    Under `torchrun` or `accelerate launch` every process calls this alike, and the first one writes.

    Args:
        recipe: The settings; ``None`` for a resumed run, which has its own.
        output: The checkpoint's folder. Until the run is finished it holds only ``training/``, its state.
        resume: Go on where a run into the same folder was interrupted, to the same final weights.
        overwrite: Begin anew where there is a run or a checkpoint; a finished one is replaced at the end.
        bar: Show a progress bar on stderr.

    Raises:
        DataError: The data cannot be read or learned from.
        BackboneError: The backbone cannot be loaded.
        AdapterConfigError: ``r``, ``k`` or ``num_experts`` is impossible.
        TrainingError: A setting is impossible, the folder is taken, or the run cannot be resumed.
        MissingPackageError: The extra ``train`` is not installed.
        KeyboardInterrupt: Ctrl-C was pressed; the run is saved where it was, and ``resume`` goes on from there.
    """
    check_installed("accelerate", "datasets", "sklearn", "matplotlib", "tensorboard", extra="train")
    folder = Path(output)
    if recipe is not None:
        check_there(recipe.backbone, BackboneError)
        check_sources(recipe.data, recipe.eval_data)
    _log.info("import torch and transformers")
    from adakron_export.training import state

    if resume:
        if recipe is not None:
            state.check_same_recipe(folder, recipe)
        recipe = recipe or state.recipe_of_run(folder)
    if recipe is None:
        raise TrainingError("a new run needs a recipe")
    with _quiet_transformers():
        return _Run(recipe, folder, bar=bar).make(resume=resume, overwrite=overwrite)


class _Run:
    """One run from data to checkpoint, in this process."""

    def __init__(self, recipe: Recipe, folder: Path, *, bar: bool) -> None:
        self.recipe = recipe
        self.folder = folder
        self.bar = bar

    def make(self, *, resume: bool, overwrite: bool) -> TrainingResult:
        """Prepare everything that can fail, then write, train and finish."""
        from adakron_export.data.data import load_data
        from adakron_export.training import state
        from adakron_export.training.callbacks import Clock, Interruption, ProgressBar, has_stopped
        from adakron_export.training.model import count_parameters, find_backbone
        from adakron_export.training.preparation import prepare_trainer

        if not resume and _is_first_process():
            state.check_startable(self.folder, overwrite=overwrite)
        _log.info("read the data")
        data = load_data(self.recipe)
        _log.info("load the backbone")
        source = find_backbone(self.recipe)
        trainer = prepare_trainer(self.recipe, data, source, state.run_folder(self.folder))
        trainer.add_callback(ProgressBar(data.metrics[0], shown=self.bar))
        counts = count_parameters(trainer.model)
        _log.info("%s", counts.table())
        processes = trainer.args.world_size
        identity = self._identity(data, source, processes)
        checkpoint = None
        if resume:
            state.check_same_run(self.folder, identity)
            checkpoint = state.last_checkpoint(self.folder, processes=processes)
            _log.info("resume from %s", checkpoint.name) if checkpoint else _log.info("no checkpoint yet: begin anew")
        if trainer.args.should_save:
            if resume:
                state.remove_broken(self.folder, processes=processes)
            else:
                state.start_run(self.folder, identity)
        trainer.accelerator.wait_for_everyone()
        _log.info("train on %s rows", len(data.train))
        clock = Clock()
        trainer.add_callback(clock)
        interruption = Interruption()
        trainer.add_callback(interruption)
        history = _history(checkpoint)
        if not has_stopped(history, data.metrics[0], self.recipe.early_stopping):
            with closing(interruption):
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            history = trainer.state.log_history
        if interruption.asked:
            raise KeyboardInterrupt
        step_size = trainer.args.train_batch_size * self.recipe.gradient_accumulation * processes
        speed = clock.steps * step_size / clock.seconds if clock.steps else None
        record = self._record(data, counts, identity, history)
        if trainer.args.should_save:
            _log.info("write the checkpoint")
            self._finish(trainer, source, record, history)
        trainer.accelerator.wait_for_everyone()
        return TrainingResult(
            folder=self.folder,
            metric=data.metrics[0],
            metrics=record["metrics"],
            best_step=record["best_step"],
            steps=record["steps"],
            parameters=counts,
            samples_per_second=speed,
        )

    def _identity(self, data: TrainingData, source: BackboneSource, processes: int) -> dict[str, Any]:
        from adakron_export.artifacts.listing import sha256_of
        from adakron_export.checkpoints.backbone import weight_files

        weights = {file.name: sha256_of(file) for file in weight_files(source.folder)}
        return {
            "recipe": self.recipe.to_json(),
            "data": data.fingerprint(),
            "backbone": {"name": source.name, "revision": source.revision, "sha256": weights},
            "processes": processes,
        }

    def _record(
        self, data: TrainingData, counts: ParameterCounts, identity: dict[str, Any], history: list[dict[str, Any]]
    ) -> dict[str, Any]:
        from adakron_export.data.evaluation import with_perplexity
        from adakron_export.training.callbacks import best_evaluation

        metric = data.metrics[0]
        best = best_evaluation(history, metric)
        if best is None:
            raise TrainingError(
                f"{metric} was no number in any evaluation, so no checkpoint is the best; the model answers the same "
                "for every text, or the labels do not vary: see the curves, or choose another --metric"
            )
        names = (*data.metrics, "loss") if "loss" not in data.metrics else data.metrics
        metrics = {name: float(best[f"eval_{name}"]) for name in names}
        return {
            **identity,
            "task": data.columns.task.value,
            "columns": {"text": data.columns.text, "pair": data.columns.pair, "label": data.columns.label},
            "rows": {"train": len(data.train), "evaluation": len(data.evaluation)},
            "parameters": {**asdict(counts), "trainable": counts.trainable},
            "metric": metric,
            "metrics": with_perplexity(metrics, data.columns.task),
            "best_step": best["step"],
            "best_epoch": best["epoch"],
            "evaluations": sum(f"eval_{metric}" in row for row in history),
            "steps": history[-1]["step"],
            "versions": package_versions(),
            "history": history,
        }

    def _finish(
        self, trainer: AdaKronTrainer, source: BackboneSource, record: dict[str, Any], history: list[dict[str, Any]]
    ) -> None:
        """Put the finished checkpoint in the place of the run, in one step."""
        from adakron_export.checkpoints.checkpoint import ADAPTER_CONFIG, ADAPTER_WEIGHTS
        from adakron_export.files.staging import put_in_place, staged_folder
        from adakron_export.tokenization.companions import copy_companions
        from adakron_export.training import state
        from adakron_export.training.card import training_card
        from adakron_export.training.curves import draw_curves
        from adakron_export.training.model import load_tokenizer

        run = state.run_folder(self.folder)
        best = run / f"checkpoint-{record['best_step']}"
        if not (best / ADAPTER_WEIGHTS).is_file():
            raise TrainingError(f"{best} is the best checkpoint, and it is not there any more; train again")
        with staged_folder(self.folder) as staged:
            shutil.copyfile(best / ADAPTER_WEIGHTS, staged / ADAPTER_WEIGHTS)
            settings = read_json(best / ADAPTER_CONFIG)
            settings |= {"base_model_name_or_path": source.name, "revision": source.revision}  # it may have moved
            write_json(staged / ADAPTER_CONFIG, settings)
            trainer.model.get_base_model().config.to_json_file(staged / "config.json")
            copy_companions((source.folder,), staged)
            _keep_padding(staged / "tokenizer_config.json", load_tokenizer(source).pad_token)
            if (run / "tensorboard").is_dir():
                shutil.copytree(run / "tensorboard", staged / "tensorboard")
            draw_curves(history, staged / state.CURVES, metric=record["metric"], best_step=record["best_step"])
            write_json(staged / state.RECORD, finite(record))
            (staged / "README.md").write_text(training_card(record, self.folder.name), encoding="utf-8")
            put_in_place(staged, self.folder, problem=self._taken)

    def _taken(self) -> str | None:
        """Why the folder must not be replaced: something else than the run came into it."""
        from adakron_export.files.staging import check_replaceable
        from adakron_export.training.state import written_files

        return check_replaceable(self.folder, ours=written_files, overwrite=True)


def _keep_padding(file: Path, token: str) -> None:
    """What stood in for a padding token in training (GPT-2 has none) does so afterwards."""
    settings = read_json(file) if file.is_file() else {}
    if not settings.get("pad_token"):
        write_json(file, {**settings, "pad_token": token})


def _history(checkpoint: Path | None) -> list[dict[str, Any]]:
    if checkpoint is None:
        return []
    state: dict[str, Any] = read_json(checkpoint / "trainer_state.json")
    history: list[dict[str, Any]] = state["log_history"]
    return history


def _is_first_process() -> bool:
    from accelerate import PartialState

    return bool(PartialState().is_main_process)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without the notes on a new head and on special tokens: what matters is said by us."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
