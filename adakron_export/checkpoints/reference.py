"""Reads the files of the AdaKron reference implementation.

Its two code bases write the same module under different names (see docs/reference/checkpoints.md):

* GLUE (encoders): ``MoA_A1`` (r/k wide), ``MoA_A2`` (k wide), ``MoA_B``; the product is a2 (x) a1.
* NLG (GPT-2): ``MoA_A`` (k wide, the mixture), ``MoA_A1`` (r/k wide), ``MoA_B``; the product is a1 (x) a2.

Where both small networks are equally wide, only the names tell the order.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from adakron_export.adapter.bounds import check_tensors_of_file
from adakron_export.adapter.config import KronOrder
from adakron_export.errors import CheckpointError, first_few

PARTIAL_NAME = "pytorch_model_expert_soup.bin"
_KEY = re.compile(
    r"(?P<parent>.+)\.ExpertSoup\.(?P<net>MoA_(?:A|A1|A2|B))\."
    r"(?:deepspeed_experts\.(?P<expert>\d+)\.(?P<part>weight|bias)|(?P<score>expert_score_weight))"
)
# Buffers that older transformers saved and newer ones compute.
_STRAY = re.compile(r"(.*\.)?(position_ids|token_type_ids|attn\.bias|attn\.masked_bias|rotary_emb\.inv_freq)")


@dataclass(frozen=True, slots=True)
class Small:
    """One small network: ``weight [experts, out, in]``, ``bias [experts, out]``, ``scores [experts]``."""

    weight: Tensor
    bias: Tensor
    scores: Tensor

    @property
    def experts(self) -> int:
        """How many networks are in the mixture."""
        return self.weight.shape[0]

    @property
    def width(self) -> int:
        """Width of the output."""
        return self.weight.shape[1]


@dataclass(frozen=True, slots=True)
class ReferenceAdapter:
    """The adapter of one layer."""

    a1: Small
    a2: Small
    up: Small


@dataclass(frozen=True, slots=True)
class ReferenceFile:
    """What one file holds.

    Attributes:
        adapters: The adapters, by the name of the module that owns them, such as ``bert.encoder.layer.0.output``.
        others: All other tensors: a head, or a whole backbone.
        r: Width of the Kronecker product.
        k: Width of the second small network.
        order: Order of the product: the name of the left factor comes first.
        num_experts: Networks in the mixture.
    """

    adapters: Mapping[str, ReferenceAdapter]
    others: Mapping[str, Tensor]
    r: int
    k: int
    order: KronOrder
    num_experts: int


def is_reference_name(path: Path) -> bool:
    """Whether a file's name is one that PyTorch checkpoints carry."""
    return path.suffix in {".bin", ".pt", ".pth"}


def read_reference(path: Path) -> ReferenceFile:
    """Read a file of the reference implementation.

    Raises:
        CheckpointError: The file cannot be read safely, or does not hold complete AdaKron adapters.
    """
    state = _plain_names(read_pickled(path))
    tensors: dict[str, dict[str, dict[str, Tensor]]] = defaultdict(lambda: defaultdict(dict))
    others: dict[str, Tensor] = {}
    unknown: list[str] = []
    for key, tensor in state.items():
        match = _KEY.fullmatch(key)
        if match:
            slot = "scores" if match["score"] else f"{match['part']}.{match['expert']}"
            tensors[match["parent"]][match["net"]][slot] = tensor
        elif "ExpertSoup" in key:
            unknown.append(key)
        elif not _STRAY.fullmatch(key):
            others[key] = tensor
    if unknown:
        raise CheckpointError(f"{path}: unknown adapter tensors: {first_few(unknown)}")
    if not tensors:
        raise CheckpointError(
            f"{path}: no AdaKron adapter is in this file (no key holds 'ExpertSoup'); "
            f"its keys begin with {first_few(state, 3)}"
        )
    return _assemble(path, tensors, others)


def read_pickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a pickled state dict, read with ``weights_only=True``: nothing in the file is executed.

    Raises:
        CheckpointError: The file cannot be read so, or a tensor is not plain, real and finite.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the reader of pickles raises whatever its bytes lead it to
        reason = (str(error) or type(error).__name__).splitlines()[0][:160]
        raise CheckpointError(
            f"{path}: not a file of plain tensors that can be read safely ({reason}); nothing in it was executed"
        ) from error
    if isinstance(state, dict) and isinstance(state.get("model_state_dict"), dict):
        state = state["model_state_dict"]
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: holds a {type(state).__name__}, not a state dict")
    kept = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    if not kept:
        raise CheckpointError(f"{path}: holds no tensors; its keys begin with {first_few(map(str, state), 3)}")
    named = {str(key): value for key, value in kept.items()}
    check_tensors_of_file(path, named)
    return named


