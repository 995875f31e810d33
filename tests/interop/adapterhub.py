"""Writes checkpoints with AdapterHub's own library, and what it answers: `python tests/interop/adapterhub.py FOLDER`.

It runs in an environment of its own, with `pip install torch==2.13.0 adapters==1.3.0`, which brings an older
transformers than this package needs. `tests/adapterhub/` is what it wrote.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import adapters
import torch
import transformers
from adapters import (
    BnConfig,
    CompacterConfig,
    CompacterPlusPlusConfig,
    DoubleSeqBnConfig,
    IA3Config,
    LoRAConfig,
    ParBnConfig,
    SeqBnConfig,
    SeqBnInvConfig,
)
from adapters.composition import Fuse, Stack
from safetensors.torch import save_file

_ENCODER = {
    "vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 40, "initializer_range": 0.3, "pad_token_id": 1,
}  # fmt: skip
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "bert": _ENCODER,
    "roberta": {**_ENCODER, "type_vocab_size": 1},
    "distilbert": {**_ENCODER, "dim": 24, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
    "deberta-v2": {
        **_ENCODER, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8,
        "norm_rel_ebd": "layer_norm", "share_att_key": True, "position_biased_input": False, "type_vocab_size": 0,
    },
    "gpt2": {"vocab_size": 60, "n_embd": 24, "n_layer": 2, "n_head": 2, "n_inner": 32, "n_positions": 40,
             "initializer_range": 0.3},
    "vit": {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
            "image_size": 8, "patch_size": 4, "initializer_range": 0.3, "num_channels": 1},
}  # fmt: skip
_BOTH = {"mh_adapter": True, "output_adapter": True, "reduction_factor": 2, "non_linearity": "relu"}
CASES: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "houlsby": ("bert", DoubleSeqBnConfig(reduction_factor=2), {}),
    "pfeiffer": ("bert", SeqBnConfig(reduction_factor=2), {}),
    "parallel": ("bert", ParBnConfig(reduction_factor=2), {}),
    "fixed-scaling": ("bert", SeqBnConfig(reduction_factor=2, scaling=0.5), {}),
    "learned-scaling": ("bert", SeqBnConfig(reduction_factor=2, scaling="learned"), {}),
    "channel-scaling": ("bert", SeqBnConfig(reduction_factor=2, scaling="channel"), {}),
    "compacter": ("bert", CompacterConfig(reduction_factor=2), {}),
    "compacter-plus-plus": ("bert", CompacterPlusPlusConfig(reduction_factor=2), {}),
    "phm-own-rules": ("bert", CompacterConfig(reduction_factor=2, shared_phm_rule=False,
                                              factorized_phm_rule=True), {}),
    "phm-shared-weights": ("bert", CompacterConfig(reduction_factor=2, shared_W_phm=True, phm_bias=False), {}),
    "phm-whole-weights": ("bert", CompacterConfig(reduction_factor=2, factorized_phm_W=False), {}),
    "adapter-plus": ("bert", BnConfig(**{**_BOTH, "original_ln_before": True, "original_ln_after": False,
                                         "residual_before_ln": False, "scaling": "channel"}), {}),
    "gated": ("bert", SeqBnConfig(reduction_factor=2, use_gating=True), {}),
    "own-norms": ("bert", BnConfig(**_BOTH, ln_before=True, ln_after=True), {}),
    "residual-in-own-norm": ("bert", BnConfig(**_BOTH, ln_after=True, adapter_residual_before_ln=True), {}),
    "residual-after-norm": ("bert", BnConfig(**_BOTH, original_ln_before=True, residual_before_ln=False), {}),
    "residual-post-add": ("bert", BnConfig(**_BOTH, original_ln_before=True, residual_before_ln="post_add"), {}),
    "no-norm-after": ("bert", BnConfig(**_BOTH, original_ln_before=True, original_ln_after=False), {}),
    "parallel-both": ("bert", BnConfig(**_BOTH, is_parallel=True, scaling=2.0), {}),
    "leave-out": ("bert", SeqBnConfig(reduction_factor=2, leave_out=[0]), {}),
    "by-layer": ("bert", SeqBnConfig(reduction_factor={"1": 4, "default": 2}), {}),
    "leaky-relu": ("bert", SeqBnConfig(reduction_factor=2, non_linearity="leakyrelu"), {}),
    "mish": ("bert", SeqBnConfig(reduction_factor=2, non_linearity="mish"), {}),
    "head-pooled": ("bert", SeqBnConfig(reduction_factor=2), {"use_pooler": True, "layers": 1}),
    "head-deep": ("bert", SeqBnConfig(reduction_factor=2), {"layers": 3, "activation_function": "gelu"}),
    "head-multilabel": ("bert", SeqBnConfig(reduction_factor=2), {"head": "multilabel"}),
    "head-tagging": ("bert", SeqBnConfig(reduction_factor=2), {"head": "tagging"}),
    "head-questions": ("bert", SeqBnConfig(reduction_factor=2), {"head": "qa"}),
    "head-static": ("bert", SeqBnConfig(reduction_factor=2), {"head": "static"}),
    "lora": ("bert", LoRAConfig(r=4, alpha=16), {}),
    "lora-everywhere": ("bert", LoRAConfig(r=4, alpha=8, intermediate_lora=True, output_lora=True,
                                           attn_matrices=["q", "k", "v"], leave_out=[1]), {}),
    "ia3": ("bert", IA3Config(), {}),
    "distilbert-lora": ("distilbert", LoRAConfig(r=4, alpha=16, output_lora=True), {}),
    "gpt2-lora": ("gpt2", LoRAConfig(r=4, alpha=16, selfattn_lora=False, intermediate_lora=True, output_lora=True),
                  {"head": "none"}),
    "invertible": ("bert", SeqBnInvConfig(reduction_factor=2), {}),
    "distilbert-invertible": ("distilbert", SeqBnInvConfig(reduction_factor=2, inv_adapter_reduction_factor=3), {}),
    "roberta-houlsby": ("roberta", DoubleSeqBnConfig(reduction_factor=2), {}),
    "distilbert-houlsby": ("distilbert", DoubleSeqBnConfig(reduction_factor=2), {}),
    "distilbert-pfeiffer": ("distilbert", SeqBnConfig(reduction_factor=2), {}),
    "distilbert-parallel": ("distilbert", ParBnConfig(reduction_factor=2), {}),
    "deberta-v2-pfeiffer": ("deberta-v2", BnConfig(**_BOTH, original_ln_before=True), {}),
    "gpt2-pfeiffer": ("gpt2", BnConfig(**_BOTH, original_ln_before=True), {"head": "none"}),
    "gpt2-parallel": ("gpt2", BnConfig(**_BOTH, is_parallel=True, scaling=2.0), {"head": "none"}),
    "vit-houlsby": ("vit", DoubleSeqBnConfig(reduction_factor=2), {"head": "image"}),
    "vit-adapter-plus": ("vit", BnConfig(**{**_BOTH, "original_ln_before": True, "original_ln_after": False,
                                            "residual_before_ln": False, "scaling": "channel"}), {"head": "image"}),
}  # fmt: skip


SETUPS: dict[str, tuple[str, Any, Any]] = {
    "fuse-static": ("bert", SeqBnConfig(reduction_factor=2), "static"),
    "fuse-dynamic": ("bert", SeqBnConfig(reduction_factor=2), "dynamic"),
    "fuse-houlsby": ("distilbert", DoubleSeqBnConfig(reduction_factor=2, scaling=0.5), "dynamic"),
    "stack": ("bert", SeqBnConfig(reduction_factor=2, scaling="learned"), None),
    "stack-houlsby": ("roberta", DoubleSeqBnConfig(reduction_factor=2), None),
}


def backbone(kind: str) -> Path:
    """A tiny random backbone, once for each architecture."""
    place = Path(f"backbone-{kind}")
    if not place.is_dir():
        torch.manual_seed(1)
        config = transformers.CONFIG_MAPPING[kind](**ARCHITECTURES[kind])
        classes = {"gpt2": transformers.GPT2LMHeadModel}
        model = classes[kind](config) if kind in classes else transformers.AutoModel.from_config(config)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.2)
        model.save_pretrained(place)
    return place


def with_head(place: Path, kind: str, options: dict[str, Any]) -> Any:
    """The backbone as AdapterHub's model, with a head called ``task``."""
    options = dict(options)
    head = options.pop("head", "classification")
    if head in ("static", "none"):
        classes = {"bert": transformers.BertForSequenceClassification, "gpt2": transformers.GPT2LMHeadModel}
        model = classes[kind].from_pretrained(str(place), **({"num_labels": 3} if head == "static" else {}))
        adapters.init(model)
        return model
    model = adapters.AutoAdapterModel.from_pretrained(str(place))
    labels = {index: f"label {index}" for index in range(3)}
    if head == "tagging":
        model.add_tagging_head("task", num_labels=3, id2label=labels)
    elif head == "qa":
        model.add_qa_head("task", num_labels=2)
    elif head == "image":
        model.add_image_classification_head("task", num_labels=3, id2label=labels)
    else:
        model.add_classification_head(
            "task", num_labels=3, id2label=labels, multilabel=head == "multilabel", **options
        )
    return model


