"""The checkpoints that a bank is made of: loaded, and held against one another."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from adakron_export.artifacts.adapters import AdapterRecord, StoredAdapter, same_weights
from adakron_export.artifacts.manifest import BASE
from adakron_export.data.settings import TextSettings
from adakron_export.errors import ArtifactError, CheckpointError, ExportError, first_few
from adakron_export.extras import package_versions
from adakron_export.graph.layout import BankLayout, Head, Place
from adakron_export.graph.stacks import AdapterWeights, rows_of
from adakron_export.graph.targets import GraphSpec
from adakron_export.subjects.opened import OpenedCheckpoint
from adakron_export.subjects.opening import open_model
from adakron_export.subjects.subject import Subject
from adakron_export.tasks import Task
from adakron_export.verbs.making import Source, load_source

_log = logging.getLogger(__name__)
_LABELS = ("id2label", "label2id", "num_labels", "problem_type")
_PARTS = (".adakron_", ".lora_", ".bottleneck_")  # what the names of adapters' own weights have in them
_CLASSIFIES = (Task.TEXT_CLASSIFICATION, Task.TOKEN_CLASSIFICATION, Task.IMAGE_CLASSIFICATION)


@dataclass(frozen=True, slots=True)
class Member:
    """One adapter of a bank, as it was loaded.

    Attributes:
        name: Its name.
        source: Its checkpoint; of the bare backbone that of another member.
        record: What the bank says of it.
        weights: What it changes of its backbone.
    """

    name: str
    source: Source
    record: AdapterRecord
    weights: AdapterWeights

    def stored(self, layout: BankLayout) -> StoredAdapter:
        """What a bank stores of it.

        Raises:
            ArtifactError: The adapter does not fit the bank.
        """
        try:
            rows = rows_of(layout, self.weights)
        except ArtifactError as error:
            raise ArtifactError(f"{self.source.found.path} does not fit the bank: {error}") from error
        return StoredAdapter(self.record, rows)

    @contextlib.contextmanager
    def eager(self) -> Iterator[OpenedCheckpoint]:
        """Its eager model; the bare backbone is one whose adapters are switched off."""
        opened = open_model(
            self.source.eager, Subject(str(self.source.found.path)), loaded=self.source.loaded,
        )  # fmt: skip
        with self.source.loaded.peft_model.disable_adapter() if self.name == BASE else contextlib.nullcontext():
            yield opened


def load_members(
    subjects: Mapping[str, Subject], *, data: str | None, text: TextSettings | None, force: bool
) -> list[Member]:
    """Load the checkpoints of a new bank; all share one backbone in memory.

    Where no checkpoint brings a head, the bare backbone is the first member.

    Args:
        subjects: The checkpoints by name.
        data: Where the text is to calibrate on.
        text: How it is read.
        force: Take adapters too that change nothing.

    Raises:
        CheckpointError: A checkpoint cannot be read, or is one of another backbone or task.
        ExportError: A checkpoint brings modules that a bank cannot hold.
    """
    members: list[Member] = []
    for number, (name, subject) in enumerate(subjects.items(), 1):
        _log.info("adapter %s of %s: %s", number, len(subjects), name)
        if members:
            subject = replace(subject, task=subject.task or members[0].record.task)
        members.append(load_member(name, subject, data=None if members else data, text=text, force=force))
        if len(members) > 1:
            _share_backbone(members[0], members[-1])
    first = members[0]
    if any(_heads(member) for member in members) or not first.weights.form.may_lack:
        return members
    bare = AdapterWeights(first.weights.kind)
    return [Member(BASE, first.source, replace(first.record, settings={}, classes=None), bare), *members]


def load_member(
    name: str, subject: Subject, *, data: str | None = None, text: TextSettings | None = None, force: bool = False
) -> Member:
    """Load one checkpoint, and what a bank stores of it; errors as of `load_members`."""
    from adakron_export.graph.banking import bank_weights

    source = load_source(subject, data=data, text=text, force=force)
    try:
        weights = bank_weights(source.loaded.model)
    except ExportError as error:
        raise ExportError(
            f"{source.found.path} cannot be in a bank: {error}; export it alone, with `adakron-export onnx`"
        ) from error
    settings = {name: value for name, value in source.loaded.describe().items() if name not in ("kind", "peft_type")}
    adapter, *backbone = source.files()
    config, task = source.eager.config.to_dict(), source.eager.task
    record = AdapterRecord(
        task=task.value,
        settings=settings,
        labels={key: config.get(key) for key in _LABELS if key in config},
        classes=int(source.eager.config.num_labels) if task in _CLASSIFIES else None,
        source=adapter,
        backbone=tuple(backbone),
        versions=package_versions(),
    )
    member = Member(name, source, record, weights)
    _check_beyond(member)
    labelled = any(head.labels for head in _heads(member))
    return member if labelled else replace(member, record=replace(record, classes=None))


def layout_of(members: Sequence[Member], spec: GraphSpec) -> BankLayout:
    """What a graph takes of each of these adapters: the widest of all.

    Raises:
        CheckpointError: Their heads differ.
    """
    own = [member for member in members if member.name != BASE]
    first, places = own[0].weights, dict[str, Place]()
    for member in members:
        if member.weights.kind != first.kind:
            raise CheckpointError(
                f"{member.source.found.path} is of kind {member.weights.kind}, {members[0].source.found.path} of kind "
                f"{first.kind}; a bank holds one"
            )
        places |= {place.module: place for place in member.weights.places}
    widths = [member.weights.widths for member in members]
    layout = BankLayout(
        kind=first.kind,
        width=max(width for width, _ in widths),
        k=max(k for _, k in widths),
        activations=tuple(dict.fromkeys(str(member.weights.activation) for member in own)),
        places=tuple(places.values()),
        form=first.form,
        heads=_widest_heads(own),
        head_form=first.head_form,
        dtype="float16" if spec.floating == "fp16" else "float32",
    )
    for member in members:
        own_bytes = sum(tensor.nbytes for tensor in member.weights.tensors.values())
        if own_bytes and layout.row_bytes > 1.01 * own_bytes:
            _log.info(
                "adapter %s is padded to the widest: %.2f of its bytes", member.name, layout.row_bytes / own_bytes
            )
    return layout


def _heads(member: Member) -> tuple[Head, ...]:
    """What a member brings beside its adapters.

    Raises:
        ExportError: A module that is neither linear nor a LayerNorm.
    """
    from adakron_export.graph.banking import saved_modules

    found: list[Head] = []
    for name, module in saved_modules(member.source.loaded.peft_model).items():
        found += _heads_in(name, module, member)
    return tuple(found)


def _heads_in(name: str, module: Any, member: Member) -> list[Head]:
    from torch import nn

    found: list[Head] = []
    for part, leaf in module.named_modules():
        if not leaf._parameters:
            continue
        where = f"{name}.{part}" if part else name
        if not isinstance(leaf, nn.Linear | nn.LayerNorm):
            raise ExportError(
                f"{member.source.found.path} brings its own {where}, a {type(leaf).__name__}; a bank holds heads of "
                "linear layers and LayerNorms: export this one alone, with `adakron-export onnx`"
            )
        kind: Literal["linear", "norm"] = "linear" if isinstance(leaf, nn.Linear) else "norm"
        found.append(Head(where, kind, tuple(leaf.weight.shape), leaf.bias is not None))
    last = found[-1] if found else None
    classes = member.record.classes
    if last is not None and last.kind == "linear" and classes == last.shape[0]:
        found[-1] = replace(last, labels=True)
    return found


def _widest_heads(members: Sequence[Member]) -> tuple[Head, ...]:
    """The heads of all members, as wide as the widest."""
    first = _heads(members[0])
    widest = list(first)
    for member in members[1:]:
        own = _heads(member)
        if [_form(head) for head in own] != [_form(head) for head in first]:
            raise CheckpointError(
                f"{member.source.found.path} brings {_described(own)}, {members[0].source.found.path} brings "
                f"{_described(first)}; the adapters of a bank have heads of one form"
            )
        widest = [
            replace(one, shape=(max(one.shape[0], other.shape[0]), *one.shape[1:]))
            for one, other in zip(widest, own, strict=True)
        ]
    return tuple(widest)


def _form(head: Head) -> tuple[Any, ...]:
    return head.module, head.kind, head.bias, head.shape[1:], head.labels or head.shape[0]


def _described(heads: Sequence[Head]) -> str:
    return first_few([f"{head.module} {list(head.shape)}" for head in heads]) or "no head"


def _check_beyond(member: Member) -> None:
    """Raise where a checkpoint saves more than adapters and heads: an embedding with tokens of its own."""
    found = member.source.found
    if found.kind not in ("adakron", "bottleneck", "peft"):  # the others' files are read whole
        return
    from safetensors import safe_open

    with safe_open(found.weights, framework="numpy") as file:
        names = [name.removeprefix("base_model.model.") for name in file.keys()]  # noqa: SIM118 - no mapping
    modules = {name.rpartition(".")[0] for name in member.weights.tensors}
    beyond = [name for name in names
              if not any(part in name for part in _PARTS) and name.rpartition(".")[0] not in modules]  # fmt: skip
    if beyond:
        raise ExportError(
            f"{found.path} brings its own {beyond[0]}; the adapters of a bank share the embedding: export this one "
            "alone, with `adakron-export onnx`"
        )


def _share_backbone(first: Member, other: Member) -> None:
    """Let a member's backbone be the first one's in memory, after it was found to be the same.

    Raises:
        CheckpointError: The backbone is another one, or for another task.
    """
    path, task = other.source.found.path, first.record.task
    if other.record.task != task:
        raise CheckpointError(f"{path} is for {other.record.task}, the first adapter for {task}")
    if not same_weights(other.record.backbone, first.record.backbone):
        raise CheckpointError(
            f"{path} belongs to the backbone {other.source.found.backbone!r}, the first adapter to "
            f"{first.source.found.backbone!r}, whose weights are others; adapters of a bank share one backbone"
        )
    known = {_in_base(name): tensor for name, tensor in first.source.loaded.base.named_parameters()}
    for name, parameter in other.source.loaded.base.named_parameters():
        shared = known.get(_in_base(name))
        if shared is not None and parameter.data.equal(shared.data):
            parameter.data = shared.data


def _in_base(name: str) -> str:
    """The name that a parameter has in the backbone itself, where a layer of PEFT's lies around its module."""
    return name.replace(".base_layer.", ".")
