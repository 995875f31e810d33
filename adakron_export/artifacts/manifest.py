"""The manifest of an artifact: the records in it, and how they are read and written. Needs no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import msgspec

from adakron_export.errors import ArtifactError
from adakron_export.files.records import object_of, record_of
from adakron_export.graph.dtypes import DTYPES, FLOATING
from adakron_export.graph.keys import MULTI_HEAD_ATTENTION, PLAIN_ATTENTION
from adakron_export.graph.layout import IDS, BankLayout
from adakron_export.graph.targets import GraphSpec
from adakron_export.tasks import PAST, Task

Positive = Annotated[int, msgspec.Meta(gt=0, le=2**53)]

MANIFEST = "adakron_export.json"
PARITY = "parity.json"
CARD = "README.md"
CALIBRATION = "calibration.json"
LADDER = "accuracy.json"
SIGNATURE = "model.sig"  # of OpenSSF's model signing, which covers all other files
MODEL = "model.onnx"
MODEL_DATA = "model.onnx_data"
STACKS = "model.onnx_adapters"  # of a sealed bank
FORMAT_VERSION = 1
LAYOUTS = ("flat", "transformers.js")
ADAPTER_FOLDER = "adapters"  # of a bank: a folder for each
ADAKRON, NO_ADAPTER = "adakron", "none"  # kinds of adapters
BASE = "__base__"  # PEFT's name for the bare backbone
ADAPTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LARGEST_ROW = 2**33
_SPEC = tuple(row.name for row in fields(GraphSpec))  # which stand among the manifest's own keys


def _one_of(*names: str) -> msgspec.Meta:
    """What a text of a record may be."""
    return msgspec.Meta(pattern=f"^({'|'.join(names)})$")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """An input or output: its dtype as numpy names it, and its shape, dynamic axes by name."""

    name: str
    dtype: Annotated[str, _one_of("int64", "int32", "float32", "float16")]
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file the artifact was made from."""

    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Tuning:
    """How ONNX Runtime is fastest with an artifact on one machine; on others it counts for nothing.

    Attributes:
        processor: Its name, as of `describe_machine`.
        cores: Cores of the machine.
        threads: Threads per operator; ``None`` is ONNX Runtime's choice.
        spinning: Whether threads without work wait awake.
        attention: The form that attention is computed in; ``None`` is the exported one. Others are made while opening.
        disabled_optimizers: ONNX Runtime optimisers to leave off, in the place of the manifest's.
        speedup: Over the settings without it, and where that was measured.
        shapes: Texts and tokens, such as ``1x128``.
    """

    processor: str
    cores: int
    threads: Positive | None = None
    spinning: bool = True
    attention: Annotated[str, _one_of(PLAIN_ATTENTION, MULTI_HEAD_ATTENTION)] | None = None
    disabled_optimizers: tuple[str, ...] = ()
    speedup: float = 1.0
    shapes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Bank:
    """What a bank is: an artifact whose adapters are inputs of its graph.

    Attributes:
        layout: What the graph takes of each adapter.
        adapters: Ids by name. Without a file of stacks they are the order in which the folder's adapters are stacked.
        places: How many adapters the file of stacks has room for; ``None`` where the stacks are inputs.
    """

    layout: BankLayout
    adapters: dict[str, Annotated[int, msgspec.Meta(ge=0, le=2**20)]]
    places: Positive | None = None

    @property
    def first(self) -> str:
        """The adapter that the graph brings along, for programs that know nothing of banks."""
        return min((name for name in self.adapters if name != BASE), key=lambda name: self.adapters[name])

    @property
    def first_id(self) -> int:
        """Its id."""
        return self.adapters[self.first]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What `adakron_export.json` holds.

    Attributes:
        task: What the model is for, as the hub names it.
        spec: What the graph is; its fields stand among the manifest's own keys.
        inputs: Inputs in their order.
        outputs: Outputs in their order; always float32.
        adapter: The adapter's kind and configuration.
        adapter_source: The checkpoint's file; of a whole model its weights.
        backbone_source: The backbone's files.
        backbone: The backbone's name, without its folder.
        max_length: The longest input, in tokens.
        disabled_optimizers: ONNX Runtime optimisers to leave off.
        float_dtype: What everything is in that is not rounded to 8 or 4 bits.
        calibrated_on: The text that int8 or fp8 with fixed scales was calibrated on.
        tuning: What `tune` found.
        bank: What its adapters are, where it has many.
        plain_tokenizer: Whether ``tokenizer.json`` alone gives what transformers' tokenizer gives.
        versions: Versions of the packages that made it.
        files: sha256 of every file but the manifest itself.
    """

    task: str
    spec: GraphSpec
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    adapter: dict[str, Any]
    adapter_source: SourceFile
    backbone_source: tuple[SourceFile, ...]
    backbone: str
    max_length: Positive | None
    disabled_optimizers: tuple[str, ...] = ()
    float_dtype: Annotated[str, _one_of(*FLOATING)] = "fp32"
    calibrated_on: str | None = None
    tuning: Tuning | None = None
    bank: Bank | None = None
    plain_tokenizer: bool = False
    versions: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    @property
    def computes_in_half(self) -> bool:
        """Whether what is not in 8 bits is in half precision."""
        return self.float_dtype != "fp32"

    @property
    def bank_inputs(self) -> tuple[str, ...]:
        """The inputs of its graph that are no inputs of the model: those of a bank."""
        if self.bank is None:
            return ()
        stacks = self.bank.layout.stacks if self.bank.places is None else ()
        return (IDS, *(stack.name for stack in stacks))

    def without(self, adapters: Collection[str]) -> Manifest:
        """Of a bank: without some of its adapters and their files."""
        if self.bank is None or not adapters:
            return self
        left = {name: index for name, index in self.bank.adapters.items() if name not in adapters}
        prefixes = tuple(f"{ADAPTER_FOLDER}/{name}/" for name in adapters)
        files = {name: digest for name, digest in self.files.items() if not name.startswith(prefixes)}
        return replace(self, bank=replace(self.bank, adapters=left), files=files)

    def in_fp32(self) -> Manifest:
        """Of the graph that emulates this one in fp32."""
        bank = self.bank and replace(self.bank, layout=replace(self.bank.layout, dtype="float32"))
        inputs = tuple(replace(each, dtype="float32") if each.name.startswith(PAST) else each for each in self.inputs)
        return replace(self, spec=replace(self.spec, dtype="fp32"), float_dtype="fp32", bank=bank, inputs=inputs)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        content = asdict(self)
        if self.bank is None:
            del content["bank"]
        return {"task": content.pop("task"), **content.pop("spec"), **content}


def is_inside(name: str) -> bool:
    """Whether a file's name stays within its folder."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and path.as_posix() == name and "\\" not in name