def write_setup(name: str) -> None:
    """A case of several adapters, stacked or fused."""
    kind, config, fused = SETUPS[name]
    place = backbone(kind)
    torch.manual_seed(len(name))
    model = with_head(place, kind, {})
    for adapter in ("one", "two"):
        model.add_adapter(adapter, config=config)
    setup: Any = Stack("one", "two")
    if fused is not None:
        setup = Fuse("one", "two")
        model.add_adapter_fusion(setup, config=fused)
    model.set_active_adapters(setup)
    model.eval()
    for key, tensor in model.state_dict().items():
        if any(f".{part}." in key for part in ("one", "two", "task", "one,two")):
            torch.nn.init.normal_(tensor, std=0.2)
    inputs = {"input_ids": torch.randint(4, 60, (3, 11)), "attention_mask": torch.ones(3, 11, dtype=torch.int64)}
    inputs["attention_mask"][1, 6:] = 0
    inputs["input_ids"][1, 6:] = 1
    with torch.no_grad():
        adapted = model(**inputs).logits
        model.set_active_adapters("one")
        single = model(**inputs, head="task").logits
        model.set_active_adapters(setup)
    assert (adapted - single).abs().max() > 0.01, name
    case = Path(name)
    model.save_adapter_setup(str(case), setup, head_setup="task")
    save_file(inputs, case / "inputs.safetensors")
    save_file({"logits": adapted.contiguous()}, case / "expected.safetensors")
    (case / "case.json").write_text(json.dumps({"backbone": place.name, "adapters": adapters.__version__}) + "\n")


