"""Risk of the whole: against the papers' own tables, and against a second, plain reading of the definitions."""

import json
import math
from collections import Counter, defaultdict
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.artifacts import canonical
from fabric.errors import Reason, Refused
from fabric.labels import Classification
from sanitize.cells import _planned, mixed, table_of
from sanitize.risk import LIMITS, Limits, measure, objections, small, stricter, suspected
from sanitize.scales import levels_of, scale
from sanitize.ways_out import ways_out

BUDGETS = (1, 3, 7, 10_000)


def codes(*values):
    """Return a column of text as codes."""
    order = sorted(set(values))
    return np.array([order.index(value) for value in values], dtype=np.int32)


# --- refusals first


@pytest.mark.parametrize(
    ("quasi", "subjects"),
    [
        ({"a": np.zeros(3), "b": np.zeros(2)}, None),
        ({"a": np.array(["x"])}, None),
        ({"a": np.zeros((2, 2))}, None),
        ({"a": np.zeros(2, dtype=np.complex64)}, None),
        ({"a": np.zeros(2)}, np.zeros(2)),
        ({"a": np.zeros(2)}, np.zeros(3, dtype=np.uint64)),
    ],
)
def test_what_cannot_be_measured_is_refused(quasi, subjects):
    with pytest.raises(Refused) as refused:
        measure(quasi, sensitive={}, subjects=subjects)
    assert refused.value.reason is Reason.INSPECTION_FAILED


def test_a_table_without_rows_reaches_no_k():
    risk = measure({"a": np.zeros(0)}, sensitive={"s": np.zeros(0)}, subjects=None)
    assert (risk.k, risk.l, risk.subjects, risk.cells) == (0, 0, 0, 0)
    assert objections(risk, Limits(k=1, l=1))


def test_too_small_a_cell_too_few_values_and_too_far_a_cell_are_each_objected_to():
    quasi = {"zip": np.array([1, 1, 2, 2, 2], dtype=np.int32)}
    risk = measure(quasi, sensitive={"dx": codes("a", "a", "a", "b", "c")}, subjects=None, k=3)
    assert not objections(risk, Limits(k=2, l=1, t=Decimal(1)))
    (k,) = objections(risk, Limits(k=3))
    assert "holds 2 subjects, 3 are needed; 1 of 2 cells are under 3" in k
    (low,) = objections(risk, Limits(l=2))
    assert "'dx'" in low
    (t,) = objections(risk, Limits(t=Decimal("0.3")))
    assert "0.4" in t


def test_limits_are_met_at_the_limit_itself():
    quasi, dx = {"zip": codes("a", "a", "b", "b")}, codes("x", "y", "x", "y")
    risk = measure(quasi, sensitive={"dx": dx}, subjects=None)
    assert not objections(risk, Limits(k=2, l=2, t=Decimal(0)))
    assert len(objections(risk, Limits(k=3, l=3, t=Decimal(0)))) == 2


def test_rows_of_one_subject_hide_nobody():
    quasi = {"zip": np.zeros(20)}
    assert measure(quasi, sensitive={}, subjects=None).k == 20
    assert measure(quasi, sensitive={}, subjects=np.zeros(20, dtype=np.uint64)).k == 1


def test_a_value_that_all_subjects_of_a_cell_share_is_told_however_many_others_they_have():
    who = np.array([1, 1, 2, 2, 3, 3], dtype=np.uint64)
    dx = codes("hiv", "flu", "hiv", "cold", "hiv", "gout")
    one_cell = {"zip": np.zeros(6)}
    assert measure(one_cell, sensitive={"dx": dx}, subjects=who).l == 1
    assert measure(one_cell, sensitive={"dx": codes("hiv", "flu", "hiv", "cold", "flu", "gout")}, subjects=who).l == 4


def test_many_values_of_one_subject_do_not_make_a_cell_diverse():
    who = np.array([1] * 9 + [2, 3, 4], dtype=np.uint64)
    dx = np.array([*range(1, 10), 0, 0, 0], dtype=np.int32)
    (told,) = measure({"zip": np.zeros(12)}, sensitive={"dx": dx}, subjects=who).sensitive
    assert told.entropy_l < 4  # over rows it would be 7.9


