"""The stages: the same bytes however the work is cut, and however often it was interrupted."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fabric.artifacts import canonical
from fabric.errors import Reason, Refused
from sanitize import counting
from sanitize.bench import Bench
from sanitize.inspection import Inspector
from sanitize.pipeline import course, sanitize
from sanitize.reading import RawTable, TableSource
from sanitize.recipe import column_of, parse_recipe
from sanitize.risk import Limits
from sanitize.spool import TRAIN, Spool
from sanitize.stages import do
from sanitize.surrogates import Surrogates
from sanitize.task import Task

RANDOM = np.random.default_rng(5)
ROWS = 1_200
WHO = RANDOM.integers(0, 150, ROWS)
PEOPLE = pa.table(
    {
        "who": [f"patient {n}" for n in WHO],
        "born": pa.array(RANDOM.integers(-10_000, 10_000, 150)[WHO], pa.int32()).cast(pa.date32()),
        "sex": RANDOM.choice(["f", "m"], 150)[WHO],
        "ward": RANDOM.choice([f"ward {n}" for n in range(12)], ROWS),
        "pulse": RANDOM.integers(50, 120, ROWS),
        "weight": np.round(RANDOM.normal(80, 12, ROWS), 1),
        "notes": [f"seen on ward, stable, day {n % 9}" for n in range(ROWS)],
        "cost": np.round(RANDOM.lognormal(7, 1, ROWS), 2),
    }
)
RECIPE = parse_recipe(
    """
