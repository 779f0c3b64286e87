"""Counting: exact, also where it takes several passes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sanitize import counting
from sanitize.counting import distinct, distinct_count, holders_of_levels, pairs_of, words_of

CELLS = st.lists(st.one_of(st.just(float("nan")), st.floats(-5, 5).map(lambda x: round(x, 1))), max_size=300)


@pytest.fixture(autouse=True)
def _small_budget(monkeypatch):
    monkeypatch.setattr(counting, "BUDGET", 16)


def pieces(values, size=7):
    return lambda: (values[at : at + size] for at in range(0, len(values), size))


@given(CELLS)
def test_distinct_values_are_all_found_and_each_once(cells):
    values = np.array(cells, dtype=np.float64)
    found = np.concatenate([np.empty(0), *distinct(pieces(values), len(values))])
    assert sorted(found.tolist()) == sorted({cell + 0.0 for cell in cells if cell == cell})


@given(st.lists(st.integers(0, 2**64 - 1), max_size=200))
def test_distinct_words_are_counted_exactly(cells):
    words = np.array(cells, dtype=np.uint64)
    assert distinct_count(pieces(words), len(words)) == len(set(cells))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 20)), max_size=200))
def test_holders_are_distinct_subjects_per_level(rows):
    levels = np.array([level for level, _ in rows], dtype=np.int64)
    who = np.array([subject for _, subject in rows], dtype=np.uint64)

    def stream():
        return ((levels[at : at + 7], who[at : at + 7]) for at in range(0, len(rows), 7))

    expected = [len({s for level, s in rows if level == wanted}) for wanted in range(6)]
    assert holders_of_levels(stream, 6, len(rows)).tolist() == expected


def test_equal_numbers_are_one_word_whatever_their_sign_of_zero():
    assert len(np.unique(words_of(np.array([0.0, -0.0])))) == 1
    assert len(np.unique(words_of(np.array([-1, 1], dtype=np.int32)))) == 2


def test_a_pair_depends_on_both_of_its_halves():
    grid = [pairs_of(np.array([v]), np.array([w], dtype=np.uint64))[0] for v in range(30) for w in range(30)]
    assert len(set(grid)) == 900
