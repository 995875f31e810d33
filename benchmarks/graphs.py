"""The graphs that benchmarks/latency.py compares: ours, those of other tools, and some built by hand."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import shutil
import subprocess
import sys
import venv
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes import common
from peft import get_peft_model
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

from adakron_export import AdaKronConfig, ExportSettings, export_onnx
from adakron_export.artifacts.onnx_file import write_model
from adakron_export.checkpoints.pooling import read_pooling
from adakron_export.checkpoints.task_model import TaskModel
from adakron_export.graph.build import build_graph, torch_dtype
from adakron_export.graph.passes.quantize import DynamicInt8Pass
from adakron_export.graph.passes.rewriting import initializer
from adakron_export.graph.targets import GraphSpec
from adakron_export.tasks import Task

DEMO = Path(__file__).parents[1] / "models" / "demo"
NAMES = ("input_ids", "attention_mask", "token_type_ids")
SHAPE = {0: "batch_size", 1: "sequence_length"}


MISSING = 3  # the exit code of a side that needs what is not installed


def once(name: str) -> Callable[[Callable[[Path, Path], None]], Callable[[Path], Path]]:
    """Make a file or folder of this name once; what makes it is given the folder and the place."""

    def decorate(make: Callable[[Path, Path], None]) -> Callable[[Path], Path]:
        @functools.wraps(make)
        def made(folder: Path) -> Path:
            place = folder / name
            if not place.exists():
                make(folder, place)
            return place

        return made

    return decorate


@once("checkpoint")
def checkpoint(folder: Path, place: Path) -> None:
    """A BERT-base-sized classifier with adapters in every layer."""
    torch.manual_seed(0)
    model: Any = BertForSequenceClassification(BertConfig())
    model.save_pretrained(folder / "backbone")
    for file in DEMO.glob("*token*"):  # for calibrating: all its words are among BERT's 30,522
        shutil.copyfile(file, folder / "backbone" / file.name)
    model.name_or_path = str(folder / "backbone")
    config = AdaKronConfig(r=48, k=4, task_type="SEQ_CLS", init_weights=False)
    get_peft_model(model, config).save_pretrained(str(place))


@once("texts.jsonl")
def texts(folder: Path, place: Path) -> None:
    """Text to calibrate on, without labels."""
    lines = (DEMO / "train.tsv").read_text(encoding="utf-8").splitlines()[1:]
    rows = (json.dumps({"text": line.rpartition("\t")[0]}) + "\n" for line in lines)
    place.write_text("".join(rows), encoding="utf-8")


@once("artifact")
def artifact(folder: Path, place: Path) -> None:
    """Ours."""
    export_onnx(checkpoint(folder), place, target="ort-cpu", settings=ExportSettings(validate=False))


@once("artifact-int8")
def artifact_int8(folder: Path, place: Path) -> None:
    """Ours in int8."""
    export_onnx(checkpoint(folder), place, target="ort-cpu", dtype="int8", settings=ExportSettings(validate=False))


@once("artifact-openvino")
def artifact_openvino(folder: Path, place: Path) -> None:
    """Ours for OpenVINO."""
    export_onnx(checkpoint(folder), place, target="openvino", settings=ExportSettings(validate=False))


@once("artifact-openvino-bf16")
def artifact_openvino_bf16(folder: Path, place: Path) -> None:
    """Ours for OpenVINO, where the processor has bf16."""
    needs("openvino")
    import openvino as ov

    if "BF16" not in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        sys.exit(MISSING)
    export_onnx(checkpoint(folder), place, target="openvino", dtype="bf16", settings=ExportSettings(validate=False))


@once("artifact-openvino-int8")
def artifact_openvino_int8(folder: Path, place: Path) -> None:
    """Ours for OpenVINO in int8."""
    export_onnx(
        checkpoint(folder),
        place,
        target="openvino",
        dtype="int8",
        data=str(texts(folder)),
        settings=ExportSettings(validate=False),
    )


@once("bare")
def bare(folder: Path, place: Path) -> None:
    """Ours, without adapters."""
    place.mkdir()
    write_bare(checkpoint(folder), place, target="ort-cpu", dtype="fp32")


def write_bare(checkpoint: Path, folder: Path, *, target: str, dtype: str) -> None:
    """The graph of a checkpoint's backbone and head alone."""
    from adakron_export import load_model

    spec = GraphSpec(target, dtype).complete()
    model = load_model(checkpoint).unload().to(torch_dtype(spec))
    whole = TaskModel(model, Task.TEXT_CLASSIFICATION, pooling=read_pooling(folder)).eval()
    write_model(build_graph(whole, spec), folder)


def bare_model(folder: Path, attention: str = "sdpa") -> Any:
    """The backbone alone."""
    checkpoint(folder)
    return BertForSequenceClassification.from_pretrained(folder / "backbone", attn_implementation=attention).eval()


