"""Offline verification: every way to change a bundle is refused, and malformed input is never a traceback."""

from __future__ import annotations

import base64
import copy
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fabric import merkle
from fabric.artifacts import canonical, digest
from fabric.errors import EvidenceInvalid, Reason
from fabric.ledger import Ledger
from fabric.notes import sign_checkpoint
from fabric.records import MAX_RECORD_BYTES, encode, read_record
from fabric.statements import SigningKey, Statement, sign, timestamp
from fabric.verification import MAX_DOCUMENT_BYTES, Receipt, Verified, verify_bundle, verify_receipt

ORIGIN = "fabric.example/ledger"
KEY = SigningKey.from_seed(bytes(range(32)))
ISSUER = SigningKey.from_seed(bytes(range(1, 33)))
STRANGER = SigningKey.from_seed(bytes(32))
TRUSTED = [KEY.public, ISSUER.public]
START = datetime(2025, 3, 1, 12, tzinfo=UTC)
MATRIX = digest(b"matrix bytes")
GRANT = digest(b"grant bytes")

Bundle = dict[str, Any]

UNCOVERED = re.compile(r"do not cover|does not match the records|checkpoint [0-9]+ covers|one is missing")


def envelope(subjects: Mapping[str, str], key: SigningKey, kind: str = "urn:example:inspection") -> bytes:
    predicate = {"expires_at": timestamp(START + timedelta(days=1))}
    return sign(Statement(subjects=subjects, predicate_type=kind, predicate=predicate), key).envelope


STATEMENT = envelope({"matrix": MATRIX}, ISSUER)
SIGNED_GRANT = envelope({"grant": GRANT}, KEY, "urn:example:grant")


def record(record_id: str, phase: str = "observation", action: str = "drill", **fields: Any) -> dict[str, Any]:
    shared = {"v": 2, "id": record_id, "phase": phase, "action": action, "intent": None, "at": timestamp(START)}
    return {**shared, "after": 0, "by": {"actor": "", "owner": ""}, "body": {}, **fields}


def crossing(record_id: str = "one", **body: Any) -> dict[str, Any]:
    whole = {
        "decision": {"effect": "permit", "rules": ["public-burst"]},
        "statements": [digest(STATEMENT), digest(SIGNED_GRANT)],
        "subjects": {"matrix": MATRIX, "grant": GRANT},
    }
    return record(record_id, "intent", "crossing", body={**whole, **body})


def outcome(record_id: str, intent: str, status: str = "done", action: str = "drill") -> dict[str, Any]:
    return record(record_id, "outcome", action, intent=intent, body={"status": status})


def forge(
    records: Sequence[Any], documents: Sequence[bytes] = (STATEMENT, SIGNED_GRANT), key: SigningKey = KEY
) -> Bundle:
    """Return a bundle whose tree and signatures hold, whatever its records say: what the holder of the key could do."""
    contents = [
        one if isinstance(one, bytes) else canonical({**one, "after": n} if "after" in one else one)
        for n, one in enumerate(records)
    ]
    nodes: dict[tuple[int, int], bytes] = {}

    def read(level: int, index: int) -> bytes:
        return nodes[level, index]

    notes = [sign_checkpoint(ORIGIN, 0, merkle.EMPTY_ROOT, key)]
    for size, content in enumerate(contents):
        nodes |= {(level, index): value for level, index, value in merkle.append(size, merkle.leaf_hash(content), read)}
        notes.append(sign_checkpoint(ORIGIN, size + 1, merkle.root(size + 1, read), key))
    return {
        "version": 2,
        "origin": ORIGIN,
        "public_key": key.public.to_text(),
        "records": [content.decode() for content in contents],
        "documents": {digest(content): base64.b64encode(content).decode() for content in documents},
        "checkpoints": notes,
        "cosignatures": [],
    }


def story() -> list[dict[str, Any]]:
    return [
        crossing("one"),
        outcome("two", "one", action="crossing"),
        record("three", "intent"),
        outcome("four", "three", "refused"),
        record("five", action="refusal", body={"code": "POLICY_DENIED"}),
        record("six", body={"decision": {"effect": "forbid"}}),
        record("seven", body={"decision": {"effect": "permit"}}),
        record("eight", "intent"),
    ]


