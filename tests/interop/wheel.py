"""Builds the wheel and uses it outside the checkout.

First as whoever exports does: unpacked in front of the installed packages, so that torch is not installed a second
time. Then as an edge box does: installed with the extra `cpu` into a fresh virtual environment, which has no torch,
where what was exported before is run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = "How do I reset the charger?"


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder), str(ROOT)]
        subprocess.run(pip, check=True)
        (wheel,) = folder.glob("*.whl")
        export_unpacked(wheel, folder)
        run_bare(wheel, folder)
        print(f"{wheel.name} works outside the checkout")


def export_unpacked(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.partition("/")[0] for name in archive.namelist()}
        archive.extractall(folder / "site")
    unexpected = {top for top in tops if top != "adakron_export" and not top.endswith(".dist-info")}
    if unexpected:
        sys.exit(f"the wheel puts {unexpected} at the top level")
    code = (
        "import adakron_export, sys; from pathlib import Path; "
        "home = Path(adakron_export.__file__).parent; assert home.parent.name == 'site', home; "
        "from adakron_export.cli.main import main; main()"
    )
    environment = {**os.environ, "PYTHONPATH": str(folder / "site")}
    command = [sys.executable, "-c", code, "onnx", str(folder / "site/adakron_export/models/demo"), "-o", "out"]
    subprocess.run(command, check=True, cwd=folder, env=environment)


def run_bare(wheel: Path, folder: Path) -> None:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "venv", str(folder / "bare")], check=True)
    binaries = folder / "bare" / "bin"
    pip = [str(binaries / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-c", str(ROOT / "constraints.txt"), f"{wheel}[cpu]"], check=True)
    seconds = time.perf_counter() - start
    size = sum(file.stat().st_size for file in (folder / "bare").rglob("*") if file.is_file())
    there = (
        subprocess.run([binaries / "python", "-c", "import torch"], check=False, capture_output=True).returncode == 0
    )
    if there:
        sys.exit("the base install brings torch")
    command = str(binaries / "adakron-export")
    start = time.perf_counter()
    subprocess.run([command, "predict", "out", "--text", TEXT], check=True, cwd=folder)
    print(f"base install: {size / 1e6:.0f} MB in {seconds:.0f} s; predict: {time.perf_counter() - start:.2f} s")
    for arguments in (["inspect", "out"], ["doctor"], ["bench", "out", "--shapes", "1x16", "--budget", "1s"]):
        subprocess.run([command, *arguments], check=True, cwd=folder, stdout=subprocess.DEVNULL)
    refused = subprocess.run(
        [command, "onnx", "out", "-o", "again"], check=False, cwd=folder, capture_output=True, text=True
    )
    if refused.returncode != 2 or "adakron-export[export]" not in refused.stderr or "Traceback" in refused.stderr:
        sys.exit(f"without torch an export ends with {refused.returncode}: {refused.stderr}")


if __name__ == "__main__":
    main()
