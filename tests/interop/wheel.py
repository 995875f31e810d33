"""Builds the wheel and runs the demo with it, in a folder that is not the checkout.

The wheel is unpacked in front of the installed packages, so that this proves what is in it without installing torch a
second time.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder), str(ROOT)]
        subprocess.run(pip, check=True)
        (wheel,) = folder.glob("*.whl")
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
        demo = folder / "site/adakron_export/models/demo"
        environment = {**os.environ, "PYTHONPATH": str(folder / "site")}
        for command in (["onnx", demo, "-o", "out"], ["predict", "out", "--text", "How do I reset the charger?"]):
            arguments = [sys.executable, "-c", code, *map(str, command)]
            subprocess.run(arguments, check=True, cwd=folder, env=environment)
        print(f"{wheel.name} works outside the checkout")


if __name__ == "__main__":
    main()
