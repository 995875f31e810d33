"""The door of a server: what it answers, what it refuses, and that it goes on."""

import asyncio
import json
import logging
import re
import shutil

import numpy as np
import pytest

from adakron_export import predict
from adakron_export.artifacts.artifact import opened_with
from adakron_export.serving.jobs import Reply, Worker
from adakron_export.serving.predictor import Predictor
from adakron_export.serving.service import Service
from adakron_export.serving.settings import ServeSettings

TEXT = "The printer stopped working after the update"
KEY = {"authorization": "Bearer secret"}


@pytest.fixture
def artifact(demo_artifact):
    return demo_artifact


class Server:
    """A service whose jobs are done in this process, and a caller of it."""

    def __init__(self, models, api_key=None, **settings):
        settings = ServeSettings(**settings)
        workers = {name: Worker(opened(path).open("cpu"), 8) for name, path in models.items()}
        self.jobs, self.gate = [], None

        async def ask(job):
            self.jobs.append(job)
            if self.gate is not None:
                await self.gate.wait()
            return workers[job.model].answer([job])[0]

        self.service = Service({name: opened(path) for name, path in models.items()}, ask, settings, api_key)
        self.app = self.service.app()

    def __call__(self, path, body=None, headers=(), method=None):
        return asyncio.run(self.call(path, body, headers, method))

    async def call(self, path, body=None, headers=(), method=None, chunks=None):
        """Status, JSON (or text) and headers of an answer."""
        raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        chunks = [raw] if chunks is None else chunks
        parts = [{"type": "http.request", "body": part, "more_body": True} for part in chunks]
        parts.append({"type": "http.request", "body": b"", "more_body": False})
        sent = []

        async def receive():
            await asyncio.sleep(0)
            return parts.pop(0) if parts else await asyncio.Event().wait()

        async def send(message):
            sent.append(message)

        scope = {
            "type": "http", "method": method or ("GET" if body is None else "POST"), "path": path, "raw_path": b"",
            "query_string": b"", "root_path": "", "scheme": "http", "http_version": "1.1", "server": ("x", 80),
            "headers": [(name.encode(), value.encode()) for name, value in dict(headers).items()],
        }  # fmt: skip
        await self.app(scope, receive, send)
        text = b"".join(part.get("body", b"") for part in sent).decode()
        found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return sent[0]["status"], json.loads(text) if found.get("content-type") == "application/json" else text, found


def opened(path):
    return opened_with(path, Predictor)


def test_the_answers_of_predict(artifact):
    server = Server({"demo": artifact})
    texts = [TEXT, "Thanks!", "How do I share the calendar?"]
    status, content, _ = server("/predict", {"text": texts, "top_k": 2})
    assert (status, content["model"]) == (200, "demo")
    expected = predict(artifact, texts, top_k=2)
    for found, wanted in zip(content["predictions"], expected, strict=True):
        assert [each["label"] for each in found] == [each["label"] for each in wanted]
        assert [each["score"] for each in found] == pytest.approx([each["score"] for each in wanted], abs=1e-5)
    assert server("/predict", {"text": TEXT})[1]["predictions"][0]["label"] == predict(artifact, [TEXT])[0]["label"]


