"""Decoders with a cache: what they write is what eager PyTorch writes, token by token."""

import json
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer, TextIteratorStreamer

from adakron_export import (
    BankSettings,
    Batches,
    EngineShapes,
    ExportSettings,
    Guard,
    Limits,
    OnnxModel,
    Subject,
    Timing,
    bench,
    create_bank,
    export_engine,
    export_onnx,
    load_model,
    open_runner,
    predict,
    validate,
)
from adakron_export.artifacts.artifact import open_artifact, write_manifest
from adakron_export.artifacts.genai import write_genai_config
from adakron_export.backbones.table import BACKBONES
from adakron_export.checkpoints.kinds import base_of
from adakron_export.checkpoints.task_model import TaskModel
from adakron_export.errors import ArtifactError, RunnerError
from adakron_export.graph.dtypes import dtype_named
from adakron_export.quantities import timed_text
from adakron_export.runtimes.decoding import decoder_of, inputs_of
from adakron_export.runtimes.eager import EagerRunner
from adakron_export.runtimes.generation import Writing, write_greedily
from adakron_export.runtimes.space import InputSpace
from adakron_export.subjects.space import exported_space
from adakron_export.tasks import Task
from adakron_export.validation.batches import make_batches
from adakron_export.validation.decoding import compare_writing
from conftest import reference_case
from tampered import changed
from tiny import CONFIGS, adapted, backbone_of, first, save_backbone

DECODERS = ("gpt2", "llama", "mistral", "qwen3")
WINDOWED = {"mistral": {"sliding_window": 8}}
WAYS = {
    "greedy": {},
    "beams": {"num_beams": 4},
    "beams with settings": {"num_beams": 5, "length_penalty": 0.6, "no_repeat_ngram_size": 2,
                            "num_return_sequences": 3},
    "samples": {"do_sample": True, "top_k": 20, "num_return_sequences": 2},
    "without the cache": {"use_cache": False},
    "pieces": {"prefill_chunk_size": 3},
}  # fmt: skip


