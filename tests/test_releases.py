"""Releases: what may not follow an earlier one, what is remembered, and what files that are not whole do."""

import json
import multiprocessing
import stat
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sanitize.releases as module
from fabric.artifacts import digest
from fabric.errors import EvidenceInvalid, FabricError, InvalidInput, Reason, Refused
from sanitize.releases import Release, Releases, check_sequence

NOW = datetime(2026, 1, 2, tzinfo=UTC)
AGE = {"name": "age", "from": "BIRTHDATE", "treatment": "age", "role": "quasi-identifier"}
SEX = {"name": "sex", "from": "GENDER", "treatment": "encode", "role": "quasi-identifier"}


@pytest.fixture
def releases(tmp_path):
    return Releases(tmp_path / "releases")


def release(name="one", records=("encounters",), quasi=(AGE,), sequence=0):
    return Release(
        matrix=digest(name.encode()),
        records=dict.fromkeys(records, "hmac-sha256:00"),
        recipe=digest(b"recipe"),
        purpose="readmission",
        quasi=tuple(quasi),
        rows=100,
        sequence=sequence,
    )


def ids(*some):
    return np.array(sorted(some), dtype=np.uint64)


def let_out(releases, name, subjects, **settings):
    made = release(name, sequence=releases.sequence(settings.get("records", ("encounters",))), **settings)
    releases.propose(made, np.asarray(subjects, dtype=np.uint64))
    releases.crossed(made.matrix, "public", NOW)
    return made


# --- refusals first


@pytest.mark.parametrize("few", [1, 4])
@pytest.mark.parametrize("gone", [True, False])
def test_a_release_that_differs_by_few_subjects_is_objected_to(releases, few, gone):
    let_out(releases, "one", range(100))
    subjects = ids(*range(100 - few)) if gone else ids(*range(100 + few))
    (against,) = releases.check(subjects, ["encounters"], 5)
    assert f"{few} {'fewer' if gone else 'more'} subjects" in against


def test_many_more_do_not_hide_few_fewer(releases):
    let_out(releases, "one", range(100))
    (against,) = releases.check(ids(*range(1, 200)), ["encounters"], 5)
    assert "1 fewer" in against
    assert "more" not in against


def test_every_earlier_release_is_looked_at_and_not_only_the_newest(releases):
    let_out(releases, "one", range(100))
    let_out(releases, "two", range(200))
    assert len(releases.check(ids(*range(99)), ["encounters"], 5)) == 1
    assert len(releases.check(ids(*range(101)), ["encounters"], 5)) == 1
    assert len(releases.check(ids(*range(150)), ["encounters"], 60)) == 2


def test_a_release_of_joined_records_stands_beside_that_of_each(releases):
    let_out(releases, "one", range(100), records=("encounters", "patients"))
    assert releases.check(ids(*range(99)), ["patients", "claims"], 5)
    assert not releases.check(ids(*range(99)), ["claims"], 5)


def test_the_same_subjects_or_enough_others_may_be_released(releases):
    let_out(releases, "one", range(100))
    assert releases.check(ids(*range(100)), ["encounters"], 5) == ()
    assert releases.check(ids(*range(5, 105)), ["encounters"], 5) == ()
    assert releases.check(ids(*range(1_000, 1_100)), ["encounters"], 5) == ()


def test_what_was_only_proposed_speaks_against_nothing(releases):
    releases.propose(release(), ids(*range(100)))
    assert releases.check(ids(*range(99)), ["encounters"], 5) == ()
    assert releases.earlier(["encounters"]) == ()


def test_a_matrix_checked_before_another_release_crossed_does_not_cross(releases):
    first, second = release("one"), release("two")
    for made in (first, second):
        releases.propose(made, ids(*range(100)))
    releases.crossed(first.matrix, "public", NOW)
    with pytest.raises(Refused) as refused:
        releases.crossed(second.matrix, "public", NOW)
    assert refused.value.reason is Reason.RELEASE_STALE
    assert releases.sequence(["encounters"]) == 1


def test_releases_of_other_records_make_nothing_stale(releases):
    first, second = release("one"), release("two", records=("claims",))
    for made in (first, second):
        releases.propose(made, ids(*range(100)))
        releases.crossed(made.matrix, "public", NOW)
    assert (releases.sequence(["encounters"]), releases.sequence(["claims"]), releases.sequence(["x"])) == (1, 1, 0)