GOOD = forge(story())
SUMMARY = Verified(
    records=8,
    checkpoints=9,
    statements=2,
    crossings=1,
    refusals=3,
    open_intents=("eight",),
    keyids=(KEY.public.keyid, ISSUER.public.keyid),
    trusted=True,
    vouched=0,
)


def why(bundle: Any, trusted: Any = TRUSTED, kept: Sequence[str] = ()) -> str:
    with pytest.raises(EvidenceInvalid) as caught:
        verify_bundle(bundle, trusted=trusted, kept=kept)
    assert caught.value.reason is Reason.EVIDENCE_INVALID
    return caught.value.message


def changed(change: Callable[[Bundle], object]) -> Bundle:
    bundle = copy.deepcopy(GOOD)
    change(bundle)
    assert bundle != GOOD
    return bundle


# Changes by someone without the key.


@pytest.mark.parametrize("index", range(8))
def test_an_edited_record_is_refused_by_its_index(index: int) -> None:
    bundle = changed(lambda b: b["records"].__setitem__(index, b["records"][index].replace("2025", "2026")))
    assert f"record {index} or one before it" in why(bundle)


@pytest.mark.parametrize("index", range(8))
def test_a_removed_record_is_refused_even_with_its_checkpoint(index: int) -> None:
    assert UNCOVERED.search(why(changed(lambda b: b["records"].pop(index))))
    assert "checkpoint" in why(changed(lambda b: (b["records"].pop(index), b["checkpoints"].pop(index))))


def test_an_inserted_record_is_refused() -> None:
    extra = canonical(record("extra")).decode()
    for index in range(9):
        assert UNCOVERED.search(why(changed(lambda b, i=index: b["records"].insert(i, extra))))
        bundle = changed(
            lambda b, i=index: (b["records"].insert(i, extra), b["checkpoints"].insert(i, b["checkpoints"][i]))
        )
        assert "checkpoint" in why(bundle)


def test_reordered_records_are_refused() -> None:
    for one, two in itertools.combinations(range(8), 2):

        def swap(b: Bundle, one: int = one, two: int = two) -> None:
            b["records"][one], b["records"][two] = b["records"][two], b["records"][one]

        assert f"record {one} or one before it" in why(changed(swap))


def test_a_cut_off_log_is_refused_when_its_checkpoints_remain() -> None:
    for size in range(8):
        assert UNCOVERED.search(why(changed(lambda b, size=size: b["records"].__delitem__(slice(size, None)))))


@pytest.mark.parametrize("size", range(8))
def test_a_tail_cut_off_with_its_checkpoints_shows_against_a_kept_one(size: int) -> None:
    cut = forge(story()[:size], (STATEMENT, SIGNED_GRANT) if size else ())
    assert cut["checkpoints"] == GOOD["checkpoints"][: size + 1]
    for kept in range(size + 1, 9):
        assert f"the log had {kept} records" in why(cut, kept=[GOOD["checkpoints"][kept]])
    # Without one it is an older bundle, and as honest as it was then.
    assert verify_bundle(cut, trusted=TRUSTED).records == size
    assert verify_bundle(cut, trusted=TRUSTED, kept=GOOD["checkpoints"][: size + 1]).vouched == size


@pytest.mark.parametrize("index", range(8))
def test_a_log_rewritten_by_its_own_signer_shows_against_a_kept_checkpoint(index: int) -> None:
    rewritten = forge([{**one, "at": timestamp(START + timedelta(hours=i >= index))} for i, one in enumerate(story())])
    assert verify_bundle(rewritten, trusted=TRUSTED) == SUMMARY
    for size in range(index + 1, 9):
        assert "was rewritten" in why(rewritten, kept=[GOOD["checkpoints"][size]])
    assert verify_bundle(rewritten, trusted=TRUSTED, kept=GOOD["checkpoints"][: index + 1]).vouched == index


def test_a_kept_checkpoint_of_another_log_is_refused() -> None:
    for kept in ("", "text", forge(story(), key=ISSUER)["checkpoints"][3]):
        assert "kept checkpoint 1" in why(GOOD, kept=[GOOD["checkpoints"][3], kept])


