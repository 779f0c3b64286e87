"""Treatment: text never comes out, cells that do not fit refuse their column, small cells fold."""

from datetime import date, datetime
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.errors import Reason, Refused
from sanitize.recipe import Age, Bin, Clip, Column, Duration, Encode, Keep, Recipe, Role, Round, Year
from sanitize.treatment import MISSING, OTHER, apply

PLANTED = "078-05-1126"


def treat(treatment, *, subject="", **columns):
    recipe = Recipe(
        name="n",
        purpose="p",
        records="r",
        subject=subject,
        columns=(Column(name="x", source="a", treatment=treatment, role=Role.FEATURE),),
    )
    return apply(recipe, pa.table(columns))


def values(treatment, **columns):
    return treat(treatment, **columns).table.column("x").to_pylist()


def refusal(treatment, **columns):
    with pytest.raises(Refused) as caught:
        treat(treatment, **columns)
    assert caught.value.reason is Reason.COLUMN_REFUSED
    assert "'x' (from 'a'" in caught.value.message
    assert PLANTED not in str(caught.value)
    return caught.value


# --- refusals


@pytest.mark.parametrize(
    "treatment", [Keep(), Round(to=Decimal(1)), Clip(low=Decimal(0), high=Decimal(1)), Bin(edges=(Decimal(1),))]
)
def test_text_is_no_number_and_the_cells_are_counted(treatment):
    assert "2 of 4 cells" in refusal(treatment, a=["1", PLANTED, None, "N/A"]).message


@pytest.mark.parametrize("treatment", [Year(), Age(at=date(2026, 1, 1)), Duration(until="b")])
def test_text_is_no_date(treatment):
    assert "1 cells" in refusal(treatment, a=[PLANTED, None], b=[PLANTED, None]).message


def test_infinite_and_huge_numbers_are_refused():
    assert "2 cells" in refusal(Keep(), a=[float("inf"), 2.0**54, 1.0]).message


def test_an_age_before_birth_is_refused():
    assert "1 cells" in refusal(Age(at=date(2000, 1, 1)), a=[date(2001, 1, 1), date(1999, 1, 1)]).message


def test_a_duration_that_ends_before_it_begins_is_refused():
    early, late = datetime(2020, 1, 1), datetime(2020, 1, 2)
    assert "1 cells" in refusal(Duration(until="b"), a=[late, early], b=[early, late]).message


def test_times_with_and_without_a_zone_are_not_subtracted():
    zoned = pa.array([datetime(2020, 1, 1)], pa.timestamp("us", tz="UTC"))
    refusal(Duration(until="b"), a=zoned, b=[datetime(2020, 1, 1)])


def test_nested_cells_have_no_levels():
    refusal(Encode(), a=[[PLANTED]])


# --- measures


def test_numbers_and_booleans_are_kept_as_reals():
    assert values(Keep(), a=[1, 2]) == [1.0, 2.0]
    assert values(Keep(), a=[True, False]) == [1.0, 0.0]
    assert values(Keep(), a=[Decimal("1.50")]) == [1.5]


def test_a_missing_number_is_not_a_number():
    treated = treat(Keep(), a=[1, None])
    assert np.isnan(treated.table.column("x").to_pylist()[1])
    assert treated.notes["x"].nulls == 1


@pytest.mark.parametrize(
    ("to", "there"), [("10", [20.0, -10.0, 0.0]), ("0.1", [15.2, -12.3, 0.3]), ("0.5", [15.0, -12.5, 0.5])]
)
def test_rounding_gives_multiples_without_a_tail(to, there):
    assert values(Round(to=Decimal(to)), a=[15.2, -12.34, 0.3]) == there


def test_bounds_hold_and_what_they_cut_is_counted():
    treated = treat(Round(to=Decimal(10), low=Decimal(0), high=Decimal(100)), a=[-5, 50, 104, 1_000])
    assert treated.table.column("x").to_pylist() == [0.0, 50.0, 100.0, 100.0]
    assert treated.notes["x"].clipped == 3
    assert values(Clip(low=Decimal(1), high=Decimal(2)), a=[0.5, 1.25, 9]) == [1.0, 1.25, 2.0]


