"""A witness: what it refuses to cosign, what an insider's rewrite meets, and what does not move without it."""

from __future__ import annotations

import base64
import itertools
import sqlite3
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from fabric import merkle
from fabric.errors import EvidenceInvalid, FabricError, Reason
from fabric.evidence import kept_notes
from fabric.ledger import DATABASE_NAME, Ledger
from fabric.notes import (
    COSIGNATURE,
    WitnessKey,
    cosign,
    cosigned_at,
    key_id,
    last_signer,
    open_note,
    sign_checkpoint,
    stated_checkpoint,
)
from fabric.statements import SigningKey
from fabric.verification import verify_bundle, verify_receipt_file
from fabric.witness import FolderWitness, Request, Watch, log_folder
from fabric.witness_http import HTTPWitness
from fabric.witness_service import Notary, cosign_folder, read_key_file, serve, write_key_text

ORIGIN = "fabric.example/ledger"
KEY = SigningKey.from_seed(bytes(range(32)))
WITNESS = SigningKey.from_seed(bytes(range(1, 33)))
STRANGER = SigningKey.from_seed(bytes(32))
NAME = "witness.example/w1"
PUBLIC = WitnessKey(name=NAME, key=WITNESS.public)
START = datetime(2025, 3, 1, 12, tzinfo=UTC)

# C2SP tlog-cosignature, "Format": its example of a cosigned checkpoint, whose public keys are not given.
C2SP_NOTE = (
    "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n"
    "— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+"
    "zyWE+xeMcTOAYQ8=\n"
    "— witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0"
    "xUe+mbIUBkBIfZ+qnA==\n"
)


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def tree(count: int, salt: str = "") -> tuple[list[str], merkle.NodeReader]:
    """Return a log's checkpoints by size, and its nodes."""
    nodes: dict[tuple[int, int], bytes] = {}

    def read(level: int, index: int) -> bytes:
        return nodes[level, index]

    notes = [sign_checkpoint(ORIGIN, 0, merkle.EMPTY_ROOT, KEY)]
    for size in range(count):
        for level, index, value in merkle.append(size, merkle.leaf_hash(f"{salt}{size}".encode()), read):
            nodes[level, index] = value
        notes.append(sign_checkpoint(ORIGIN, size + 1, merkle.root(size + 1, read), KEY))
    return notes, read


NOTES, READ = tree(9)
OTHER, OTHER_READ = tree(9, "other")


def shown(old: int, size: int, notes: list[str] = NOTES, read: merkle.NodeReader = READ) -> str:
    proof = merkle.consistency_proof(old, size, read) if 0 < old < size else []
    return Request(old=old, proof=tuple(proof), checkpoint=notes[size]).to_text()


@pytest.fixture
def notary(tmp_path: Path, clock: Clock) -> Notary:
    return Notary(tmp_path / "memory", name=NAME, key=WITNESS, logs={ORIGIN: [KEY.public]}, clock=clock)


def watch(witness: object, *, required: bool = True, records: int = 3, minutes: int = 10, key: bool = True) -> Watch:
    return Watch(
        witness,  # type: ignore[arg-type]
        key=PUBLIC if key else None,
        required=required,
        max_records=records,
        max_age=timedelta(minutes=minutes),
    )


def opened(folder: Path, clock: Callable[[], datetime], watched: Watch | None, key: SigningKey = KEY) -> Ledger:
    return Ledger.open(folder, key=key, origin=ORIGIN, clock=clock, new_id=lambda: uuid4().hex, watch=watched)


def refused(call: Callable[[], object]) -> FabricError:
    with pytest.raises(FabricError) as caught:
        call()
    return caught.value


class Unreachable:
    """A witness that is down while `down` is set, and then answers as the notary behind it does."""

    def __init__(self, inner: object) -> None:
        self.inner = inner
        self.down = False
        self.asked = 0

    def add(self, request: Request) -> object:
        self.asked += 1
        if self.down:
            raise FabricError(Reason.EVIDENCE_UNWITNESSED, "down", "up")
        return self.inner.add(request)  # type: ignore[attr-defined]


