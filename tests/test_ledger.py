"""The ledger: what it refuses to write, what a crash and other processes leave, and what a restart goes on from."""

from __future__ import annotations

import base64
import itertools
import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from crashing import rounds

from fabric.artifacts import canonical, digest
from fabric.errors import EvidenceInvalid, FabricError, InvalidInput, Reason
from fabric.ledger import CLOCK_TOLERANCE, DATABASE_NAME, Ledger
from fabric.ledger_store import SQLiteStore
from fabric.recording import is_gone, owner_token
from fabric.records import ACTIONS
from fabric.rotating import NEXT, rotate_key
from fabric.rotation import read_rotation, state_rotation
from fabric.statements import SigningKey, Statement, sign, timestamp
from fabric.stores import Home
from fabric.verification import MAX_DOCUMENT_BYTES, Receipt, verify_bundle, verify_receipt, verify_receipt_file

ORIGIN = "fabric.example/ledger"
KEY = SigningKey.from_seed(bytes(range(32)))
START = datetime(2025, 3, 1, 12, tzinfo=UTC)
TABLES = ("record", "node", "checkpoint", "document", "cosigned")

WRITER = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4
from fabric.ledger import Ledger
from fabric.statements import SigningKey

ledger = Ledger.open(
    Path(sys.argv[1]), key=SigningKey.from_seed(bytes(range(32))), origin=sys.argv[2],
    clock=lambda: datetime.now(UTC), new_id=lambda: uuid4().hex,
)
for number in range(int(sys.argv[3])):
    intent = ledger.intend("drill", {"number": number})
    print(intent.id, flush=True)
    print(ledger.conclude(intent, "done", {}).id, flush=True)