def _plain_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without what `DistributedDataParallel` and `torch.compile` put in front."""
    plain: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = key
        while name.startswith(("module.", "_orig_mod.")):
            name = name.partition(".")[2]
        plain[name.replace("lm_head.decoder.", "lm_head.")] = tensor
    return plain


def _assemble(
    path: Path, tensors: Mapping[str, Mapping[str, dict[str, Tensor]]], others: dict[str, Tensor]
) -> ReferenceFile:
    networks = {frozenset(nets) for nets in tensors.values()}
    glue, nlg = frozenset({"MoA_A1", "MoA_A2", "MoA_B"}), frozenset({"MoA_A", "MoA_A1", "MoA_B"})
    if networks == {glue}:
        order, a2_name = KronOrder.A2_A1, "MoA_A2"
    elif networks == {nlg}:
        order, a2_name = KronOrder.A1_A2, "MoA_A"
    else:
        odd = [
            f"{owner} has {', '.join(sorted(nets))}"
            for owner, nets in tensors.items()
            if frozenset(nets) not in (glue, nlg)
        ]
        raise CheckpointError(
            f"{path}: incomplete adapters: each layer needs MoA_A1, MoA_A2, MoA_B (encoders) or MoA_A, MoA_A1, "
            f"MoA_B (GPT-2), the same in every layer; {first_few(odd or ['the layers differ'], 3)}"
        )
    adapters = {
        owner: ReferenceAdapter(
            a1=_small(path, owner, "MoA_A1", nets),
            a2=_small(path, owner, a2_name, nets),
            up=_small(path, owner, "MoA_B", nets),
        )
        for owner, nets in tensors.items()
    }
    sizes = {owner: _sizes(path, owner, adapter) for owner, adapter in adapters.items()}
    if len(set(sizes.values())) > 1:
        odd = [f"{owner}: r, k, experts = {size}" for owner, size in sizes.items()]
        raise CheckpointError(f"{path}: the layers' adapters differ in size: {first_few(odd, 3)}")
    r, k, experts = next(iter(sizes.values()))
    return ReferenceFile(adapters, others, r=r, k=k, order=order, num_experts=experts)


def _small(path: Path, owner: str, name: str, nets: Mapping[str, dict[str, Tensor]]) -> Small:
    slots = nets[name]
    experts = 1 + max((int(slot.partition(".")[2]) for slot in slots if "." in slot), default=-1)
    if experts > len(slots):
        raise CheckpointError(
            f"{path}: {owner}.ExpertSoup.{name} has {len(slots)} tensors and an expert {experts - 1}"
        )
    wanted = [f"{part}.{expert}" for expert in range(max(experts, 1)) for part in ("weight", "bias")]
    missing = [slot for slot in wanted if slot not in slots]
    if missing:
        raise CheckpointError(f"{path}: missing tensors of {owner}.ExpertSoup.{name}: {first_few(missing)}")
    weights = [slots[f"weight.{expert}"] for expert in range(experts)]
    biases = [slots[f"bias.{expert}"] for expert in range(experts)]
    scores = slots.get("scores", torch.zeros(experts))
    shapes = {tuple(weight.shape) for weight in weights}
    out = weights[0].shape[0] if weights[0].ndim == 2 else -1
    fits = len(shapes) == 1 and out > 0 and all(tuple(bias.shape) == (out,) for bias in biases)
    if not fits or tuple(scores.shape) != (experts,):
        raise CheckpointError(
            f"{path}: misshapen tensors in {owner}.ExpertSoup.{name}: weights {sorted(shapes)}, biases "
            f"{sorted({tuple(bias.shape) for bias in biases})}, scores {tuple(scores.shape)} for {experts} expert(s)"
        )
    return Small(torch.stack(weights).float(), torch.stack(biases).float(), scores.float())


def _sizes(path: Path, owner: str, adapter: ReferenceAdapter) -> tuple[int, int, int]:
    r, k = adapter.up.weight.shape[2], adapter.a2.width
    hidden = adapter.up.width
    inputs = {adapter.a1.weight.shape[2], adapter.a2.weight.shape[2]}
    if adapter.a1.width * k != r or inputs != {hidden}:
        raise CheckpointError(
            f"{path}: misshapen adapter at {owner}: networks {adapter.a1.width} and {k} wide, reading "
            f"{sorted(inputs)}, must multiply to the up-projection's input {r} and read its output {hidden}"
        )
    if adapter.a1.experts > 1 or adapter.up.experts > 1:
        raise CheckpointError(
            f"{path}: {owner} has several experts outside the k-wide network, which AdaKron does not define"
        )
    return r, k, adapter.a2.experts
