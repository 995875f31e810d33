"""A bank that the tests of serving share."""

from __future__ import annotations

from pathlib import Path

import pytest

from adakron_export import BankSettings, Subject, create_bank
from conftest import DEMO


@pytest.fixture(scope="session")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "bank"
    members = {"topic": DEMO, "reply": DEMO / "reply"}
    subjects = {name: Subject(path, DEMO / "backbone") for name, path in members.items()}
    create_bank(subjects, folder, settings=BankSettings(validate=False))
    return folder