@pytest.mark.parametrize("index", range(9))
def test_a_missing_or_repeated_checkpoint_is_refused(index: int) -> None:
    told = "covers" if index == 0 else "do not cover" if index == 8 else "one is missing"
    assert told in why(changed(lambda b: b["checkpoints"].pop(index)))
    assert "covers" in why(changed(lambda b: b["checkpoints"].insert(index, b["checkpoints"][index])))
    assert "covers" in why(changed(lambda b: b["checkpoints"].__setitem__(index, b["checkpoints"][index - 1])))


def test_a_checkpoint_of_a_changed_root_is_refused() -> None:
    other = forge([record("other")] * 8, ())["checkpoints"]
    for index in range(1, 9):
        assert f"the checkpoint at {index} does not match" in why(
            changed(lambda b, i=index: b["checkpoints"].__setitem__(i, other[i]))
        )


def test_a_log_signed_again_by_another_key_is_refused() -> None:
    resigned = forge(story(), key=STRANGER)
    assert "not trusted" in why(resigned)
    assert "checkpoint 0" in why(changed(lambda b: b.update(checkpoints=resigned["checkpoints"])))
    assert "checkpoint 0" in why(changed(lambda b: b.update(public_key=ISSUER.public.to_text())))


def test_one_checkpoint_signed_by_another_trusted_key_is_refused() -> None:
    other = forge(story(), key=ISSUER)["checkpoints"]
    assert "checkpoint 4" in why(changed(lambda b: b["checkpoints"].__setitem__(4, other[4])))


def test_a_log_of_another_origin_is_refused() -> None:
    assert "checkpoint 0" in why(changed(lambda b: b.update(origin="fabric.example/other")))


def test_no_trusted_key_means_that_nothing_is_believed() -> None:
    assert "not trusted" in why(GOOD, [])
    assert "not trusted" in why(GOOD, [STRANGER.public])


def test_swapped_documents_are_refused() -> None:
    one, two = digest(STATEMENT), digest(SIGNED_GRANT)

    def swap(b: Bundle) -> None:
        b["documents"][one], b["documents"][two] = b["documents"][two], b["documents"][one]

    assert "does not match its digest" in why(changed(swap))


def test_a_removed_or_unnamed_document_is_refused() -> None:
    assert "record 0 rests on a document" in why(changed(lambda b: b["documents"].pop(digest(STATEMENT))))
    extra = base64.b64encode(b"extra").decode()
    assert "1 documents are named by no record" in why(
        changed(lambda b: b["documents"].update({digest(b"extra"): extra}))
    )