# --- the papers' own tables


def test_the_example_of_sweeney_2002_is_2_anonymous():
    race = codes(*["black"] * 6, *["white"] * 5)
    birth = codes(*["1965"] * 4, *["1964"] * 5, *["1967"] * 2)
    gender = codes("m", "m", "f", "f", "f", "f", "m", "m", "m", "m", "m")
    area = codes("0214", "0214", *["0213"] * 9)
    problem = codes("sb", "cp", "ht", "ht", "ob", "cp", "cp", "ob", "sb", "cp", "cp")
    quasi = {"race": race, "birth": birth, "gender": gender, "zip": area}
    risk = measure(quasi, sensitive={"problem": problem}, subjects=None)
    assert (risk.k, risk.cells, risk.l, risk.rows) == (2, 5, 1, 11)


def test_the_4_anonymous_table_of_machanavajjhala_2007_is_not_diverse():
    area, age = codes(*["130"] * 4, *["1485"] * 4, *["130"] * 4), codes(*["<30"] * 4, *[">=40"] * 4, *["3*"] * 4)
    dx = codes("h", "h", "v", "v", "c", "h", "v", "v", "c", "c", "c", "c")
    risk = measure({"zip": area, "age": age}, sensitive={"dx": dx}, subjects=None)
    assert (risk.k, risk.l, risk.sensitive[0].entropy_l) == (4, 1, Decimal(1))


def test_the_3_diverse_table_of_machanavajjhala_2007_is_3_diverse():
    area = codes(*["1305"] * 4, *["1485"] * 4, *["1306"] * 4)
    dx = codes("h", "v", "c", "c", "c", "h", "v", "v", "h", "v", "c", "c")
    risk = measure({"zip": area}, sensitive={"dx": dx}, subjects=None)
    assert (risk.k, risk.l) == (4, 3)
    assert risk.sensitive[0].entropy_l == Decimal("2.828427")  # 2 to the 1.5 bits of (1/2, 1/4, 1/4)


@pytest.mark.parametrize(
    ("salaries", "away"),
    [
        ([3, 4, 5, 6, 11, 8, 7, 9, 10], "0.375000"),  # the cell of 3, 4, 5: table 3, D[P1, Q]
        ([3, 5, 9, 6, 11, 8, 4, 7, 10], "0.166667"),  # the cell of 6, 8, 11: table 5, 0.167-closeness
    ],
)
def test_the_salaries_of_li_2007_are_as_far_apart_as_the_paper_says(salaries, away):
    quasi = {"zip": codes(*["1"] * 3, *["2"] * 3, *["3"] * 3)}
    (salary,) = measure(quasi, sensitive={"salary": np.array(salaries, dtype=np.float64)}, subjects=None).sensitive
    assert (salary.ordered, salary.binned, salary.l) == (True, False, 3)
    assert salary.t == Decimal(away)


# --- a second reading of the definitions


cell_values = st.sampled_from([0.0, -0.0, 1.0, 2.5, math.nan])
tables = st.integers(1, 30).flatmap(
    lambda n: st.tuples(
        st.lists(cell_values, min_size=n, max_size=n),
        st.lists(st.integers(-1, 1), min_size=n, max_size=n),
        st.lists(st.integers(0, 3), min_size=n, max_size=n),
        st.lists(cell_values, min_size=n, max_size=n),
        st.none() | st.lists(st.integers(0, 9), min_size=n, max_size=n),
    )
)


def plain(value):
    return "missing" if isinstance(value, float) and math.isnan(value) else value + 0.0


def cells_of(keys, who):
    held = defaultdict(set)
    for key, subject in zip(keys, who, strict=True):
        held[key].add(subject)
    return held


def shares(keys, who, values):
    """Return for each cell the share of each value, each subject's weight split evenly over its own values."""
    own = defaultdict(set)
    for key, subject, value in zip(keys, who, values, strict=True):
        own[key, subject].add(value)
    cells = defaultdict(Counter)
    for (key, _), held in own.items():
        for value in held:
            cells[key][value] += Fraction(1, len(held))
    return cells, own


