"""All settings of a training run: one frozen dataclass, read from YAML, overridden by the command line."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any, get_args, get_type_hints

from adakron_export.errors import TrainingError
from adakron_export.json_files import read_bytes
from adakron_export.tasks import Task

TASKS = (Task.TEXT_CLASSIFICATION, Task.TOKEN_CLASSIFICATION, Task.QUESTION_ANSWERING, Task.TEXT_GENERATION)
PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")
SCHEDULES = ("linear", "cosine", "constant_with_warmup")
DTYPES = ("fp32", "bf16", "fp16")
# What may differ between a run and its resumption: where things are, not what is computed.
MOVABLE = ("data", "eval_data", "backbone", "num_workers", "report_to")


def _setting(default: Any, text: str, *, group: str, choices: Iterable[str] = (), metavar: str | None = None) -> Any:
    return field(
        default=default, metadata={"help": text, "group": group, "choices": tuple(choices), "metavar": metavar}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What is trained on what, and how. Every field is an option of the command line and a key of a recipe file.

    Raises:
        TrainingError: A value is impossible.
    """

    backbone: str = _setting("", "The backbone.", group="model", metavar="DIR_OR_ID")
    revision: str | None = _setting(None, "Branch, tag or commit of a backbone on the hub.", group="model")
    task: str | None = _setting(None, "By default what the data looks like.", group="model", choices=TASKS)
    data: str = _setting("", "File, folder, glue:NAME or hub id to train on.", group="data", metavar="DATA")
    eval_data: str | None = _setting(None, "The same, to choose the best epoch on.", group="data", metavar="DATA")
    eval_share: float = _setting(0.1, "Held out of DATA where there is no evaluation data.", group="data")
    text_column: str | None = _setting(None, "Text, words, question or prompt.", group="data", metavar="NAME")
    pair_column: str | None = _setting(None, "Second text, or context.", group="data", metavar="NAME")
    label_column: str | None = _setting(None, "Label, tags, answers or completion.", group="data", metavar="NAME")
    problem_type: str | None = _setting(None, "By default what the labels are.", group="data", choices=PROBLEM_TYPES)
    label_separator: str | None = _setting(None, "Between the labels of one text.", group="data", metavar="TEXT")
    header: bool | None = _setting(None, "Whether the first line names the columns.", group="data")
    delimiter: str | None = _setting(None, "Between the cells of a table.", group="data", metavar="TEXT")
    max_length: int | None = _setting(None, "Tokens, longer ones are cut; the backbone's own.", group="data")
    doc_stride: int = _setting(128, "Tokens that windows on a long context share.", group="data")
    n_best: int = _setting(20, "Starts and ends that are tried for an answer.", group="data")
    max_answer_length: int = _setting(30, "In tokens.", group="data")
    r: int = _setting(48, "Width of the Kronecker product.", group="adapter")
    k: int = _setting(4, "Width of the second small network; divides r.", group="adapter")
    layers: str | None = _setting(None, "Only these, such as 2-5 or 0,3.", group="adapter", metavar="FROM-TO")
    num_experts: int = _setting(1, "Networks in the mixture on the k-wide side.", group="adapter")
    pooler_scale: float = _setting(
        1.0, "Factor of the weights of a pooler that was never trained, such as 10.", group="adapter"
    )
    kron_order: str = _setting("a2_a1", "Left factor first.", group="adapter", choices=("a2_a1", "a1_a2"))
    consistency: float = _setting(0.0, "Weight of AdaMix's consistency loss.", group="adapter")
    epochs: float = _setting(3.0, "Passes over the data.", group="optimisation")
    max_steps: int | None = _setting(None, "Stop after so many steps.", group="optimisation")
    batch_size: int = _setting(32, "Per process.", group="optimisation")
    gradient_accumulation: int = _setting(1, "Batches per step.", group="optimisation")
    learning_rate: float = _setting(3e-3, "Of the adapters.", group="optimisation")
    head_learning_rate: float | None = _setting(None, "Of the head; the adapters' own.", group="optimisation")
    norm_learning_rate: float | None = _setting(
        None, "Train the normalisation layers beside the adapters too, at this rate.", group="optimisation"
    )
    weight_decay: float = _setting(0.01, "Of weights, not of biases and norms.", group="optimisation")
    warmup: float = _setting(0.06, "Share of the steps; from 1 on, their number.", group="optimisation")
    schedule: str = _setting("linear", "Of the learning rate.", group="optimisation", choices=SCHEDULES)
    max_grad_norm: float = _setting(1.0, "Gradients are clipped to it; 0 does not.", group="optimisation")
    dropout: float | None = _setting(None, "In the backbone; its own.", group="optimisation")
    label_smoothing: float = _setting(0.0, "Of single labels.", group="optimisation")
    token_dropout: float = _setting(
        0.0, "Share of a text's tokens left out at random, in classification.", group="optimisation"
    )
    average: float = _setting(
        0.0, "Keep a moving average of the weights with this decay, such as 0.99.", group="optimisation"
    )
    seed: int = _setting(0, "Of everything random.", group="optimisation")
    early_stopping: int | None = _setting(
        None, "Stop after so many evaluations without a better one.", group="evaluation", metavar="PATIENCE"
    )
    metric: str | None = _setting(None, "Which decides what is best; the task's own.", group="evaluation")
    eval_batch_size: int = _setting(64, "Per process.", group="evaluation")
    logging_steps: int = _setting(10, "Steps between points of the curve.", group="evaluation")
    report_to: str | None = _setting(
        None,
        "Trackers of the Trainer beside TensorBoard, such as wandb or mlflow.",
        group="evaluation",
        metavar="NAMES",
    )
    save_steps: int = _setting(500, "Steps between saves within an epoch.", group="evaluation")
    dtype: str = _setting("fp32", "Of the computation; weights are fp32.", group="speed", choices=DTYPES)
    group_by_length: bool = _setting(True, "Batches of equally long texts.", group="speed")
    gradient_checkpointing: bool = _setting(False, "Less memory, more time.", group="speed")
    compile: bool = _setting(False, "Through torch.compile.", group="speed")
    num_workers: int = _setting(0, "Processes that load data.", group="speed")

    def __post_init__(self) -> None:
        """Refuse values that cannot be trained with."""
        for row in fields(self):
            _check_value(row.name, getattr(self, row.name), row.metadata["choices"])
        if not self.backbone:
            raise TrainingError("no backbone is named; pass --backbone with its folder or hub id")
        if not self.data:
            raise TrainingError("no data is named; pass --data with a file, a folder, glue:NAME or a hub id")
        if self.consistency and self.num_experts == 1:
            raise TrainingError(
                "consistency compares the passes of different experts; it needs num_experts of at least 2"
            )
        if not 0 < self.eval_share < 1:
            raise TrainingError(f"eval_share is {self.eval_share}; it must lie between 0 and 1")
        self.layer_indices()
        if self.task is not None:
            object.__setattr__(self, "task", Task(self.task).value)

    def layer_indices(self) -> list[int] | None:
        """The layers that get an adapter, counted from 0; ``None`` is all of them."""
        if self.layers is None:
            return None
        indices: set[int] = set()
        for part in self.layers.split(","):
            found = re.fullmatch(r"\s*(\d{1,9})(?:\s*-\s*(\d{1,9}))?\s*", part)
            if found is None or not int(found[1]) <= int(found[2] or found[1]) < _MOST_LAYERS:
                raise TrainingError(f"layers is {self.layers!r:.60}; write 2-5 or 0,3, counted from 0")
            indices.update(range(int(found[1]), int(found[2] or found[1]) + 1))
        return sorted(indices)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


