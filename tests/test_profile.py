"""Profiles: what a column is, from counts alone; and no value in what comes out."""

import json
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.errors import InvalidInput, Reason
from sanitize.facts import Sampled, scale_of
from sanitize.inspection import Inspector
from sanitize.keys import find_keys, find_spans, step_up
from sanitize.kinds import MIN_HOLDERS, Kind, Shape
from sanitize.profile import Bounds, profile

ROWS = 400
RANDOM = np.random.default_rng(5)


@pytest.fixture(scope="module")
def inspector():
    return Inspector()


def one(inspector, name, values, **options):
    """Return the profile of a table with one column."""
    return profile(pa.table({name: values}), inspector, **options).columns[0]


def spread(values):
    return [values[i % len(values)] for i in range(ROWS)]


FEW = [f"t{chr(97 + i % 26)}{chr(97 + i // 3 % 26)}" for i in range(ROWS)]

CASES = {
    "email addresses": ("contact", [f"p{i}@hospital.example.org" for i in range(ROWS)], Kind.IDENTIFIER),
    "numbers by the name of a record number": ("mrn", list(range(ROWS)), Kind.IDENTIFIER),
    "names by the name": ("LAST", spread(["Abel", "Brandt", "Cordes"]), Kind.IDENTIFIER),
    "row numbers": ("seq", list(range(1000, 1000 + ROWS)), Kind.IDENTIFIER),
    "record numbers": ("ref", [i * 7_919_993 for i in range(ROWS)], Kind.IDENTIFIER),
    "opaque ids of few": (
        "payer",
        spread([f"26aab0cd-6aba-3e1b-ac5b-05c8867e76{i:02x}" for i in range(9)]),
        Kind.IDENTIFIER,
    ),
    "a text for each row": ("handle_of", [f"x{i}q" for i in range(ROWS)], Kind.IDENTIFIER),
    "many texts of few rows": (
        "label",
        [f"t{chr(97 + i % 26)}{chr(97 + i // 3 % 26)}" for i in range(ROWS)],
        Kind.UNKNOWN,
    ),
    "sentences": ("remark", [f"seen again on visit {i} and doing well" for i in range(ROWS)], Kind.FREE_TEXT),
    "a birth date": ("BIRTHDATE", [date(1950, 1, 1) + timedelta(days=31 * i) for i in range(ROWS)], Kind.BIRTH_DATE),
    "a date": ("seen", [date(2020, 1, 1) + timedelta(days=i) for i in range(ROWS)], Kind.DATE),
    "a time": ("seen", [datetime(2020, 1, 1, tzinfo=UTC) + timedelta(seconds=77 * i) for i in range(ROWS)], Kind.TIME),
    "a date as a number": ("seen", [20_200_101 + 100 * (i % 12) + i % 28 for i in range(ROWS)], Kind.DATE),
    "a time as a number": ("seen", [1_600_000_000 + 86_411 * i for i in range(ROWS)], Kind.TIME),
    "a postcode": ("zip", spread(["02139", "02140", "10001"]), Kind.POSTCODE),
    "a latitude": ("lat", [42.0 + i / 9973 for i in range(ROWS)], Kind.COORDINATE),
    "a city": ("city", spread(["Malden", "Boston"]), Kind.PLACE),
    "a region": ("region", spread(["north", "south"]), Kind.PLACE),
    "an age": ("age", [i % 95 for i in range(ROWS)], Kind.AGE),
    "a year": ("entry", [1990 + i % 30 for i in range(ROWS)], Kind.YEAR),
    "a flag": ("smoker", [i % 3 == 0 for i in range(ROWS)], Kind.FLAG),
    "a flag as a number": ("smoker", [i % 2 for i in range(ROWS)], Kind.FLAG),
    "a category": ("ward", spread(["A", "B", "C"]), Kind.CATEGORY),
    "a code system": ("code", spread([162_673_000, 444_814_009, 125_605_004]), Kind.CATEGORY),
    "a count": ("visits", [i % 12 for i in range(ROWS)], Kind.COUNT),
    "an amount": ("fee", [round(i * 1.37 % 90, 2) for i in range(ROWS)], Kind.AMOUNT),
    "an income": ("income", [20_000 + 137 * i for i in range(ROWS)], Kind.AMOUNT),
    "a measure": ("weight", list(RANDOM.normal(70, 9, ROWS)), Kind.MEASURE),
    "a constant": ("system", ["snomed"] * ROWS, Kind.CONSTANT),
    "nothing": ("gap", pa.nulls(ROWS, pa.string()), Kind.EMPTY),
    "a whole number with one far off": ("dose", [*(i % 90 for i in range(ROWS - 1)), 10**9], Kind.COUNT),
    "an age with sentinels": ("age", [*(i % 90 for i in range(ROWS - 1)), 999], Kind.AGE),
    "a year with sentinels": ("entry", [*(1990 + i % 30 for i in range(ROWS - 1)), 9999], Kind.YEAR),
    "lists": ("tags", [[i] for i in range(ROWS)], Kind.UNKNOWN),
    "bytes": ("blob", [bytes([i % 200]) for i in range(ROWS)], Kind.UNKNOWN),
}


