"""The list itself: long enough, each way once, and SECURITY.md says the same."""

from pathlib import Path

import pytest

from attacks.lab import NOT_STOPPED
from attacks.ways import HELD, LIVE, NAMED, STOPPED, WAYS, rows

ROOT = Path(__file__).parent.parent.parent


def test_the_list_is_long_and_names_each_way_once():
    ids = [way.id for way in (*WAYS, *HELD, *NAMED)]
    assert len(ids) == len(set(ids))
    assert len(STOPPED) >= 60
    assert all(way.what and way.wall for way in WAYS)


def test_security_md_holds_the_list_as_it_is_tried():
    text = (ROOT / "SECURITY.md").read_text()
    assert rows() in text, "write it anew: cd tests && python -m attacks.ways"


@pytest.mark.parametrize("held", HELD, ids=lambda held: held.id)
def test_a_way_that_another_test_holds_has_that_test(held):
    file, _, function = held.test.partition("::")
    assert f"def {function}(" in (ROOT / "tests" / file).read_text()


def test_most_ways_fit_a_lab_over_a_real_cluster():
    assert len(LIVE) >= 60


def test_what_is_not_stopped_is_no_refusal():
    assert all(not way.by for way in WAYS if way.wall == NOT_STOPPED)
