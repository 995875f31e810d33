"""A real server: Ray Serve started by the command, asked over HTTP and in a browser, and stopped."""

import contextlib
import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import warnings

import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from adakron_export import ExportSettings, ServeSettings, Subject, export_onnx, predict, write_serve_config
from adakron_export.errors import RunnerError
from adakron_export.serving import local
from adakron_export.tasks import Task
from conftest import DEMO
from tiny import save_checkpoint

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
TEXT = "The printer stopped working after the update"


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextlib.contextmanager
def served(folder, *words):
    """The address of a server, and its process."""
    command = [sys.executable, "-m", "adakron_export.cli", "serve", *map(str, words), "--port", str(free_port())]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            ready = next((line for line in process.stdout if line.startswith("serving")), None)
            assert ready is not None, (folder / "server.log").read_text()
            yield re.search(r"at (http://\S+)", ready)[1], process
        finally:
            process.terminate()
            process.wait(timeout=120)


def ask(address, body, path="predict"):
    request = urllib.request.Request(f"{address}/{path}", json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_served_tried_and_stopped(demo_artifact, tmp_path):
    with served(tmp_path, f"demo={demo_artifact}", "--threads", "1") as (address, process):
        status, content = ask(address, {"text": TEXT})
        assert (status, content["predictions"][0]["label"]) == (200, predict(demo_artifact, [TEXT])[0]["label"])
        calls = [threading.Thread(target=ask, args=(address, {"text": [TEXT] * 20})) for _ in range(8)]
        for call in calls:
            call.start()
        for call in calls:
            call.join()
        metrics = urllib.request.urlopen(f"{address}/metrics").read().decode()
        assert "adakron_texts_total" in metrics
        assert float(re.search(r'adakron_batch_texts_count{model="demo"} (\S+)', metrics)[1]) <= 9
        assert ask(address, {"text": [TEXT] * 65})[0] == 413
        huge = urllib.request.Request(f"{address}/predict", b" " * 50_000_000)
        with pytest.raises((urllib.error.URLError, ConnectionError)) as refused:
            urllib.request.urlopen(huge, timeout=60)
        assert getattr(refused.value, "code", 413) == 413
        long_address = urllib.request.Request(f"{address}/{'a' * 70_000}")
        with pytest.raises(urllib.error.HTTPError, match="431"):
            urllib.request.urlopen(long_address, timeout=60)
        if CHROMIUM is not None and DRIVER is not None:
            try_page(address)
        under_way = []
        last = threading.Thread(target=lambda: under_way.append(ask(address, {"text": [TEXT] * 64})))
        last.start()
        time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 0
        last.join()
        assert under_way[0][0] in (200, 503)  # it was taken, or told to come again
    assert TEXT not in (tmp_path / "server.log").read_text()


def try_page(address):
    """The page of the server, at the widths of a phone and a desktop."""
    from selenium import webdriver
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for switch in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        for width in (360, 1280):
            browser.set_window_size(width, 900)
            browser.get(address)
            browser.find_element(By.ID, "text").send_keys(TEXT)
            assert TEXT in browser.find_element(By.ID, "curl").text
            browser.find_element(By.ID, "run").click()
            WebDriverWait(browser, 30).until(lambda page: page.find_element(By.ID, "answer").text)
            assert '"label": "problem"' in browser.find_element(By.ID, "answer").text
            assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
        assert browser.get_log("browser") == []
    finally:
        browser.quit()


def test_a_config_file_for_clusters(demo_artifact, tmp_path, cli, monkeypatch):
    with warnings.catch_warnings(action="ignore"):  # Ray's own, of pydantic
        from ray.serve.schema import ServeDeploySchema
    from adakron_export.serving.application import build

    monkeypatch.setenv("ADAKRON_API_KEY", "secret")
    said = cli("serve", f"demo={demo_artifact}", "--replicas", 3, "--write-config", tmp_path / "serve.yaml").output
    assert "serve run" in said
    text = (tmp_path / "serve.yaml").read_text()
    assert "secret" not in text
    refused = cli("serve", demo_artifact, "--api-key", "x", "--write-config", tmp_path / "other.yaml", code=2).output
    assert "no file holds an API key" in refused
    assert not (tmp_path / "other.yaml").exists()
    config = yaml.safe_load(text)
    ServeDeploySchema.model_validate(config)
    assert config["applications"][0]["args"] == {"models": {"demo": str(demo_artifact)}, "replicas": 3}
    application = build(config["applications"][0]["args"])
    (replicas,) = [each for each in application._bound_deployment.init_args if hasattr(each, "_bound_deployment")]
    assert replicas._bound_deployment.num_replicas == 3


def test_a_named_artifact_must_be_signed_where_that_is_asked(demo_artifact, cli, tmp_path):
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    (tmp_path / "key.pem").write_bytes(key.public_bytes(serialization.Encoding.PEM, form))
    said = cli("serve", f"demo={demo_artifact}", "--require-signature", tmp_path / "key.pem", code=2).output
    assert f"{demo_artifact}" in said
    assert "demo=" not in said


def test_the_examples_name_what_there_is():
    """What KubeRay is given is what `--write-config` writes."""
    from pathlib import Path

    from adakron_export.serving.application import config

    text = (Path(__file__).parents[2] / "examples/rayservice.yaml").read_text()
    said = yaml.safe_load(yaml.safe_load(text)["spec"]["serveConfigV2"])
    settings = ServeSettings(replicas=4, threads=2)
    assert said == config({"artifact": Path("/artifact")}, settings, host="0.0.0.0", port=8000)


def test_a_device_must_be_where_it_is_served(cli, demo_artifact, tmp_path, monkeypatch):
    monkeypatch.setattr("adakron_export.runtimes.table.has_gpu", lambda: False)
    (tmp_path / "in.csv").write_text("text\nhello\n")
    bulk = ("--ray", "--input", tmp_path / "in.csv", "-o", tmp_path / "out")
    for words in (("serve", demo_artifact), ("predict", demo_artifact, *bulk)):
        refused = cli(*words, "--device", "cuda", code=2).output
        assert "device cuda is not available here: this machine has no NVIDIA GPU" in " ".join(refused.split())
    assert not (tmp_path / "out").exists()
    cli("serve", demo_artifact, "--device", "cuda", "--write-config", tmp_path / "serve.yaml")
    assert "device: cuda" in (tmp_path / "serve.yaml").read_text()


def test_the_line_that_it_shows_is_answered(cli, demo_artifact, bank, tmp_path, monkeypatch):
    """No server is started: what it would say is what `predict` does."""
    monkeypatch.setattr(local, "serving", lambda *_, **__: contextlib.nullcontext("http://here"))
    monkeypatch.setattr(local, "wait_for_signal", lambda: "SIGTERM")
    monkeypatch.delenv("ADAKRON_API_KEY", raising=False)
    checkpoint = save_checkpoint(tmp_path, "bert", Task.QUESTION_ANSWERING, changes={"vocab_size": 720})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, checkpoint)
    questions = tmp_path / "questions"
    export_onnx(Subject(checkpoint, task="question-answering"), questions, settings=ExportSettings(validate=False))
    two = [f"demo={demo_artifact}", f"bank={bank}"]
    for words, asked in (
        ([questions], {"text": "Who wrote it?", "pair": "Ada wrote it."}),
        ([demo_artifact], {"text": "Hello"}),
        ([bank], {"text": "Hello", "adapter": "topic"}),
        ([bank, "--adapter", "reply"], {"text": "Hello"}),
        (two, {"text": "Hello", "model": "demo"}),
        (two[::-1], {"text": "Hello", "model": "bank", "adapter": "topic"}),
    ):
        shown = cli("serve", *words, "--port", free_port()).stdout.splitlines()[-1]
        *command, body = shlex.split(shown)
        assert command == ["try:", "curl", "http://here/predict", "-d"]
        assert json.loads(body) == asked
    assert predict(questions, [("Who wrote it?", "Ada wrote it.")])
    with_key = cli("serve", demo_artifact, "--port", free_port(), "--api-key", "x").stdout
    assert '-H "Authorization: Bearer $ADAKRON_API_KEY"' in with_key


def test_what_cannot_be_served(cli, demo_artifact, bank, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert "choose another --port" in cli("serve", demo_artifact, "--port", port, code=2).output
    for words, why in (
        ([tmp_path], "not an artifact"),
        ([demo_artifact, demo_artifact], "two artifacts"),
        ([f"a/b={demo_artifact}"], "name of a model"),
        ([demo_artifact, "--replicas", 0], "at least 1"),
        ([demo_artifact, "--adapter", "topic"], "is no bank"),
        ([bank, "--adapter", "none"], "no adapter 'none'; it has topic, reply"),
        ([demo_artifact, "--adapter-root", tmp_path / "none"], "is no folder"),
    ):
        assert why in cli("serve", *words, "--port", free_port(), code=2).output
    with pytest.raises(RunnerError, match="no model"):
        write_serve_config({}, tmp_path / "serve.yaml")
