"""Five hundred ways to tamper with a log, by hands without its key and with it: the witness's copy shows every one."""

from __future__ import annotations

import base64
import copy
import json
import random
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fabric import merkle
from fabric.artifacts import canonical, digest
from fabric.errors import EvidenceInvalid
from fabric.evidence import kept_notes
from fabric.ledger import DATABASE_NAME, Ledger
from fabric.notes import WitnessKey, cosign, sign_checkpoint
from fabric.rotation import state_rotation
from fabric.statements import SigningKey, Statement, sign, timestamp
from fabric.verification import verify_bundle
from fabric.witness import Answer, Request, Watch
from fabric.witness_service import Notary

ORIGIN = "fabric.example/ledger"
KEY = SigningKey.from_seed(bytes(range(32)))
WITNESS = SigningKey.from_seed(bytes(range(1, 33)))
INSIDER = SigningKey.from_seed(bytes(range(2, 34)))
PUBLIC = WitnessKey(name="witness.example", key=WITNESS.public)
START = datetime(2025, 3, 1, 12, tzinfo=UTC)
EACH = 32

Bundle = dict[str, Any]
Tamper = Callable[[Bundle, random.Random], object]


class Direct:
    """A witness in the same process."""

    def __init__(self, notary: Notary) -> None:
        self.notary = notary

    def add(self, request: Request) -> Answer:
        reply = self.notary.add(request.to_text())
        return Answer(note=request.checkpoint + reply.body) if reply.status == 200 else Answer(has=int(reply.body))


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Bundle, tuple[str, ...]]:
    """Return a log's folder, its bundle, and the checkpoints that its witness kept."""
    folder = tmp_path_factory.mktemp("honest")
    ticks = iter(range(10_000))

    def clock() -> datetime:
        return START + timedelta(seconds=next(ticks))

    numbers = iter(range(10_000))
    notary = Notary(folder / "memory", name=PUBLIC.name, key=WITNESS, logs={ORIGIN: [KEY.public]}, clock=clock)
    watch = Watch(Direct(notary), key=PUBLIC, required=True, max_records=0, max_age=timedelta(minutes=1))
    ledger = Ledger.open(
        folder / "log", key=KEY, origin=ORIGIN, clock=clock, new_id=lambda: f"id-{next(numbers)}", watch=watch
    )
    for number in range(5):
        content = f"matrix {number}".encode()
        name = ledger.attach(said({"matrix": digest(content)}))
        crossing = ledger.intend(
            "crossing",
            {
                "crossing": f"c-{number}",
                "to_zone": "public",
                "decision": {"effect": "permit"},
                "statements": [name],
                "subjects": {"matrix": digest(content)},
                "rows": 100 + number,
            },
        )
        ledger.conclude(crossing, "done", {"bytes": 10})
        job = ledger.intend("job", {"crossing": f"c-{number}", "zone": "public", "kind": "training"})
        ledger.conclude(job, "done" if number else "failed", {})
        ledger.observe("refusal", {"code": "POLICY_DENIED"})
    bundle = ledger.bundle()
    ledger.close()
    kept = kept_notes(folder / "memory", ORIGIN)
    found = verify_bundle(bundle, trusted=[KEY.public], kept=kept, witnesses=[PUBLIC])
    assert (found.records, found.vouched, found.witnessed, found.crossings) == (25, 25, 25, 5)
    return folder, bundle, kept


def said(subjects: dict[str, str], key: SigningKey = KEY) -> bytes:
    predicate = {"expires_at": timestamp(START + timedelta(days=1))}
    return sign(
        Statement(subjects=subjects, predicate_type="urn:example:inspection", predicate=predicate), key
    ).envelope


def resigned(bundle: Bundle, contents: list[str], key: SigningKey = KEY, witness: SigningKey | None = None) -> None:
    """Write the whole log again from its records, as whoever holds the key and the database can."""
    nodes: dict[tuple[int, int], bytes] = {}

    def read(level: int, index: int) -> bytes:
        return nodes[level, index]

    notes = [sign_checkpoint(ORIGIN, 0, merkle.EMPTY_ROOT, key)]
    for size, text in enumerate(contents):
        content = canonical({**json.loads(text), "after": size})
        contents[size] = content.decode()
        for level, index, value in merkle.append(size, merkle.leaf_hash(content), read):
            nodes[level, index] = value
        notes.append(sign_checkpoint(ORIGIN, size + 1, merkle.root(size + 1, read), key))
    name = PUBLIC.name
    bundle["records"], bundle["checkpoints"] = contents, notes
    bundle["public_key"] = key.public.to_text()
    bundle["cosignatures"] = [note + cosign(note, name, witness, START) for note in notes[1:]] if witness else []