def manifest_text(manifest: Manifest) -> str:
    """What its file holds."""
    return json.dumps({"format_version": FORMAT_VERSION, **manifest.to_json()}, indent=2) + "\n"


def read_manifest(path: Path, text: bytes) -> Manifest:
    """The manifest of a file's bytes.

    Raises:
        ArtifactError: They are no manifest that this release reads.
    """
    try:
        content = object_of(text)
        version = content.pop("format_version")
    except (ValueError, KeyError) as error:
        raise ArtifactError(f"{path}: not a readable manifest ({type(error).__name__}: {error})") from error
    if version != FORMAT_VERSION:
        raise ArtifactError(
            f"{path}: format version {version}, this release reads {FORMAT_VERSION}; "
            "upgrade adakron-export, or export the checkpoint again"
        )
    try:
        manifest = manifest_of(content)
    except ValueError as error:
        raise ArtifactError(f"{path}: not a readable manifest ({error})") from error
    if not manifest.files:
        raise ArtifactError(f"{path}: lists no files; export the checkpoint again")
    outside = [name for name in manifest.files if not is_inside(name)]
    if outside:
        raise ArtifactError(f"{path}: names files outside its folder: {', '.join(outside)}")
    return manifest


def manifest_of(content: Mapping[str, Any]) -> Manifest:
    """The manifest of plain data, as of `Manifest.to_json`.

    Raises:
        ValueError: A value is missing, unknown, of another type or impossible.
    """
    spec = {name: content[name] for name in _SPEC if name in content}
    if type(spec.get("opset")) is not int or not {"target", "dtype"} <= spec.keys():
        raise ValueError("target, dtype or opset lacks")
    rest = {name: value for name, value in content.items() if name not in _SPEC}
    manifest = record_of({**rest, "spec": spec}, Manifest)
    if manifest.spec.dtype not in DTYPES:
        raise ValueError(f"dtype is {manifest.spec.dtype!r:.60}")
    if manifest.task not in list(Task):
        raise ValueError(f"task is {manifest.task!r:.60}")
    _check_adapter(manifest.adapter)
    check_tensors(manifest.inputs, manifest.outputs)
    if manifest.bank is not None:
        check_bank(manifest.bank)
    return manifest


def _check_adapter(adapter: Mapping[str, Any]) -> None:
    kind = adapter.get("kind", ADAKRON)  # which the first manifests did not say
    needed = {ADAKRON: {"r", "k", "num_experts"}, NO_ADAPTER: set()}.get(
        str(kind).removesuffix("-reference"), {"peft_type"}
    )
    lacking = needed - adapter.keys()
    if lacking:
        raise ValueError(f"adapter lacks {', '.join(sorted(lacking))}")


def check_bank(bank: Bank) -> None:
    """Raise unless a bank has adapters with names and ids of their own, and stacks of a possible size.

    Raises:
        ValueError: Names or ids lack or repeat, or a stack is too large.
    """
    ids = sorted(bank.adapters.values())
    places = len(ids) if bank.places is None else bank.places
    if not {*bank.adapters} - {BASE} or len(set(ids)) < len(ids) or ids[-1] >= places:
        raise ValueError("bank: adapters lack, or two have one id, or an id has no place")
    wrong = [name for name in bank.adapters if name != BASE and not ADAPTER_NAME.fullmatch(name)]
    if wrong:
        raise ValueError(f"bank: {wrong[0]!r:.80} is no name of an adapter")
    names = [stack.name for stack in bank.layout.stacks]
    if len(set(names)) < len(names) or not bank.layout.activations or bank.layout.row_bytes > LARGEST_ROW:
        raise ValueError("bank: its stacks lack, repeat, or are larger than any adapter")


def check_tensors(*sides: tuple[TensorInfo, ...]) -> None:
    """Raise unless inputs, and outputs, have names of their own.

    Raises:
        ValueError: There are none, or one repeats.
    """
    for infos in sides:
        if not infos or len({info.name for info in infos}) < len(infos):
            raise ValueError("inputs or outputs lack or repeat")