# Records that the holder of the key should not have written.


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b"", "not JSON"),
        (b"[", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"a":' * 50_000, "not JSON"),
        (b"1" * 5000, "not JSON"),
        (b"[]", "fields"),
        (b"null", "fields"),
        (canonical(record("x")) + b"\n", "not canonical"),
        (json.dumps(record("x")).encode(), "not canonical"),
        (canonical(record("x")).replace(b'"v":2', b'"v":2,"v":2'), "not canonical"),
        (canonical(record("x")).replace(b'"v":2', b'"v":2.0'), "not JSON"),
        (canonical(record("x")).replace(b'"v":2', b'"v":2e0'), "not JSON"),
        (canonical(record("x")).replace(b'"v":2', b'"v":NaN'), "not JSON"),
        (canonical(record("x")).replace(b'"v":2', b'"v":-0'), "not canonical"),
        (canonical(record("x")).replace(b'"v":2', b'"v":true'), "version 2"),
        (canonical(record("x")).replace(b'"x"', b'"\\ud800"'), "not JSON"),
        (canonical(record("x", body={"n": 1})).replace(b'"n":1', b'"n":9007199254740993'), "not JSON"),
        (record("x", body={"long": "x" * MAX_RECORD_BYTES}), "larger than"),
        (record("x", v=1), "version 2"),
        (record("x", extra=1), "fields"),
        ({k: v for k, v in record("x").items() if k != "at"}, "fields"),
        (record("x", "effect"), "phase"),
        (record("x", ["intent"]), "phase"),  # type: ignore[arg-type]
        (record(""), "token"),
        (record("a b"), "token"),
        (record(7), "token"),  # type: ignore[arg-type]
        (record("x", action="two words"), "token"),
        (record("x", action="line\n"), "token"),
        (record("x", intent="one"), "without being an outcome"),
        (record("x", "intent", intent=0), "without being an outcome"),
        (record("x", "outcome", body={"status": "done"}), "without naming one"),
        (record("x", at="2025-03-01T12:00:00+00:00"), "time"),
        (record("x", at="2025-03-01T12:00:00.000000+01:00"), "time"),
        (record("x", at="2025-13-01T12:00:00.000000+00:00"), "time"),
        (record("x", at="٢٠٢٥-03-01T12:00:00.000000+00:00"), "time"),
        (record("x", at=0), "time"),
        (record("x", body=[]), "body"),
        (record("x", body=None), "body"),
        (record("x", body=json.loads('{"a":' * 33 + "{}" + "}" * 33)), "body"),
        (record("x", "outcome", intent="one"), "status"),
        (outcome("x", "one", "perhaps"), "status"),
        (record("x", body={"statements": MATRIX}), "list of digests"),
        (record("x", body={"statements": [MATRIX.upper()]}), "list of digests"),
        (crossing(decision=None), "no decision"),
        (crossing(decision={"effect": "forbid"}), "no decision"),
        (crossing(decision="permit"), "no decision"),
        (crossing(decision={}), "no decision"),
        (crossing(statements=[]), "no statement"),
        (crossing(subjects={}), "subjects"),
        (crossing(subjects=[MATRIX]), "subjects"),
        (crossing(subjects={"matrix": "matrix"}), "subjects"),
        (crossing(subjects={"matrix": None}), "subjects"),
    ],
)
def test_a_malformed_record_is_refused_even_when_signed(bad: Any, message: str) -> None:
    told = why(forge([record("zero"), bad], ()))
    assert told.startswith("record 1: ")
    assert message in told


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([record("one"), record("one")], "record 1 repeats"),
        ([outcome("two", "one")], "record 0 is an outcome"),
        ([outcome("two", "one"), record("one", "intent")], "record 0 is an outcome"),
        ([record("one"), outcome("two", "one")], "record 1 is an outcome"),
        ([record("one", "intent"), outcome("two", "one"), outcome("three", "one")], "record 2 is an outcome"),
        ([record("one", "intent"), outcome("two", "two")], "record 1 is an outcome"),
        ([record("one", "intent"), outcome("two", "one", action="serving")], "record 1 is an outcome"),
    ],
)
def test_a_story_that_does_not_hold_is_refused_even_when_signed(records: list[dict[str, Any]], message: str) -> None:
    assert message in why(forge(records, ()))


def test_a_crossing_of_something_that_no_statement_names_is_refused() -> None:
    other = digest(b"something else")
    assert "record 0: 1 subjects" in why(forge([crossing(subjects={"matrix": MATRIX, "grant": other})]))
    # A statement beside another crossing does not cover this one.
    records = [crossing("one"), crossing("two", statements=[digest(STATEMENT)])]
    assert "record 1: 1 subjects" in why(forge(records))


def test_a_statement_that_had_expired_when_it_crossed_is_refused() -> None:
    late = crossing("one")
    late["at"] = timestamp(START + timedelta(days=1))
    assert "record 0: a statement of the crossing had expired" in why(forge([late]))


def test_a_crossing_that_one_of_its_decisions_denies_is_refused() -> None:
    decisions = [{"effect": "permit"}, {"effect": "deny"}]
    assert "does not permit" in why(forge([crossing("one", decisions=decisions)]))
    assert "does not permit" in why(forge([crossing("one", decisions="permit")]))


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (record("two", "intent", "job", body={"crossing": "c-2", "zone": "public"}), "no record before it announces"),
        (record("two", "intent", "job", body={"crossing": "c-1", "zone": "edge"}), "its crossing went to 'public'"),
        (record("two", "intent", "return", body={"crossing": "c-1", "from_zone": "edge"}), "tells of zone 'edge'"),
        (record("two", action="return", body={"crossing": "c-2", "from_zone": "public"}), "no record before it"),
    ],
)
def test_work_outside_without_its_crossing_is_refused(work: dict[str, Any], message: str) -> None:
    assert message in why(forge([crossing("one", crossing="c-1", to_zone="public"), work]))
    good = {**work, "body": {**work["body"], "crossing": "c-1", "zone": "public", "from_zone": "public"}}
    assert verify_bundle(forge([crossing("one", crossing="c-1", to_zone="public"), good]), trusted=TRUSTED).records == 2