CHANGES = ("at", "id", "by", "body", "after")


def edited(text: str, chance: random.Random, changes: tuple[str, ...] = CHANGES) -> str:
    """Return a record that says something else and is still a valid one."""
    record = json.loads(text)
    change = chance.choice(changes)
    if change == "at":
        record["at"] = timestamp(datetime.fromisoformat(record["at"]) + timedelta(microseconds=chance.randint(1, 9)))
    elif change == "id":
        record["id"] += "x"
    elif change == "by":
        record["by"]["actor"] = f"p-{chance.getrandbits(32):08x}"
    elif change == "after":
        record["after"] += 1
    else:
        record["body"] = {**record["body"], "purpose": f"other-{chance.getrandbits(20)}"}
    return canonical(record).decode()


def pick(items: Any, chance: random.Random) -> int:
    return chance.randrange(len(items))


def edit(b: Bundle, chance: random.Random, changes: tuple[str, ...] = CHANGES) -> None:
    index = pick(b["records"], chance)
    b["records"][index] = edited(b["records"][index], chance, changes)


def flip(b: Bundle, chance: random.Random) -> None:
    index = pick(b["records"], chance)
    raw = bytearray(b["records"][index].encode())
    raw[pick(raw, chance)] ^= 1 << chance.randrange(7)
    b["records"][index] = raw.decode(errors="replace")


def remove(b: Bundle, chance: random.Random) -> None:
    b["records"].pop(pick(b["records"], chance))


def remove_with_checkpoint(b: Bundle, chance: random.Random) -> None:
    index = pick(b["records"], chance)
    b["records"].pop(index)
    b["checkpoints"].pop(index + 1)


def insert(b: Bundle, chance: random.Random) -> None:
    b["records"].insert(pick(b["records"], chance), edited(chance.choice(b["records"]), chance))


def swap(b: Bundle, chance: random.Random) -> None:
    one, two = chance.sample(range(len(b["records"])), 2)
    b["records"][one], b["records"][two] = b["records"][two], b["records"][one]


def cut_off(b: Bundle, chance: random.Random) -> None:
    """An older and then honest bundle: only what is kept elsewhere shows it."""
    size = pick(b["records"], chance)
    del b["records"][size:], b["checkpoints"][size + 1 :], b["cosignatures"][size:]
    named = "".join(b["records"])
    b["documents"] = {name: text for name, text in b["documents"].items() if name in named}


def drop_checkpoint(b: Bundle, chance: random.Random) -> None:
    b["checkpoints"].pop(pick(b["checkpoints"], chance))


def swap_checkpoints(b: Bundle, chance: random.Random) -> None:
    one, two = chance.sample(range(len(b["checkpoints"])), 2)
    b["checkpoints"][one], b["checkpoints"][two] = b["checkpoints"][two], b["checkpoints"][one]


def flip_checkpoint(b: Bundle, chance: random.Random) -> None:
    part = chance.choice(["checkpoints", "cosignatures"])
    index = pick(b[part], chance)
    text = b[part][index]
    # The text and the signature; a name that changes makes a line another's, which is passed over.
    places = [i for i, one in enumerate(text) if one.isalnum() and i < text.index("\n\n")]
    place = chance.choice(places)
    b[part][index] = text[:place] + chr(ord(text[place]) ^ 1) + text[place + 1 :]


def drop_document(b: Bundle, chance: random.Random) -> None:
    del b["documents"][chance.choice(list(b["documents"]))]


def change_document(b: Bundle, chance: random.Random) -> None:
    name = chance.choice(list(b["documents"]))
    raw = bytearray(base64.b64decode(b["documents"][name]))
    raw[pick(raw, chance)] ^= 1
    b["documents"][name] = base64.b64encode(raw).decode()


def add_document(b: Bundle, chance: random.Random) -> None:
    content = chance.randbytes(20)
    b["documents"][digest(content)] = base64.b64encode(content).decode()


def rewrite(b: Bundle, chance: random.Random) -> None:
    """The insider's own: a record changed, and every checkpoint signed again with the log's key."""
    edit(b, chance, CHANGES[:-1])
    resigned(b, b["records"])


def rewrite_without(b: Bundle, chance: random.Random) -> None:
    start = chance.randrange(5) * 5
    gone = chance.choice([slice(start, start + 4), slice(start + 4, start + 5), slice(start + 2, start + 4)])
    del b["records"][gone]
    named = "".join(b["records"])
    b["documents"] = {name: text for name, text in b["documents"].items() if name in named}
    resigned(b, b["records"])


