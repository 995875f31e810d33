"""All settings of a training run: one frozen dataclass, read from YAML, overridden by the command line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

from adakron_export.data.settings import DataSettings
from adakron_export.errors import TrainingError
from adakron_export.files.records import read_bytes
from adakron_export.options.fields import check_record, option, options_of
from adakron_export.tasks import Task

METHOD_SETTINGS = {  # by method: the settings that are for it, and not for every method
    "adakron": ("k", "num_experts", "kron_order", "consistency"),
    "bottleneck": ("reduction_factor", "position", "parallel", "activation", "scaling", "original_ln_before"),
    "lora": ("lora_alpha",),
}
SCHEDULES = ("linear", "cosine", "constant_with_warmup")
COMPUTED_IN = ("fp32", "bf16", "fp16")
# What may differ between a run and its resumption: where things are, not what is computed.
MOVABLE = ("data", "eval_data", "backbone", "num_workers", "report_to")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe(DataSettings):
    """What is trained on what, and how. Every field is an option of the command line and a key of a recipe file.

    Raises:
        TrainingError: A value is impossible.
    """

    backbone: str = option("", "Backbone to train adapters on.", group="model", metavar="DIR_OR_ID")
    revision: str | None = option(None, "Branch, tag or commit of a backbone on the hub.", group="model")
    max_length: int | None = option(
        None, "Longest text, in tokens; longer ones are cut.", shown="the backbone's own", group="data", least=1
    )
    method: str = option("adakron", "Kind of adapter.", group="adapter", choices=tuple(METHOD_SETTINGS))
    r: int | None = option(
        None, "Width of the adapter.", shown="48, LoRA 8, bottlenecks by their factor", group="adapter", least=1
    )
    k: int = option(4, "Width of the second small network; divides r.", group="adapter", least=1)
    layers: str | None = option(
        None, "Layers that get an adapter, such as 2-5 or 0,3.", shown="all", group="adapter", metavar="FROM-TO"
    )
    num_experts: int = option(1, "Networks in the mixture on the k-wide side.", group="adapter", least=1)
    pooler_scale: float = option(
        1.0, "Factor on the weights of a pooler that was never trained, such as 10.", group="adapter"
    )
    kron_order: str = option(
        "a2_a1", "Order of the Kronecker product, left factor first.", group="adapter", choices=("a2_a1", "a1_a2")
    )
    reduction_factor: float = option(16.0, "Width of a bottleneck: the hidden width over this.", group="adapter")
    position: str = option(
        "ffn", "Where bottlenecks sit in a layer.", group="adapter", choices=("ffn", "attention", "both")
    )
    parallel: bool = option(False, "Let bottlenecks read the stream beside their block.", group="adapter")
    activation: str = option("relu", "Activation in bottlenecks.", group="adapter")
    scaling: float = option(1.0, "Factor of what bottlenecks add.", group="adapter")
    original_ln_before: bool = option(
        True, "Let bottlenecks read what the backbone's LayerNorm makes, as Pfeiffer's do.", group="adapter"
    )
    lora_alpha: float | None = option(None, "Alpha of LoRA.", shown="twice r", group="adapter")
    consistency: float = option(0.0, "Weight of AdaMix's consistency loss.", group="adapter")
    epochs: float = option(3.0, "Passes over the data.", group="optimisation")
    max_steps: int | None = option(None, "Steps after which training stops.", group="optimisation", least=1)
    batch_size: int = option(32, "Texts in a batch, per process.", group="optimisation", least=1)
    gradient_accumulation: int = option(1, "Batches per step.", group="optimisation", least=1)
    learning_rate: float = option(3e-3, "Learning rate of the adapters.", group="optimisation")
    head_learning_rate: float | None = option(
        None, "Learning rate of the head.", shown="that of the adapters", group="optimisation"
    )
    norm_learning_rate: float | None = option(
        None, "Train the normalisation layers too, at this learning rate.", group="optimisation"
    )
    weight_decay: float = option(0.01, "Decay of weights; biases and norms have none.", group="optimisation")
    warmup: float = option(0.06, "Share of the steps; from 1 on, their number.", group="optimisation")
    schedule: str = option("linear", "Schedule of the learning rate.", group="optimisation", choices=SCHEDULES)
    max_grad_norm: float = option(1.0, "Norm that gradients are clipped to; 0 clips none.", group="optimisation")
    dropout: float | None = option(None, "Dropout in the backbone.", shown="the backbone's own", group="optimisation")
    label_smoothing: float = option(0.0, "Smoothing of single labels.", group="optimisation")
    token_dropout: float = option(
        0.0, "Share of a text's tokens left out at random, in classification.", group="optimisation", below=1
    )
    average: float = option(
        0.0, "Decay of a moving average of the weights, such as 0.99; 0 keeps none.", group="optimisation", below=1
    )
    early_stopping: int | None = option(
        None,
        "Evaluations without a better one after which training stops.",
        group="evaluation",
        metavar="PATIENCE",
        least=1,
    )
    eval_batch_size: int = option(64, "Texts in a batch of the evaluation, per process.", group="evaluation", least=1)
    logging_steps: int = option(10, "Steps between points of the curve.", group="evaluation", least=1)
    report_to: str | None = option(
        None,
        "Trackers of the Trainer beside TensorBoard, such as wandb or mlflow.",
        group="evaluation",
        metavar="NAMES",
    )
    save_steps: int = option(500, "Steps between saves within an epoch.", group="evaluation", least=1)
    dtype: str = option("fp32", "Precision of the computation; weights stay fp32.", group="speed", choices=COMPUTED_IN)
    group_by_length: bool = option(True, "Batch texts of similar length together.", group="speed")
    gradient_checkpointing: bool = option(False, "Use less memory and more time.", group="speed")
    compile: bool = option(False, "Run the model through torch.compile.", group="speed")
    num_workers: int = option(0, "Processes that load data.", group="speed")

    def __post_init__(self) -> None:
        """Refuse values that cannot be trained with."""
        check_record(self, TrainingError)
        for name in _LEARNING:
            if getattr(self, name) == 0:
                raise TrainingError(f"{name} is 0, and nothing would be learned")
        if not self.backbone:
            raise TrainingError("no backbone is named; pass --backbone with its folder or hub id")
        if not self.data:
            raise TrainingError("no data is named; pass --data with a file, a folder, glue:NAME or a hub id")
        if self.consistency and self.num_experts == 1:
            raise TrainingError(
                "consistency compares the passes of different experts; it needs num_experts of at least 2"
            )
        if self.eval_share == 0:
            raise TrainingError(f"eval_share is {self.eval_share}; it must lie between 0 and 1")
        self._check_method()
        self.layer_indices()
        if self.task is not None:
            object.__setattr__(self, "task", Task(self.task).value)

    def _check_method(self) -> None:
        """A setting with another value than its default must be for the method."""
        defaults = {row.name: row.default for row in fields(self)}
        for method, names in METHOD_SETTINGS.items():
            for name in names if method != self.method else ():
                if getattr(self, name) != defaults[name]:
                    raise TrainingError(f"{name} is for {method}, and the method is {self.method}; leave it out")
        if self.r is not None and self.reduction_factor != defaults["reduction_factor"]:
            raise TrainingError("r and reduction_factor both say how wide a bottleneck is; leave one of them out")

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
_LEARNING = (
    "epochs",
    "learning_rate",
    "head_learning_rate",
    "norm_learning_rate",
    "pooler_scale",
    "scaling",
    "lora_alpha",
)
_LARGEST_RECIPE = 2**20  # bytes


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
    wanted = next(each.kind for each in options_of(Recipe, name))
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
        TrainingError: The recipe is not there, or is no YAML.
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
        ValueError: The text is no UTF-8, or has an alias.
        yaml.YAMLError: The text is no YAML.
    """
    import yaml

    decoded = text.decode("utf-8")
    if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(decoded, Loader=yaml.SafeLoader)):
        raise ValueError("it has an alias (*name), which a recipe has no use for")
    return yaml.safe_load(decoded)