def told(keys, who, values, *, ordered):
    """Return l, entropy l and t by brute force."""
    cells, own = shares(keys, who, values)
    sizes = {key: sum(weights.values()) for key, weights in cells.items()}
    lowest, entropies, aways = [], [], []
    levels = sorted(set(values), key=lambda v: (v != "missing", v if v != "missing" else 0))
    whole = {v: sum(weights[v] for weights in cells.values()) / sum(sizes.values()) for v in levels}
    for key, weights in cells.items():
        members = [held for (cell, _), held in own.items() if cell == key]
        common = any(all(value in held for held in members) for value in weights)
        lowest.append(1 if common else len(weights))
        p = {v: weights[v] / sizes[key] for v in levels}
        entropies.append(-sum(float(x) * math.log(x) for x in p.values() if x))
        apart = [p[v] - whole[v] for v in levels]
        if ordered and len(levels) > 1:
            aways.append(sum(abs(sum(apart[: i + 1])) for i in range(len(apart))) / (len(levels) - 1))
        else:
            aways.append(sum(map(abs, apart)) / 2)
    return min(lowest), math.exp(min(entropies)), float(max(aways))


@settings(max_examples=150, deadline=None)
@given(tables, st.integers(2, 5))
def test_every_figure_is_that_of_the_definitions_whatever_the_budget(table, k):
    reals, ints, dx, cost, people = table
    quasi = {"a": np.array(reals), "b": np.array(ints, dtype=np.int32)}
    sensitive = {"dx": np.array(dx, dtype=np.int32), "cost": np.array(cost)}
    subjects = None if people is None else np.array(people, dtype=np.uint64)
    who = list(range(len(reals))) if people is None else people
    keys = [(plain(a), b) for a, b in zip(reals, ints, strict=True)]
    held = cells_of(keys, who)
    found = [measure(quasi, sensitive=sensitive, subjects=subjects, k=k, budget_rows=b) for b in BUDGETS]
    for risk in found:
        assert risk.k == min(map(len, held.values()))
        assert (risk.cells, risk.subjects, risk.rows) == (len(held), len(set(who)), len(reals))
        assert risk.small_cells == sum(len(members) < k for members in held.values())
        assert risk.small_subjects == len({s for members in held.values() if len(members) < k for s in members})
        assert risk.alone == len({s for members in held.values() if len(members) == 1 for s in members})
        assert sum(count for _, count in risk.histogram) == len(held)
        assert risk.histogram[0][1] == sum(len(members) == 1 for members in held.values())
        for each, values, ordered in zip(risk.sensitive, (dx, map(plain, cost)), (False, True), strict=True):
            distinct, entropy_l, t = told(keys, who, list(values), ordered=ordered)
            assert each.l == distinct
            assert math.isclose(each.entropy_l, entropy_l, abs_tol=2e-6)
            assert math.isclose(each.t, t, abs_tol=2e-6)


@settings(max_examples=100, deadline=None)
@given(tables, st.integers(1, 6), st.sampled_from(BUDGETS))
def test_without_the_marked_rows_every_cell_is_large_enough_and_no_other_row_is_marked(table, k, budget):
    reals, ints, _, _, people = table
    quasi = {"a": np.array(reals), "b": np.array(ints, dtype=np.int32)}
    subjects = None if people is None else np.array(people, dtype=np.uint64)
    marked = small(quasi, subjects, k, budget_rows=budget)
    keys = [(plain(a), b) for a, b in zip(reals, ints, strict=True)]
    held = cells_of(keys, range(len(keys)) if people is None else people)
    assert marked.tolist() == [len(held[key]) < k for key in keys]
    rest = measure(
        {name: values[~marked] for name, values in quasi.items()},
        sensitive={},
        subjects=None if subjects is None else subjects[~marked],
    )
    assert rest.k >= k or rest.rows == 0


