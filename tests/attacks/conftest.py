"""A lab of each test's own, on made-up records with a planted person."""

from __future__ import annotations

import pyarrow.csv as csv
import pytest
from conftest import write_planted

from attacks.lab import LocalLab
from sanitize.inspection import Inspector


@pytest.fixture(scope="session")
def records(tmp_path_factory):
    path = tmp_path_factory.mktemp("records") / "people.csv"
    write_planted(path, rows=300)
    return csv.read_csv(path)


@pytest.fixture(scope="session")
def inspect_text():
    return Inspector().inspect_text


@pytest.fixture
def lab(records, inspect_text, tmp_path):
    made = LocalLab(records, inspect_text, tmp_path)
    yield made
    made.border.ledger.close()
