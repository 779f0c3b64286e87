"""The pipeline: what is not declared does not leave, whatever the table and the recipe."""

import json
from collections import Counter
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from fabric.artifacts import canonical
from fabric.errors import FabricError, InvalidInput, Reason, Refused
from sanitize.inspection import Inspector
from sanitize.pipeline import sanitize
from sanitize.reading import RawTable, read_records
from sanitize.recipe import parse_recipe
from sanitize.sealing import open_chunk

SYNTHEA = Path(__file__).parents[2] / "shared" / "data" / "synthea"
HEAD = 'name = "n"\npurpose = "p"\nrecords = "people"\n'
MARKER = 219_099_999_876


@pytest.fixture(scope="module")
def inspector():
    return Inspector()


def raw(name="people", *, key=b"k" * 32, **columns):
    return RawTable(name=name, table=pa.table(columns), version=f"sha256:{name}", order_key=key)


def recipe_of(head=HEAD, **columns):
    tables = [f"[columns.{name}]\n{text}\nrole = 'feature'\n" for name, text in columns.items()]
    return parse_recipe(head + "\n".join(tables), source="r.toml")


def run(inspector, recipe, *tables, hold_back=0.0, seed=1):
    return sanitize(
        {table.name: table for table in tables}, recipe, inspector=inspector, hold_back=hold_back, seed=seed
    )


def opened(part):
    return pa.Table.from_batches([open_chunk(chunk, part.columns) for chunk in part.chunks])


def refusal(inspector, recipe, *tables, reason=Reason.COLUMN_REFUSED, **settings):
    with pytest.raises(FabricError) as caught:
        run(inspector, recipe, *tables, **settings)
    assert caught.value.reason is reason
    return caught.value


KEEP = recipe_of(x="from = 'a'\ntreatment = 'keep'")
ROUND = recipe_of(x="from = 'a'\ntreatment = 'round'\nto = 1")
RANDOM = np.random.default_rng(11)
ROWS = 200


def luhn(stem):
    total = sum(sum(divmod(int(digit) * (1 + (place % 2 == 0)), 10)) for place, digit in enumerate(reversed(stem)))
    return int(f"{stem}{-total % 10}")


IDENTIFIERS = {
    "national ids": [int(f"{a}{b:02d}{c:04d}") for a, b, c in RANDOM.integers((100, 1, 1), (665, 99, 9999), (ROWS, 3))],
    "phone numbers": [int(f"{a}{b}{c:04d}") for a, b, c in RANDOM.integers((201, 201, 0), (989, 989, 9999), (ROWS, 3))],
    "cards": [luhn(f"4{n:014d}") for n in RANDOM.integers(0, 10**14, ROWS)],
    "dates as numbers": [int(date.fromordinal(n).strftime("%Y%m%d")) for n in RANDOM.integers(700_000, 735_000, ROWS)],
    "record numbers": RANDOM.choice(9_000_000, ROWS, replace=False) + 1_000_000,
    "row numbers": range(ROWS),
    "latitudes": RANDOM.uniform(41, 43, ROWS),
}


# --- refusals


@pytest.mark.parametrize("kind", IDENTIFIERS)
@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("recipe", [KEEP, ROUND], ids=["keep", "round"])
def test_a_column_of_identifiers_is_refused(inspector, kind, real, recipe):
    if kind == "latitudes" and recipe is ROUND:
        pytest.skip("whole degrees are no coordinates")
    numbers = np.array(IDENTIFIERS[kind])
    error = refusal(inspector, recipe, raw(a=numbers.astype(np.float64) if real else numbers))
    assert "'x' (from 'a')" in error.message
    assert str(max(numbers)) not in str(error)


def test_one_card_number_among_amounts_is_refused(inspector):
    amounts = [*(RANDOM.integers(0, 500, ROWS)), 4012888888881881]
    assert "CREDIT_CARD" in refusal(inspector, KEEP, raw(a=amounts)).message


