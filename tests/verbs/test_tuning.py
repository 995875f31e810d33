"""What `tune` tries, keeps and writes."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from adakron_export import ExportSettings, export_onnx, open_runner, tune
from adakron_export.artifacts.artifact import open_artifact, update_manifest
from adakron_export.artifacts.manifest import Tuning
from adakron_export.errors import ArtifactError, RunnerError
from adakron_export.machine.description import describe_machine
from adakron_export.subjects.space import exported_space
from adakron_export.timing.latency import Interval, overall_speedup
from adakron_export.validation.batches import batch_of
from adakron_export.verbs import tune as tune_module
from conftest import DEMO, stages

MACHINE = describe_machine(device="cpu", threads=None)
FASTER, SAME, SLOWER = Interval(1.2, 1.1, 1.3), Interval(1.05, 0.98, 1.1), Interval(0.8, 0.7, 0.9)


@pytest.fixture
def artifact(demo_artifact, tmp_path):
    shutil.copytree(demo_artifact, tmp_path / "artifact")
    return tmp_path / "artifact"


@pytest.fixture(params=["one file", "two files"])
def cpu_artifact(request, tmp_path, monkeypatch):
    """For ONNX Runtime on CPUs, with its weights in the graph's file or beside it."""
    if request.param == "two files":
        monkeypatch.setattr("adakron_export.artifacts.onnx_file.EXTERNAL_DATA_FROM_BYTES", 1000)
    assert export_onnx(DEMO, tmp_path / "cpu", target="ort-cpu", settings=ExportSettings(validate=False)).written
    return tmp_path / "cpu"


@pytest.fixture
def measured(monkeypatch):
    """Set what each label comes out as; what is not named is slower."""
    answers, asked = {}, []

    def speedups(self, reference, candidates):
        asked.append((reference, dict(candidates)))
        return {label: answers.get(label, SLOWER) for label in candidates}

    monkeypatch.setattr(tune_module._Trial, "speedups", speedups)
    return answers, asked


def test_only_what_is_faster_for_certain_is_taken_and_each_step_goes_on_from_the_best(artifact, measured):
    answers, asked = measured
    answers |= {"threads 1": FASTER, "SkipLayerNormFusion off": SAME, "spinning off": FASTER, "winner": FASTER}
    report = tune(artifact, budget_s=1)
    assert [row.label for row in report.tried if row.taken] == ["threads 1", "spinning off"]
    assert asked[1][0].threads == 1
    assert asked[-1][0] == Tuning(MACHINE["processor"], MACHINE["cores"])  # the winner against the export
    found = open_artifact(artifact).manifest.tuning
    assert (found.threads, found.spinning, found.disabled_optimizers, found.speedup) == (1, False, (), 1.2)
    assert found.shapes == ("1x16", "1x64", "8x64")  # the model ends at 64 tokens


def test_forms_of_attention_are_tried_where_there_is_attention(artifact, cpu_artifact, measured):
    assert not any(row.label.startswith("attention") for row in tune(artifact, budget_s=1).tried)
    measured[0].update({"attention plain": FASTER, "winner": FASTER})
    report = tune(cpu_artifact, budget_s=1)
    assert [row.label for row in report.tried][-4:-2] == ["attention plain", "attention MultiHeadAttention"]
    assert open_artifact(cpu_artifact).manifest.tuning.attention == "plain"


def test_a_winner_that_does_not_win_again_is_not_written(artifact, measured):
    measured[0].update({"threads 1": FASTER, "winner": SAME})
    before = open_artifact(artifact).manifest
    report = tune(artifact, budget_s=1)
    assert report.tuning is None
    assert report.confirmed == SAME
    assert open_artifact(artifact).manifest == before


def test_an_older_tuning_is_no_measure_of_a_new_one(artifact, measured):
    tuned(artifact, threads=1)
    report = tune(artifact, budget_s=1)
    assert measured[1][0][0].threads is None
    assert report.tuning is open_artifact(artifact).manifest.tuning is None


def tuned(folder, **changes):
    opened = open_artifact(folder)
    row = Tuning(**{"processor": MACHINE["processor"], "cores": MACHINE["cores"], **changes})
    update_manifest(opened, lambda manifest: replace(manifest, tuning=row))
    return folder


def test_the_runner_heeds_it_on_this_machine_only(artifact):
    expected = open_runner(artifact)
    here = open_runner(tuned(artifact, threads=1, spinning=False, disabled_optimizers=("GeluFusion",)))
    options = here.session.get_session_options()
    assert options.intra_op_num_threads == 1
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert open_runner(artifact, threads=2).session.get_session_options().intra_op_num_threads == 2
    batch = batch_of(exported_space(open_artifact(artifact)), 2, 8).inputs
    np.testing.assert_allclose(here.run(batch)["logits"], expected.run(batch)["logits"], atol=1e-5)
    elsewhere = open_runner(tuned(artifact, threads=1, processor="another one"))
    assert elsewhere.session.get_session_options().intra_op_num_threads == 0


@pytest.mark.parametrize(
    ("form", "kernel"), [(None, "Attention"), ("plain", "Softmax"), ("MultiHeadAttention", "MultiHeadAttention")]
)
def test_attention_is_computed_in_the_form_that_was_found(cpu_artifact, form, kernel):
    batch = batch_of(exported_space(open_artifact(cpu_artifact)), 2, 8).inputs
    expected = open_runner(cpu_artifact).run(batch)["logits"]
    runner = open_runner(tuned(cpu_artifact, attention=form))
    parts = runner.session.get_provider_graph_assignment_info()
    operators = {node.op_type for part in parts for node in part.get_nodes()}
    assert operators & {"Attention", "Softmax", "MultiHeadAttention"} == {kernel}
    np.testing.assert_allclose(runner.run(batch)["logits"], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "value"),
    [("attention", "fast"), ("threads", 0), ("threads", "2"), ("spinning", 1), ("shapes", [1]), ("cores", None)],
)
def test_a_tuning_that_makes_no_sense_is_refused(artifact, name, value):
    tuned(artifact)
    file = artifact / "adakron_export.json"
    content = json.loads(file.read_text())
    content["tuning"][name] = value
    file.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match="not a readable manifest"):
        open_artifact(artifact)


@pytest.mark.slow
def test_it_measures_for_real(artifact):
    with stages() as said:
        report = tune(artifact, shapes=[(1, 8)], budget_s=0.5)
    assert {row.label for row in report.tried} >= {"threads 1", "SkipLayerNormFusion off", "spinning off"}
    assert all(row.speedup.low <= row.speedup.estimate <= row.speedup.high for row in report.tried)
    assert "open with spinning off" in said
    assert (report.tuning is None) == (open_artifact(artifact).manifest.tuning is None)
    with pytest.raises(RunnerError, match="no shape to measure"):
        tune(artifact, shapes=[])


def test_the_overall_speedup_is_a_geometric_mean():
    found = overall_speedup([([4.0] * 6, [1.0] * 6), ([1.0] * 6, [1.0] * 6)])
    assert found.estimate == pytest.approx(2.0)
    assert found.low == pytest.approx(2.0)