def test_a_matrix_that_was_not_proposed_does_not_cross(releases):
    with pytest.raises(Refused) as refused:
        releases.crossed(digest(b"unknown"), "public", NOW)
    assert refused.value.reason is Reason.RELEASE_STALE


@pytest.mark.parametrize(("stated", "now"), [(0, 1), (1, 0)])
def test_a_statement_of_another_sequence_is_stale(stated, now):
    with pytest.raises(Refused) as refused:
        check_sequence(stated, now)
    assert refused.value.reason is Reason.RELEASE_STALE
    check_sequence(now, now)


@pytest.mark.parametrize("name", ["", "sha256:..", "../../keys", "sha256:" + "0" * 63 + "/"])
def test_a_name_that_is_no_digest_reaches_no_file(releases, name):
    with pytest.raises(InvalidInput):
        releases.crossed(name, "public", NOW)


@pytest.mark.parametrize("subjects", [np.zeros(0, np.uint64), np.zeros(3), np.zeros((2, 2), np.uint64)])
def test_subjects_that_are_no_ids_are_refused(releases, subjects):
    with pytest.raises(InvalidInput):
        releases.propose(release(), subjects)
    assert not list(releases.folder.glob("*.npy"))


def flipped(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda index, about, subjects: index.unlink(),
        lambda index, about, subjects: about.unlink(),
        lambda index, about, subjects: subjects.unlink(),
        lambda index, about, subjects: index.write_bytes(b"{"),
        lambda index, about, subjects: index.write_bytes(b"{}"),
        lambda index, about, subjects: index.write_bytes(b'[{"matrix": 1}]'),
        lambda index, about, subjects: about.write_bytes(about.read_bytes().replace(b'"rows":100', b'"rows":101')),
        lambda index, about, subjects: about.write_bytes(b""),
        lambda index, about, subjects: flipped(subjects, -1),
        lambda index, about, subjects: flipped(subjects, 0),
        lambda index, about, subjects: subjects.write_bytes(subjects.read_bytes()[:-8]),
        lambda index, about, subjects: np.save(subjects, np.arange(3)),
        lambda index, about, subjects: (about.rename(about.with_name("x")), about.symlink_to("x")),
    ],
)
def test_files_that_are_not_whole_refuse(releases, spoil):
    made = let_out(releases, "one", range(100))
    about = releases.folder / f"{made.matrix[7:]}.json"
    spoil(releases.folder / "crossed.json", about, about.with_suffix(".npy"))
    with pytest.raises(EvidenceInvalid) as refused:
        releases.check(ids(*range(100)), ["encounters"], 5)
    assert refused.value.reason is Reason.EVIDENCE_INVALID


def test_a_lost_list_of_what_crossed_is_not_begun_anew(releases):
    let_out(releases, "one", range(100))
    (releases.folder / "crossed.json").unlink()
    for attempt in (lambda: releases.propose(release("two"), ids(1, 2)), lambda: releases.sequence(["encounters"])):
        with pytest.raises(EvidenceInvalid):
            attempt()


def test_a_file_past_its_bound_is_not_read(releases, monkeypatch):
    let_out(releases, "one", range(100))
    monkeypatch.setattr(module, "_MAX_RELEASE_BYTES", 10)
    with pytest.raises(EvidenceInvalid, match="larger than 10 bytes"):
        releases.earlier(["encounters"])


def test_a_path_that_is_no_folder_refuses(tmp_path):
    (tmp_path / "releases").write_bytes(b"")
    with pytest.raises(FabricError) as refused:
        Releases(tmp_path / "releases").propose(release(), ids(1))
    assert refused.value.reason is Reason.EVIDENCE_UNWRITABLE


# --- what is remembered


def test_nothing_is_known_of_records_that_were_never_released(releases):
    assert releases.earlier(["encounters"]) == ()
    assert releases.sequence(["encounters"]) == 0
    assert releases.check(ids(1, 2), ["encounters"], 5) == ()
    assert not releases.folder.exists()


def test_earlier_releases_come_newest_last_and_as_they_were_proposed(releases):
    made = [let_out(releases, name, range(100)) for name in ("one", "two", "three")]
    assert releases.earlier(["encounters"]) == tuple(made)
    assert [each.sequence for each in made] == [0, 1, 2]


def test_a_matrix_that_crosses_again_says_nothing_new(releases):
    first = let_out(releases, "one", range(100))
    let_out(releases, "two", range(100))
    releases.crossed(first.matrix, "edge", NOW)
    releases.propose(release("one", sequence=2), ids(7))
    assert releases.sequence(["encounters"]) == 2
    assert releases.earlier(["encounters"])[0] == first