def write(name: str) -> None:
    """One case: the checkpoint, inputs, and what the library makes of them."""
    kind, config, options = CASES[name]
    place = backbone(kind)
    torch.manual_seed(len(name))
    model = with_head(place, kind, options)
    model.add_adapter("task", config=config)
    model.set_active_adapters("task")
    model.eval()
    trained = [key for key in model.state_dict() if "task" in key or key.startswith("classifier.")]
    for key in trained:
        torch.nn.init.normal_(model.state_dict()[key], std=0.4)
    if kind == "vit":
        inputs = {"pixel_values": torch.randn(3, 1, 8, 8)}
    else:
        inputs = {"input_ids": torch.randint(4, 60, (3, 11)), "attention_mask": torch.ones(3, 11, dtype=torch.int64)}
        inputs["attention_mask"][1, 6:] = 0
        inputs["input_ids"][1, 6:] = 1
    with torch.no_grad():
        adapted = model(**inputs)
        model.set_active_adapters(None)
        bare = model(**inputs, **({"head": "task"} if hasattr(model, "heads") else {}))
    keys = [key for key in ("logits", "start_logits", "end_logits") if key in adapted]
    assert (adapted[keys[0]] - bare[keys[0]]).abs().max() > 0.01, name
    case = Path(name)
    model.save_adapter(str(case), "task", with_head=options.get("head") != "none")
    save_file({key: tensor.contiguous() for key, tensor in inputs.items()}, case / "inputs.safetensors")
    save_file({key: adapted[key].contiguous() for key in keys}, case / "expected.safetensors")
    (case / "case.json").write_text(json.dumps({"backbone": place.name, "adapters": adapters.__version__}) + "\n")


if __name__ == "__main__":
    os.chdir(sys.argv[1])  # the library writes down where the backbone is
    for case in CASES:
        write(case)
        print(case)
    for case in SETUPS:
        write_setup(case)
        print(case)
