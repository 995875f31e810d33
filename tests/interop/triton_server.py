"""Serves artifacts with a real Triton server, and asks it with Triton's own client.

The server of the wheel `nvidia-pytriton` has the Python backend alone, and needs no GPU. Of the other backends it
reads the configurations, and says that it has no such backend.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adakron_export import BankSettings, Subject, TritonSettings, create_bank, export_onnx, predict, triton
from adakron_export.artifacts.artifact import opened_with
from adakron_export.serving.predictor import Predictor

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "models/demo"
PORT = 18021
TEXTS = ["The printer stopped working after the update", "Thanks!", "How do I share the calendar?", "é\nß"]
ASK = """
import json, sys
import numpy as np
import tritonclient.http as http
url, requests = sys.argv[1], json.loads(sys.argv[2])
client, found = http.InferenceServerClient(url, concurrency=8), []
def tensor(name, texts):
    made = http.InferInput(name, [len(texts), 1], "BYTES")
    made.set_data_from_numpy(np.array([[text.encode()] for text in texts], dtype=object))
    return made
going = [
    client.async_infer(each["model"], [tensor(name, texts) for name, texts in each["inputs"].items()],
                       parameters=each.get("parameters"))
    for each in requests
]
for each in going:
    try:
        result = each.get_result()
        outputs = {row["name"]: result.as_numpy(row["name"]).tolist() for row in result.get_response()["outputs"]}
        found.append({name: [[cell.decode() if isinstance(cell, bytes) else cell for cell in row] for row in rows]
                      for name, rows in outputs.items()})
    except Exception as error:
        found.append(str(error))
print(json.dumps(found))
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        site = environment(folder / "venv")
        export_onnx(DEMO, folder / "demo")
        members = {"topic": DEMO, "reply": DEMO / "reply"}
        subjects = {name: Subject(path, DEMO / "backbone") for name, path in members.items()}
        for name, settings in (("bank", BankSettings()), ("sealed", BankSettings(sealed=8))):
            create_bank(subjects, folder / name, settings=settings)
        answering(folder, site)
        tensors(folder, site)