@once("bare-fused-qkv")
def bare_fused_qkv(folder: Path, place: Path) -> None:
    """The same with one product for queries, keys and values."""
    model = ir.load(bare(folder) / "model.onnx")
    for first in list(model.graph):
        source = first.inputs[0] if first.op_type == "MatMul" else None
        products = [use.node for use in source.uses() if use.node.op_type == "MatMul"] if source is not None else []
        if len(products) != 3 or first is not products[0]:
            continue
        weights = [product.inputs[1].const_value.numpy() for product in products]  # type: ignore[union-attr]
        parts = initializer(model.graph, "three_parts", np.array([weight.shape[1] for weight in weights]))
        weight = initializer(model.graph, f"{first.outputs[0].name}_fused", np.concatenate(weights, 1))
        fused = ir.node("MatMul", [source, weight])
        split = ir.node("Split", [fused.outputs[0], parts], {"axis": -1}, num_outputs=3)
        model.graph.insert_before(first, [fused, split])
        for product, output in zip(products, split.outputs, strict=True):
            product.outputs[0].replace_all_uses_with(output)
            model.graph.remove(product, safe=True)
    place.mkdir()
    write_model(model, place)


@once("products")
def products(folder: Path, place: Path) -> None:
    """The matrix products of the layers and nothing else: what no graph can be faster than."""
    write_products(folder, place)


@once("products-int8")
def products_int8(folder: Path, place: Path) -> None:
    """The same in int8."""
    write_products(folder, place, DynamicInt8Pass())


def write_products(folder: Path, place: Path, *passes: ir.passes.InPlacePass) -> None:
    """A chain of the bare model's products, each of which reads what the one before puts out."""
    model = ir.load(bare(folder) / "model.onnx")
    graph = model.graph
    weights = [node.inputs[1] for node in graph
               if node.op_type == "MatMul" and node.inputs[1] is not None and node.inputs[1].const_value]  # fmt: skip
    ids = next(value for value in graph.inputs if value.name == "input_ids")
    chain = [ir.node("Gather", [graph.initializers["bert.embeddings.word_embeddings.weight"], ids])]
    for weight in weights:
        chain.append(ir.node("MatMul", [chain[-1].outputs[0], weight]))
    logits = chain[-1].outputs[0]
    graph.outputs.clear()
    graph.outputs.append(logits)
    graph.remove(list(graph), safe=True)
    graph.extend(chain)
    logits.name, logits.dtype = "logits", ir.DataType.FLOAT
    logits.shape = ir.Shape(["batch_size", "sequence_length", weights[-1].shape[1]])  # type: ignore[index]
    common.RemoveUnusedNodesPass()(model)
    for each in passes:
        each(model)
    place.mkdir()
    write_model(model, place)


@once("bare-attention.onnx")
def bare_standard_attention(folder: Path, place: Path) -> None:
    """The exporter's, with the standard operator Attention."""
    torch_export(bare_model(folder), place, opset=23)


@once("bare-contrib.onnx")
def bare_contrib_attention(folder: Path, place: Path) -> None:
    """ONNX Runtime's own optimiser, which finds its operator Attention: queries, keys and values fused."""
    optimised(bare_eager(folder), place, multi_head=False)


@once("bare-mha.onnx")
def bare_multi_head_attention(folder: Path, place: Path) -> None:
    """The same with its operator MultiHeadAttention."""
    optimised(bare_eager(folder), place, multi_head=True)


@once("bare-eager.onnx")
def bare_eager(folder: Path, place: Path) -> None:
    """What ONNX Runtime's optimiser knows to read: the older exporter, with attention in plain operators."""
    model = WithNames(bare_model(folder, "eager")).eval()
    axes = dict.fromkeys(NAMES, SHAPE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, sample(), place, dynamo=False, opset_version=17, input_names=list(NAMES),
                          output_names=["logits"], dynamic_axes=axes)  # fmt: skip


@once("plain.onnx")
def plain(folder: Path, place: Path) -> None:
    """torch.onnx.export of the model as it was trained."""
    from adakron_export import load_model

    torch_export(load_model(checkpoint(folder)).get_base_model(), place, opset=20)


@once("ort-optimised.onnx")
def ort_optimised(folder: Path, place: Path) -> None:
    """ONNX Runtime's own optimiser on the plain export."""
    optimised(plain(folder), place, multi_head=False, skip_layer_norm=True)


@once("slimmed.onnx")
def slimmed(folder: Path, place: Path) -> None:
    """Onnxslim on the plain export."""
    needs("onnxslim")
    import onnxslim

    with contextlib.redirect_stdout(sys.stderr):
        onnxslim.slim(str(plain(folder)), str(place))


@once("optimum")
def optimum(folder: Path, place: Path) -> None:
    """optimum-onnx's export of the backbone; it knows no adapters, and has an environment of its own."""
    checkpoint(folder)
    venv.create(folder / "optimum-venv", with_pip=True)
    binaries = folder / "optimum-venv" / "bin"
    packages = Path(__file__).with_name("requirements-optimum.txt")
    subprocess.run([binaries / "python", "-m", "pip", "install", "--quiet", "-r", packages], check=True)
    options = ["--task", "text-classification", "--model", str(folder / "backbone"), str(place)]
    subprocess.run([str(binaries / "optimum-cli"), "export", "onnx", *options], check=True, stdout=sys.stderr)