def test_the_open_inference_protocol(artifact):
    server = Server({"demo": artifact})
    assert server("/v2")[1]["name"] == "adakron-export"
    assert server("/v2/health/live")[0] == server("/v2/health/ready")[0] == server("/v2/models/demo/ready")[0] == 200
    told = server("/v2/models/demo/versions/1")[1]
    assert {each["name"]: each["datatype"] for each in told["inputs"]} == {
        "input_ids": "INT64", "attention_mask": "INT64", "token_type_ids": "INT64", "text": "BYTES",
    }  # fmt: skip
    as_text = {"id": "7", "inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": [TEXT]}]}
    status, content, _ = server("/v2/models/demo/infer", as_text)
    assert (status, content["id"], content["model_name"], content["outputs"][0]["shape"]) == (200, "7", "demo", [1])
    assert json.loads(content["outputs"][0]["data"][0])["label"] == predict(artifact, [TEXT])[0]["label"]

    ids = opened(artifact).encoder.encode([TEXT])[0].ids
    rows = {"input_ids": [ids], "attention_mask": [[1] * len(ids)], "token_type_ids": [[0] * len(ids)]}
    nested = [{"name": name, "shape": [1, len(ids)], "datatype": "INT64", "data": data} for name, data in rows.items()]
    flat = [{**each, "data": each["data"][0]} for each in nested]
    outputs = [server("/v2/models/demo/infer", {"inputs": inputs})[1]["outputs"][0] for inputs in (nested, flat)]
    assert outputs[0] == outputs[1]
    assert (outputs[0]["name"], outputs[0]["shape"], outputs[0]["datatype"]) == ("logits", [1, 3], "FP32")
    expected = opened(artifact).open("cpu").runner.run({name: np.array(data) for name, data in rows.items()})
    assert outputs[0]["data"] == pytest.approx(expected["logits"][0].tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("body", "status", "why"),
    [
        (b"{", 400, "does not fit"),
        (b'{"text": NaN}', 400, "malformed"),
        (b'{"text": "\xff"}', 400, "utf-8"),
        (b'{"text": "\\ud800"}', 400, "does not fit"),
        (b'{"text": ' + b"[" * 5000, 400, ""),
        ({"text": 3}, 400, "Expected"),
        ({"text": []}, 400, "no text"),
        ({"text": "a", "colour": "red"}, 400, "colour"),
        ({"text": "a", "top_k": 0}, 400, "at least 1"),
        ({"text": "a", "max_new_tokens": 5}, 400, "text-generation"),
        ({"text": "a", "max_new_tokens": 10**9}, 400, "at most"),
        ({"text": "a", "pair": ["b", "c"]}, 400, "one for each"),
        ({"text": "a", "adapter": "x"}, 400, "no bank"),
        ({"text": "a", "model": "../demo"}, 404, "no model"),
        ({"text": ["a"] * 10_000}, 413, "10000 texts"),
        (b" " * (2**20 + 1), 413, "bytes"),
    ],
)
def test_bodies_that_are_refused(body, status, why, artifact):
    server = Server({"demo": artifact})
    found, content, _ = server("/predict", body)
    assert (found, list(content)) == (status, ["error"])
    assert why in content["error"]
    assert "\n" not in content["error"]
    assert not server.jobs
    assert server("/predict", {"text": TEXT})[0] == 200


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"shape": [1, 3]}, "4 numbers and the shape"),
        ({"shape": [4]}, "input_ids"),
        ({"shape": [-1, -4]}, "shape"),
        ({"datatype": "FP32"}, "the model takes int64"),
        ({"datatype": "UINT9"}, "are known"),
        ({"data": [2, 5, 3.5, 3]}, "whole numbers"),
        ({"data": [2, 5, True, 3]}, "whole numbers"),
        ({"data": [2, 5, 10**30, 3]}, ""),
        ({"data": [2, 5, 10**6, 3]}, "tokens lie below 700"),
        ({"data": "abcd"}, "0 numbers"),
        ({"name": "pixels"}, "no input 'pixels'"),
        ({"parameters": {"binary_data_size": 32}}, "binary"),
    ],
)
def test_tensors_that_are_refused(change, why, artifact):
    server = Server({"demo": artifact})
    ids = {"name": "input_ids", "shape": [1, 4], "datatype": "INT64", "data": [2, 5, 6, 3]}
    ones = {**ids, "name": "attention_mask", "data": [1, 1, 1, 1]}
    types = {**ids, "name": "token_type_ids", "data": [0, 0, 0, 0]}
    assert server("/v2/models/demo/infer", {"inputs": [ids, ones, types]})[0] == 200
    status, content, _ = server("/v2/models/demo/infer", {"inputs": [{**ids, **change}, ones, types]})
    assert status == 400
    assert why in content["error"]


def test_places_that_are_not_there(artifact):
    server = Server({"demo": artifact})
    assert server("/v2/models/demo/versions/2")[0] == 404
    assert server("/v2/models/..%2f..%2fetc")[0] == 404
    assert server("/nothing")[:2] == (404, {"error": "GET '/nothing': there is nothing here"})
    assert server("/predict")[0] == 405


