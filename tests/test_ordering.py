"""The order of rows: a permutation that nobody without its key can undo, the same for every worker."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sanitize.ordering import buckets, derived, lot, mixed, no_buckets, permuted, scrambled

KEY = bytes(range(32))


@given(count=st.integers(1, 5_000), key=st.binary(min_size=16, max_size=32))
def test_every_row_stands_at_exactly_one_place(count, key):
    rows = permuted(np.arange(count, dtype=np.uint64), count, key)
    assert sorted(rows.tolist()) == list(range(count))


@given(count=st.integers(2, 5_000), cuts=st.lists(st.integers(1, 4_999), max_size=6))
def test_the_order_does_not_depend_on_how_the_work_is_cut(count, cuts):
    whole = permuted(np.arange(count, dtype=np.uint64), count, KEY)
    edges = [0, *sorted(cut for cut in cuts if cut < count), count]
    parts = [permuted(np.arange(a, b, dtype=np.uint64), count, KEY) for a, b in pairwise(edges)]
    assert np.concatenate(parts).tolist() == whole.tolist()


def test_another_key_gives_another_order():
    places = np.arange(1_000, dtype=np.uint64)
    one, other = permuted(places, 1_000, KEY), permuted(places, 1_000, derived(KEY, "other"))
    assert (one == other).mean() < 0.02
    assert (one == places).mean() < 0.02


def test_neighbours_do_not_stay_together():
    rows = permuted(np.arange(100_000, dtype=np.uint64), 100_000, KEY).astype(np.int64)
    assert (np.abs(np.diff(rows)) < 10).mean() < 0.001


def test_a_derived_key_tells_nothing_of_another():
    assert derived(KEY, "a") != derived(KEY, "b")
    assert derived(KEY, "a") == derived(KEY, "a")
    assert len(derived(b"k" * 200, "a")) == 32


def test_mixing_and_scrambling_lose_no_word():
    words = np.arange(100_000, dtype=np.uint64)
    assert len(np.unique(mixed(words))) == 100_000
    assert len(np.unique(scrambled(words, KEY))) == 100_000
    assert scrambled(words, KEY)[5:9].tolist() == scrambled(words[5:9], KEY).tolist()


@pytest.mark.parametrize("share", [0.01, 0.2, 0.9])
def test_about_the_wanted_share_is_held_back(share):
    who = buckets(np.arange(200_000, dtype=np.uint64), KEY)
    counts = no_buckets() + np.bincount(who, minlength=65_536)
    assert (who < lot(counts, share)).mean() == pytest.approx(share, abs=1e-3)


def test_nobody_is_held_back_where_a_single_subject_would_be_too_much():
    counts = no_buckets()
    counts[[5, 9]] = 50
    assert lot(counts, 0.2) <= 5
    assert 5 < lot(counts, 0.5) <= 9