@pytest.fixture
def url(notary: Notary) -> Iterator[str]:
    server = serve(notary, "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


# What a witness refuses.


def test_a_checkpoint_that_was_rewritten_is_not_cosigned(notary: Notary) -> None:
    assert notary.add(shown(0, 4)).status == 200
    assert notary.add(shown(4, 7, OTHER, OTHER_READ)).status == 422
    assert notary.add(shown(4, 4, OTHER, OTHER_READ)).status == 409
    assert notary.add(shown(4, 7)).status == 200


def test_an_older_checkpoint_is_not_cosigned(notary: Notary) -> None:
    assert notary.add(shown(0, 7)).status == 200
    for old in (0, 3, 4):
        reply = notary.add(shown(old, 4))
        assert (reply.status, reply.body, reply.content_type) == (409, "7\n", "text/x.tlog.size")
    assert notary.add(shown(7, 4).replace("old 4", "old 7")).status == 400


def test_every_forged_proof_is_refused(notary: Notary) -> None:
    assert notary.add(shown(0, 3)).status == 200
    good = Request.from_text(shown(3, 8))
    for i, step in enumerate(good.proof):
        for proof in (
            good.proof[:i] + good.proof[i + 1 :],
            (*good.proof[:i], step[::-1], *good.proof[i + 1 :]),
            (*good.proof, step),
            (),
        ):
            text = Request(old=3, proof=proof, checkpoint=good.checkpoint).to_text()
            assert notary.add(text).status == 422
    assert notary.add(good.to_text()).status == 200


def test_a_log_or_key_it_does_not_know_is_refused(notary: Notary) -> None:
    root = merkle.EMPTY_ROOT
    assert (
        notary.add(Request(old=0, proof=(), checkpoint=sign_checkpoint("other", 1, root, KEY)).to_text()).status == 404
    )
    forged = sign_checkpoint(ORIGIN, 1, root, STRANGER)
    assert notary.add(Request(old=0, proof=(), checkpoint=forged).to_text()).status == 403
    assert notary.add(shown(0, 2).replace("— " + ORIGIN, "— elsewhere")).status == 403


@pytest.mark.parametrize(
    "text",
    [
        "",
        "old 0",
        "old 0\n\n",
        "old -1\n\n" + NOTES[1],
        "old 01\n\n" + NOTES[1],
        "old 0\nno base64\n\n" + NOTES[1],
        "old 0\n" + f"{base64.b64encode(bytes(32)).decode()}\n" * 64 + "\n" + NOTES[1],
        "old 0\n\n" + NOTES[1].replace("\n1\n", "\nx\n"),
        "new 0\n\n" + NOTES[1],
    ],
)
def test_a_malformed_request_is_refused(notary: Notary, text: str) -> None:
    assert notary.add(text).status == 400


def test_a_witness_remembers_over_a_restart(tmp_path: Path, notary: Notary, clock: Clock) -> None:
    assert notary.add(shown(0, 5)).status == 200
    again = Notary(tmp_path / "memory", name=NAME, key=WITNESS, logs={ORIGIN: [KEY.public]}, clock=clock)
    assert again.add(shown(0, 5)).status == 409
    assert again.add(shown(5, 6, OTHER, OTHER_READ)).status == 422


def test_of_many_at_once_one_is_cosigned_for_each_size(notary: Notary) -> None:
    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda n=n: statuses.append(notary.add(shown(0, n)).status)) for n in range(1, 9)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200] + [409] * 7


# Cosignatures.


def test_a_cosignature_is_read_as_the_specification_writes_it() -> None:
    assert stated_checkpoint(C2SP_NOTE).size == 20852163
    raw = base64.b64decode(C2SP_NOTE.split()[-1])
    assert last_signer(C2SP_NOTE, "witness.example.com/w1") == raw[:4]
    assert int.from_bytes(raw[4:12], "big") == 1679315147
    assert len(raw) == 4 + 8 + 64


def test_a_cosignature_signs_what_the_specification_says() -> None:
    at = datetime.fromtimestamp(1679315147, UTC)
    note = NOTES[3] + cosign(NOTES[3], NAME, WITNESS, at)
    raw = base64.b64decode(note.split()[-1])
    text = NOTES[3].rpartition("\n\n")[0] + "\n"
    assert raw[:4] == key_id(NAME, WITNESS.public, COSIGNATURE) != key_id(NAME, WITNESS.public)
    assert WITNESS.public.verifies(raw[12:], b"cosignature/v1\ntime 1679315147\n" + text.encode())
    assert cosigned_at(note, PUBLIC) == at
    assert open_note(note, ORIGIN, [KEY.public]) == text


def test_a_cosignature_that_was_touched_is_refused_or_unseen() -> None:
    line = cosign(NOTES[3], NAME, WITNESS, START)
    assert cosigned_at(NOTES[3], PUBLIC) is None
    assert cosigned_at(NOTES[3] + cosign(NOTES[3], NAME, STRANGER, START), PUBLIC) is None
    assert refused(lambda: cosigned_at(NOTES[4] + line, PUBLIC)).reason is Reason.EVIDENCE_INVALID
    name, encoded = line.split()[1:]
    raw = bytearray(base64.b64decode(encoded))
    for position in range(4, len(raw)):
        changed = bytes(raw[:position]) + bytes([raw[position] ^ 1]) + bytes(raw[position + 1 :])
        bad = NOTES[3] + f"— {name} {base64.b64encode(changed).decode()}\n"
        assert refused(lambda bad=bad: cosigned_at(bad, PUBLIC)).reason is Reason.EVIDENCE_INVALID
    short = NOTES[3] + f"— {name} {base64.b64encode(bytes(raw[:9])).decode()}\n"
    assert refused(lambda: cosigned_at(short, PUBLIC)).reason is Reason.EVIDENCE_INVALID