name = "n"
purpose = "p"
records = "people"
subject = "who"
[risk]
suppress = 0.2
[columns]
age = {from = "born", treatment = "age", at = "2026-01-01", band = 15, role = "quasi-identifier"}
sex = {from = "sex", treatment = "encode", role = "quasi-identifier"}
ward = {from = "ward", treatment = "encode", role = "feature"}
pulse = {from = "pulse", treatment = "keep", role = "feature"}
weight = {from = "weight", treatment = "perturb", low = 40, high = 140, epsilon = 2, to = 5, role = "feature"}
notes = {from = "notes", treatment = "vectorise", size = 8, cap = 4, role = "feature"}
token = {from = "who", treatment = "pseudonymise", by = "hmac", role = "feature"}
cost = {from = "cost", treatment = "round", to = 100, high = 20000, role = "target"}
""",
    source="r.toml",
)
LIMITS = Limits(k=11, l=2)


@pytest.fixture(scope="module")
def inspector():
    return Inspector()


def raw(table=PEOPLE):
    return RawTable(name="people", table=table, version="sha256:0", order_key=b"o" * 32)


def run(inspector, **settings):
    return sanitize({"people": raw()}, RECIPE, inspector=inspector, hold_back=0.2, seed=1, limits=LIMITS, **settings)


@pytest.fixture(scope="module")
def whole(inspector):
    return run(inspector)


def bench_at(folder, inspector, *, recipe=RECIPE, unit_rows=300):
    spool = Spool(folder, durable=False)
    spool.prepare()
    task = Task(
        recipe=recipe, sources={"people": TableSource(raw(), unit_rows, 100)}, hold_back=0.2, seed=1,
        secret=bytes(32), limits=LIMITS, surrogates=Surrogates(folder / "map.sqlite").draw,
    )  # fmt: skip
    return Bench(task, spool, lambda: inspector)


# --- refusals


def test_cells_that_single_people_out_are_refused_with_a_way_out(inspector):
    strict = parse_recipe(
        'name = "n"\npurpose = "p"\nrecords = "people"\nsubject = "who"\n[columns]\n'
        'age = {from = "born", treatment = "age", at = "2026-01-01", role = "feature"}\n'
        'sex = {from = "sex", treatment = "encode", role = "feature"}\n',
        source="r.toml",
    )
    with pytest.raises(Refused) as caught:
        sanitize({"people": raw()}, strict, inspector=inspector, hold_back=0, seed=1, limits=LIMITS)
    assert caught.value.reason is Reason.RISK_TOO_HIGH
    assert "age, sex" in caught.value.message
    assert "'age' left inside" in caught.value.hint or "coarse" in caught.value.hint


def test_no_more_rows_are_left_out_than_the_recipe_allows(inspector):
    recipe = parse_recipe(
        'name = "n"\npurpose = "p"\nrecords = "people"\nsubject = "who"\n[risk]\nsuppress = 0.001\n[columns]\n'
        'age = {from = "born", treatment = "age", at = "2026-01-01", band = 15, role = "quasi-identifier"}\n'
        'sex = {from = "sex", treatment = "encode", role = "quasi-identifier"}\n',
        source="r.toml",
    )
    with pytest.raises(Refused) as caught:
        sanitize({"people": raw()}, recipe, inspector=inspector, hold_back=0, seed=1, limits=LIMITS)
    assert caught.value.reason is Reason.RISK_TOO_HIGH


def test_what_was_released_before_is_weighed_together_with_what_is_now(inspector):
    small = parse_recipe(
        'name = "n"\npurpose = "p"\nrecords = "people"\nsubject = "who"\n[columns]\n'
        'sex = {from = "sex", treatment = "encode", role = "quasi-identifier"}\n',
        source="r.toml",
    )
    given = {"inspector": inspector, "hold_back": 0, "seed": 1, "limits": LIMITS}
    assert sanitize({"people": raw()}, small, **given).report["risk"]["k"] >= 11
    earlier = column_of(
        {"name": "age", "from": "born", "treatment": "age", "at": "2026-01-01", "role": "quasi-identifier"}
    )
    with pytest.raises(Refused) as caught:
        sanitize({"people": raw()}, small, earlier=(earlier,), **given)
    assert caught.value.reason is Reason.RISK_TOO_HIGH


def test_a_stage_that_was_not_done_stops_the_next(inspector, tmp_path):
    with pytest.raises(Refused, match="not done"):
        do(bench_at(tmp_path, inspector), "seal", f"{TRAIN}.0")


# --- what is sealed


@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(unit=st.integers(7, 1_300), block=st.integers(5, 700), budget=st.sampled_from([64, 1 << 20]))
def test_the_bytes_do_not_depend_on_how_the_work_is_cut(inspector, whole, unit, block, budget):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "BUDGET", budget)
        cut = run(inspector, unit_rows=unit, block_rows=block)
    assert cut.train.chunks == whole.train.chunks
    assert cut.held_back.chunks == whole.held_back.chunks
    assert canonical({**cut.report, "inspection": 0}) == canonical({**whole.report, "inspection": 0})


def test_work_that_was_stopped_anywhere_goes_on_to_the_same_bytes(inspector, whole, tmp_path):
    """Stop before every piece in turn, each time with a new worker, until none is left."""

    class Stopped(Exception):
        pass

    turns = 0
    for _ in range(500):
        turns += 1
        bench, left = bench_at(tmp_path / "w", inspector), [1]

        def call(stage, items, bench=bench, left=left):
            found = []
            for item in items:
                if bench.spool.facts(stage, item) is None:
                    if not left:
                        raise Stopped
                    left.pop()
                found.append(do(bench, stage, item))
            return found

        try:
            done = course(call, chunk_rows=bench.task.chunk_rows)
        except Stopped:
            continue
        break
    assert turns > 20
    sealed = [bench.spool.sealed(TRAIN, index).read_bytes() for index in range(len(done.digests[TRAIN]))]
    assert tuple(sealed) == whole.train.chunks


def test_rows_in_small_cells_are_left_out_and_counted(whole):
    report = whole.report
    assert report["suppressed"] > 0
    assert report["rows_out"] == whole.train.rows + whole.held_back.rows == ROWS - report["suppressed"]
    assert report["risk"]["k"] >= 11
    assert report["quasi_identifiers"] == ["age", "sex"]


def test_the_spool_holds_no_raw_cell_in_what_is_marked(inspector, tmp_path):
    bench = bench_at(tmp_path, inspector)
    course(lambda stage, items: [do(bench, stage, item) for item in items], chunk_rows=65_536)
    marks = b"".join(path.read_bytes() for path in sorted(Path(tmp_path, "marks").iterdir()))
    for raw_cell in (b"patient ", b"ward 3", b"stable"):
        assert raw_cell not in marks
    assert json.loads(Path(tmp_path, "marks", "start.all").read_text())["rows"] == ROWS


def test_random_surrogates_are_one_to_one_the_same_next_time_and_apart_between_purposes(tmp_path):
    surrogates = Surrogates(tmp_path / "map.sqlite")
    names = [f"name {n}" for n in range(500)]
    first = surrogates.draw("a/who", names)
    assert len(set(first)) == 500
    assert surrogates.draw("a/who", names[::-1]) == first[::-1]
    assert not set(first) & set(surrogates.draw("b/who", names))
    assert (tmp_path / "map.sqlite").stat().st_mode & 0o077 == 0