def test_quasi_identifiers_of_earlier_releases_are_given_once_each(releases):
    let_out(releases, "one", range(100), quasi=(AGE, SEX))
    let_out(releases, "two", range(100), quasi=(SEX, AGE | {"treatment": "bin"}))
    let_out(releases, "other", range(100), quasi=({"name": "z"},), records=("claims",))
    assert releases.earlier_quasi(["encounters"]) == (AGE, SEX, AGE | {"treatment": "bin"})


def test_subjects_may_come_in_any_order_more_than_once_or_mapped_from_a_file(releases, tmp_path):
    let_out(releases, "one", [5, 3, 3, 9, 5] * 10)
    np.save(tmp_path / "mapped.npy", ids(3, 5, 9))
    mapped = np.load(tmp_path / "mapped.npy", mmap_mode="r")
    assert releases.check(mapped, ["encounters"], 5) == ()
    assert releases.check(np.array([9, 3, 9, 5], dtype=np.uint64), ["encounters"], 5) == ()
    assert releases.check(ids(3, 3, 5, 5, 9, 9), ["encounters"], 5) == ()
    assert releases.check(ids(3, 5), ["encounters"], 5)


subjects_lists = st.lists(st.integers(0, 40), min_size=1, max_size=40)


@settings(max_examples=150, deadline=None)
@given(subjects_lists, subjects_lists, st.integers(1, 12))
def test_the_rule_is_that_of_sets_whatever_the_block(tmp_path_factory, then, now, k):
    releases = Releases(tmp_path_factory.mktemp("rule"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK", 3)
        let_out(releases, "one", then)
        against = releases.check(np.array(now, dtype=np.uint64), ["encounters"], k)
    assert bool(against) == (0 < len({*now} - {*then}) < k or 0 < len({*then} - {*now}) < k)


def test_order_is_looked_for_across_blocks_too(releases, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 2)
    let_out(releases, "one", [3, 9, 1, 5])
    assert releases.check(ids(1, 3, 5, 9), ["encounters"], 5) == ()


def test_ids_are_compared_as_whole_words(releases):
    top = 2**64
    let_out(releases, "one", np.array([top - 1, top - 2, top - 3], dtype=np.uint64))
    assert releases.check(np.array([top - 1, top - 2, top - 4], dtype=np.uint64), ["encounters"], 2)


def test_files_are_for_their_owner_alone_and_hold_ids_and_definitions_only(releases):
    made = let_out(releases, "one", range(100))
    assert stat.S_IMODE(releases.folder.stat().st_mode) == 0o700
    files = sorted(releases.folder.iterdir())
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    name = made.matrix[7:]
    assert {path.name for path in files} == {"crossed.json", "lock", f"{name}.json", f"{name}.npy"}
    said = json.loads((releases.folder / f"{name}.json").read_bytes(), parse_float=pytest.fail)
    assert said.keys() == {*made.to_json(), "subjects", "ids"}


def test_what_a_killed_process_left_half_written_is_removed(releases):
    let_out(releases, "one", range(100))
    (releases.folder / ".x.npy.1234.part").write_bytes(b"half")
    releases.propose(release("two", sequence=1), ids(1))
    assert not list(releases.folder.glob(".*"))


ROUNDS = 20


def _race(folder, name, together, outcomes):
    releases = Releases(folder)
    for number in range(ROUNDS):
        made = release(f"{name}{number}", records=(f"records-{number}",))
        releases.propose(made, ids(*range(50)))
        together.wait(timeout=1800)
        try:
            releases.crossed(made.matrix, "public", NOW)
            outcomes.put(number)
        except Refused:
            outcomes.put(None)


def test_of_two_matrices_that_race_one_crosses_and_is_remembered(releases):
    context = multiprocessing.get_context("spawn")
    outcomes, together = context.Queue(), context.Barrier(2)
    runners = [context.Process(target=_race, args=(releases.folder, name, together, outcomes)) for name in "ab"]
    for runner in runners:
        runner.start()
    crossed = [outcomes.get(timeout=1800) for _ in range(2 * ROUNDS)]
    for runner in runners:
        runner.join()
    assert sorted(each for each in crossed if each is not None) == list(range(ROUNDS))
    assert [releases.sequence([f"records-{number}"]) for number in range(ROUNDS)] == [1] * ROUNDS