def reserve(name: str = "r-1", amount: int = 100) -> dict[str, Any]:
    return record("b", "intent", "budget", body={"reservation": name, "reserved": amount, "currency": "EUR"})


def settle(amount: object, currency: str = "EUR") -> dict[str, Any]:
    body = {"status": "done", "spent": amount, "currency": currency}
    return record("s", "outcome", "budget", intent="b", body=body)


def spend(record_id: str, amount: object, name: str = "r-1", currency: str = "EUR") -> dict[str, Any]:
    return record(record_id, action="job", body={"cost": {"reservation": name, "spent": amount, "currency": currency}})


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([spend("x", 1)], "spends from a reservation that no record before it makes"),
        ([spend("x", 1), reserve()], "record 0 spends from a reservation"),
        ([reserve(), spend("x", 101)], "record 1 spends more than was reserved"),
        ([reserve(), spend("x", 60), spend("y", 41)], "record 2 spends more than was reserved"),
        ([reserve(), settle(101)], "record 1 spends more than was reserved"),
        ([reserve(), spend("x", 1, currency="USD")], "in another currency"),
        ([reserve(), spend("x", -1)], "spends no amount"),
        ([reserve(), spend("x", 1, name="r-2")], "reservation that no record"),
    ],
)
def test_money_that_was_not_reserved_is_refused(records: list[dict[str, Any]], message: str) -> None:
    assert message in why(forge(records, ()))


def test_money_that_was_reserved_may_be_spent() -> None:
    records = [reserve(), spend("x", 60), spend("y", 40), settle(100)]
    assert verify_bundle(forge(records, ()), trusted=TRUSTED).records == 4


def test_a_record_dated_before_the_one_before_it_is_refused() -> None:
    assert "record 1 is dated before" in why(
        forge([record("one"), record("two", at=timestamp(START - timedelta(1)))], ())
    )


@pytest.mark.parametrize(
    "document",
    [
        envelope({"matrix": MATRIX}, STRANGER),
        envelope({"matrix": MATRIX}, ISSUER).replace(b"vnd.in-toto+json", b"vnd.elsewhere+json"),
        json.dumps({**json.loads(STATEMENT), "payload": json.loads(SIGNED_GRANT)["payload"]}).encode(),
        json.dumps({**json.loads(STATEMENT), "signatures": []}).encode(),
        json.dumps({**json.loads(STATEMENT), "signatures": json.loads(SIGNED_GRANT)["signatures"]}).encode(),
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 100_000,
        b'{"payload":7}',
        b'{"payload":"e30="}',
        b'{"payload":"W10="}',
        b"not JSON",
    ],
)
def test_a_crossing_on_a_statement_that_does_not_verify_is_refused(document: bytes) -> None:
    bad = crossing(statements=[digest(document)], subjects={"matrix": MATRIX})
    assert why(forge([bad], [document])).startswith("record 0: a statement of the crossing does not verify")


def test_a_statement_by_a_key_that_was_not_given_is_refused() -> None:
    assert "no trusted key" in why(GOOD, [KEY.public])
    assert "no trusted key" in why(GOOD, None)


# Malformed bundles.