def test_cells_whose_hashes_are_equal_stay_two_cells():
    def turned(word, shift):
        return word ^ (word >> shift) ^ (word >> 2 * shift) ^ (word >> 3 * shift)

    def unmixed(word):
        """Undo `mixed`: multiplication by an odd number has an inverse, and so has each shift."""
        word = turned(word, 31)
        word = word * pow(0x94D049BB133111EB, -1, 2**64) % 2**64
        word = turned(word, 27)
        word = word * pow(0xBF58476D1CE4E5B9, -1, 2**64) % 2**64
        return turned(word, 30)

    def hashed(word):
        return int(mixed(np.array([word], dtype=np.uint64))[0])

    one, other, beside = 7, 1_000, 3
    wanted = hashed(hashed(one + 1)) ^ hashed(hashed(other + 1)) ^ hashed(beside + 1)
    beside_other = (unmixed(wanted) - 1) % 2**64
    a = np.array([one] * 12 + [other] * 3, dtype=np.uint64)
    b = np.array([beside] * 12 + [beside_other] * 3, dtype=np.uint64)
    assert (
        len({hashed(hashed(hashed(x + 1)) ^ hashed(y + 1)) for x, y in zip(a.tolist(), b.tolist(), strict=True)}) == 1
    )
    quasi, who = {"a": a, "b": b}, np.arange(15, dtype=np.uint64)
    for budget in (1, 5, 100):
        for subjects in (None, who):
            risk = measure(quasi, sensitive={"s": a}, subjects=subjects, k=5, budget_rows=budget)
            assert (risk.k, risk.cells, risk.small_subjects, risk.l) == (3, 2, 3, 1)
            assert small(quasi, subjects, 5, budget_rows=budget).tolist() == [False] * 12 + [True] * 3


def test_columns_of_more_combinations_than_64_bits_hold_are_told_apart():
    levels = 2**16  # four columns of as many levels shift a fifth out of 64 bits
    quasi = {"first": np.repeat([0, 1], levels)} | {f"c{i}": np.tile(np.arange(levels), 2) for i in range(4)}
    assert measure(quasi, sensitive={}, subjects=None).k == 1
    assert measure({name: quasi[name] for name in ("c0", "c1")}, sensitive={}, subjects=None).k == 2