@once("openvino-int8.xml")
def openvino_int8(folder: Path, place: Path) -> None:
    """Our graph, quantised by NNCF for OpenVINO."""
    needs("openvino", "nncf")
    import nncf
    import openvino as ov

    rng = np.random.default_rng(0)
    shapes = [(1, int(tokens)) for tokens in rng.integers(8, 128, size=64)]
    batches = [dict(zip(NAMES, (rng.integers(1000, 30000, shape), np.ones(shape, "i8"), np.zeros(shape, "i8")),
                        strict=True)) for shape in shapes]  # fmt: skip
    model = ov.Core().read_model(artifact(folder) / "model.onnx")
    quantised = nncf.quantize(model, nncf.Dataset(batches), model_type=nncf.ModelType.TRANSFORMER, subset_size=64)
    ov.save_model(quantised, place, compress_to_fp16=False)


class WithNames(torch.nn.Module):
    """A classifier whose inputs are in our order, and whose output is the logits."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor) -> Any:
        """The logits."""
        return self.model(input_ids=ids, attention_mask=mask, token_type_ids=types).logits


def sample() -> tuple[Tensor, Tensor, Tensor]:
    """A batch to trace on."""
    ids = torch.randint(1000, 30000, (2, 16))
    return ids, torch.ones_like(ids), torch.zeros_like(ids)


def torch_export(model: torch.nn.Module, file: Path, *, opset: int, external_data: bool = False) -> None:
    """PyTorch's exporter."""
    shapes = ({0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("length", max=512)},) * 3
    torch.onnx.export(WithNames(model).eval(), sample(), file, dynamo=True, opset_version=opset, input_names=NAMES,
                      output_names=["logits"], dynamic_shapes=shapes, external_data=external_data,
                      verbose=False)  # fmt: skip


def optimised(source: Path, file: Path, *, multi_head: bool, skip_layer_norm: bool = False) -> None:
    """ONNX Runtime's transformers optimiser."""
    from onnxruntime.transformers import optimizer
    from onnxruntime.transformers.fusion_options import FusionOptions

    options = FusionOptions("bert")
    options.enable_skip_layer_norm = options.enable_embed_layer_norm = skip_layer_norm
    options.use_multi_head_attention = multi_head
    found = optimizer.optimize_model(str(source), "bert", num_heads=12, hidden_size=768, optimization_options=options)
    found.save_model_to_file(str(file))


def needs(*modules: str) -> None:
    """Leave a side out where a module is missing."""
    if not all(importlib.util.find_spec(name) for name in modules):
        sys.exit(MISSING)


def size(artifact: Path) -> int:
    """Bytes of the graph and its weights."""
    return sum(file.stat().st_size for file in artifact.glob("model.onnx*"))


# What `Subject.path` is for each side; with a colon it is a peer's.
SIDES: dict[str, Callable[[Path], str]] = {
    "eager": lambda folder: str(checkpoint(folder)),
    "torch.compile": lambda folder: f"torch.compile fp32:{checkpoint(folder)}",
    "artifact": lambda folder: str(artifact(folder)),
    "artifact-int8": lambda folder: str(artifact_int8(folder)),
    "bare": lambda folder: f"onnxruntime-as-ours:{bare(folder)}/model.onnx",
    "bare, fused QKV": lambda folder: f"onnxruntime-as-ours:{bare_fused_qkv(folder)}/model.onnx",
    "bare, Attention 23": lambda folder: f"onnxruntime-as-ours:{bare_standard_attention(folder)}",
    "bare, contrib Attention": lambda folder: f"onnxruntime-as-ours:{bare_contrib_attention(folder)}",
    "bare, MultiHeadAttention": lambda folder: f"onnxruntime-as-ours:{bare_multi_head_attention(folder)}",
    "products alone": lambda folder: f"onnxruntime-as-ours:{products(folder)}/model.onnx",
    "products alone, int8": lambda folder: f"onnxruntime-as-ours:{products_int8(folder)}/model.onnx",
    "plain export": lambda folder: f"onnxruntime:{plain(folder)}",
    "ONNX Runtime's optimiser": lambda folder: f"onnxruntime:{ort_optimised(folder)}",
    "optimum-onnx, no adapters": lambda folder: f"onnxruntime:{optimum(folder)}/model.onnx",
    "onnxslim": lambda folder: f"onnxruntime:{slimmed(folder)}",
    "artifact for OpenVINO": lambda folder: f"artifact-openvino:{artifact_openvino(folder)}",
    "artifact for OpenVINO, bf16": lambda folder: f"artifact-openvino:{artifact_openvino_bf16(folder)}",
    "artifact for OpenVINO, int8": lambda folder: f"artifact-openvino:{artifact_openvino_int8(folder)}",
    "openvino": lambda folder: f"openvino:{artifact(folder)}/model.onnx",
    "openvino-int8": lambda folder: f"openvino:{openvino_int8(folder)}",
}

if __name__ == "__main__":
    # In a process of its own, so that what making a side takes is free again when it is measured.
    print(SIDES[sys.argv[2]](Path(sys.argv[1])))