def save_decoder(folder, model_type, **settings):
    backbone = folder / f"{model_type}-backbone"
    if not backbone.exists():
        backbone_of(model_type, Task.TEXT_GENERATION, **WINDOWED.get(model_type, {})).save_pretrained(backbone)
    model = AutoModelForCausalLM.from_pretrained(backbone)
    model.name_or_path = str(backbone)
    checkpoint = folder / f"{model_type}-{len(settings)}"
    adapted(model, Task.TEXT_GENERATION, **settings).save_pretrained(checkpoint)
    return checkpoint


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Checkpoints and artifacts, made when they are asked for."""
    folder, found = tmp_path_factory.mktemp("decoders"), {}

    def of(model_type):
        if model_type not in found:
            checkpoint, artifact = save_decoder(folder, model_type), folder / f"{model_type}-artifact"
            result = export_onnx(checkpoint, artifact, target="ort-cpu")
            assert result.parity.passed
            found[model_type] = checkpoint, artifact, result
        return found[model_type]

    return of


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    """An artifact with a tokenizer."""
    folder = tmp_path_factory.mktemp("spoken")
    save_backbone(folder / "backbone", "gpt2", Task.TEXT_GENERATION)
    model = AutoModelForCausalLM.from_pretrained(folder / "backbone")
    model.name_or_path = str(folder / "backbone")
    adapted(model, Task.TEXT_GENERATION).save_pretrained(folder / "checkpoint")
    export_onnx(folder / "checkpoint", folder / "artifact", settings=ExportSettings(validate=False))
    return folder / "artifact"


def prompts():
    torch.manual_seed(3)
    ids = torch.randint(4, 99, (3, 7))
    mask = torch.ones_like(ids)
    mask[0, :3], mask[1, :5] = 0, 0
    return {"input_ids": ids.masked_fill(mask == 0, 1), "attention_mask": mask}


@pytest.mark.parametrize("model_type", [pytest.param("qwen2", marks=pytest.mark.slow), *DECODERS])
def test_a_decoder_writes_what_eager_pytorch_writes(model_type, made):
    checkpoint, artifact, result = made(model_type)
    rows = {(row.batch, row.output): row for row in result.parity.rows}
    assert {("second-piece", "present"), ("step-16", "logits"), ("greedy", "tokens"), ("padded-left", "present")} <= {
        *rows
    }
    eager, exported = base_of(load_model(checkpoint)).eval(), OnnxModel.from_pretrained(artifact)
    for name, way in WAYS.items():
        written = []
        for model in (eager, exported):
            torch.manual_seed(5)
            written.append(model.generate(**prompts(), max_new_tokens=20, pad_token_id=1, **way))
        assert torch.equal(*written), name
    for prompt, way in (([5], {}), ([5, 6, 7, 5, 6, 7, 5, 6], {"prompt_lookup_num_tokens": 3})):
        ids = torch.tensor([prompt])
        assert torch.equal(
            *(model.generate(ids, max_new_tokens=20, pad_token_id=1, **way) for model in (eager, exported))
        )


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        *first(2, (
            ("gemma", {}), ("gpt_neox", {}), ("phi", {"head_dim": None}), ("starcoder2", {"sliding_window": 8}),
            ("phi3", {"head_dim": None, "sliding_window": 8}), ("gemma3_text", {"sliding_window": 8}),
            ("stablelm", {}),
            ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}), ("bloom", {}), ("gpt_bigcode", {}), ("granite", {}),
            ("olmo2", {}), ("smollm3", {}),
        )),
    ],
)  # fmt: skip
def test_other_decoders_write_too(model_type, changes, tmp_path):
    settings = {**CONFIGS["llama"], **changes}
    if model_type in ("gpt_neox", "opt", "bloom", "gpt_bigcode"):
        settings = {name: value for name, value in settings.items() if name not in ("head_dim", "num_key_value_heads")}
    config = CONFIG_MAPPING[model_type](**{name: value for name, value in settings.items() if value is not None})
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    checkpoint = tmp_path / "model"
    if model_type in BACKBONES:
        model = AutoModelForCausalLM.from_pretrained(checkpoint)
        model.name_or_path = str(checkpoint)
        checkpoint = tmp_path / "adapter"
        adapted(model, Task.TEXT_GENERATION).save_pretrained(checkpoint)
    assert export_onnx(checkpoint, tmp_path / "out", target="ort-cpu").parity.passed
    eager, exported = base_of(load_model(checkpoint)).eval(), OnnxModel.from_pretrained(tmp_path / "out")
    for way in ({}, {"num_beams": 3}):
        way = {**prompts(), "max_new_tokens": 16, "pad_token_id": 1, **way}
        assert torch.equal(*(model.generate(**way) for model in (eager, exported)))


@pytest.mark.parametrize("name", ["gpt2-nlg-1-expert", "gpt2-nlg-4-experts"])
def test_the_references_decoders_write_as_in_eager_pytorch(name, tmp_path):
    case = reference_case(name)
    subject = Subject(case.file, backbone=str(case.backbone))
    assert export_onnx(subject, tmp_path / "out", target="ort-cpu").parity.passed
    eager = base_of(load_model(case.file, backbone=case.backbone)).eval()
    exported = OnnxModel.from_pretrained(tmp_path / "out")
    for way in ({}, {"num_beams": 4, "no_repeat_ngram_size": 2}):
        written = [
            model.generate(**prompts(), max_new_tokens=12, pad_token_id=1, **way) for model in (eager, exported)
        ]
        assert torch.equal(*written)


def test_onnxruntime_genai_is_told_what_it_needs(made, spoken):
    _, artifact, _ = made("llama")
    found = json.loads((artifact / "genai_config.json").read_text())
    names = {info["name"] for info in json.loads((artifact / "adakron_export.json").read_text())["inputs"]}
    model, decoder = found["model"], found["model"]["decoder"]
    assert (model["vocab_size"], model["context_length"], model["eos_token_id"], model["pad_token_id"]) == (
        99,
        40,
        3,
        1,
    )
    assert [decoder[name] for name in ("num_hidden_layers", "num_key_value_heads", "head_size")] == [2, 2, 8]
    pattern = decoder["inputs"].pop("past_key_names")
    assert {pattern % 1, *decoder["inputs"].values()} - names == {decoder["inputs"]["past_value_names"]}
    assert found["search"]["past_present_share_buffer"] is False
    assert (spoken / "genai_config.json").is_file()


@pytest.mark.parametrize(
    ("settings", "config", "expected"),
    [
        ({"num_beams": 4, "top_k": 5, "length_penalty": 0.9}, {}, {"num_beams": 4, "top_k": 5, "length_penalty": 0.9}),
        ({"eos_token_id": [3, 5]}, {}, {"do_sample": False}),
        ({"no_repeat_ngram_size": 2}, {}, "onnxruntime-genai has no no_repeat_ngram_size"),
        ({"min_new_tokens": 0, "max_new_tokens": 9}, {}, {"max_length": 40}),
        ({"early_stopping": "never"}, {}, "no early_stopping 'never'"),
        ({}, {"eos_token_id": None}, "no eos_token_id"),
        ({}, {"max_position_embeddings": None}, "no max_position_embeddings"),
    ],
)
def test_onnxruntime_genai_writes_as_it_is_told_or_not_at_all(made, settings, config, expected, tmp_path, caplog):
    _, artifact, result = made("llama")
    base = {**json.loads((artifact / "config.json").read_text()), **config}
    (tmp_path / "config.json").write_text(json.dumps(base))
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    with caplog.at_level("INFO"):
        write_genai_config(tmp_path, result.artifact.manifest)
    if isinstance(expected, str):
        assert expected in caplog.text
        assert not (tmp_path / "genai_config.json").exists()
    else:
        found = json.loads((tmp_path / "genai_config.json").read_text())
        assert expected.items() <= found["search"].items()
        assert found["model"]["eos_token_id"] == settings.get("eos_token_id", 3)
        assert ("max_new_tokens" in caplog.text) == ("max_new_tokens" in settings)
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"generation_config.json: not readable"):
        write_genai_config(tmp_path, result.artifact.manifest)


def test_inputs_outputs_and_axes_are_named_as_optimum_does(made):
    _, artifact, _ = made("llama")
    session = ort.InferenceSession(artifact / "model.onnx")
    shapes = {value.name: value.shape for value in (*session.get_inputs(), *session.get_outputs())}
    every = "past_sequence_length + sequence_length"
    assert [*shapes][:5] == ["input_ids", "attention_mask", "position_ids", "past_key_values.0.key",
                             "past_key_values.0.value"]  # fmt: skip
    assert shapes["attention_mask"] == ["batch_size", every]
    assert shapes["past_key_values.1.value"] == ["batch_size", 2, "past_sequence_length", 8]
    assert shapes["present.1.key"] == ["batch_size", 2, every, 8]
    assert json.loads((artifact / "adakron_export.json").read_text())["task"] == "text-generation-with-past"
    assert open_runner(artifact).input_names == ("input_ids", "attention_mask", "position_ids")


def test_prompts_of_a_validation_are_as_long_as_memory_has_room_for_their_logits(made):
    space = exported_space(made("llama")[2].artifact)
    assert (space.max_length, space.tried_length) == (40, 2**25 // (2 * 99))
    assert exported_space(made("gpt2")[2].artifact).tried_length is None  # each learned position is tried
    lengths = {
        batch.name: batch.inputs["input_ids"].shape[1] for batch in make_batches(replace(space, tried_length=9))
    }
    assert (lengths["max-length"], lengths["vocabulary"], max(lengths.values())) == (9, 9, 9)


def test_the_cache_is_optional(tmp_path):
    checkpoint = save_decoder(tmp_path, "gpt2")
    result = export_onnx(Subject(checkpoint, task="text-generation"), tmp_path / "out")
    assert result.parity.passed
    assert all(not info.name.startswith("past") for info in result.artifact.manifest.inputs)
    eager, exported = base_of(load_model(checkpoint)).eval(), OnnxModel.from_pretrained(tmp_path / "out")
    assert torch.equal(*(model.generate(**prompts(), max_new_tokens=9, pad_token_id=1) for model in (eager, exported)))


def test_a_streamer_and_scores_are_transformers_own(spoken):
    model, tokenizer = OnnxModel.from_pretrained(spoken), AutoTokenizer.from_pretrained(spoken)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    batch = tokenizer("the film was", return_tensors="pt")
    found = model.generate(**batch, max_new_tokens=6, streamer=streamer, output_scores=True,
                           return_dict_in_generate=True)  # fmt: skip
    assert "".join(streamer) == tokenizer.decode(found.sequences[0, batch["input_ids"].shape[1] :])
    assert len(found.scores) == 6
    again = model.generate(found.sequences, past_key_values=found.past_key_values, max_new_tokens=3)
    assert torch.equal(again, model.generate(**batch, max_new_tokens=9))


def test_a_step_that_goes_wrong_is_named(made, tmp_path):
    checkpoint, artifact, _ = made("llama")

    def halve(nodes, _model):
        weight = next(node for key, node in nodes.items() if "layers.1.self_attn.v_proj" in key).inputs[1]
        weight.const_value = ir.tensor(weight.const_value.numpy() / 2, name=weight.name)

    broken = changed(artifact, tmp_path / "broken", halve)
    report = validate(broken, against=checkpoint, batches=Batches(batch="step-3"))
    assert not report.passed
    assert report.divergence.batch == "step-3"
    assert report.divergence.layer.endswith("v_proj")
    assert "--batch step-3" in report.repeat


def test_a_past_that_does_not_fit_is_refused(made):
    _, artifact, _ = made("gpt2")
    runner = open_runner(artifact)
    decoder, ids = decoder_of(runner), np.array([[5, 6, 7], [8, 9, 10]])
    _, kept = decoder.step(inputs_of(runner.input_names, ids, np.ones_like(ids)), None)
    one = inputs_of(runner.input_names, ids[:1, :1], np.ones((1, 4), np.int64))
    with pytest.raises(RunnerError, match=r"the past is of 2 texts, the batch has 1"):
        decoder.step(one, kept)
    short = inputs_of(runner.input_names, ids[:, :1], np.ones((2, 3), np.int64))
    with pytest.raises(RunnerError, match=r"differ in shape, where attention_mask also has the 3 tokens of the past"):
        decoder.step(short, kept)
    with pytest.raises(RunnerError, match=r"1 of 4 keys and values of the past; give all or none"):
        runner.run({**one, "past_key_values.0.key": np.zeros((1, 4, 3, 8), "f4")})
    past = {name: value.numpy()[:, :2] for name, value in kept.values.items()}
    with pytest.raises(RunnerError, match=r"must be \[2, 4, tokens of the past, 8\], as all others"):
        runner.run({**inputs_of(runner.input_names, ids[:, :1], np.ones((2, 4), np.int64)), **past})
    with pytest.raises(
        RunnerError, match=r"past_key_values is a tuple; it must be what a call of this model returned"
    ):
        OnnxModel.from_pretrained(artifact)(input_ids=torch.ones(1, 1, dtype=torch.int64), past_key_values=())
    with pytest.raises(RunnerError, match=r"cache_implementation is 'static'"):
        OnnxModel.from_pretrained(artifact).generate(
            torch.tensor([[5]]), max_new_tokens=2, cache_implementation="static"
        )


def test_a_full_window_ends_the_text_with_a_word(made, spoken, caplog):
    _, artifact, _ = made("gpt2")
    model = OnnxModel.from_pretrained(artifact)
    assert model.generate(torch.tensor([[5]]), max_new_tokens=60, pad_token_id=1).shape == (1, 40)
    assert "the model's window of 40 tokens is full" in caplog.text
    with pytest.raises(RunnerError, match=r"the prompt has 45 tokens, and the model reads 40 with what it writes"):
        model.generate(torch.full((1, 45), 5), max_new_tokens=2)
    caplog.clear()
    assert predict(spoken, ["the film"], max_new_tokens=99)
    assert "the model's window of 40 tokens is full" in caplog.text


def test_predict_writes_alike_alone_together_in_pieces_and_with_beams(spoken, cli):
    texts = ["the film was", "a bad plot", "who lives in Paris"]
    together = predict(spoken, texts, max_new_tokens=7)
    assert together == [predict(spoken, [text], max_new_tokens=7)[0] for text in texts]
    pieces = {}
    predict(spoken, texts, max_new_tokens=7, on_text=lambda row, piece: pieces.setdefault(row, []).append(piece))
    assert [text + "".join(pieces[row]) for row, text in enumerate(texts)] == [
        row["generated_text"] for row in together
    ]
    assert all(len(each) > 1 for each in pieces.values())
    shown = cli("predict", spoken, "--text", texts[0], "--text", texts[1], "--max-new-tokens", 7).stdout
    assert shown.splitlines() == [row["generated_text"] for row in together[:2]]
    model = OnnxModel.from_pretrained(spoken)
    tokenizer = AutoTokenizer.from_pretrained(spoken)
    ids = tokenizer(texts[0], return_tensors="pt")["input_ids"]
    beams = tokenizer.decode(model.generate(ids, num_beams=3, max_new_tokens=7)[0], skip_special_tokens=True)
    assert predict(spoken, texts[:1], max_new_tokens=7, num_beams=3)[0]["generated_text"].split() == beams.split()
    told = []
    wide = predict(spoken, texts, max_new_tokens=7, num_beams=3, on_text=lambda row, piece: told.append((row, piece)))
    assert wide == [predict(spoken, [text], max_new_tokens=7, num_beams=3)[0] for text in texts]
    assert [texts[row] + piece for row, piece in told] == [row["generated_text"] for row in wide]
    shown = cli("predict", spoken, "--text", texts[0], "--max-new-tokens", 7, "--num-beams", 3).stdout
    assert shown.splitlines() == [wide[0]["generated_text"]]


def test_predict_writes_as_the_generation_settings_say(spoken, tmp_path):
    folder, settings = tmp_path / "out", {"no_repeat_ngram_size": 1, "max_new_tokens": 9}
    shutil.copytree(spoken, folder)
    content = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**content, **settings}))
    write_manifest(folder, open_artifact(spoken).manifest)
    text = "the film was"
    plain, written = predict(spoken, [text], max_new_tokens=9), predict(folder, [text])
    model, tokenizer = OnnxModel.from_pretrained(spoken), AutoTokenizer.from_pretrained(spoken)
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    expected = tokenizer.decode(model.generate(ids, **settings)[0], skip_special_tokens=True)
    assert written[0]["generated_text"].split() == expected.split()
    assert written != plain


def test_predict_stops_at_stop_strings(spoken, tmp_path):
    folder, texts = tmp_path / "out", ["the film was", "a very long text of many words"]
    plain = [row["generated_text"] for row in predict(spoken, texts, max_new_tokens=9)]
    stop = plain[0][-6:-4]
    shutil.copytree(spoken, folder)
    content = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**content, "stop_strings": [stop]}))
    write_manifest(folder, open_artifact(spoken).manifest)
    written = [row["generated_text"] for row in predict(folder, texts, max_new_tokens=9)]
    assert written[0].endswith(stop)
    assert len(written[0]) < len(plain[0])
    assert all(whole.startswith(part) for whole, part in zip(plain, written, strict=True))
    assert [predict(folder, [text], max_new_tokens=9)[0]["generated_text"] for text in texts] == written


def test_a_bank_of_decoders_writes_with_each_adapter(tmp_path):
    members = {"one": save_decoder(tmp_path, "gpt2"), "two": save_decoder(tmp_path, "gpt2", r=4, k=2)}
    result = create_bank(members, tmp_path / "bank", settings=BankSettings())
    assert result.passed
    assert ("greedy", "tokens") in {(row.batch, row.output) for row in result.parity["two"].rows}
    for name, checkpoint in members.items():
        eager = base_of(load_model(checkpoint)).eval()
        exported = OnnxModel.from_pretrained(tmp_path / "bank", adapter=name)
        way = {"max_new_tokens": 9, "num_beams": 2, "pad_token_id": 1}
        assert torch.equal(*(model.generate(**prompts(), **way) for model in (eager, exported)))
    runner = open_runner(tmp_path / "bank")
    write = partial(write_greedily, writing=Writing(6), names=runner.input_names, pad_id=1)
    texts, names = [[5, 6, 7], [5, 6, 7], [9]], ["one", "two", "one"]
    alone = [write(decoder_of(runner.adapter(name)), [text])[0] for text, name in zip(texts, names, strict=True)]
    assert write(decoder_of(runner, names), texts) == alone
    assert alone[0] != alone[1]
    under_way = decoder_of(runner, "two")
    runner.remove("two")
    runner.add("three", tmp_path / "bank/adapters/one")
    assert write(under_way, texts[1:2]) == alone[1:2]


@pytest.mark.parametrize(
    ("target", "dtype", "device"),
    [("portable", "fp16", "cpu"), ("ort-cpu", "int8", "cpu"), ("ort-cpu", "int4", "cpu"),
     ("openvino", "fp32", "openvino")],
)  # fmt: skip
def test_other_targets_and_dtypes_keep_a_cache_too(target, dtype, device, tmp_path):
    checkpoint = save_decoder(tmp_path, "qwen3")
    settings = ExportSettings(validate=dtype != "int4")  # which random weights do not bear
    result = export_onnx(checkpoint, tmp_path / "out", target=target, dtype=dtype, settings=settings)
    assert dtype == "int4" or result.parity.passed
    model = OnnxModel.from_pretrained(tmp_path / "out", device=device)
    written = [
        model.generate(**prompts(), max_new_tokens=8, pad_token_id=1, use_cache=cache) for cache in (True, False)
    ]
    assert written[0].shape == (3, 15)
    assert dtype.startswith("int") or torch.equal(*written)  # in 8 bits each step has scales of its own


def test_tensorrt_builds_it_with_room_for_a_past(tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="needs the extra tensorrt-rtx")
    shapes = EngineShapes(min_shape=(1, 1), opt_shape=(2, 8), max_shape=(4, 16))
    engine = export_engine(save_decoder(tmp_path, "llama"), tmp_path / "engine", flavor="rtx", shapes=shapes).folder
    assert engine.manifest.task == "text-generation-with-past"
    assert "past_key_values.0.key:4x2x16x8" in engine.manifest.command
    assert "attention_mask:4x32" in engine.manifest.command


def test_fixed_scales_are_found_on_prompts(spoken, tmp_path):
    (tmp_path / "text.txt").write_text("the film was good\na bad plot\n")
    result = export_onnx(
        spoken.parent / "checkpoint", tmp_path / "out", target="tensorrt", dtype="int8", data=tmp_path / "text.txt",
        settings=ExportSettings(validate=False),
    )  # fmt: skip
    past = {info.dtype for info in result.artifact.manifest.inputs if info.name.startswith("past")}
    assert (past, result.artifact.manifest.calibrated_on) == ({"float16"}, "text.txt")


def test_perplexity_decides_where_no_text_has_labels(spoken, tmp_path, cli):
    checkpoint = spoken.parent / "checkpoint"
    lines = ["the film was good", "a bad plot", "who lives in Paris", "the actor was very sad"]
    (tmp_path / "text.txt").write_text("\n".join(lines) + "\n")
    data = tmp_path / "text.txt"
    report = validate(spoken, against=checkpoint, data=data)
    assert report.passed
    found = report.accuracy
    assert (found.metrics[0].metric, found.examples) == ("perplexity", 4)
    eager, nats, count = base_of(load_model(checkpoint)).eval(), 0.0, 0
    tokenizer = AutoTokenizer.from_pretrained(spoken)
    for line in lines:
        ids = tokenizer(line, return_tensors="pt")["input_ids"]
        nats += eager(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    assert found.metrics[0].reference == pytest.approx(np.exp(nats / count), rel=1e-5)
    shown = cli("validate", spoken, "--against", checkpoint, "--data", data, "--max-drop", "1").stdout
    assert "perplexity is 0.00 % worse (limit 1)" in shown
    assert "100.0 % the same" in shown
    result = export_onnx(
        checkpoint, tmp_path / "small", target="ort-cpu", dtype="int8", data=data, limits=Limits(max_drop=1e-9)
    )
    assert [(row.metric, row.held) for row in result.attempts][:: len(result.attempts) - 1] == [
        ("perplexity", False), ("perplexity", True),
    ]  # fmt: skip


def test_bench_times_the_first_token_and_those_that_follow(spoken, tmp_path, cli):
    checkpoint, saved = spoken.parent / "checkpoint", tmp_path / "baseline.json"
    timing = Timing(shapes=((1, 8), (2, 8)), new_tokens=4, budget_s=0.4)
    report = bench([spoken], against=checkpoint, timing=timing)
    rows = {(row.side, timed_text(row.shape)): row for row in report.latencies}
    assert {shape for _, shape in rows} == {"1x8", "1x8+4", "2x8", "2x8+4"}
    written, prompt = rows["artifact", "2x8+4"], rows["artifact", "2x8"]
    assert written.tokens_per_second == pytest.approx(8000 / written.mean_ms)
    assert prompt.tokens_per_second is None
    assert written.p50_ms > prompt.p50_ms

    reference = shutil.copytree(spoken, tmp_path / "reference")  # opens in a tenth of a checkpoint's time
    bench([spoken], against=reference, timing=timing, guard=Guard(save_to=str(saved)))
    shown = cli(
        "bench", spoken, "--against", reference, "--baseline", saved, "--budget", "0.4", "--max-regression", 900
    )
    assert "1x8+4" in shown.stdout
    assert "tokens/s" in shown.stdout
    with pytest.raises(RunnerError, match=r"the baseline says how many tokens are written"):
        bench([spoken], against=reference, timing=Timing(new_tokens=4), guard=Guard(baseline=str(saved)))
    with pytest.raises(RunnerError, match=r"clients and rate are about single runs"):
        Timing(new_tokens=4, clients=(2,))
    export_onnx(
        Subject(checkpoint, task="text-generation"), tmp_path / "plain", settings=ExportSettings(validate=False)
    )
    with pytest.raises(RunnerError, match=r"keeps no cache, which new_tokens is about"):
        bench([tmp_path / "plain"], timing=timing)


def test_what_both_sides_write_is_held_to_top1_and_counted_honestly(made, tmp_path):
    space = InputSpace(("input_ids", "attention_mask", "position_ids"), vocab_size=99, pad_id=1, max_length=40)
    checkpoint, artifact, _ = made("gpt2")
    reference = EagerRunner(TaskModel(base_of(load_model(checkpoint)), Task.TEXT_GENERATION_WITH_PAST))
    other = open_runner(made("llama")[1])  # another model of the same vocabulary
    exact = dtype_named("fp32").tolerance
    (row,) = compare_writing(reference, other, space, exact)
    assert row.checks[0].value < 0.5
    assert not row.passed
    (row,) = compare_writing(reference, other, space, exact.changed({"top1": 0.0}))
    assert row.passed
    (row,) = compare_writing(reference, open_runner(artifact), space, exact)
    assert row.checks[0].value == 1.0
    assert compare_writing(reference, other, space, exact.changed({"absolute": 1e3})) == []  # all is as good as tied


def test_a_prompt_without_tokens_is_refused(made):
    runner = open_runner(made("gpt2")[1])
    with pytest.raises(RunnerError, match=r"prompt 2 of 2 has no tokens"):
        write_greedily(decoder_of(runner), [[5], []], Writing(3), names=runner.input_names, pad_id=1)