@pytest.mark.parametrize("case", CASES)
def test_a_column_is_taken_for_what_it_is(inspector, case):
    name, values, kind = CASES[case]
    found = one(inspector, name, values)
    assert found.kind is kind, found.reasons
    assert found.reasons[0]


def test_no_value_stands_in_a_profile(inspector):
    table = pa.table(
        {
            "name": [f"Zyxwanda{i} Quorvex" for i in range(ROWS)],
            "note": [f"planted note {i} of Quorvex" for i in range(ROWS)],
            "cost": [7_654_321.5 + i for i in range(ROWS)],
            "ward": spread(["Quorvexward", "Zyxward"]),
            "born": [date(1951, 7, 23) + timedelta(days=i) for i in range(ROWS)],
        }
    )
    found = profile(table, inspector)
    told = json.dumps(found.to_json()) + repr(found)
    for value in ("Quorvex", "Zyx", "planted", "7654321", "1951"):
        assert value not in told


def test_a_profile_is_json_without_floats(inspector):
    told = profile(pa.table({"cost": [float(i) / 3 for i in range(ROWS)]}), inspector).to_json()
    json.dumps(told)
    flat = [told]
    while flat:
        item = flat.pop()
        assert not isinstance(item, float)
        flat += item.values() if isinstance(item, dict) else item if isinstance(item, list) else []


def test_it_reads_no_more_than_a_bounded_sample_and_says_so(inspector):
    found = profile(pa.table({"ward": spread(["A", "B"]) * 10}), inspector, bounds=Bounds(rows=500, values=1))
    assert (found.tables["records"].rows, found.tables["records"].sampled) == (ROWS * 10, 500)
    assert (found.columns[0].facts.rows, found.columns[0].facts.inspected) == (500, 1)


def test_a_subject_that_is_no_column_is_refused_with_the_nearest(inspector):
    with pytest.raises(InvalidInput, match="did you mean 'patient'") as refused:
        profile(pa.table({"patient": spread(["a", "b"])}), inspector, "patiend")
    assert refused.value.reason is Reason.COLUMN_MISSING


def test_no_table_at_all_is_refused(inspector):
    with pytest.raises(InvalidInput, match="no table"):
        profile({}, inspector)


def visits():
    people = [f"p-{i:03d}-x" for i in range(60)]
    return {
        "visits": pa.table(
            {
                "who": spread(people),
                "ward_id": [i % 20 + 1 for i in range(ROWS)],
                "beds": [i % 20 + 1 for i in range(ROWS)],
                "begun": [datetime(2020, 1, 1) + timedelta(hours=i) for i in range(ROWS)],
                "done": [datetime(2020, 1, 1) + timedelta(hours=i + i % 5) for i in range(ROWS)],
                "code": spread(["A1", "B2", "C3"]),
                "text": spread(["cold", "cough", "cut"]),
            }
        ),
        "patients": pa.table({"key": people, "sex": ["f", "m"] * 30, "other": [f"q{i}" for i in range(60)]}),
        "wards": pa.table({"id": list(range(1, 21)), "floor": [1, 2] * 10}),
    }


def test_keys_match_where_all_values_are_contained_in_a_unique_key(inspector):
    found = profile(visits(), inspector)
    assert [(m.records, m.column, m.target) for m in found.matches] == [
        ("visits", "who", "patients.key"),
        ("visits", "ward_id", "wards.id"),
    ]
    assert {c.name: c.kind for c in found.of("visits")}["who"] is Kind.KEY


def test_whole_numbers_contained_by_chance_are_no_key():
    tables = visits()
    assert not any(match.column == "beds" for match in find_keys(tables, tables, limit=1_000))


def test_a_table_too_large_to_search_has_no_keys():
    tables = visits()
    assert find_keys(tables, tables, limit=10) == ()


def test_one_value_that_is_no_key_ends_the_match():
    tables = visits()
    who = tables["visits"].column("who").to_pylist()
    tables["visits"] = tables["visits"].set_column(0, "who", [["stranger", *who[1:]]])
    assert not any(match.column == "who" for match in find_keys(tables, tables, limit=1_000))