def test_a_bin_is_the_interval_a_number_lies_in():
    assert values(Bin(edges=(Decimal(0), Decimal(10))), a=[-1, 0, 9.9, 10, None]) == [1, 2, 2, 3, 0]


def test_only_the_year_of_a_date_comes_out():
    assert values(Year(), a=[date(1969, 12, 31), date(2020, 2, 29)]) == [1969.0, 2020.0]


@pytest.mark.parametrize(
    ("born", "at", "age"),
    [
        (date(2000, 6, 15), date(2020, 6, 14), 19),
        (date(2000, 6, 15), date(2020, 6, 15), 20),
        (date(2000, 2, 29), date(2021, 2, 28), 20),
        (date(2000, 2, 29), date(2021, 3, 1), 21),
        (date(1930, 1, 2), date(2020, 1, 1), 89),
        (date(1930, 1, 1), date(2020, 1, 1), 90),
        (date(1900, 1, 1), date(2020, 1, 1), 90),
        (date(2020, 1, 1), date(2020, 1, 1), 0),
    ],
)
def test_ages_are_whole_years_and_over_89_is_one_category(born, at, age):
    assert values(Age(at=at), a=[born]) == [age]
    assert values(
        Age(at="b"), a=[born], b=pa.array([datetime(at.year, at.month, at.day, 23)], pa.timestamp("us", tz="UTC"))
    ) == [age]


def test_an_age_without_a_birth_date_is_missing():
    assert np.isnan(values(Age(at="b"), a=[None, date(2000, 1, 1)], b=[date(2020, 1, 1), None])).all()


def test_a_duration_is_in_minutes():
    day = datetime(2020, 1, 1)
    assert values(Duration(until="b", to=Decimal(5)), a=[day], b=[datetime(2020, 1, 1, 1, 3)]) == [65.0]


# --- codes


def test_rare_levels_fold_into_one_code_and_the_dictionary_names_the_rest():
    treated = treat(Encode(min_count=2), a=["b", "b", "a", "a", "a", PLANTED, "z", None, None])
    assert treated.dictionaries["x"] == (OTHER, MISSING, "a", "b")
    assert treated.table.column("x").to_pylist() == [3, 3, 2, 2, 2, 0, 0, 1, 1]
    assert (treated.notes["x"].folded, treated.notes["x"].nulls, treated.notes["x"].levels) == (2, 2, 4)


def test_levels_are_counted_by_subject():
    treated = treat(Encode(min_count=2), subject="who", a=["a"] * 5 + ["b", "b"], who=[1, 1, 1, 1, 1, 2, 3])
    assert OTHER in treated.dictionaries["x"]
    assert "a" not in treated.dictionaries["x"]


def test_one_rare_level_takes_the_next_with_it():
    treated = treat(Encode(min_count=3), a=["a"] * 9 + ["b"] * 4 + ["c"])
    assert treated.dictionaries["x"] == (OTHER, MISSING, "a")


def test_a_level_called_like_ours_is_no_special_code():
    treated = treat(Encode(min_count=2), a=[OTHER] * 3 + [MISSING] * 3)
    assert sorted(set(treated.table.column("x").to_pylist())) == [2, 3]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([None, *"abcdefg"]), st.integers(0, 20)), min_size=1, max_size=120),
    st.integers(2, 8),
)
def test_no_code_is_shared_by_fewer_subjects_than_asked(rows, min_count):
    treated = treat(
        Encode(min_count=min_count),
        subject="who",
        a=pa.array([a for a, _ in rows], pa.string()),
        who=[w for _, w in rows],
    )
    holders = {}
    for code, (_, who) in zip(treated.table.column("x").to_pylist(), rows, strict=True):
        holders.setdefault(code, set()).add(who)
    everyone = {who for _, who in rows}
    assert all(len(held) >= min(min_count, len(everyone)) for held in holders.values())


@settings(deadline=None)
@given(st.lists(st.one_of(st.none(), st.text(max_size=5)), min_size=1, max_size=60))
def test_what_comes_out_is_numbers(cells):
    kinds = {str(field.type) for field in treat(Encode(min_count=2), a=pa.array(cells, pa.string())).table.schema}
    assert kinds == {"int32"}