def test_keys_of_witnesses_read_back_and_nothing_else_does() -> None:
    assert WitnessKey.from_text(PUBLIC.to_text()) == PUBLIC
    assert read_key_file(write_key_text(NAME, WITNESS))[0] == NAME
    assert read_key_file(write_key_text(NAME, WITNESS))[1].seed == WITNESS.seed
    parts = PUBLIC.to_text().split("+", 2)
    log_key = f"{NAME}+{key_id(NAME, KEY.public).hex()}+{base64.b64encode(bytes([1]) + KEY.public.raw).decode()}"
    for text in (
        "",
        "x",
        "+".join(parts[:2]),
        f"{parts[0]}+00000000+{parts[2]}",
        f"other+{parts[1]}+{parts[2]}",
        log_key,
    ):
        assert refused(lambda text=text: WitnessKey.from_text(text)).reason is Reason.KEY_UNKNOWN
        assert refused(lambda text=text: read_key_file(text)).reason is Reason.KEY_UNKNOWN


# A ledger and its witness.


def test_over_http_every_checkpoint_is_cosigned_and_the_bundle_says_so(tmp_path: Path, url: str, clock: Clock) -> None:
    ledger = opened(tmp_path / "log", clock, watch(HTTPWitness(url)))
    receipts = [ledger.conclude(ledger.intend("drill", {}), "done", {}) for _ in range(3)]
    found = verify_bundle(
        ledger.bundle(), trusted=[KEY.public], witnesses=[PUBLIC], kept=kept_notes(tmp_path / "memory", ORIGIN)
    )
    assert (found.records, found.witnessed, found.vouched) == (6, 6, 6)
    assert found.witnessed_at.startswith("2025-03-01T12:00:00")
    receipt = verify_receipt_file(ledger.receipt_file(receipts[0].id), trusted=[KEY.public], witnesses=[PUBLIC])
    assert receipt.witnessed_at
    ledger.close()


def test_a_folder_keeps_and_its_owner_cosigns(tmp_path: Path, notary: Notary, clock: Clock) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    ledger = opened(tmp_path / "log", clock, watch(FolderWitness(shared), records=4))
    ledger.intend("drill", {})
    ledger.intend("drill", {})
    assert cosign_folder(notary, shared) == (2, ())
    assert cosign_folder(notary, shared) == (0, ())
    assert ledger.show_witness() == 2
    found = verify_bundle(ledger.bundle(), trusted=[KEY.public], witnesses=[PUBLIC])
    assert found.witnessed == 2
    assert verify_bundle(ledger.bundle(), trusted=[KEY.public], kept=kept_notes(shared, ORIGIN)).vouched == 2


def test_a_folder_alone_vouches_without_a_cosignature(tmp_path: Path, clock: Clock) -> None:
    ledger = opened(tmp_path / "log", clock, watch(FolderWitness(tmp_path), key=False))
    for _ in range(6):
        ledger.intend("drill", {})
    notes = kept_notes(tmp_path / log_folder(ORIGIN), ORIGIN)
    assert verify_bundle(ledger.bundle(), trusted=[KEY.public], kept=notes).vouched == 6
    error = refused(lambda: verify_bundle(ledger.bundle(), trusted=[KEY.public], kept=notes, witnesses=[PUBLIC]))
    assert error.reason is Reason.EVIDENCE_UNWITNESSED


def test_nothing_moves_once_the_witness_is_too_many_records_behind(tmp_path: Path, url: str, clock: Clock) -> None:
    witness = Unreachable(HTTPWitness(url))
    ledger = opened(tmp_path / "log", clock, watch(witness, records=3))
    first = ledger.intend("drill", {})
    witness.down = True
    ledger.conclude(first, "done", {})
    for _ in range(2):
        ledger.intend("drill", {})
    last = ledger.intend("drill", {})
    error = refused(lambda: ledger.intend("drill", {}))
    assert error.reason is Reason.EVIDENCE_UNWITNESSED
    assert "4 records unseen" in error.message
    # What happened is still recorded: only effects wait.
    ledger.conclude(last, "done", {})
    ledger.observe("refusal", {"code": "EVIDENCE_UNWITNESSED"})
    witness.down = False
    clock.now += timedelta(seconds=20)
    ledger.intend("drill", {})
    assert verify_bundle(ledger.bundle(), trusted=[KEY.public], witnesses=[PUBLIC]).witnessed == 8


