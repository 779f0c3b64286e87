"""The Synthea tables, as their owner would go about them: suggest, correct, sanitize, read the report."""

from pathlib import Path

import pytest

from fabric.artifacts import canonical
from fabric.errors import Reason, Refused
from fabric.labels import Classification
from sanitize.inspection import Inspector
from sanitize.pipeline import sanitize
from sanitize.profile import profile
from sanitize.reading import read_records
from sanitize.recipe import parse_recipe
from sanitize.report import report_html
from sanitize.risk import LIMITS
from sanitize.suggest import suggest

SYNTHEA = Path(__file__).parents[2] / "shared" / "data" / "synthea"
pytestmark = pytest.mark.skipif(not SYNTHEA.is_dir(), reason="../shared/data is not beside the checkout")
NAMES = ("encounters", "patients")
IDENTIFYING = ("Id", "SSN", "DRIVERS", "PASSPORT", "FIRST", "LAST", "MAIDEN", "ADDRESS", "BIRTHDATE", "LAT", "LON")


@pytest.fixture(scope="module")
def inspector():
    return Inspector()


@pytest.fixture(scope="module")
def records():
    return {name: read_records(SYNTHEA / f"{name}.csv", name=name) for name in NAMES}


@pytest.fixture(scope="module")
def suggested(inspector, records):
    seen = profile({name: raw.table for name, raw in records.items()}, inspector)
    return suggest(
        seen, records="encounters", joins=None, purpose="cost-forecast", name="suggested", subject="PATIENT",
        target="TOTAL_CLAIM_COST",
    )  # fmt: skip


def sanitized(text, records, inspector):
    recipe = parse_recipe(text, source="suggested.toml")
    limits = LIMITS[Classification.RESTRICTED]
    return sanitize(records, recipe, inspector=inspector, hold_back=0.2, seed=0, limits=limits)


def test_an_age_by_the_year_is_refused_with_the_way_out(inspector, records, suggested):
    finer = suggested.replace("band = 40", "band = 1")
    assert finer != suggested
    with pytest.raises(Refused) as caught:
        sanitized(finer, records, inspector)
    assert caught.value.reason is Reason.RISK_TOO_HIGH
    assert "'age" in caught.value.hint


def test_the_corrected_suggestion_is_sealed_and_holds_no_identifier(inspector, records, suggested):
    assert "to = 200" in suggested
    corrected = suggested.replace("to = 200", "to = 10").replace("[join.", "[risk]\nsuppress = 0.1\n\n[join.", 1)
    done = sanitized(corrected, records, inspector)
    assert done.train.rows > 3_000
    assert done.report["risk"]["k"] >= 11
    page = report_html(done.report, envelope_digest="sha256:" + "0" * 64)
    leaves = b"".join((*done.train.chunks, *done.held_back.chunks)) + canonical(dict(done.report)) + page.encode()
    for column in IDENTIFYING:
        cells = records["patients"].table.column(column).to_pylist()
        assert not [cell for cell in cells if cell is not None and str(cell).encode() in leaves], column
    assert f"{done.report['risk']['k']}" in page
    assert {"patients.SSN", "patients.LAST", "patients.LAT", "PATIENT"} <= set(done.staying)