def test_a_value_late_in_the_records_that_is_no_key_ends_the_match_too():
    keys = pa.table({"key": [f"k{i}" for i in range(300)]})
    whole = pa.table({"ref": [f"k{i}" for i in range(250)]})
    late = pa.table({"ref": [*(f"k{i}" for i in range(250)), "stranger"]})
    assert len(find_keys({"t": whole, "u": keys}, {"t": whole}, limit=1_000)) == 1
    assert find_keys({"t": late, "u": keys}, {"t": late}, limit=1_000) == ()


def test_a_column_with_a_gap_or_a_repetition_is_no_key():
    refers = pa.table({"ref": [f"k{i}" for i in range(20)]})
    for last in (None, "k3"):
        keys = pa.table({"key": [*(f"k{i}" for i in range(20)), last]})
        assert find_keys({"t": refers, "u": keys}, {"t": refers}, limit=1_000) == ()


def test_the_subject_is_found_by_the_records_of_persons_and_counts_go_over_it(inspector):
    found = profile(visits(), inspector)
    tables = {name: (table.subject, table.subjects) for name, table in found.tables.items()}
    assert tables == {"visits": ("who", 60), "patients": ("key", 60), "wards": ("", 20)}
    assert {c.name: c.facts.holders for c in found.of("visits")}["code"] == 60


def test_a_column_that_tells_the_same_is_a_twin(inspector):
    twins = {c.name: c.twin for c in profile(visits(), inspector).of("visits")}
    assert twins["text"] == "code"
    assert twins["code"] == ""


def test_a_time_that_never_comes_before_another_begins_it():
    (span,) = find_spans("visits", visits()["visits"])
    assert (span.start, span.end) == ("begun", "done")


def test_times_that_cross_begin_nothing():
    days = [date(2020, 1, 1) + timedelta(days=i) for i in range(40)]
    assert find_spans("t", pa.table({"a": days, "b": days[::-1]})) == ()


def test_one_fine_measure_is_no_coordinate_and_two_side_by_side_are(inspector):
    fine = [float(x) for x in 10 + RANDOM.random(ROWS)]
    alone = profile(pa.table({"dose": fine, "ward": spread(["A", "B"])}), inspector).columns[0]
    pair = profile(pa.table({"x": fine, "y": fine[::-1]}), inspector).columns
    assert alone.kind is Kind.MEASURE
    assert [column.kind for column in pair] == [Kind.COORDINATE, Kind.COORDINATE]


def test_times_to_the_second_and_near_unique_values_are_told(inspector):
    name, values, _ = CASES["a time"]
    shapes = one(inspector, name, values).facts.shapes
    assert {Shape.TO_THE_SECOND, Shape.NEAR_UNIQUE} <= shapes


def leading(step):
    return int(Decimal(step).normalize().as_tuple().digits[0]), len(Decimal(step).normalize().as_tuple().digits)


@given(st.floats(min_value=1e-9, max_value=1e15))
def test_a_step_is_the_smallest_of_1_2_5_that_is_no_less(amount):
    step = step_up(amount)
    digit, digits = leading(step)
    assert (digit in (1, 2, 5), digits) == (True, 1)
    assert amount * (1 - 1e-9) <= float(step) <= amount * 2.5 * (1 + 1e-9)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.floats(min_value=-1e9, max_value=1e9, allow_subnormal=False), min_size=1, max_size=200),
    st.integers(1, 60),
)
def test_a_scale_is_of_whole_steps_with_enough_subjects_at_each_end(values, people):
    values = [round(value, 3) for value in values]
    whose = np.arange(len(values)) % people
    scale = scale_of(Sampled.of(pa.chunked_array([pa.array(values, pa.float64())]), whose), Kind.MEASURE)
    if min(people, len(values)) < MIN_HOLDERS:
        assert scale is None
    if scale is None:
        return
    assert leading(scale.to)[0] in (1, 2, 5)
    assert leading(scale.to)[1] == 1
    assert (scale.low % scale.to, scale.high % scale.to) == (0, 0)
    slack = float(scale.to) * 1e-6
    above = {w for w, v in zip(whose, values, strict=True) if v >= float(scale.high) - slack}
    below = {w for w, v in zip(whose, values, strict=True) if v <= float(scale.low) + float(scale.to) + slack}
    assert min(len(above), len(below)) >= MIN_HOLDERS


def test_a_scale_of_small_positive_numbers_begins_at_nought(inspector):
    scale = one(inspector, "dose", [0.5 + i % 50 for i in range(ROWS)]).scale
    assert (scale.low, scale.to) == (0, 2)


def test_a_scale_does_not_follow_one_record(inspector):
    calm = [float(i % 100) for i in range(ROWS)]
    scales = [one(inspector, "dose", [*calm[:-1], extreme]).scale for extreme in (99.0, 1e9, -1e9)]
    assert scales[0] == scales[1] == scales[2]
    assert scales[0] is not None