def rewrite_with_false_witness(b: Bundle, chance: random.Random) -> None:
    edit(b, chance, CHANGES[:-1])
    resigned(b, b["records"], witness=INSIDER)


def rewrite_with_another_key(b: Bundle, chance: random.Random) -> None:
    resigned(b, b["records"], key=INSIDER)


def fork(b: Bundle, chance: random.Random) -> None:
    """Cut back to some size, and tell another story from there on, longer than the first."""
    size = pick(b["records"], chance)
    last = b["records"][-1]
    texts = b["records"][:size]
    texts += [
        canonical({**json.loads(last), "id": f"fork-{n}", "body": {"code": "WRONG_ZONE"}}).decode() for n in range(30)
    ]
    b["documents"] = {name: text for name, text in b["documents"].items() if name in "".join(texts)}
    resigned(b, texts)


def rotate_in_the_past(b: Bundle, chance: random.Random) -> None:
    """Hand the log to a key of the insider's own at some point of the past."""
    size = pick(b["records"], chance)
    envelope = state_rotation(KEY, INSIDER, origin=ORIGIN, now=START)
    body = {"old_key": KEY.public.keyid, "new_key": INSIDER.public.keyid, "statements": [digest(envelope)]}
    last = json.loads(b["records"][size])
    record = {**last, "id": "r", "phase": "observation", "action": "key-rotation", "intent": None, "body": body}
    b["records"].insert(size, canonical(record).decode())
    b["documents"][digest(envelope)] = base64.b64encode(envelope).decode()
    resigned(b, b["records"])


TAMPERS: tuple[Tamper, ...] = (
    edit,
    flip,
    remove,
    remove_with_checkpoint,
    insert,
    swap,
    cut_off,
    drop_checkpoint,
    swap_checkpoints,
    flip_checkpoint,
    drop_document,
    change_document,
    add_document,
    rewrite,
    rewrite_without,
    rewrite_with_false_witness,
    rewrite_with_another_key,
    fork,
    rotate_in_the_past,
)
# Those that leave a bundle which is whole in itself: only what was kept elsewhere can tell.
UNSEEN_WITHOUT_A_WITNESS = (cut_off, rewrite_without, fork)


@pytest.mark.parametrize("tamper", TAMPERS, ids=lambda tamper: tamper.__name__)
def test_every_tamper_is_found_with_the_witnesss_copy(
    honest: tuple[Path, Bundle, tuple[str, ...]], tamper: Tamper
) -> None:
    _, bundle, kept = honest
    for seed in range(EACH):
        bad = copy.deepcopy(bundle)
        tamper(bad, random.Random(seed))
        assert bad != bundle
        with pytest.raises(EvidenceInvalid):
            verify_bundle(bad, trusted=[KEY.public], kept=kept, witnesses=[PUBLIC])


def test_there_are_five_hundred_of_them() -> None:
    assert len(TAMPERS) * EACH >= 500


@pytest.mark.parametrize("tamper", UNSEEN_WITHOUT_A_WITNESS, ids=lambda tamper: tamper.__name__)
def test_without_a_witness_an_insiders_rewrite_passes(
    honest: tuple[Path, Bundle, tuple[str, ...]], tamper: Tamper
) -> None:
    """Why the witness is there: these verify with the log's own key alone."""
    bad = copy.deepcopy(honest[1])
    tamper(bad, random.Random(3))
    verify_bundle(bad, trusted=[KEY.public])


def test_a_rewrite_in_the_database_itself_is_found(
    honest: tuple[Path, Bundle, tuple[str, ...]], tmp_path: Path
) -> None:
    """The insider replaces the database by one that the ledger itself wrote, with the same key, clock and ids."""
    folder, bundle, kept = honest
    numbers = iter(range(10_000))
    other = Ledger.open(tmp_path, key=KEY, origin=ORIGIN, clock=lambda: START, new_id=lambda: f"id-{next(numbers)}")
    for number in range(30):
        other.observe("drill", {"number": number})
    other.close()
    with sqlite3.connect(tmp_path / DATABASE_NAME) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    ledger = Ledger.open(tmp_path, key=KEY, origin=ORIGIN, clock=lambda: START, new_id=lambda: "x")
    rewritten = ledger.bundle()
    ledger.close()
    verify_bundle(rewritten, trusted=[KEY.public])
    with pytest.raises(EvidenceInvalid, match="rewritten"):
        verify_bundle(rewritten, trusted=[KEY.public], kept=kept)
    assert verify_bundle(bundle, trusted=[KEY.public], kept=kept).vouched == 25
    assert (folder / "log" / DATABASE_NAME).exists()