def test_nothing_moves_once_the_witness_is_too_long_behind(tmp_path: Path, url: str, clock: Clock) -> None:
    witness = Unreachable(HTTPWitness(url))
    ledger = opened(tmp_path / "log", clock, watch(witness, records=1000, minutes=10))
    witness.down = True
    ledger.intend("drill", {})
    clock.now += timedelta(minutes=10)
    ledger.intend("drill", {})
    clock.now += timedelta(minutes=1)
    assert refused(lambda: ledger.intend("drill", {})).reason is Reason.EVIDENCE_UNWITNESSED


def test_a_witness_that_is_down_is_not_asked_for_every_record(tmp_path: Path, url: str, clock: Clock) -> None:
    witness = Unreachable(HTTPWitness(url))
    witness.down = True
    ledger = opened(tmp_path / "log", clock, watch(witness, required=False))
    for _ in range(10):
        ledger.intend("drill", {})
    assert witness.asked == 1


def test_an_unknown_log_a_closed_port_and_a_missing_folder_are_unreachable(
    tmp_path: Path, url: str, clock: Clock
) -> None:
    for witness in (HTTPWitness("http://127.0.0.1:1"), FolderWitness(tmp_path / "not there"), HTTPWitness(url + "/x")):
        ledger = opened(tmp_path / uuid4().hex, clock, watch(witness))
        ledger.observe("drill", {})
        assert refused(ledger.show_witness).reason is Reason.EVIDENCE_UNWITNESSED
    stranger = opened(tmp_path / "stranger", clock, watch(HTTPWitness(url)), key=STRANGER)
    stranger.observe("drill", {})
    assert "key" in refused(stranger.show_witness).message


def forget(folder: Path, size: int) -> None:
    """Cut a log back as an insider with the file would, cosignatures and all."""
    with sqlite3.connect(folder / DATABASE_NAME, isolation_level=None) as database:
        for table, verb in itertools.product(
            ("record", "node", "checkpoint", "cosigned"), ("UPDATE", "DELETE", "INSERT")
        ):
            database.execute(f"DROP TRIGGER IF EXISTS {table}_{verb}")
        for level in range(8):
            database.execute("DELETE FROM node WHERE level = ? AND (idx + 1) * (1 << level) > ?", (level, size))
        database.execute("DELETE FROM record WHERE idx >= ?", (size,))
        for table in ("checkpoint", "cosigned"):
            database.execute(f"DELETE FROM {table} WHERE size > ?", (size,))
    database.close()


@pytest.mark.parametrize("size", range(5))
def test_a_log_cut_back_with_its_key_is_stopped_by_its_witness(
    tmp_path: Path, url: str, clock: Clock, size: int
) -> None:
    folder = tmp_path / "log"
    ledger = opened(folder, clock, watch(HTTPWitness(url)))
    for _ in range(5):
        ledger.intend("drill", {})
    ledger.close()
    forget(folder, size)
    again = opened(folder, clock, watch(HTTPWitness(url)))
    again.observe("drill", {"number": 1})
    error = refused(lambda: again.intend("drill", {}))
    assert isinstance(error, EvidenceInvalid)
    assert "cut back or rewritten" in error.message


def test_cosignatures_planted_in_the_database_do_not_count(tmp_path: Path, url: str, clock: Clock) -> None:
    witness = Unreachable(HTTPWitness(url))
    witness.down = True
    ledger = opened(tmp_path / "log", clock, watch(witness, records=3))
    for number in range(4):
        receipt = ledger.observe("drill", {"number": number})
    forged = receipt.checkpoint + cosign(receipt.checkpoint, NAME, STRANGER, START)
    with ledger._store.transaction(write=True):
        ledger._store.add_cosigned(4, forged)
    assert refused(lambda: ledger.intend("drill", {})).reason is Reason.EVIDENCE_UNWITNESSED


def test_an_empty_folder_is_no_witnesss_word(tmp_path: Path) -> None:
    assert refused(lambda: kept_notes(tmp_path, ORIGIN)).reason is Reason.EVIDENCE_INVALID


def test_a_rotated_log_goes_on_with_its_witness_once_that_knows_the_key(
    tmp_path: Path, notary: Notary, clock: Clock
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    ledger = opened(tmp_path / "log", clock, watch(FolderWitness(shared)))
    ledger.intend("drill", {})
    ledger.rotate(STRANGER)
    ledger.observe("drill", {})
    done, stopped = cosign_folder(notary, shared)
    assert (done, len(stopped)) == (2, 1)
    told = Notary(
        tmp_path / "memory", name=NAME, key=WITNESS, logs={ORIGIN: [KEY.public, STRANGER.public]}, clock=clock
    )
    assert cosign_folder(told, shared) == (1, ())
    assert ledger.show_witness() == 3
    assert verify_bundle(ledger.bundle(), trusted=[KEY.public], witnesses=[PUBLIC]).witnessed == 3