def test_the_end_of_a_long_text_is_not_dropped_without_a_word(artifact):
    long = "update " * 5000
    assert Server({"demo": artifact})("/predict", {"text": ["Why?", long]})[1]["cut_off"] == [1]
    status, content, _ = Server({"demo": artifact}, max_tokens=16)("/predict", {"text": ["Why?", long]})
    assert (status, content["error"]) == (413, "text 2 has more than 16 tokens, which is the most here")
    assert Server({"demo": artifact}, max_tokens=1000)("/predict", {"text": long})[1]["cut_off"] == [0]


def test_no_answer_says_where_the_files_are(artifact, bank, tmp_path):
    server = Server({"demo": artifact, "bank": bank}, api_key="secret", adapter_root=str(tmp_path))
    (tmp_path / "empty").mkdir()
    answers = [
        server("/predict", {"text": TEXT, "model": "bank", "adapter": "x"}, KEY),
        server("/predict", {"text": TEXT, "model": "demo", "adapter": "x"}, KEY),
        load(server, "late", "empty"),
    ]
    for status, content, _ in answers:
        assert status == 400
        assert not any(str(folder) in content["error"] for folder in (artifact, bank, tmp_path))


def test_a_full_queue_says_so(artifact):
    server = Server({"demo": artifact}, max_queue=4)

    async def crowd():
        server.gate = asyncio.Event()
        calls = [asyncio.create_task(server.call("/predict", {"text": [TEXT] * 2})) for _ in range(5)]
        await asyncio.sleep(0.2)
        late = await server.call("/predict", {"text": TEXT})
        server.gate.set()
        return late, await asyncio.gather(*calls)

    late, calls = asyncio.run(crowd())
    assert (late[0], late[2]["retry-after"]) == (429, "1")
    assert sorted(status for status, *_ in calls) == [200, 200, 429, 429, 429]
    assert server("/predict", {"text": TEXT})[0] == 200
    assert 'adakron_requests_total{path="/predict",status="429"} 4.0' in server("/metrics")[1]
    assert "adakron_queue_texts 0.0" in server("/metrics")[1]


def test_slow_and_broken_off_requests(artifact):
    server = Server({"demo": artifact}, timeout_s=1, max_queue=1)

    async def attempts():
        gone = asyncio.Event()

        async def hang():
            await gone.wait()
            return {"type": "http.disconnect"}

        scope = {"type": "http", "method": "POST", "path": "/predict", "headers": [], "query_string": b""}
        found = []

        async def send(message):
            found.append(message.get("status"))

        await server.app(dict(scope), hang, send)
        gone.set()
        await server.app(dict(scope), hang, send)
        return [status for status in found if status]

    assert asyncio.run(attempts()) == [408, 499]
    assert server("/predict", {"text": TEXT})[0] == 200  # their places are free


def test_a_body_is_not_read_beyond_the_limit(artifact):
    server, read = Server({"demo": artifact}, max_body=1000), []

    def parts():
        for _ in range(100):
            read.append(1)
            yield b" " * 400

    status, _, headers = asyncio.run(server.call("/predict", b"", chunks=[*parts()]))
    assert (status, headers["connection"]) == (413, "close")  # the rest of the body is not waited for
    assert server("/predict", b"x", headers={"content-length": "5000"})[0] == 413


def test_a_key(artifact):
    server = Server({"demo": artifact}, api_key="secret")
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "secret"}, {"x-api-key": "sécret"}):
        assert server("/predict", {"text": TEXT}, headers)[0] == 401
        assert server("/metrics", headers=headers)[0] == 401
    assert (
        server("/predict", {"text": TEXT}, KEY)[0]
        == server("/predict", {"text": TEXT}, {"x-api-key": "secret"})[0]
        == 200
    )
    assert server("/v2/health/live")[0] == 200


def test_several_models(artifact, bank):
    server = Server({"demo": artifact, "bank": bank})
    assert server("/predict", {"text": TEXT})[0] == 400
    assert server("/predict", {"text": TEXT, "model": "demo"})[0] == 200
    assert server("/predict", {"text": TEXT, "model": "bank", "adapter": "reply"})[0] == 200
    names = server("/v2/repository/index", {})[1]
    assert {each["name"]: each["adapters"] for each in names} == {"demo": [], "bank": ["topic", "reply"]}