def test_a_cell_larger_than_the_budget_is_read_in_passes_of_about_the_budget():
    rows, budget = 50_000, 1_000
    sex = np.arange(rows) % 2
    plan = _planned(table_of({"sex": sex}, None, budget))
    sizes = [len(plan.rows(part)) for unit in plan.units for part in unit]
    assert sum(sizes) == rows
    assert max(sizes) < 1.2 * budget
    assert len(plan.units) == 2
    assert measure({"sex": sex}, sensitive={}, subjects=None, budget_rows=budget).k == rows // 2
    for most in range(4):
        beside_others = np.concatenate([np.full(rows // 2, most), np.arange(rows // 2)])
        plan = _planned(table_of({"zip": beside_others}, None, budget))
        assert max(len(plan.rows(part)) for unit in plan.units for part in unit) < 1.2 * budget


def test_every_nan_is_the_same_missing_value():
    words = np.array([0x7FF8000000000000, 0x7FF8000000000001, 0xFFF8000000000000], dtype=np.uint64)
    assert measure({"a": words.view(np.float64)}, sensitive={}, subjects=None).k == 3


def test_distances_of_many_cells_are_those_of_each(monkeypatch):
    random = np.random.default_rng(6)
    quasi = {"a": random.integers(0, 50, 2_000)}
    sensitive = {"cost": np.floor(random.lognormal(0, 1, 2_000))}
    at_once = measure(quasi, sensitive=sensitive, subjects=None)
    monkeypatch.setattr("sanitize.diversity._AT_ONCE", 1)
    assert measure(quasi, sensitive=sensitive, subjects=None) == at_once


def test_columns_mapped_from_files_give_the_same_figures(tmp_path):
    random = np.random.default_rng(2)
    ages, who = np.floor(random.random(5_000) * 40), random.integers(0, 900, 5_000).astype(np.uint64)
    for name, values in (("ages", ages), ("who", who)):
        np.save(tmp_path / f"{name}.npy", values)
    mapped = [np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("ages", "who")]
    of_files = measure({"a": mapped[0]}, sensitive={"s": mapped[0]}, subjects=mapped[1], budget_rows=700)
    assert of_files == measure({"a": ages}, sensitive={"s": ages}, subjects=who)


def test_the_figures_of_a_table_of_many_blocks_do_not_depend_on_the_budget():
    random = np.random.default_rng(5)
    rows = 600_000
    quasi = {"a": random.integers(0, 2, rows), "b": random.geometric(0.05, rows).astype(np.float64)}
    cost = random.lognormal(0, 2, rows) * random.choice([-1, 1], rows)
    cost[::7] = math.nan
    who = random.integers(0, rows // 3, rows).astype(np.uint64)
    sensitive = {"cost": cost, "code": random.integers(0, 9, rows).astype(np.int32)}
    at_once = measure(quasi, sensitive=sensitive, subjects=who)
    assert measure(quasi, sensitive=sensitive, subjects=who, budget_rows=70_000) == at_once
    assert (small(quasi, who, 11, budget_rows=70_000) == small(quasi, who, 11)).all()
    known = np.sort(cost[~np.isnan(cost)])
    assert scale(cost, 64).edges.tolist() == known[np.arange(1, 64) * len(known) // 64].tolist()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=300), st.integers(2, 64))
def test_bins_begin_at_the_values_of_the_sorted_column(values, most):
    column = np.array(values)
    known = np.sort(column[~np.isnan(column)] + 0.0)
    levels = np.unique(known)
    found = scale(column, most)
    if len(levels) > most:
        levels = np.unique(known[np.arange(most) * len(known) // most])
        assert found.binned
    assert found.edges.tolist() == levels[1:].tolist()
    assert found.size == len(levels) + (len(known) < len(column))
    assert set(found.at(np.arange(len(column))).tolist()) <= set(range(found.size))


def test_a_measure_of_many_values_is_put_into_64_bins_of_about_as_many_rows():
    cost = np.random.default_rng(3).normal(size=6_400)
    found = scale(cost, 64)
    counts = np.bincount(found.at(np.arange(6_400)), minlength=64)
    assert (found.binned, found.size, counts.tolist()) == (True, 64, [100] * 64)
    (each,) = measure({"a": np.zeros(6_400)}, sensitive={"cost": cost}, subjects=None).sensitive
    assert (each.binned, each.values, each.l, each.t) == (True, 64, 64, 0)


def test_whole_numbers_of_too_many_values_for_codes_are_put_into_bins():
    found = scale(np.arange(10_000, dtype=np.int64), 64)
    assert (found.ordered, found.binned, found.size) == (True, True, 64)
    assert len(levels_of(np.arange(10.0), 20)) == 10


# --- words and limits


def test_the_figures_are_json_without_floats():
    risk = measure(
        {"a": np.array([1.0, 1.0, math.nan])}, sensitive={"s": np.array([1, 2, 2], dtype=np.int32)}, subjects=None
    )
    said = json.loads(canonical(risk.to_json()), parse_float=pytest.fail)
    assert (said["k"], said["l"], said["uniqueness"]) == (1, 1, "0.333333")
    assert said["small"] == {"under": 11, "cells": 2, "subjects": 3, "share": "1.000000"}
    assert said["histogram"][:2] == [{"subjects": "1", "cells": 1}, {"subjects": "2-4", "cells": 1}]


@pytest.mark.parametrize(
    ("size", "bar"), [(1, 0), (2, 1), (4, 1), (5, 2), (10, 2), (11, 3), (19, 3), (20, 4), (900, 4)]
)
def test_a_cell_stands_in_the_bar_of_its_size(size, bar):
    risk = measure({"a": np.zeros(size)}, sensitive={}, subjects=None)
    assert [count for _, count in risk.histogram] == [int(i == bar) for i in range(5)]


def test_the_stricter_of_limits_holds_for_each_figure():
    one, other = Limits(k=5, l=3), Limits(k=11, l=1, t=Decimal("0.2"))
    assert stricter(one, other, Limits(t=Decimal("0.3"))) == Limits(k=11, l=3, t=Decimal("0.2"))
    assert stricter(one) == one
    assert Limits(k=11, l=1, t=Decimal("0.20")).to_json() == {"k": 11, "l": 1, "t": "0.20"}


def test_more_sensitive_records_never_have_laxer_limits():
    limits = [LIMITS[each] for each in Classification]
    assert [(each.k, each.l) for each in limits] == [(1, 1), (5, 1), (11, 2), (11, 2)]


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("x", {"from": "patients.GENDER"}),
        ("x", {"from": "MaritalStatus"}),
        ("home_region", {}),
        ("x", {"from": "START", "treatment": "year"}),
        ("x", {"from": "WHERE", "treatment": "prefix"}),
        ("x", {"from": "BIRTHDATE", "treatment": "age", "role": "feature"}),
    ],
)
def test_a_column_that_tells_people_apart_is_suspected(name, note):
    assert suspected({name: 2}, {name: note}) == (name,)
    assert suspected({name: np.array([math.nan, 1.0])}, {name: note}) == (name,)


@pytest.mark.parametrize(
    ("values", "note"),
    [
        (2, {"from": "COST", "treatment": "round"}),
        (2, {"from": "dosage"}),
        (2, {"from": "stage"}),
        (1, {"from": "GENDER"}),
        (np.array([math.nan, math.nan]), {"from": "GENDER"}),
        (2, {"from": "GENDER", "role": "quasi-identifier"}),
    ],
)
def test_a_column_that_does_not_or_that_is_declared_is_not_suspected(values, note):
    assert suspected({"x": values}, {"x": note}) == ()


# --- ways out


def people(rows=4_000):
    random = np.random.default_rng(4)
    quasi = {"age": np.floor(random.random(rows) * 90), "sex": random.integers(0, 2, rows).astype(np.int32)}
    return quasi, random.integers(0, rows // 4, rows).astype(np.uint64)


def after(quasi, way):
    """Return the columns as the way out leaves them, read from its words."""
    then = dict(quasi)
    for step in way.steps:
        values = then.pop(step.column)
        if step.change != "left inside":
            then[step.column] = np.floor(values / {"twice as coarse": 2, "five times as coarse": 5}[step.change])
    return then


@pytest.mark.parametrize("budget", [500, 100_000])
@pytest.mark.parametrize("own", [True, False])
def test_what_a_way_out_promises_is_what_is_measured_then(own, budget):
    quasi, who = people()
    subjects = None if own else who
    before = measure(quasi, sensitive={}, subjects=subjects).k
    ways = ways_out(quasi, subjects, Limits(k=before + 5), budget_rows=budget)
    assert ways
    for way in ways:
        assert way.k_then == measure(after(quasi, way), sensitive={}, subjects=subjects).k >= before + 5
    losses = [Decimal(way.loss) for way in ways]
    assert losses == sorted(losses)


def test_two_steps_are_proposed_where_one_does_not_do():
    n = 1_200
    quasi = {"a": np.arange(n) % 30, "b": np.arange(n) // 30, "c": np.arange(n) % 2}
    assert measure({"a": quasi["a"], "c": quasi["c"]}, sensitive={}, subjects=None).k == 40
    ways = ways_out(quasi, None, Limits(k=60))
    assert ways
    assert all(len(way.steps) == 2 and way.k_then >= 60 for way in ways)


def test_nothing_is_proposed_where_nothing_is_wrong_or_nothing_helps():
    quasi, who = people()
    assert ways_out(quasi, who, Limits(k=1)) == ()
    assert ways_out(quasi, who, Limits(k=10_000)) == ()


def test_codes_have_no_coarser_grid_and_a_grid_may_be_given():
    quasi = {"sex": np.arange(100, dtype=np.int32) % 10}
    (way,) = ways_out(quasi, None, Limits(k=20))
    assert str(way) == "'sex' left inside: the smallest cell then holds 100 subjects; costs 1.000 of the detail"
    off_grid = ways_out({"cost": np.array([0.0, 0.4, 1.0, 1.7] * 5)}, None, Limits(k=6))
    assert [way.steps[0].change for way in off_grid] == ["left inside"]
    given_grid = ways_out(quasi, None, Limits(k=20), grains={"sex": 1.0})
    assert [way.steps[0].change for way in given_grid] == ["twice as coarse", "five times as coarse", "left inside"]
    assert [way.k_then for way in given_grid] == [20, 50, 100]