@pytest.mark.parametrize(
    "bundle",
    [
        None,
        [],
        "bundle",
        {},
        {**GOOD, "extra": 1},
        {**GOOD, 1: 1},
        {key: value for key, value in GOOD.items() if key != "documents"},
        {**GOOD, "version": 1},
        {**GOOD, "version": True},
        {**GOOD, "version": 2.0},
        {**GOOD, "origin": 7},
        {**GOOD, "origin": "\ud800"},
        {**GOOD, "public_key": None},
        {**GOOD, "public_key": "AAAA"},
        {**GOOD, "public_key": "ä"},
        {**GOOD, "records": "text"},
        {**GOOD, "records": {"0": "text"}},
        {**GOOD, "records": [json.loads(text) for text in GOOD["records"]]},
        {**GOOD, "records": ["\ud800", *GOOD["records"][1:]]},
        {**GOOD, "checkpoints": []},
        {**GOOD, "checkpoints": None},
        {**GOOD, "checkpoints": [None] * 9},
        {**GOOD, "documents": []},
        {**GOOD, "documents": {1: "AAAA"}},
        {**GOOD, "documents": {digest(b""): None}},
        {**GOOD, "documents": {digest(b""): "no base64!"}},
        {**GOOD, "documents": {digest(b""): "ä"}},
        {**GOOD, "documents": {"": ""}},
        {**GOOD, "documents": {digest(b"")[7:]: ""}},
    ],
)
def test_a_malformed_bundle_is_refused(bundle: Any) -> None:
    assert why(bundle)


def test_a_document_too_large_to_verify_is_refused() -> None:
    large = bytes(MAX_DOCUMENT_BYTES + 3)
    assert "at most" in why(forge([record("one", body={"report": digest(large)})], [large]))
    largest = large[3:]
    bundle = forge([record("one", body={"report": digest(largest)})], [largest])
    assert verify_bundle(bundle, trusted=TRUSTED).records == 1


def test_a_log_without_a_checkpoint_is_refused() -> None:
    assert "do not cover" in why({**forge([], ()), "checkpoints": []})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def places(value: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    keys: Any = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [path, *itertools.chain(*(places(value[key], (*path, key)) for key in keys))]  # type: ignore[index]


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    bundle = copy.deepcopy(GOOD)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(places(bundle)[1:]))
        *parents, last = path
        holder: Any = bundle
        for key in parents:
            holder = holder[key]
        kind = draw(st.sampled_from(["replace", "remove", "characters", "copy", "rename"]))
        old = holder[last]
        if kind == "remove":
            del holder[last]
        elif kind == "copy":
            *others, final = draw(st.sampled_from(places(bundle)[1:]))
            source: Any = bundle
            for key in others:
                source = source[key]
            holder[last] = copy.deepcopy(source[final])
        elif kind == "rename" and isinstance(holder, dict):
            holder[draw(st.text(max_size=80))] = holder.pop(last)
        elif kind == "characters" and isinstance(old, str):
            low = draw(st.integers(0, len(old)))
            high = draw(st.integers(low, min(len(old), low + 3)))
            holder[last] = old[:low] + draw(st.text(max_size=3)) + old[high:]
        else:
            holder[last] = draw(json_values)
    return bundle


def answer(call: Callable[[], object]) -> object:
    """Return what `call` returns, or the reason it was refused for."""
    try:
        return call()
    except EvidenceInvalid as error:
        return error.reason


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mutated())
def test_a_mutated_bundle_verifies_to_the_same_or_not_at_all(bundle: Any) -> None:
    vouched = replace(SUMMARY, vouched=8)
    verdict = answer(lambda: verify_bundle(bundle, trusted=TRUSTED, kept=GOOD["checkpoints"][-1:]))
    assert verdict in (vouched, Reason.EVIDENCE_INVALID)