def test_numbers_that_each_belong_to_one_subject_are_refused(inspector):
    who = np.repeat(np.arange(60), 20)
    income = np.repeat(RANDOM.choice(50_000, 60, replace=False), 20)
    run(inspector, KEEP, raw(a=income))
    subject = recipe_of(HEAD + 'subject = "who"\n', x="from = 'a'\ntreatment = 'keep'")
    assert "tells rows apart" in refusal(inspector, subject, raw(a=income, who=who)).message


def test_codes_of_identifiers_need_a_subject(inspector):
    uuids = [f"{n:08x}-0000-4000-8000-000000000000" for n in range(10) for _ in range(20)]
    encode = {"x": "from = 'a'\ntreatment = 'encode'"}
    assert "subject" in refusal(inspector, recipe_of(**encode), raw(a=uuids)).message
    named = recipe_of(HEAD + 'subject = "who"\n', **encode)
    assert len(run(inspector, named, raw(a=uuids, who=range(ROWS))).dictionaries["x"]) == 12
    alone = run(inspector, named, raw(a=uuids, who=np.arange(ROWS) // 4))
    assert len(alone.dictionaries["x"]) == 2


def test_few_subjects_are_refused(inspector):
    assert "49 subjects" in refusal(inspector, KEEP, raw(a=[1] * 49)).message
    run(inspector, KEEP, raw(a=[1] * 50))


def test_every_column_that_may_not_cross_is_named_at_once(inspector):
    recipe = recipe_of(x="from = 'a'\ntreatment = 'keep'", y="from = 'b'\ntreatment = 'keep'")
    error = refusal(inspector, recipe, raw(a=range(ROWS), b=IDENTIFIERS["cards"]))
    assert "'x'" in error.message
    assert "'y'" in error.message


def test_a_header_that_holds_data_is_refused(inspector):
    table = {"a": [1] * ROWS, "Ada 212-555-0187": [1] * ROWS}
    error = refusal(inspector, KEEP, raw(**table), reason=Reason.RECORDS_UNREADABLE)
    assert "column 2" in error.message
    assert "555" not in str(error)


def test_records_that_are_not_given_are_refused(inspector):
    refusal(inspector, KEEP, raw("persons", a=[1] * ROWS), reason=Reason.UNKNOWN_RECORDS)


def test_a_column_that_is_not_there_is_answered_with_the_nearest(inspector):
    recipe = recipe_of(x="from = 'incom'\ntreatment = 'keep'")
    assert "'income'" in refusal(inspector, recipe, raw(income=[1] * ROWS), reason=Reason.COLUMN_MISSING).hint


@pytest.mark.parametrize("share", [-0.1, 1.0, 0.001, float("nan")])
def test_a_share_that_leaves_a_part_empty_is_refused(inspector, share):
    refusal(inspector, KEEP, raw(a=[1] * ROWS), reason=Reason.CONFIG_INVALID, hold_back=share)


@pytest.mark.parametrize(
    "second", ["treatment = 'keep'", "treatment = 'bin'\nedges = [3]", "treatment = 'round'\nto = 7"]
)
def test_a_number_that_leaves_in_two_ways_is_refused(inspector, second):
    recipe = recipe_of(x="from = 'a'\ntreatment = 'bin'\nedges = [10, 50]", y=f"from = 'a'\n{second}")
    assert "'x', 'y'" in refusal(inspector, recipe, raw(a=np.arange(ROWS) % 60)).message


def test_a_number_shifted_back_by_a_difference_of_times_is_refused(inspector):
    start = np.zeros(ROWS, dtype="datetime64[s]")
    ids = RANDOM.choice(9_000_000, ROWS, replace=False) + 1_000_000
    recipe = recipe_of(x="from = 'a'\ntreatment = 'duration'\nuntil = 'b'")
    refusal(inspector, recipe, raw(a=start, b=start + (ids * 60).astype("timedelta64[s]")))


# --- what leaves


def test_rows_leave_in_an_order_that_is_not_the_records(inspector):
    table = raw(a=np.arange(ROWS) // 4)
    rows = opened(run(inspector, KEEP, table).train).column("x").to_pylist()
    assert rows != sorted(rows)
    assert sorted(rows) == table.table.column("a").to_pylist()


def test_the_order_depends_on_the_seed_and_on_the_records_own_bytes(inspector):
    values = np.arange(ROWS) // 4
    one, again = (run(inspector, KEEP, raw(a=values)).train.chunks for _ in range(2))
    assert one == again
    assert one != run(inspector, KEEP, raw(a=values), seed=2).train.chunks
    assert one != run(inspector, KEEP, raw(a=values, key=b"other bytes of the same table!!!")).train.chunks


def test_no_subject_is_both_in_training_and_held_back(inspector):
    # Each subject has eight rows and shares its value with one other, so an unsplit value counts 8 or 16 in a part.
    who = np.repeat(np.arange(100), 8)
    recipe = recipe_of(HEAD + 'subject = "who"\n', x="from = 'a'\ntreatment = 'keep'")
    done = run(inspector, recipe, raw(a=who // 2, who=who), hold_back=0.2)
    assert (done.train.rows, done.held_back.rows) == (640, 160)
    for part in (done.train, done.held_back):
        assert set(Counter(opened(part).column("x").to_pylist()).values()) <= {8, 16}


def test_dictionaries_and_dropped_columns_stay_inside(inspector):
    table = raw(a=["vermilion", "blue"] * 100, note=["LEFTINSIDE"] * ROWS)
    done = run(inspector, recipe_of(x="from = 'a'\ntreatment = 'encode'"), table)
    leaves = b"".join(done.train.chunks) + canonical(dict(done.report))
    assert b"vermilion" not in leaves
    assert b"blue" not in leaves
    assert b"LEFTINSIDE" not in leaves
    assert done.dictionaries["x"][2:] == ("blue", "vermilion")
    assert (done.report["dropped"], done.staying) == (1, ("note",))
    assert b"note" not in leaves
    assert "vermilion" not in repr(done)


def test_the_report_says_what_was_done_without_floats(inspector):
    people = raw("towns", id=["t", "u"], size=[3, 4])
    recipe = recipe_of(
        HEAD + '[join.towns]\nleft = "town"\nright = "id"\n',
        x="from = 'a'\ntreatment = 'round'\nto = 0.5",
        size="from = 'towns.size'\ntreatment = 'keep'",
    )
    table = raw(a=[*(RANDOM.integers(0, 9, ROWS - 1)), None], town=["t", "v"] * 100)
    report = run(inspector, recipe, table, people).report
    assert json.loads(canonical(dict(report)), parse_float=pytest.fail) == report
    first, second = report["columns"]
    assert (first["name"], first["from"], first["treatment"], first["role"]) == ("x", "a", "round", "feature")
    assert (first["nulls"], first["type"], first["levels"], first["why"]) == (1, "double", 0, "rounded to 0.5")
    assert second["nulls"] == 100
    assert report["unmatched"] == {"towns": 100}
    assert "inputs" not in report
    assert report["dropped"] == 2
    assert report["recipe"] == recipe.digest
    assert report["rows_in"] == ROWS


FORMS = {
    "keep": "treatment = 'keep'",
    "round": "treatment = 'round'\nto = 10",
    "clip": "treatment = 'clip'\nlow = 0\nhigh = 90",
    "bin": "treatment = 'bin'\nedges = [10, 50]",
    "encode": "treatment = 'encode'",
}


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_no_undeclared_value_is_in_the_sealed_bytes(inspector, data):
    rows = data.draw(st.integers(50, 90))
    small = st.lists(st.one_of(st.none(), st.integers(0, 99)), min_size=rows, max_size=rows)
    declared = {name: data.draw(small) for name in data.draw(st.sets(st.sampled_from("abc"), min_size=1))}
    planted = {
        "note": [str(MARKER)] * rows,
        "number": [MARKER] * rows,
        "real": [float(MARKER)] * rows,
        "coded": pa.array([str(MARKER)] * rows).dictionary_encode(),
    }
    undeclared = {name: planted[name] for name in data.draw(st.sets(st.sampled_from(sorted(planted))))}
    columns = {name: f"from = '{name}'\n{data.draw(st.sampled_from(sorted(FORMS.values())))}" for name in declared}
    table = raw(**{name: pa.array(cells, pa.int64()) for name, cells in declared.items()}, **undeclared)
    # A slice of a longer table: the marker also lies before and after the rows, in the declared columns' own buffers.
    around = table.table.take([0, 0, 0]).select(list(undeclared))
    for name in declared:
        around = around.append_column(name, pa.array([MARKER] * 3))
    whole = pa.concat_tables([around, table.table.select(around.column_names), around]).combine_chunks()
    table = RawTable(name="people", table=whole.slice(3, rows), version="sha256:0", order_key=b"0" * 32)
    try:
        done = run(inspector, recipe_of(**columns), table, hold_back=data.draw(st.sampled_from([0.0, 0.3])))
    except (Refused, InvalidInput) as error:
        event(f"refused: {error.reason}")
        done, refused = None, error
    if done is None:
        assert str(MARKER) not in str(refused)
        return
    event("sealed")
    parts = [done.train, *([done.held_back] if done.held_back else [])]
    sealed = b"".join(chunk for part in parts for chunk in part.chunks) + canonical(dict(done.report))
    text, real = str(MARKER), np.float64(MARKER)
    marks = (text.encode(), text.encode("utf-16-le"), MARKER.to_bytes(8, "little"), real.tobytes())
    assert not [mark for mark in marks if mark in sealed]
    assert sum(part.rows for part in parts) == rows


# --- whole examples


@pytest.mark.skipif(not SYNTHEA.is_dir(), reason="../shared/data is not beside the checkout")
def test_the_synthea_recipe_passes_and_no_patient_is_in_its_bytes(inspector):
    recipe = parse_recipe((Path(__file__).parents[1] / "jobs/synthea/recipe.toml").read_text(), source="recipe.toml")
    records = {name: read_records(SYNTHEA / f"{name}.csv", name=name) for name in recipe.sources}
    done = sanitize(records, recipe, inspector=inspector, hold_back=0.2, seed=0)
    assert done.train.rows + done.held_back.rows + done.report["suppressed"] == records["encounters"].rows
    assert {"patients.SSN", "patients.LAT", "patients.LAST", "PATIENT"} <= set(done.staying)
    leaves = b"".join((*done.train.chunks, *done.held_back.chunks)) + canonical(dict(done.report))
    for column in ("SSN", "LAST", "ADDRESS", "PASSPORT", "Id"):
        assert not [v for v in records["patients"].table.column(column).to_pylist() if v and v.encode() in leaves]


@pytest.mark.skipif(not SYNTHEA.is_dir(), reason="../shared/data is not beside the checkout")
@pytest.mark.parametrize("column", ["patients.LAT", "patients.FIPS", "CODE", "patients.HEALTHCARE_EXPENSES"])
def test_a_synthea_column_that_identifies_is_refused(inspector, column):
    head = HEAD.replace("people", "encounters") + 'subject = "PATIENT"\n'
    head += '[join.patients]\nleft = "PATIENT"\nright = "Id"\n'
    recipe = recipe_of(head, x=f"from = '{column}'\ntreatment = 'keep'")
    records = {name: read_records(SYNTHEA / f"{name}.csv", name=name) for name in recipe.sources}
    with pytest.raises(Refused) as caught:
        sanitize(records, recipe, inspector=inspector, hold_back=0.0, seed=0)
    assert caught.value.reason is Reason.COLUMN_REFUSED
