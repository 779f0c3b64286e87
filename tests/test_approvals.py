"""Approvals: by somebody else, of exactly this, for a time; and lowering a classification is held to the same."""

from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.approvals import (
    APPROVAL_TYPE,
    Approvals,
    Approver,
    Bound,
    Question,
    approve,
    check_approval,
    find_approver,
    keep,
    kept,
    lowered,
    state_lowering,
)
from fabric.artifacts import digest
from fabric.errors import FabricError, InvalidInput, Reason
from fabric.labels import Classification, Labels
from fabric.statements import SigningKey, Statement, sign, timestamp

NOW = datetime(2026, 6, 1, tzinfo=UTC)
WEEK = timedelta(days=7)
SAM_KEY, KIM_KEY, STRANGER = (SigningKey.from_seed(bytes(31) + bytes([n])) for n in range(3))
SAM = Approver(name="sam", person="p-sam", key=SAM_KEY.public, roles=frozenset({"approver", "steward"}))
KIM = Approver(name="kim", person="p-kim", key=KIM_KEY.public)
QUESTION = Question(
    action="move",
    zone="public",
    purpose="cost-forecast",
    requester="p-kim",
    bound=Bound(code=digest(b"code"), recipe=digest(b"recipe"), schema=digest(b"schema")),
)
GIVEN = approve(QUESTION, SAM, SAM_KEY, now=NOW, lasts=WEEK).envelope


def refused(envelope=GIVEN, question=QUESTION, approvers=(SAM, KIM), *, now=NOW, seen=None):
    with pytest.raises(FabricError) as caught:
        check_approval(envelope, question, approvers, now=now, seen=seen)
    assert caught.value.hint or caught.value.reason is Reason.STATEMENT_INVALID
    assert not Approvals(approvers=tuple(approvers), envelopes=lambda: (envelope,), seen=lambda: seen).hold(
        question, now
    )
    return caught.value.reason


def test_nobody_approves_what_they_asked_for():
    with pytest.raises(FabricError) as caught:
        approve(QUESTION, KIM, KIM_KEY, now=NOW, lasts=WEEK)
    assert caught.value.reason is Reason.APPROVAL_SELF
    # Nor by signing past this code.
    terms = {**QUESTION.to_json(), "approver": "kim", "issued_at": timestamp(NOW), "expires_at": timestamp(NOW + WEEK)}
    forged = sign(
        Statement(subjects={"question": QUESTION.digest}, predicate_type=APPROVAL_TYPE, predicate=terms), KIM_KEY
    )
    assert refused(forged.envelope) is Reason.APPROVAL_SELF


def test_an_approval_in_anothers_name_does_not_count():
    terms = {**QUESTION.to_json(), "approver": "sam", "issued_at": timestamp(NOW), "expires_at": timestamp(NOW + WEEK)}
    statement = Statement(subjects={"question": QUESTION.digest}, predicate_type=APPROVAL_TYPE, predicate=terms)
    assert refused(sign(statement, KIM_KEY).envelope) is Reason.KEY_UNKNOWN
    nobody = replace(statement, predicate={**terms, "approver": "nobody"})
    assert refused(sign(nobody, KIM_KEY).envelope) is Reason.KEY_UNKNOWN


@pytest.mark.parametrize("part", [field.name for field in fields(Bound)])
def test_an_approval_is_void_once_what_it_is_bound_to_changes(part):
    changed = replace(QUESTION, bound=replace(QUESTION.bound, **{part: digest(b"changed")}))
    assert refused(question=changed) is Reason.APPROVAL_VOID
    with pytest.raises(FabricError, match=f"{part} changed"):
        check_approval(GIVEN, changed, [SAM], now=NOW)


@pytest.mark.parametrize(
    ("field", "value"), [("action", "deploy"), ("zone", "edge"), ("purpose", "x"), ("requester", "p-x")]
)
def test_an_approval_is_for_one_action_zone_purpose_and_person(field, value):
    assert refused(question=replace(QUESTION, **{field: value})) is Reason.APPROVAL_VOID


def test_an_approval_whose_terms_are_not_those_of_its_digest_is_void():
    terms = {**QUESTION.to_json(), "zone": "edge", "approver": "sam"}
    times = {"issued_at": timestamp(NOW), "expires_at": timestamp(NOW + WEEK)}
    statement = Statement(
        subjects={"question": QUESTION.digest}, predicate_type=APPROVAL_TYPE, predicate={**terms, **times}
    )
    assert refused(sign(statement, SAM_KEY).envelope) is Reason.APPROVAL_VOID


def test_an_approval_expires():
    assert check_approval(GIVEN, QUESTION, [SAM], now=NOW + WEEK - timedelta(seconds=1)) == SAM
    assert refused(now=NOW + WEEK) is Reason.APPROVAL_EXPIRED


def test_a_clock_that_was_set_back_revives_no_approval():
    assert refused(now=NOW - timedelta(days=1)) is Reason.CLOCK_SET_BACK
    assert refused(now=NOW + WEEK - timedelta(days=1), seen=NOW + WEEK) is Reason.CLOCK_SET_BACK
    assert check_approval(GIVEN, QUESTION, [SAM], now=NOW - timedelta(minutes=4)) == SAM