def environment(place: Path) -> Path:
    """A virtual environment with the server, its client and this package; where its packages are."""
    venv.create(place, with_pip=True)
    packages = ROOT / "tests/interop/requirements-triton.txt"
    pip = [place / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-r", packages, "-e", f"{ROOT}[cpu]"], check=True)
    return next(place.glob("lib/python*/site-packages"))


def answering(folder: Path, site: Path) -> None:
    """The backend python answers as `predict`, many at once, and goes on after what is wrong."""
    settings = TritonSettings(response_cache=True)
    repository = folder / "answering"
    for name in ("demo", "bank"):
        triton(folder / name, repository, backend="python", settings=settings)
    with server(folder, site, repository, "--cache-config=local,size=1048576"):
        same(ask(site, [{"model": "demo", "inputs": {"text": [text]}} for text in TEXTS * 8]),
             [[each] for each in predict(folder / "demo", TEXTS)] * 8)  # fmt: skip
        names = ["topic", "reply", "reply", "topic"]
        found = ask(site, [{"model": "bank", "inputs": {"text": TEXTS, "adapter": names}}])
        same(found, [predict(folder / "bank", TEXTS, adapter=names)])
        found = ask(site, [{"model": "demo", "inputs": {"text": TEXTS}, "parameters": {"top_k": 2}}])
        same(found, [predict(folder / "demo", TEXTS, top_k=2)])
        refused = ask(site, [{"model": "bank", "inputs": {"text": ["a"], "adapter": ["../topic"]}},
                             {"model": "demo", "inputs": {"text": ["a"]}, "parameters": {"colour": 1}},
                             {"model": "demo", "inputs": {"text": ["a"]}}])  # fmt: skip
        check("no adapter '../topic'" in refused[0] and "'colour' is not known" in refused[1], refused)
        check(isinstance(refused[2], dict), refused)
    print("Triton's Python backend answers as predict does, in batches, with a bank's adapters and its cache")


def tensors(folder: Path, site: Path) -> None:
    """The tokens are ours; of the graph and the ensemble Triton says nothing but that it lacks the backend."""
    for name in ("demo", "sealed"):
        triton(folder / name, folder / f"{name}-tensors", name=name, settings=TritonSettings(bench=report(folder)))
        with server(folder, site, folder / f"{name}-tensors", ready=f"{name}_tokens") as log:
            given = {"text": TEXTS} | ({"adapter": ["topic", "reply", "reply", "topic"]} if name == "sealed" else {})
            (found,) = ask(site, [{"model": f"{name}_tokens", "inputs": given}])
            encoded = opened_with(folder / name, Predictor).encoder.encode(TEXTS)
            for row, each in zip(found["input_ids"], encoded, strict=True):
                check(row[: len(each.ids)] == each.ids and not any(row[len(each.ids) :]), row)
            check([sum(row) for row in found["attention_mask"]] == [len(each.ids) for each in encoded], found)
            if name == "sealed":
                check(found["adapter_ids"] == [[0], [1], [1], [0]], found["adapter_ids"])
        said = log.read_text()
        check("unable to find backend library for backend 'onnxruntime'" in said, said[-3000:])
        check("failed to parse" not in said.lower() and "unknown" not in said.lower(), said[-3000:])
    print("Triton reads the configurations of onnxruntime and the ensemble; their tokens are ours")


def report(folder: Path) -> str:
    rows = [{"side": "demo", "shape": [size, 32], "texts_per_second": rate}
            for size, rate in ((1, 50.0), (4, 90.0), (8, 99.0), (16, 100.0))]  # fmt: skip
    (folder / "bench.json").write_text(json.dumps({"reference": "demo", "latencies": rows}))
    return str(folder / "bench.json")


@contextmanager
def server(folder: Path, site: Path, repository: Path, *more: str, ready: str | None = None) -> Iterator[Path]:
    """A server, until the block is left; what it logs."""
    home, backends, log = site / "pytriton/tritonserver", folder / "backends", folder / f"{repository.name}.log"
    if not backends.exists():
        shutil.copytree(home / "backends", backends)
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        shutil.copy(home / "python_backend_stubs" / version / "triton_python_backend_stub", backends / "python")
    libraries = [site / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR")]
    changed = {"LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)), "PYTHONPATH": str(site),
               "PATH": f"{folder / 'venv/bin'}{os.pathsep}{os.environ['PATH']}"}  # fmt: skip
    command = [
        home / "bin/tritonserver", f"--model-repository={repository}", f"--backend-directory={backends}",
        f"--cache-directory={home / 'caches'}", "--http-address=127.0.0.1", f"--http-port={PORT}",
        "--allow-grpc=false", "--allow-metrics=false", "--exit-on-error=false", *more,
    ]  # fmt: skip
    with log.open("wb") as stream:
        process = subprocess.Popen(command, env={**os.environ, **changed}, stdout=stream, stderr=subprocess.STDOUT)
        try:
            wait_for(f"http://127.0.0.1:{PORT}/v2/{f'models/{ready}' if ready else 'health'}/ready", process, log)
            yield log
        finally:
            process.terminate()
            threading.Timer(20, process.kill).start()
            process.wait()


def wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(120):
        try:
            urllib.request.urlopen(address, timeout=5)
        except OSError:
            time.sleep(0.5)
        else:
            return
        if process.poll() is not None:
            break
    sys.exit(f"Triton does not start:\n{log.read_text()[-4000:]}")


def ask(site: Path, requests: list[dict[str, Any]]) -> list[Any]:
    python = next(site.parents[2].glob("bin/python"))
    command = [python, "-c", ASK, f"127.0.0.1:{PORT}", json.dumps(requests)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def same(found: list[Any], wanted: list[list[Any]]) -> None:
    check(all(isinstance(each, dict) for each in found), found)
    answers = [[json.loads(cell) for row in each["prediction"] for cell in row] for each in found]
    check(rounded(answers) == rounded(wanted), (answers, wanted))


def rounded(value: Any) -> Any:
    """Batches of another size round otherwise."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list) else value


def check(held: Any, shown: Any) -> None:
    if not held:
        sys.exit(f"Triton gives something else: {shown}")


if __name__ == "__main__":
    main()