@settings(max_examples=300, deadline=None)
@given(json_values)
def test_any_value_in_a_record_is_read_as_it_was_or_refused(value: Any) -> None:
    whole = record("x", body={"value": value})
    content = json.dumps(whole, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(
        errors="surrogatepass"
    )
    assert answer(lambda: read_record(content)) in (whole, Reason.EVIDENCE_INVALID)


plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.from_regex(r"[0-9]{14,18}"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=500, deadline=None)
@given(plain_values)
@example({"\ue000": 1, "\U0001f600": 2})
@example({"n": 2**60})
@example({"\x7f": "\x00\u2028/"})
def test_the_fast_encoder_agrees_with_the_reference(value: Any) -> None:
    def encoded(by: Callable[[object], bytes]) -> bytes | None:
        try:
            return by(value)
        except ValueError:
            return None

    assert encoded(encode) == encoded(canonical)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_as_a_record_are_refused(content: bytes) -> None:
    with pytest.raises(EvidenceInvalid):
        read_record(content)


# Receipts.


def receipts(tmp_path: Path, count: int) -> list[tuple[Receipt, bytes]]:
    numbers = itertools.count()
    ledger = Ledger.open(tmp_path, key=KEY, origin=ORIGIN, clock=lambda: START, new_id=lambda: f"id-{next(numbers)}")
    made = [ledger.observe("drill", {"number": number}) for number in range(count)]
    return [(receipt, canonical(entry.record)) for receipt, entry in zip(made, ledger.entries(), strict=True)]


def test_a_receipt_for_anything_else_is_refused(tmp_path: Path) -> None:
    (first, one), (_, two), (_, _), (_, _), (last, five) = receipts(tmp_path, 5)
    forged = canonical({**json.loads(five), "body": {"number": 9}})
    for receipt, content in (
        (last, one),
        (last, forged),
        (replace(last, digest=digest(forged)), forged),
        (replace(last, id="id-0", digest=digest(one)), one),
        (replace(last, id="other"), five),
        (replace(last, digest=digest(two)), five),
        (replace(last, index=3), five),
        (replace(last, index=5), five),
        (replace(last, index=-1), five),
        (replace(last, proof=()), five),
        (replace(last, proof=(*last.proof, last.proof[0])), five),
        (replace(last, proof=("no hex",)), five),
        (replace(last, proof=("é",)), five),
        (replace(last, proof=(7,)), five),  # type: ignore[arg-type]
        (replace(last, checkpoint=first.checkpoint), five),
        (replace(last, checkpoint=""), five),
        (last, b""),
    ):
        with pytest.raises(EvidenceInvalid) as caught:
            verify_receipt(receipt, content, KEY.public)
        assert caught.value.reason is Reason.EVIDENCE_INVALID


def test_a_receipt_signed_by_another_key_is_refused(tmp_path: Path) -> None:
    ((receipt, content),) = receipts(tmp_path, 1)
    with pytest.raises(EvidenceInvalid) as caught:
        verify_receipt(receipt, content, STRANGER.public)
    assert caught.value.reason is Reason.KEY_UNKNOWN


# What does verify.


def test_a_good_bundle_says_what_it_holds() -> None:
    assert verify_bundle(GOOD, trusted=TRUSTED) == SUMMARY
    assert verify_bundle(json.loads(json.dumps(GOOD)), trusted=TRUSTED[::-1]) == SUMMARY


def test_the_bundle_s_own_key_is_believed_only_when_asked_and_says_so() -> None:
    own = envelope({"matrix": MATRIX, "grant": GRANT}, KEY)
    bundle = forge([crossing(statements=[digest(own)])], [own])
    assert verify_bundle(bundle, trusted=[KEY.public]).trusted is True
    assert verify_bundle(bundle, trusted=None).trusted is False
    # Anyone can sign a log of their own: this is what trusted=False warns of.
    assert verify_bundle(forge([record("one")], (), key=STRANGER), trusted=None).keyids == (STRANGER.public.keyid,)


def test_an_empty_log_verifies() -> None:
    verified = verify_bundle(forge([], ()), trusted=[KEY.public])
    assert (verified.records, verified.checkpoints, verified.open_intents) == (0, 1, ())


def test_a_refusal_may_keep_the_statement_that_was_refused() -> None:
    bad = envelope({"matrix": MATRIX}, STRANGER)
    bundle = forge([record("one", action="refusal", body={"statements": [digest(bad)]})], [bad])
    assert verify_bundle(bundle, trusted=TRUSTED).refusals == 1


def test_the_body_may_be_as_deep_as_it_is_allowed_to() -> None:
    deep = json.loads('{"a":' * 31 + "{}" + "}" * 31)
    assert verify_bundle(forge([record("one", body=deep)], ()), trusted=TRUSTED).records == 1


def test_verification_imports_no_database_and_no_cluster() -> None:
    code = "import sys, fabric.verification; print(*sorted({'sqlite3', 'ray', 'torch', 'pyarrow'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