"""


def ids() -> Callable[[], str]:
    numbers = itertools.count(1)
    return lambda: f"id-{next(numbers)}"


def later() -> datetime:
    return START + timedelta(days=1)


def clock() -> Callable[[], datetime]:
    ticks = itertools.count()
    return lambda: START + timedelta(seconds=next(ticks))


def open_ledger(folder: Path, *, key: SigningKey = KEY, origin: str = ORIGIN) -> Ledger:
    return Ledger.open(folder, key=key, origin=origin, clock=later, new_id=lambda: uuid4().hex)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger.open(tmp_path / "evidence", key=KEY, origin=ORIGIN, clock=clock(), new_id=ids())
    yield opened
    opened.close()


def by_hand(folder: Path, *statements: str) -> None:
    """Change the database as someone with write access to the file would: triggers first."""
    with sqlite3.connect(folder / DATABASE_NAME, isolation_level=None) as database:
        for table, verb in itertools.product(TABLES, ("UPDATE", "DELETE", "INSERT")):
            database.execute(f"DROP TRIGGER IF EXISTS {table}_{verb}")
        for statement in statements:
            database.execute(statement)
    database.close()


def statement(name: str = "matrix", content: bytes = b"matrix bytes") -> bytes:
    predicate = {"expires_at": timestamp(START + timedelta(days=9))}
    said = Statement(subjects={name: digest(content)}, predicate_type="urn:example:inspection", predicate=predicate)
    return sign(said, KEY).envelope


def crossing_body(ledger: Ledger) -> dict[str, object]:
    return {
        "decision": {"effect": "permit"},
        "statements": [ledger.attach(statement())],
        "subjects": {"matrix": digest(b"matrix bytes")},
    }


def refused(call: Callable[[], object]) -> FabricError:
    with pytest.raises(FabricError) as caught:
        call()
    return caught.value


@pytest.mark.parametrize(
    "body",
    [
        {"number": 0.5},
        {"number": 2.0},
        {"decision": {"loss": [1.0]}},
        {"number": float("nan")},
        {"what": b"bytes"},
        {"labels": {1, 2}},
        {"what": START},
        {"number": 2**53},
        {"what": "\ud800"},
        {"decision": {"\ud800": 1}},
        {1: "number as a name"},
        {"decision": {f"k{n}": "x" * 250 for n in range(1200)}},
        {"statements": "not a list"},
        {"statements": ["sha256:short"]},
    ],
)
def test_a_body_that_would_not_verify_is_refused_and_leaves_no_trace(ledger: Ledger, body: dict[str, object]) -> None:
    assert refused(lambda: ledger.observe("drill", body)).reason is Reason.EVIDENCE_INVALID
    assert list(ledger.entries()) == []
    assert verify_bundle(ledger.bundle(), trusted=[KEY.public]).checkpoints == 1


def test_a_body_without_end_is_refused(ledger: Ledger) -> None:
    endless: list[object] = []
    endless.append(endless)
    assert refused(lambda: ledger.observe("drill", {"decisions": endless})).reason is Reason.EVIDENCE_INVALID


def test_a_refused_value_is_not_in_the_message(ledger: Ledger) -> None:
    assert "1234.5" not in str(refused(lambda: ledger.observe("drill", {"number": 1234.5})))


@pytest.mark.parametrize("action", ["", "two words", "-dash", "x" * 64, "line\n"])
def test_an_action_that_is_no_token_is_refused(ledger: Ledger, action: str) -> None:
    assert refused(lambda: ledger.intend(action, {})).reason is Reason.EVIDENCE_INVALID


@pytest.mark.parametrize(
    "change", ["no decision", "denied", "no statements", "not attached", "no subjects", "bad subject"]
)
def test_a_crossing_that_would_not_verify_is_refused_before_it_moves(ledger: Ledger, change: str) -> None:
    body = crossing_body(ledger)
    body |= {
        "no decision": {"decision": None},
        "denied": {"decision": {"effect": "forbid"}},
        "no statements": {"statements": []},
        "not attached": {"statements": [digest(b"never attached")]},
        "no subjects": {"subjects": {}},
        "bad subject": {"subjects": {"matrix": "matrix"}},
    }[change]
    assert refused(lambda: ledger.intend("crossing", body)).reason is Reason.EVIDENCE_INVALID
    assert list(ledger.entries()) == []


def test_a_crossing_whose_statement_expired_a_moment_ago_is_not_recorded(tmp_path: Path) -> None:
    moments = iter([START + timedelta(days=9, microseconds=-1), START + timedelta(days=9)])
    ledger = Ledger.open(tmp_path, key=KEY, origin=ORIGIN, clock=lambda: next(moments), new_id=lambda: uuid4().hex)
    body = crossing_body(ledger)
    ledger.intend("crossing", body)
    assert refused(lambda: ledger.intend("crossing", body)).reason is Reason.STATEMENT_EXPIRED
    assert verify_bundle(ledger.bundle(), trusted=[KEY.public]).crossings == 1


def test_an_unknown_status_is_refused(ledger: Ledger) -> None:
    intent = ledger.intend("drill", {})
    assert refused(lambda: ledger.conclude(intent, "perhaps", {})).reason is Reason.EVIDENCE_INVALID
    assert refused(lambda: ledger.conclude(intent, "done", {"status": "done"})).reason is Reason.EVIDENCE_INVALID


def test_a_second_outcome_is_refused(ledger: Ledger) -> None:
    intent = ledger.intend("drill", {})
    ledger.conclude(intent, "failed", {})
    assert "outcome already" in refused(lambda: ledger.conclude(intent, "done", {})).message
    assert len(list(ledger.entries())) == 2


def test_an_outcome_of_nothing_is_refused(ledger: Ledger) -> None:
    seen = ledger.observe("drill", {})
    stranger = Receipt(id="stranger", index=0, digest=digest(b""), checkpoint="", proof=())
    for receipt in (seen, stranger):
        assert "no such intent" in refused(lambda receipt=receipt: ledger.conclude(receipt, "done", {})).message


def test_an_id_that_repeats_is_refused(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path, key=KEY, origin=ORIGIN, clock=clock(), new_id=lambda: "same")
    ledger.intend("drill", {})
    assert "id is taken" in refused(lambda: ledger.intend("drill", {})).message


def test_a_document_too_large_to_verify_is_refused(ledger: Ledger) -> None:
    assert refused(lambda: ledger.attach(bytes(MAX_DOCUMENT_BYTES + 1))).reason is Reason.EVIDENCE_INVALID


def test_an_origin_that_no_checkpoint_can_carry_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput):
        open_ledger(tmp_path, origin="two words")


def test_a_folder_that_is_a_file_is_unwritable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "evidence"):
        error = refused(lambda folder=folder: open_ledger(folder))
        assert error.reason is Reason.EVIDENCE_UNWRITABLE
        assert str(folder) in error.message


def test_a_folder_that_takes_no_files_is_unwritable() -> None:
    assert refused(lambda: open_ledger(Path("/proc/self"))).reason is Reason.EVIDENCE_UNWRITABLE


def test_a_file_that_is_no_database_is_unwritable_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / DATABASE_NAME).write_text("something else entirely" * 100)
    assert refused(lambda: open_ledger(tmp_path)).reason is Reason.EVIDENCE_UNWRITABLE
    assert (tmp_path / DATABASE_NAME).read_text().startswith("something else")


def test_a_database_that_turned_read_only_is_unwritable(tmp_path: Path) -> None:
    open_ledger(tmp_path).close()
    ledger = open_ledger(tmp_path)
    ledger._store._db.execute("PRAGMA query_only=ON")
    assert refused(lambda: ledger.intend("drill", {})).reason is Reason.EVIDENCE_UNWRITABLE


def test_a_full_database_refuses_the_intent_and_keeps_what_it_has(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    kept = ledger.intend("drill", {})
    (pages,) = ledger._store._db.execute("PRAGMA page_count").fetchone()
    ledger._store._db.execute(f"PRAGMA max_page_count={pages}")
    assert (
        refused(lambda: ledger.intend("drill", {"decision": {f"k{n}": "x" * 250 for n in range(600)}})).reason
        is Reason.EVIDENCE_UNWRITABLE
    )
    assert [entry.record["id"] for entry in ledger.entries()] == [kept.id]
    assert verify_bundle(ledger.bundle(), trusted=[KEY.public]).records == 1


def test_a_closed_ledger_writes_nothing(ledger: Ledger) -> None:
    ledger.close()
    ledger.close()
    assert refused(lambda: ledger.intend("drill", {})).reason is Reason.EVIDENCE_UNWRITABLE


def test_another_key_cannot_go_on_with_the_log(tmp_path: Path) -> None:
    open_ledger(tmp_path).close()
    other = SigningKey.generate()
    assert refused(lambda: open_ledger(tmp_path, key=other)).reason is Reason.KEY_UNKNOWN
    open_ledger(tmp_path).close()


def test_another_origin_cannot_go_on_with_the_log(tmp_path: Path) -> None:
    open_ledger(tmp_path).close()
    assert refused(lambda: open_ledger(tmp_path, origin="elsewhere")).reason is Reason.EVIDENCE_INVALID


def test_another_format_is_refused(tmp_path: Path) -> None:
    open_ledger(tmp_path).close()
    by_hand(tmp_path, "PRAGMA user_version=99")
    assert "format 99" in refused(lambda: open_ledger(tmp_path)).message


@pytest.mark.parametrize("table", TABLES)
def test_sql_changes_and_removes_nothing(tmp_path: Path, table: str) -> None:
    ledger = open_ledger(tmp_path)
    ledger.intend("crossing", crossing_body(ledger))
    with ledger._store.transaction(write=True):
        ledger._store.add_cosigned(1, "a note")
    before = ledger.bundle()
    with sqlite3.connect(tmp_path / DATABASE_NAME) as database:
        row = database.execute(f"SELECT * FROM {table}").fetchone()
        column = database.execute(f"SELECT * FROM {table}").description[0][0]
        marks = ", ".join("?" * len(row))
        for change, values in (
            (f"DELETE FROM {table}", ()),
            (f"UPDATE {table} SET {column} = {column}", ()),
            (f"INSERT OR REPLACE INTO {table} VALUES ({marks})", row),
        ):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                database.execute(change, values)
    assert ledger.bundle() == before


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM checkpoint",
        "DELETE FROM checkpoint WHERE size = 3",
        "DELETE FROM record WHERE idx = 2",
        "DELETE FROM node WHERE level = 1",
        "UPDATE node SET hash = zeroblob(32) WHERE level = 0 AND idx = 2",
        "UPDATE node SET hash = 'text' WHERE level = 0 AND idx = 2",
        "UPDATE checkpoint SET note = replace(note, 'fabric', 'febric') WHERE size = 3",
        "UPDATE checkpoint SET note = (SELECT note FROM checkpoint WHERE size = 2) WHERE size = 3",
    ],
)
def test_a_log_changed_from_outside_is_not_signed_again(tmp_path: Path, change: str) -> None:
    ledger = open_ledger(tmp_path)
    for _ in range(3):
        ledger.observe("drill", {})
    by_hand(tmp_path, change)
    assert refused(lambda: ledger.observe("drill", {})).reason is Reason.EVIDENCE_INVALID
    ledger.close()
    assert refused(lambda: open_ledger(tmp_path)).reason is Reason.EVIDENCE_INVALID


@pytest.mark.parametrize("count", [3, 4])
def test_a_last_record_that_was_edited_is_not_gone_on_from(tmp_path: Path, count: int) -> None:
    ledger = open_ledger(tmp_path)
    for _ in range(count):
        ledger.observe("drill", {"rows": 10})
    edit = "CAST(replace(CAST(content AS TEXT), '\"rows\":10', '\"rows\":11') AS BLOB)"
    by_hand(tmp_path, f"UPDATE record SET content = {edit} WHERE idx = {count - 1}")
    assert "its last record" in refused(lambda: ledger.observe("drill", {})).message


def test_a_log_cut_back_under_a_running_process_is_not_gone_on_with(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    for _ in range(3):
        ledger.observe("drill", {})
    by_hand(
        tmp_path,
        "DELETE FROM record WHERE idx = 2",
        "DELETE FROM node WHERE level = 0 AND idx = 2",
        "DELETE FROM checkpoint WHERE size = 3",
    )
    assert "3 records seen before" in refused(lambda: ledger.observe("drill", {})).message


def test_a_log_swapped_under_a_running_process_is_not_gone_on_with(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path / "mine")
    other = open_ledger(tmp_path / "other")
    for _ in range(3):
        ledger.observe("drill", {})
        other.observe("drill", {})
    other.close()
    copies = [f"DELETE FROM {t}; INSERT INTO {t} SELECT * FROM other.{t}" for t in TABLES]
    attach = f"ATTACH '{tmp_path / 'other' / DATABASE_NAME}' AS other"
    by_hand(tmp_path / "mine", attach, *"; ".join(copies).split("; "))
    assert "no longer extends" in refused(lambda: ledger.observe("drill", {})).message


def test_a_record_changed_from_outside_still_reaches_the_verifier(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    for _ in range(3):
        ledger.observe("drill", {"rows": 10})
    by_hand(tmp_path, "UPDATE record SET content = 'no JSON' WHERE idx = 1")
    with pytest.raises(EvidenceInvalid, match="record 1"):
        verify_bundle(ledger.bundle(), trusted=[KEY.public])
    assert refused(lambda: list(ledger.entries())).reason is Reason.EVIDENCE_INVALID


def test_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "evidence"
    ledger = open_ledger(folder)
    ledger.intend("drill", {})
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert set(modes.values()) == {0o600}
    assert DATABASE_NAME in modes


def test_a_killed_writer_loses_nothing_that_it_was_told_is_kept(tmp_path: Path) -> None:
    kept: list[str] = []
    for wanted in (1, 4, 7, 12, 20):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), ORIGIN, "1000000"], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        kept += [writer.stdout.readline().strip() for _ in range(wanted)]
        os.kill(writer.pid, signal.SIGKILL)
        kept += writer.stdout.read().split()
        writer.wait()
        writer.stdout.close()
        ledger = open_ledger(tmp_path)
        written = [entry.record["id"] for entry in ledger.entries()]
        verified = verify_bundle(ledger.bundle(), trusted=[KEY.public])
        assert [one for one in written if one in kept] == kept
        # The kill can leave at most the record that was under way beyond what was acknowledged.
        assert verified.records == len(written)
        assert list(verified.open_intents) == [entry.record["id"] for entry in ledger.open_intents()]
        ledger.close()
    assert len(kept) >= 44


def test_two_processes_append_to_one_tree(tmp_path: Path) -> None:
    folder, count = tmp_path / "evidence", 40
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder), ORIGIN, str(count)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    kept = [writer.communicate()[0].split() for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    ledger = open_ledger(folder)
    written = [entry.record["id"] for entry in ledger.entries()]
    assert sorted(written) == sorted(itertools.chain(*kept))
    assert all([one for one in written if one in set(mine)] == mine for mine in kept)
    assert verify_bundle(ledger.bundle(), trusted=[KEY.public]).records == 3 * 2 * count


def test_threads_share_one_ledger(ledger: Ledger) -> None:
    def work() -> None:
        for _ in range(10):
            ledger.conclude(ledger.intend("drill", {}), "done", {})
            ledger.bundle()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    verified = verify_bundle(ledger.bundle(), trusted=[KEY.public])
    assert (verified.records, verified.open_intents) == (80, ())


def test_an_error_in_a_callback_leaves_no_trace(tmp_path: Path) -> None:
    new_ids = iter(["first"])
    ledger = Ledger.open(tmp_path, key=KEY, origin=ORIGIN, clock=clock(), new_id=lambda: next(new_ids))
    ledger.observe("drill", {})
    with pytest.raises(StopIteration):
        ledger.observe("drill", {})
    assert verify_bundle(ledger.bundle(), trusted=[KEY.public]).records == 1


def test_a_restart_goes_on_with_the_same_tree(tmp_path: Path) -> None:
    receipts = []
    for _ in range(4):
        ledger = open_ledger(tmp_path)
        receipts.append(ledger.observe("drill", {}))
        ledger.close()
    ledger = open_ledger(tmp_path)
    assert [receipt.index for receipt in receipts] == [0, 1, 2, 3]
    assert [receipt.checkpoint for receipt in receipts] == ledger.bundle()["checkpoints"][1:]
    assert verify_bundle(ledger.bundle(), trusted=[KEY.public]).records == 4


def test_a_record_has_just_these_fields(ledger: Ledger) -> None:
    intent = ledger.intend("crossing", crossing_body(ledger))
    ledger.conclude(intent, "done", {"bytes": 12})
    first, second = ledger.entries()
    assert first.index == 0
    assert first.record == {
        "v": 2,
        "id": "id-1",
        "phase": "intent",
        "action": "crossing",
        "intent": None,
        "at": "2025-03-01T12:00:00.000000+00:00",
        "after": 0,
        "by": {"actor": "", "owner": ""},
        "body": crossing_body(ledger),
    }
    assert second.record == {
        "v": 2,
        "id": "id-2",
        "phase": "outcome",
        "action": "crossing",
        "intent": "id-1",
        "at": "2025-03-01T12:00:01.000000+00:00",
        "after": 1,
        "by": {"actor": "", "owner": ""},
        "body": {"bytes": 12, "status": "done"},
    }


def test_a_receipt_stands_on_its_own(ledger: Ledger) -> None:
    receipts = [ledger.observe("drill", {"number": number}) for number in range(9)]
    for receipt, entry in zip(receipts, ledger.entries(), strict=True):
        checkpoint = verify_receipt(receipt, canonical(entry.record), KEY.public)
        assert (checkpoint.origin, checkpoint.size) == (ORIGIN, receipt.index + 1)


def test_a_document_is_stored_once_under_its_digest(ledger: Ledger) -> None:
    assert ledger.attach(b"document") == ledger.attach(b"document") == digest(b"document")
    ledger.attach(b"named by no record")
    ledger.observe("drill", {"report": digest(b"document")})
    documents = ledger.bundle()["documents"]
    assert documents == {digest(b"document"): base64.b64encode(b"document").decode()}


def test_an_open_intent_shows_until_its_outcome(ledger: Ledger) -> None:
    first, second = ledger.intend("drill", {}), ledger.intend("drill", {})
    ledger.conclude(first, "done", {})
    assert [entry.record["id"] for entry in ledger.open_intents()] == [second.id]


def test_a_bundle_survives_json(ledger: Ledger) -> None:
    ledger.conclude(ledger.intend("crossing", crossing_body(ledger)), "done", {})
    bundle = ledger.bundle()
    assert json.loads(json.dumps(bundle)) == bundle


def test_a_ledger_does_not_show_its_key(ledger: Ledger) -> None:
    assert KEY.seed.hex() not in repr(ledger)
    assert ORIGIN in repr(ledger)


# What a body may say.


@pytest.mark.parametrize(
    ("action", "body", "named"),
    [
        ("traning", {}, "no action"),
        ("drill", {"name": "x"}, "no field 'name'"),
        ("drill", {"what": "Jane Doe, born 1951"}, "'what'"),
        ("drill", {"what": "jane@example.org"}, "'what'"),
        ("drill", {"actor": "jane.doe"}, "'actor'"),
        ("drill", {"actor": digest(b"jane.doe")}, "'actor'"),
        ("drill", {"on_behalf_of": "jane.doe"}, "'on_behalf_of'"),
        ("drill", {"justification": "the queue is long"}, "'justification'"),
        ("drill", {"justification": digest(b"the queue is long")}, "'justification'"),
        ("drill", {"number": -1}, "'number'"),
        ("drill", {"number": True}, "'number'"),
        ("drill", {"report": "sha256:short"}, "'report'"),
        ("drill", {"cost": {"price": "a lot"}}, "'cost'"),
        ("drill", {"cost": {"extra": 1}}, "'cost'"),
        ("drill", {"approvals": [{"approver": "jane.doe"}]}, "'approvals'"),
        ("drill", {"decision": {"effect": "permit", "why": "she asked nicely"}}, "'decision'"),
        ("drill", {"labels": {"note": ["a free text"]}}, "'labels'"),
        ("sanitize", {"versions": {"people": digest(b"people.csv")}}, "'versions'"),
        ("sanitize", {"records": ["jane@example.org"]}, "'records'"),
        ("job", {"rows": 1}, "no field 'rows'"),
    ],
)
def test_a_body_says_only_what_its_action_may(ledger: Ledger, action: str, body: dict[str, object], named: str) -> None:
    error = refused(lambda: ledger.observe(action, body))
    assert error.reason is Reason.EVIDENCE_INVALID
    assert named in error.message
    assert "Jane" not in str(error)
    assert list(ledger.entries()) == []


def test_an_outcome_says_only_what_its_action_may(ledger: Ledger) -> None:
    intent = ledger.intend("job", {"kind": "training"})
    assert "no field 'rows'" in refused(lambda: ledger.conclude(intent, "done", {"rows": 3})).message
    ledger.conclude(intent, "done", {})


def test_every_action_takes_what_an_auditor_asks_of_all(ledger: Ledger) -> None:
    asked = {
        "actor": "p-0123456789abcdef",
        "on_behalf_of": "p-fedcba9876543210",
        "from_zone": "private",
        "to_zone": "public",
        "purpose": "cost-forecast",
        "justification": "hmac-sha256:" + "0" * 32,
        "labels": {"data_classification": "restricted", "burst_eligible": True, "residency": ["EU"]},
        "policy": digest(b"policy"),
        "decision": {"effect": "permit", "rules": ["public-burst"]},
        "approvals": [{"approver": "p-0123456789abcdef", "role": "steward", "statement": digest(b"approval")}],
        "cost": {"reservation": "r-1", "currency": "EUR", "reserved": 100, "spent": 20, "price": "1.25"},
        "subjects": {"matrix": digest(b"matrix")},
    }
    actions = set(ACTIONS) - {"key-rotation"}
    for action in actions:
        ledger.observe(action, asked)
    assert len(list(ledger.entries())) == len(actions)


# The clock.


class Hands:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


def test_a_clock_that_was_set_back_records_nothing(tmp_path: Path) -> None:
    hands = Hands()
    ledger = Ledger.open(tmp_path, key=KEY, origin=ORIGIN, clock=hands, new_id=lambda: uuid4().hex)
    intent = ledger.intend("drill", {})
    hands.now -= CLOCK_TOLERANCE + timedelta(seconds=1)
    for call in (
        lambda: ledger.intend("drill", {}),
        lambda: ledger.conclude(intent, "done", {}),
        lambda: ledger.observe("drill", {}),
    ):
        error = refused(call)
        assert error.reason is Reason.CLOCK_SET_BACK
        assert error.hint
    assert len(list(ledger.entries())) == 1


def test_a_clock_a_little_behind_dates_a_record_like_the_one_before_it(tmp_path: Path) -> None:
    hands = Hands()
    ledger = Ledger.open(tmp_path, key=KEY, origin=ORIGIN, clock=hands, new_id=lambda: uuid4().hex)
    for step in (0, -1, 1, -1):
        hands.now += timedelta(seconds=step)
        ledger.observe("drill", {})
    times = [entry.record["at"] for entry in ledger.entries()]
    assert times == sorted(times)
    assert verify_bundle(ledger.bundle(), trusted=[KEY.public]).records == 4


# Rotation.

NEW = SigningKey.from_seed(bytes(range(2, 34)))
NEWER = SigningKey.from_seed(bytes(range(3, 35)))


def rotated(folder: Path) -> tuple[Ledger, list[Receipt]]:
    ledger = open_ledger(folder)
    receipts = [ledger.observe("drill", {"number": 0})]
    for key in (NEW, NEWER):
        ledger.rotate(key)
        receipts.append(ledger.observe("drill", {"number": 1}))
    return ledger, receipts


def test_the_old_key_signs_no_more_after_a_rotation(tmp_path: Path) -> None:
    old = open_ledger(tmp_path)
    ledger = open_ledger(tmp_path)
    ledger.rotate(NEW)
    error = refused(lambda: old.observe("drill", {}))
    assert error.reason is Reason.KEY_UNKNOWN
    assert refused(lambda: old.rotate(NEWER)).reason is Reason.KEY_UNKNOWN
    assert refused(lambda: open_ledger(tmp_path)).reason is Reason.KEY_UNKNOWN
    open_ledger(tmp_path, key=NEW).observe("drill", {})
    assert refused(lambda: open_ledger(tmp_path)).reason is Reason.KEY_UNKNOWN


@pytest.mark.parametrize("key", [KEY, NEW, NEWER])
def test_whoever_trusts_any_key_of_the_log_can_verify_all_of_it(tmp_path: Path, key: SigningKey) -> None:
    ledger, receipts = rotated(tmp_path)
    found = verify_bundle(ledger.bundle(), trusted=[key.public])
    assert found.keyids == tuple(one.public.keyid for one in (KEY, NEW, NEWER))
    for receipt in receipts:
        assert verify_receipt_file(ledger.receipt_file(receipt.id), trusted=[key.public]).record["id"] == receipt.id


def test_a_receipt_of_before_a_rotation_still_verifies_with_its_own_key(tmp_path: Path) -> None:
    ledger, receipts = rotated(tmp_path)
    entries = list(ledger.entries())
    for receipt, key in zip(receipts, (KEY, NEW, NEWER), strict=True):
        verify_receipt(receipt, canonical(entries[receipt.index].record), key.public)
    assert ledger.keys == (KEY.public, NEW.public, NEWER.public)


def test_a_stranger_s_key_verifies_nothing_of_a_rotated_log(tmp_path: Path) -> None:
    ledger, receipts = rotated(tmp_path)
    stranger = SigningKey.generate().public
    assert refused(lambda: verify_bundle(ledger.bundle(), trusted=[stranger])).reason is Reason.EVIDENCE_INVALID
    error = refused(lambda: verify_receipt_file(ledger.receipt_file(receipts[0].id), trusted=[stranger]))
    assert error.reason is Reason.KEY_UNKNOWN


def test_nobody_records_a_rotation_by_hand(ledger: Ledger) -> None:
    for call in (ledger.observe, ledger.intend):
        assert "only `rotate`" in refused(lambda call=call: call("key-rotation", {})).message


def test_a_rotation_under_a_checkpoint_of_one_key_is_refused(tmp_path: Path) -> None:
    ledger, _ = rotated(tmp_path)
    bundle = ledger.bundle()
    note = bundle["checkpoints"][2]
    text, lines = note.rsplit("\n\n", 1)
    for line in lines.splitlines(keepends=True):
        alone = [*bundle["checkpoints"]]
        alone[2] = f"{text}\n\n{line}"
        error = refused(lambda a=alone: verify_bundle({**bundle, "checkpoints": a}, trusted=[KEY.public]))
        assert "checkpoint at 2" in error.message


def test_a_rotation_between_keys_that_never_signed_is_refused(ledger: Ledger) -> None:
    for old, new in ((NEW, NEWER), (NEW, KEY)):
        envelope = ledger.attach(state_rotation(old, new, origin=ORIGIN, now=START))
        ledger._append("observation", "key-rotation", None, {"statements": [envelope]})
    error = refused(lambda: verify_bundle(ledger.bundle(), trusted=[KEY.public]))
    assert "from a key that was not in use" in error.message


def test_a_rotation_that_the_old_key_did_not_sign_is_refused() -> None:
    forged = json.loads(state_rotation(KEY, NEW, origin=ORIGIN, now=START))
    for signatures in (forged["signatures"][:1], forged["signatures"][1:], []):
        envelope = canonical({**forged, "signatures": signatures})
        assert refused(lambda e=envelope: read_rotation(e, origin=ORIGIN)).reason is Reason.EVIDENCE_INVALID
    whole = canonical(forged)
    assert read_rotation(whole, origin=ORIGIN) == (KEY.public, NEW.public)
    assert refused(lambda: read_rotation(whole, origin="elsewhere")).reason is Reason.EVIDENCE_INVALID
    assert refused(lambda: read_rotation(b"{}", origin=ORIGIN)).reason is Reason.EVIDENCE_INVALID
    same = state_rotation(KEY, KEY, origin=ORIGIN, now=START)
    assert refused(lambda: read_rotation(same, origin=ORIGIN)).reason is Reason.EVIDENCE_INVALID


def home_and_opener(folder: Path) -> tuple[Home, Callable[[Home, SigningKey], Ledger]]:
    return Home.open(folder), lambda home, key: open_ledger(home.evidence, key=key)


@pytest.mark.parametrize("cut", ["before the log names it", "after the log names it", "nowhere"])
def test_a_rotation_that_was_cut_off_is_finished_by_the_next(tmp_path: Path, cut: str) -> None:
    home, opener = home_and_opener(tmp_path)
    first = home.signing_key()
    opener(home, first).close()
    if cut != "nowhere":
        home.write(home.keys / NEXT, NEW.seed)
    if cut == "after the log names it":
        ledger = opener(home, first)
        ledger.rotate(NEW)
        ledger.close()
    public = rotate_key(home, opener)
    assert home.signing_key().public == public != first.public
    assert not (home.keys / NEXT).exists()
    ledger = opener(home, home.signing_key())
    assert ledger.keys == (first.public, public)
    assert verify_bundle(ledger.bundle(), trusted=[first.public]).records == 1


# What a crash leaves.


def test_open_intents_are_abandoned_once_their_owner_is_gone(tmp_path: Path) -> None:
    owners = {}
    for owner in ("gone", "alive"):
        ledger = Ledger.open(tmp_path, key=KEY, origin=ORIGIN, clock=later, new_id=lambda: uuid4().hex, owner=owner)
        owners[owner] = ledger.intend("drill", {}).id
        ledger.conclude(ledger.intend("drill", {}), "done", {})
        ledger.close()
    ledger = open_ledger(tmp_path)
    closed = ledger.reconcile(lambda owner: owner == "gone")
    assert [entry.record["id"] for entry in closed] == [owners["gone"]]
    assert [entry.record["id"] for entry in ledger.open_intents()] == [owners["alive"]]
    last = list(ledger.entries())[-1].record
    assert (last["intent"], last["body"]) == (owners["gone"], {"status": "abandoned", "code": "owner-gone"})
    assert ledger.reconcile(lambda owner: owner == "gone") == []
    assert verify_bundle(ledger.bundle(), trusted=[KEY.public]).open_intents == (owners["alive"],)


def test_a_process_is_gone_only_when_it_is_known_to_be(tmp_path: Path) -> None:
    home = Home.open(tmp_path)
    mine = owner_token(home)
    assert not is_gone(home, mine)
    machine, boot, pid, started = mine.split(".")
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    assert is_gone(home, f"{machine}.{boot}.{child.pid}.{started}")
    assert is_gone(home, f"{machine}.{boot}.{pid}.{int(started) - 100_000}")
    assert is_gone(home, f"{machine}.another-boot.{pid}.{started}")
    for unknown in ("", "writer", f"elsewhere.{boot}.1.1", f"{machine}.{boot}.x.1"):
        assert not is_gone(home, unknown)
    assert machine not in (os.uname().nodename, "")


def test_concurrent_writers_that_are_killed_lose_nothing_and_leave_no_effect_unrecorded(tmp_path: Path) -> None:
    tally = rounds(str(tmp_path / "log"), tmp_path / "effects", count=6, writers=2, seed=1)
    assert (tally.lost, tally.unrecorded) == (0, 0)
    assert tally.acknowledged >= 12
    assert tally.effects > 0


def test_one_refused_record_keeps_no_other_of_its_commit_back(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    intent = ledger.intend("drill", {})
    results: list[object] = []

    def conclude() -> None:
        try:
            results.append(ledger.conclude(intent, "done", {}))
        except EvidenceInvalid as error:
            results.append(error)

    threads = [threading.Thread(target=conclude) for _ in range(8)]
    threads += [threading.Thread(target=lambda: results.append(ledger.observe("drill", {}))) for _ in range(8)]
    with ledger._leading():
        for thread in threads:
            thread.start()
        while len(ledger._waiting) < len(threads):
            pass
    for thread in threads:
        thread.join()
    assert sum(isinstance(one, Receipt) for one in results) == 9
    found = verify_bundle(ledger.bundle(), trusted=[KEY.public])
    assert (found.records, found.checkpoints) == (10, 3)


def test_a_commit_that_fails_fails_for_all_that_share_it(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    ledger.observe("drill", {})
    ledger._store._db.execute("PRAGMA query_only=ON")
    errors: list[FabricError] = []
    threads = [
        threading.Thread(target=lambda: errors.append(refused(lambda: ledger.observe("drill", {})))) for _ in range(6)
    ]
    with ledger._leading():
        for thread in threads:
            thread.start()
        while len(ledger._waiting) < len(threads):
            pass
    for thread in threads:
        thread.join()
    assert [error.reason for error in errors] == [Reason.EVIDENCE_UNWRITABLE] * 6
    ledger._store._db.execute("PRAGMA query_only=OFF")
    assert len(list(ledger.entries())) == 1


def test_a_new_ledger_opened_by_several_at_once_waits_for_its_turn(tmp_path: Path) -> None:
    failed: list[FabricError] = []
    for number in range(25):
        barrier = threading.Barrier(6)

        def opening(folder: Path = tmp_path / str(number), barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            try:
                store = SQLiteStore(folder)
                with store.transaction(write=True):
                    store.prove_writable()
                store.close()
            except FabricError as error:
                failed.append(error)

        threads = [threading.Thread(target=opening) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failed == []
