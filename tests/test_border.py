"""The border: nothing moves before it is decided, checked and recorded; the other side believes nothing."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.approvals import Approvals, Approver, approve
from fabric.artifacts import chunk_name, digest
from fabric.border import Border, Errand
from fabric.crossing import CHECKPOINT_TYPE, Cargo, SealedCapsule, SealedCheckpoint, admit
from fabric.errors import FabricError, InvalidInput, Reason, Refused, StatementInvalid
from fabric.labels import Labels
from fabric.ledger import Ledger
from fabric.matrix import SealedMatrix
from fabric.policy import Policy
from fabric.statements import SigningKey, Statement, sign, timestamp
from fabric.testing import OPEN_LABELS, MemoryCarrier, UnsafeBorder, UnsafeBorderWarning, sealed_matrix
from fabric.verification import verify_bundle
from fabric.zones import Zone, ZoneKind

NOW = datetime(2026, 6, 1, tzinfo=UTC)
KEY, STRANGER = SigningKey.from_seed(bytes(32)), SigningKey.from_seed(bytes(31) + b"\1")
PRIVATE = Zone(name="private", kind=ZoneKind.PRIVATE, jurisdiction="EU", cpus=2)
PUBLIC = Zone(name="public", kind=ZoneKind.PUBLIC, jurisdiction="EU")
MATRIX = sealed_matrix({"age": list(range(10)), "cost": [n * 1.5 for n in range(10)]}, key=KEY, now=NOW, chunk_rows=4)
ERRAND = Errand(
    zone=PUBLIC,
    labels=Labels(
        allowed_execution_zone=frozenset({"private", "public"}),
        burst_eligible=True,
        purpose="test",
        residency=frozenset({"EU"}),
        export_control="none",
    ),
    purpose="test",
    justification="queue",
    justification_key="hmac-sha256:" + "0" * 32,
    job="job-1",
    person="p-" + "1" * 16,
)


class Clock:
    def __init__(self):
        self.now = NOW

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def border(tmp_path, clock):
    ids = iter(range(10_000))
    ledger = Ledger.open(
        tmp_path / "evidence", key=KEY, origin="test/ledger", clock=clock, new_id=lambda: f"{next(ids):032x}"
    )
    yield Border(
        home_zone=PRIVATE,
        policy=Policy.default(),
        ledger=ledger,
        key=KEY,
        trusted=(KEY.public,),
        grant_lasts=timedelta(hours=1),
        clock=clock,
        new_id=lambda: f"{next(ids):032x}",
    )
    ledger.close()


def records(border):
    return [entry.record for entry in border.ledger.entries()]


def refused(border, cargo, errand=ERRAND):
    carrier = MemoryCarrier()
    with pytest.raises(FabricError) as caught:
        border.export(cargo, errand, carrier)
    assert carrier.carried == []
    (record,) = records(border)
    assert (record["action"], record["phase"]) == ("refusal", "observation")
    assert record["body"]["code"] == caught.value.reason
    return caught.value.reason


def test_a_refused_matrix_leaves_no_trace_but_the_refusal(border):
    assert refused(border, Cargo(matrix=MATRIX), replace(ERRAND, justification="")) is Reason.POLICY_DENIED


def test_a_matrix_changed_by_one_byte_after_sealing_does_not_cross(border):
    changed = bytearray(MATRIX.chunks[1])
    changed[-9] ^= 1
    matrix = SealedMatrix((MATRIX.chunks[0], bytes(changed), MATRIX.chunks[2]), MATRIX.signed)
    assert refused(border, Cargo(matrix=matrix)) is Reason.DIGEST_MISMATCH


def test_a_matrix_that_a_stranger_vouches_for_does_not_cross(border):
    matrix = sealed_matrix({"age": [1], "cost": [2.0]}, key=STRANGER, now=NOW)
    assert refused(border, Cargo(matrix=matrix)) is Reason.KEY_UNKNOWN


def test_a_matrix_with_a_chunk_left_out_does_not_cross(border):
    matrix = SealedMatrix(MATRIX.chunks[:2], MATRIX.signed)
    assert refused(border, Cargo(matrix=matrix)) is Reason.DIGEST_MISMATCH


def test_an_expired_matrix_does_not_cross(border, clock):
    clock.now = NOW + timedelta(days=2)
    assert refused(border, Cargo(matrix=MATRIX)) is Reason.POLICY_DENIED


def test_a_matrix_made_for_another_purpose_does_not_cross(border):
    matrix = sealed_matrix({"age": [1], "cost": [2.0]}, key=KEY, now=NOW, purpose="other")
    assert refused(border, Cargo(matrix=matrix)) is Reason.POLICY_DENIED


def test_a_matrix_whose_signed_labels_forbid_it_does_not_cross_under_looser_ones(border):
    strict = {**OPEN_LABELS, "burst_eligible": False}
    matrix = sealed_matrix({"age": [1], "cost": [2.0]}, key=KEY, now=NOW, labels=strict)
    assert refused(border, Cargo(matrix=matrix)) is Reason.POLICY_DENIED


def test_rows_held_back_do_not_cross(border):
    matrix = sealed_matrix({"age": [1], "cost": [2.0]}, key=KEY, now=NOW, part="held-back")
    assert refused(border, Cargo(matrix=matrix)) is Reason.POLICY_DENIED


def test_another_statement_beside_a_genuine_envelope_is_not_believed(border):
    predicate = {**MATRIX.predicate, "purpose": "other", "rows": 1}
    forged = replace(MATRIX.signed, statement=replace(MATRIX.signed.statement, predicate=predicate))
    crossing = border.export(Cargo(matrix=SealedMatrix(MATRIX.chunks, forged)), ERRAND, MemoryCarrier())
    assert crossing.cargo.matrix.purpose == "test"
    assert records(border)[0]["body"]["rows"] == 10


@pytest.mark.parametrize(
    "stated",
    [
        {"risk": {"k": 10, "l": 4, "t": "0.2"}},
        {"risk": {"l": 4, "t": "0.2"}},
        {"risk": {"k": 20, "l": 1, "t": "0.2"}},
        {"risk": {"k": 20, "l": 4, "t": "0.6"}},
        {"risk": None},
        {"risk_limits": "none"},
    ],
)
def test_a_matrix_whose_risk_is_beyond_its_limits_or_unknown_does_not_cross(border, stated):
    matrix = sealed_matrix({"age": [1], "cost": [2.0]}, key=KEY, now=NOW, stated=stated)
    assert refused(border, Cargo(matrix=matrix)) is Reason.POLICY_DENIED


def test_a_matrix_with_keyed_tokens_does_not_cross_unless_a_second_person_agrees(border):
    note = {"name": "who", "from": "id", "why": "x", "type": "int64", "role": "feature", "levels": 0, "tokens": "hmac"}
    matrix = sealed_matrix({"who": [1]}, key=KEY, now=NOW, stated={"columns": [note]})
    cargo = Cargo(matrix=matrix)
    assert refused(border, cargo) is Reason.POLICY_DENIED
    steward = Approver(name="sam", person="p-" + "2" * 16, key=STRANGER.public)
    question = border.question(cargo, ERRAND)
    given_ = approve(question, steward, STRANGER, now=NOW, lasts=timedelta(days=1)).envelope
    approved = replace(border, approvals=Approvals(approvers=(steward,), envelopes=lambda: (given_,)))
    assert approved.decide(cargo, ERRAND)[0].permit
    # Void for other code, for another purpose's errand, and once it has expired.
    capsule = border.state_capsule(b"code", {"refused": False})
    assert not approved.decide(replace(cargo, capsule=capsule), ERRAND)[0].permit
    later = replace(approved, clock=lambda: NOW + timedelta(hours=25))
    assert not later.decide(cargo, ERRAND)[0].permit


def test_a_refusal_by_policy_is_recorded_with_what_the_rules_read(border):
    assert refused(border, Cargo(matrix=MATRIX), replace(ERRAND, justification="")) is Reason.POLICY_DENIED
    (decision,) = records(border)[0]["body"]["decisions"]
    assert decision["effect"] == "deny"
    (again,) = border.policy.judge([decision["attributes"]])
    assert [rule.id for rule in again.rules] == decision["rules"] == ["public.justified"]


def test_code_exchanged_after_its_inspection_does_not_cross(border):
    sealed = border.state_capsule(b"inspected", {"refused": False})
    cargo = Cargo(matrix=MATRIX, capsule=SealedCapsule(payload=b"exchanged", signed=sealed.signed))
    assert refused(border, cargo) is Reason.DIGEST_MISMATCH


def test_large_parameters_do_not_cross(border):
    assert refused(border, Cargo(matrix=MATRIX, parameters=b"x" * 20_000)) is Reason.PARAMETERS_REFUSED


def test_without_a_ledger_nothing_moves(border):
    carrier = MemoryCarrier()
    border.ledger.close()
    with pytest.raises(FabricError):
        border.export(Cargo(matrix=MATRIX), ERRAND, carrier)
    assert carrier.carried == []


def test_the_intent_stands_before_the_carrier_is_called_and_the_outcome_after(border):
    seen = []

    class Watching(MemoryCarrier):
        def carry(self, cargo, grant, receipt):
            seen.extend(record["phase"] for record in records(border))
            return super().carry(cargo, grant, receipt)

    border.export(Cargo(matrix=MATRIX), ERRAND, Watching())
    assert seen == ["intent"]
    assert [(r["phase"], r["action"]) for r in records(border)] == [("intent", "crossing"), ("outcome", "crossing")]


def test_a_carrier_that_fails_leaves_an_outcome_without_the_errors_text(border):
    with pytest.raises(OSError, match="219-09-9999"):
        border.export(Cargo(matrix=MATRIX), ERRAND, MemoryCarrier(fails=OSError("219-09-9999")))
    _, outcome = records(border)
    assert outcome["body"]["status"] == "failed"
    assert "219-09-9999" not in str(records(border))


def test_what_stands_in_the_ledger_verifies_and_names_what_crossed(border):
    capsule = border.state_capsule(b"code", {"refused": False})
    border.export(Cargo(matrix=MATRIX, capsule=capsule, parameters=b'{"n":1}'), ERRAND, MemoryCarrier())
    found = verify_bundle(border.ledger.bundle(), trusted=[KEY.public])
    assert (found.crossings, found.statements, found.open_intents) == (1, 3, ())
    body = records(border)[0]["body"]
    assert body["subjects"]["capsule"] == digest(b"code")
    assert (body["from_zone"], body["to_zone"], body["rows"]) == ("private", "public", 10)


def test_a_movement_within_the_private_zone_is_no_crossing(border):
    border.export(Cargo(matrix=MATRIX), replace(ERRAND, zone=PRIVATE), MemoryCarrier())
    assert records(border)[0]["action"] == "delivery"


@pytest.fixture
def ticket(border):
    capsule = border.state_capsule(b"code", {"refused": False})
    carrier = MemoryCarrier()
    border.export(Cargo(matrix=MATRIX, capsule=capsule), ERRAND, carrier)
    return carrier.carried[0]


def not_admitted(parcel, *, zone="public", trusted=(KEY.public,), now=NOW):
    with pytest.raises(StatementInvalid) as caught:
        admit(parcel, zone=zone, trusted=trusted, now=now)
    return caught.value.reason


def test_what_crossed_is_admitted_whole_or_in_part(ticket):
    whole = admit(ticket.collect([0, 1, 2]), zone="public", trusted=[KEY.public], now=NOW)
    assert whole.table.column("age").to_pylist() == list(range(10))
    shard = admit(ticket.collect([1]), zone="public", trusted=[KEY.public], now=NOW)
    assert shard.table.column("age").to_pylist() == [4, 5, 6, 7]


def test_a_parcel_for_another_zone_is_not_admitted(ticket):
    assert not_admitted(ticket.collect([0]), zone="edge") is Reason.WRONG_ZONE


def test_a_parcel_without_papers_is_not_admitted(ticket):
    parcel = ticket.collect([0])
    assert not_admitted(replace(parcel, grant=b"")) is Reason.STATEMENT_MISSING
    assert not_admitted(replace(parcel, statement=b"")) is Reason.STATEMENT_MISSING


def test_a_node_that_was_given_no_key_admits_nothing(ticket):
    assert not_admitted(ticket.collect([0]), trusted=()) is Reason.KEY_UNKNOWN


def test_a_grant_is_not_admitted_after_it_expired(ticket):
    assert not_admitted(ticket.collect([0]), now=NOW + timedelta(hours=1)) is Reason.STATEMENT_EXPIRED


def test_the_statement_of_another_matrix_is_not_admitted(ticket):
    other = sealed_matrix({"age": [1], "cost": [2.0]}, key=KEY, now=NOW)
    parcel = replace(ticket.collect([0]), statement=other.signed.envelope)
    assert not_admitted(parcel) is Reason.STATEMENT_INVALID


def test_a_statement_passed_off_as_a_grant_is_not_admitted(ticket):
    parcel = ticket.collect([0])
    assert not_admitted(replace(parcel, grant=parcel.statement)) is Reason.STATEMENT_INVALID


def test_chunks_in_the_wrong_place_are_not_admitted(ticket):
    parcel = ticket.collect([0, 1])
    swapped = replace(parcel, chunks={0: parcel.chunks[1], 1: parcel.chunks[0]})
    assert not_admitted(swapped) is Reason.DIGEST_MISMATCH
    assert not_admitted(replace(parcel, chunks={7: parcel.chunks[0]})) is Reason.DIGEST_MISMATCH


@pytest.mark.parametrize("change", [{"capsule": b"other"}, {"capsule": b""}, {"parameters": b"{}  "}])
def test_code_and_parameters_that_the_grant_does_not_name_are_not_admitted(ticket, change):
    assert not_admitted(replace(ticket.collect([0]), **change)) is Reason.DIGEST_MISMATCH


def test_code_smuggled_beside_a_crossing_that_carries_none_is_not_admitted(border):
    carrier = MemoryCarrier()
    border.export(Cargo(matrix=MATRIX), ERRAND, carrier)
    parcel = replace(carrier.carried[0].collect([0]), capsule=b"code")
    assert not_admitted(parcel) is Reason.DIGEST_MISMATCH


@given(st.integers(0, 3), st.integers(0, 10_000), st.integers(1, 255))
@settings(max_examples=200, deadline=None)
def test_no_changed_byte_is_admitted(part, position, change):
    carrier = MemoryCarrier()
    border = _border_without_ledger()
    ticket = carrier.carry(Cargo(matrix=MATRIX), border._grant("c" * 32, Cargo(matrix=MATRIX), ERRAND), None)
    parcel = ticket.collect([0, 1, 2])
    fields = [parcel.chunks[0], parcel.chunks[2], parcel.parameters, parcel.statement]
    mutated = bytearray(fields[part])
    mutated[position % len(mutated)] ^= change
    changed = [
        replace(parcel, chunks={**parcel.chunks, 0: bytes(mutated)}),
        replace(parcel, chunks={**parcel.chunks, 2: bytes(mutated)}),
        replace(parcel, parameters=bytes(mutated)),
        replace(parcel, statement=bytes(mutated)),
    ][part]
    with pytest.raises(FabricError):
        admit(changed, zone="public", trusted=[KEY.public], now=NOW)


def _border_without_ledger():
    return Border(
        home_zone=PRIVATE, policy=Policy.default(), ledger=None, key=KEY, trusted=(KEY.public,),
        grant_lasts=timedelta(hours=1), clock=lambda: NOW, new_id=lambda: "0" * 32,
    )  # fmt: skip


def test_a_refusal_is_an_invalid_input_or_a_refusal_and_never_silent(border):
    with pytest.raises(InvalidInput), border.refusals("test", None, "job"):
        raise InvalidInput(Reason.UNKNOWN_ZONE, "unknown zone 'x'")
    with pytest.raises(Refused), border.refusals("test", PUBLIC, "job"):
        raise Refused(Reason.POLICY_DENIED, "no")
    assert [r["body"]["code"] for r in records(border)] == ["UNKNOWN_ZONE", "POLICY_DENIED"]


def test_a_border_that_is_off_says_so_aloud_and_in_the_evidence_and_nobody_admits_what_it_carried(border, clock):
    with pytest.warns(UnsafeBorderWarning, match="border is OFF"):
        unsafe = UnsafeBorder(ledger=border.ledger, clock=clock)
    ticket = unsafe.carry([b"raw"], "public", MemoryCarrier())
    (entry,) = [each for each in border.ledger.entries() if each.record["action"] == "unsafe-border"]
    assert entry.record["body"]["subjects"] == {chunk_name(0): digest(b"raw")}
    with pytest.raises(StatementInvalid):
        admit(ticket.collect([0]), zone="public", trusted=[KEY.public], now=NOW)


def test_a_border_that_is_off_carries_nothing_that_it_cannot_record(border, clock):
    with pytest.warns(UnsafeBorderWarning):
        unsafe = UnsafeBorder(ledger=border.ledger, clock=clock)
    border.ledger.close()
    carrier = MemoryCarrier()
    with pytest.raises(FabricError):
        unsafe.carry([b"raw"], "public", carrier)
    assert carrier.carried == []


# --- a checkpoint that a training goes on from


def checkpoint(*, key=KEY, of=MATRIX.signed.digest, lasts=timedelta(hours=1), extra=None):
    files = {"model.safetensors": b"weights", "optimizer.safetensors": b"moments", "state.json": b"{}"}
    predicate = {"matrix_statement": of, "expires_at": timestamp(NOW + lasts)}
    subjects = {name: digest(content) for name, content in files.items()}
    signed = sign(Statement(subjects=subjects, predicate_type=CHECKPOINT_TYPE, predicate=predicate), key)
    return SealedCheckpoint(files={**files, **(extra or {})}, signed=signed)


@pytest.mark.parametrize(
    ("carried", "reason"),
    [
        (checkpoint(extra={"model.safetensors": b"other weights"}), Reason.DIGEST_MISMATCH),
        (checkpoint(extra={"model.safetensors": bytearray(b"weights")}), Reason.DIGEST_MISMATCH),
        (checkpoint(extra={"notes.json": b"{}"}), Reason.DIGEST_MISMATCH),
        (checkpoint(key=STRANGER), Reason.KEY_UNKNOWN),
        (checkpoint(of="sha256:" + "2" * 64), Reason.STATEMENT_INVALID),
        (checkpoint(lasts=timedelta(0)), Reason.STATEMENT_EXPIRED),
        (SealedCheckpoint(files={}, signed=MATRIX.signed), Reason.STATEMENT_INVALID),
    ],
)
def test_a_checkpoint_that_quarantine_did_not_sign_for_this_matrix_does_not_cross(border, carried, reason):
    assert refused(border, Cargo(matrix=MATRIX, checkpoint=carried)) is reason


def test_a_checkpoint_crosses_with_its_matrix_granted_recorded_and_admitted(border):
    carrier = MemoryCarrier()
    crossing = border.export(Cargo(matrix=MATRIX, checkpoint=checkpoint()), ERRAND, carrier)
    parcel = carrier.carried[0].collect(range(3))
    admitted = admit(parcel, zone="public", trusted=[KEY.public], now=NOW)
    assert admitted.checkpoint == checkpoint().files
    intent = records(border)[0]["body"]
    assert {*checkpoint().files} < {*intent["subjects"]} == {*crossing.grant.statement.subjects}
    assert checkpoint().signed.digest in intent["statements"]
    verify_bundle(border.ledger.bundle(), trusted=[KEY.public])


@pytest.mark.parametrize(
    "altered",
    [
        {},
        {**checkpoint().files, "model.safetensors": b"altered"},
        {name: content for name, content in checkpoint().files.items() if name != "optimizer.safetensors"},
        {**checkpoint().files, "more.json": b"{}"},
    ],
)
def test_a_checkpoint_altered_on_the_way_is_not_admitted(border, altered):
    carrier = MemoryCarrier()
    border.export(Cargo(matrix=MATRIX, checkpoint=checkpoint()), ERRAND, carrier)
    parcel = replace(carrier.carried[0].collect(range(3)), checkpoint=altered)
    with pytest.raises(StatementInvalid) as caught:
        admit(parcel, zone="public", trusted=[KEY.public], now=NOW)
    assert caught.value.reason is Reason.DIGEST_MISMATCH


def test_a_checkpoint_that_no_grant_names_is_not_admitted(border):
    carrier = MemoryCarrier()
    border.export(Cargo(matrix=MATRIX), ERRAND, carrier)
    parcel = replace(carrier.carried[0].collect(range(3)), checkpoint=checkpoint().files)
    with pytest.raises(StatementInvalid):
        admit(parcel, zone="public", trusted=[KEY.public], now=NOW)