def test_a_key_that_is_not_declared_approves_nothing():
    assert refused(approvers=[KIM]) is Reason.KEY_UNKNOWN
    assert refused(approvers=[]) is Reason.KEY_UNKNOWN
    with pytest.raises(FabricError) as caught:
        approve(QUESTION, SAM, STRANGER, now=NOW, lasts=WEEK)
    assert caught.value.reason is Reason.KEY_UNKNOWN
    with pytest.raises(FabricError) as caught:
        find_approver([SAM], STRANGER.public)
    assert caught.value.reason is Reason.KEY_UNKNOWN
    assert STRANGER.public.to_text() in caught.value.hint


def test_who_lost_the_role_of_approver_approves_nothing():
    former = replace(SAM, roles=frozenset({"steward"}))
    assert refused(approvers=[former]) is Reason.KEY_UNKNOWN


@pytest.mark.parametrize("lasts", [timedelta(0), timedelta(days=-1), timedelta(days=367)])
def test_an_approval_lasts_for_a_while_and_not_for_ever(lasts):
    with pytest.raises(InvalidInput):
        approve(QUESTION, SAM, SAM_KEY, now=NOW, lasts=lasts)


@given(st.integers(0, 5000), st.integers(1, 255))
def test_a_changed_approval_does_not_count(position, change):
    mutated = bytearray(GIVEN)
    mutated[position % len(mutated)] ^= change
    assert not Approvals(approvers=(SAM,), envelopes=lambda: (bytes(mutated),)).hold(QUESTION, NOW)


def test_no_approval_is_none():
    (why,) = Approvals(approvers=(SAM,)).objections(QUESTION, NOW)
    assert why.reason is Reason.APPROVAL_VOID
    assert not Approvals(envelopes=lambda: (GIVEN,)).hold(QUESTION, NOW)


def test_approvals_that_were_kept_are_found_again(tmp_path):
    assert kept(tmp_path / "none") == ()
    path = keep(tmp_path / "approvals", approve(QUESTION, SAM, SAM_KEY, now=NOW, lasts=WEEK))
    assert path.stat().st_mode & 0o077 == 0
    (tmp_path / "approvals" / "large.json").write_bytes(bytes(100_000))
    found = Approvals(approvers=(SAM,), envelopes=lambda: kept(tmp_path / "approvals"))
    assert found.hold(QUESTION, NOW)


ASKED = QUESTION.to_json()


@pytest.mark.parametrize(
    "raw",
    [
        None, [], {}, {**ASKED, "bound": None}, {**ASKED, "x": 1}, {**ASKED, "zone": 1}, {**ASKED, "purpose": None},
        {**ASKED, "bound": {"code": 1, "recipe": "", "schema": ""}}, {**ASKED, "bound": {"code": ""}},
    ],
)  # fmt: skip
def test_what_is_no_question_is_refused(raw):
    with pytest.raises(InvalidInput):
        Question.from_json(raw)
    assert Question.from_json(QUESTION.to_json()) == QUESTION


LABELS, SUBJECT = Labels(), digest(b"derived")


def test_what_is_derived_is_as_sensitive_as_its_inputs_until_a_steward_lowers_it():
    signed = state_lowering(SUBJECT, LABELS, Classification.INTERNAL, SAM, SAM_KEY, now=NOW)
    after = lowered(LABELS, SUBJECT, signed.envelope, [SAM], now=NOW)
    assert after == replace(LABELS, data_classification=Classification.INTERNAL)


def test_a_lowering_is_of_one_thing_by_a_steward_and_only_downwards():
    signed = state_lowering(SUBJECT, LABELS, Classification.INTERNAL, SAM, SAM_KEY, now=NOW)
    confidential = replace(LABELS, data_classification=Classification.CONFIDENTIAL)
    for labels, subject, approvers, reason in [
        (LABELS, digest(b"other"), [SAM], Reason.DIGEST_MISMATCH),
        (confidential, SUBJECT, [SAM], Reason.DIGEST_MISMATCH),
        (LABELS, SUBJECT, [replace(SAM, roles=frozenset({"approver"}))], Reason.KEY_UNKNOWN),
        (LABELS, SUBJECT, [], Reason.KEY_UNKNOWN),
    ]:
        with pytest.raises(FabricError) as caught:
            lowered(labels, subject, signed.envelope, approvers, now=NOW)
        assert caught.value.reason is reason
    with pytest.raises(FabricError) as caught:
        state_lowering(SUBJECT, LABELS, Classification.INTERNAL, KIM, KIM_KEY, now=NOW)
    assert caught.value.reason is Reason.KEY_UNKNOWN
    with pytest.raises(FabricError) as caught:
        state_lowering(SUBJECT, confidential, Classification.RESTRICTED, SAM, SAM_KEY, now=NOW)
    assert caught.value.reason is Reason.LABEL_INVALID
    with pytest.raises(FabricError) as caught:
        lowered(LABELS, SUBJECT, signed.envelope, [SAM], now=NOW + timedelta(days=400))
    assert caught.value.reason is Reason.STATEMENT_EXPIRED