def test_adapters_of_a_bank(bank):
    server = Server({"bank": bank})
    asked = {"text": [TEXT, TEXT], "adapter": ["topic", "reply"]}
    labels = [each["label"] for each in server("/predict", asked)[1]["predictions"]]
    assert labels == [each["label"] for each in predict(bank, [TEXT, TEXT], adapter=["topic", "reply"])]
    assert server("/predict", {"text": TEXT})[0] == 400
    assert "it has topic, reply" in server("/predict", {"text": TEXT, "adapter": "../topic"})[1]["error"]
    infer = {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": [TEXT]}]}
    assert server("/v2/models/bank/infer", infer)[0] == 400
    named = {"name": "adapter", "shape": [1], "datatype": "BYTES", "data": ["reply"]}
    ways = [infer | {"parameters": {"adapter": "reply"}}, {"inputs": [*infer["inputs"], named]}]
    found = [json.loads(server("/v2/models/bank/infer", way)[1]["outputs"][0]["data"][0]) for way in ways]
    assert [each["label"] for each in found] == [labels[1]] * 2


def test_an_adapter_for_who_names_none(bank, artifact):
    server = Server({"bank": bank, "demo": artifact}, adapter="reply")
    infer = {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": [TEXT]}]}
    label = predict(bank, [TEXT], adapter="reply")[0]["label"]
    assert server("/predict", {"text": TEXT, "model": "bank"})[1]["predictions"][0]["label"] == label
    assert label in str(server("/v2/models/bank/infer", infer)[1]["outputs"][0]["data"])
    tensors = {"inputs": [
        {"name": name, "shape": [1, 2], "datatype": "INT64", "data": [1, 1]}
        for name in ("input_ids", "attention_mask", "token_type_ids")
    ]}  # fmt: skip
    found = [
        server("/v2/models/bank/infer", tensors | {"parameters": parameters})[1]["outputs"][0]["data"]
        for parameters in ({}, {"adapter": "reply"}, {"adapter": "topic"})
    ]
    assert found[0] == found[1] != found[2]
    named = server("/predict", {"text": TEXT, "model": "bank", "adapter": "topic"})[1]["predictions"][0]["label"]
    assert named == predict(bank, [TEXT], adapter="topic")[0]["label"]
    assert server("/predict", {"text": TEXT, "model": "demo"})[0] == 200
    assert re.search(r'"bank": ?\["reply", ?"topic"\]', server("/")[1])  # the page offers it first


def load(server, adapter, folder=None, headers=KEY, end="load"):
    given = {"adapter": adapter} | ({} if folder is None else {"folder": folder})
    return server(f"/v2/repository/models/bank/{end}", {"parameters": given}, headers)


def test_adapters_come_and_go_while_it_serves(bank, tmp_path):
    root = tmp_path / "adapters"
    shutil.copytree(bank / "adapters/reply", root / "late")
    (tmp_path / "other").mkdir()
    (root / "link").symlink_to(bank / "adapters/topic")
    server = Server({"bank": bank}, api_key="secret", adapter_root=str(root))
    ask = {"text": TEXT, "adapter": "late"}
    assert server("/predict", ask, KEY)[0] == 400
    assert load(server, "late", headers={})[0] == 401
    for folder in ("../other", "link", "nothing", str(tmp_path / "other"), "", "a\0b"):
        assert load(server, "late", folder)[0] == 404
    assert load(server, "../late", "late")[0] == 400
    assert load(server, "late")[:2] == (200, {"name": "bank", "adapters": ["topic", "reply", "late"]})
    assert load(server, "late")[0] == 400  # it is there
    reply = server("/predict", {"text": TEXT, "adapter": "reply"}, KEY)[1]["predictions"]
    assert server("/predict", ask, KEY)[1]["predictions"] == reply

    assert load(server, "late", end="unload")[0] == 200
    assert server("/predict", ask, KEY)[0] == 400
    shutil.rmtree(root / "late")
    shutil.copytree(bank / "adapters/topic", root / "late")
    assert load(server, "late")[0] == 200  # another adapter of the same name
    topic = server("/predict", {"text": TEXT, "adapter": "topic"}, KEY)[1]["predictions"]
    assert server("/predict", ask, KEY)[1]["predictions"] == topic != reply
    assert load(server, "topic", end="unload")[1]["adapters"] == ["reply", "late"]
    assert load(server, "reply", end="unload")[0] == 200
    assert "last adapter" in load(server, "late", end="unload")[1]["error"]


def test_what_was_changed_behind_the_servers_back_is_refused(bank, tmp_path):
    shutil.copytree(bank / "adapters/reply", tmp_path / "late")
    server = Server({"bank": bank}, api_key="secret", adapter_root=str(tmp_path))
    assert load(server, "late")[0] == 200
    shutil.rmtree(tmp_path / "late")
    shutil.copytree(bank / "adapters/topic", tmp_path / "late")  # before a replica has read it
    status, content, _ = server("/predict", {"text": TEXT, "adapter": "late"}, KEY)
    assert (status, "no longer what was added" in content["error"]) == (400, True)


def test_adapters_are_not_changed_without_a_key(bank, artifact, tmp_path):
    assert load(Server({"bank": bank}, adapter_root=str(tmp_path)), "late", headers={})[0] == 403
    assert load(Server({"bank": bank}, api_key="secret"), "late")[0] == 403
    assert load(Server({"bank": artifact}, api_key="secret"), "topic", end="unload")[0] == 400


def test_jobs_run_together_and_one_does_not_touch_another(bank):
    worker, door = Worker(opened(bank).open("cpu"), 8), opened(bank)
    from adakron_export.serving.jobs import Job
    from adakron_export.serving.settings import PredictOptions

    def job(text, adapter, **options):
        return Job("bank", door.check([text], PredictOptions(**options), adapter))

    broken = Job("bank", door.check(["\ud800"], PredictOptions(), "topic"))
    jobs = [job(TEXT, "topic"), broken, job("Thanks!", "reply"), job(TEXT, "topic", top_k=2)]
    replies = worker.answer(jobs)
    assert [reply.error is None for reply in replies] == [True, False, True, True]
    assert [reply.batch for reply in replies] == [4, 0, 0, 0]
    assert replies[0].answers.results[0]["label"] == predict(bank, [TEXT], adapter="topic")[0]["label"]
    assert replies[2].answers.results[0]["label"] == predict(bank, ["Thanks!"], adapter="reply")[0]["label"]
    assert len(replies[3].answers.results[0]) == 2


def test_no_text_of_a_user_is_logged(artifact, caplog):
    server = Server({"demo": artifact})

    async def fail(job):
        raise ValueError(job.asked.given[0])

    server.service._ask = fail
    with caplog.at_level(logging.DEBUG):
        status, content, _ = server("/predict", {"text": "my secret words"})
    assert (status, content["error"]) == (500, "this was not foreseen (ValueError)")
    assert caplog.records
    assert "secret" not in caplog.text


def test_a_drained_server_takes_nothing_more(artifact):
    server = Server({"demo": artifact})

    async def stop():
        server.gate = asyncio.Event()
        under_way = asyncio.create_task(server.call("/predict", {"text": TEXT}))
        await asyncio.sleep(0.1)
        draining = asyncio.create_task(server.service.drain())
        await asyncio.sleep(0.1)
        assert not draining.done()
        refused = await server.call("/predict", {"text": TEXT})
        ready = await server.call("/v2/health/ready")
        server.gate.set()
        await draining
        return refused, ready, await under_way

    refused, ready, answered = asyncio.run(stop())
    assert (refused[0], ready[0], answered[0]) == (503, 503, 200)


def test_a_model_that_fails_is_no_answer(artifact):
    server = Server({"demo": artifact})

    async def fail(job):
        return Reply(error=(500, "the model failed"))

    server.service._ask = fail
    assert server("/predict", {"text": TEXT})[:2] == (500, {"error": "the model failed"})


def test_the_page_loads_nothing_from_elsewhere(bank):
    status, html, headers = Server({"bank": bank}, api_key="secret")("/")
    assert status == 200
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "http" not in html.replace("curl ${location.origin}", "")
    assert '"topic"' in html
    assert 'id="key"' in html