_MOST_LAYERS = 1024
_LARGEST_RECIPE = 2**20  # bytes
_AT_LEAST_ONE = (
    "max_length", "n_best", "max_answer_length", "r", "k", "num_experts", "max_steps", "batch_size",
    "gradient_accumulation", "early_stopping", "eval_batch_size", "logging_steps", "save_steps",
)  # fmt: skip

_BELOW_ONE = ("token_dropout", "average")


def _check_value(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value is None:
        return
    if choices and value not in choices:
        raise TrainingError(f"{name} is {value!r}; choose one of {', '.join(choices)}")
    if isinstance(value, (int, float)) and not (math.isfinite(value) and value >= 0):
        raise TrainingError(f"{name} is {value}; it must be a number of at least 0")
    if name in _BELOW_ONE and value >= 1:
        raise TrainingError(f"{name} is {value}; it must be below 1")
    if name in _AT_LEAST_ONE and value < 1:
        raise TrainingError(f"{name} is {value}; it must be at least 1")
    if name in ("epochs", "learning_rate", "head_learning_rate", "norm_learning_rate", "pooler_scale") and value == 0:
        raise TrainingError(f"{name} is 0, and nothing would be learned")


def setting_type(name: str) -> type:
    """The type of a setting, without its ``None``."""
    hint = get_type_hints(Recipe)[name]
    options = [option for option in get_args(hint) if option is not type(None)]
    return options[0] if options else hint  # type: ignore[no-any-return]


def make_recipe(settings: Mapping[str, Any], *, source: str = "the recipe") -> Recipe:
    """A recipe from plain data.

    Args:
        settings: Values by name; what is left out has its default.
        source: Where they come from, for messages.

    Raises:
        TrainingError: A name is unknown, or a value has another type or is impossible.
    """
    known = {row.name for row in fields(Recipe)}
    unknown = sorted(settings.keys() - known)
    if unknown:
        raise TrainingError(f"{source}: no such setting: {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    return Recipe(**{name: _converted(name, value, source) for name, value in settings.items()})


def _converted(name: str, value: Any, source: str) -> Any:
    wanted = setting_type(name)
    if value is None or type(value) is wanted:
        return value
    if wanted is str and isinstance(value, (Path, int)) and not isinstance(value, bool):
        return str(value)  # `layers: 5` is a number to YAML
    number = wanted in (int, float) and isinstance(value, (int, float, str)) and not isinstance(value, bool)
    try:
        if number and wanted(value) == float(value):  # YAML reads 3e-4 as a text
            return wanted(value)
    except ValueError:
        pass
    raise TrainingError(f"{source}: {name} is {value!r}; it must be {_ARTICLES[wanted]}")


_ARTICLES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def read_settings(file: str | Path) -> dict[str, Any]:
    """The settings of a YAML file, or of one of the recipes that come with the package, such as ``bert-base-glue``.

    Raises:
        TrainingError: It is not there or not YAML.
    """
    import yaml

    path = Path(file)
    shipped = resources.files("adakron_export.models") / "recipes"
    names = sorted(row.name.removesuffix(".yaml") for row in shipped.iterdir())
    source = shipped / f"{file}.yaml" if str(file) in names else path
    try:
        content = _read_yaml(source.read_bytes() if source is not path else read_bytes(path, largest=_LARGEST_RECIPE))
    except FileNotFoundError as error:
        raise TrainingError(f"{path}: no such recipe; name a YAML file or one of {', '.join(names)}") from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise TrainingError(f"{path}: not a readable recipe ({reason})") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise TrainingError(f"{path}: a recipe is a list of `setting: value` lines")
    return {key.replace("-", "_"): value for key, value in content.items()}


def _read_yaml(text: bytes) -> Any:
    """YAML without aliases, with which a few lines stand for more than memory holds.

    Raises:
        ValueError: It is no UTF-8, or has an alias.
        yaml.YAMLError: It is no YAML.
    """
    import yaml

    decoded = text.decode("utf-8")
    if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(decoded, Loader=yaml.SafeLoader)):
        raise ValueError("it has an alias (*name), which a recipe has no use for")
    return yaml.safe_load(decoded)
