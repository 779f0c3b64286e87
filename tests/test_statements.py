"""Statements: verified before they are believed. securesystemslib is the second implementation."""

import base64
import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.dsse import Envelope
from securesystemslib.signer import SSlibKey

from fabric.errors import FabricError, Reason, StatementInvalid
from fabric.statements import PublicKey, SigningKey, Statement, pae, sign, timestamp, verify

NOW = datetime(2026, 6, 1, tzinfo=UTC)
KEY = SigningKey.from_seed(bytes(32))
OTHER = SigningKey.from_seed(bytes(31) + b"\1")
STATEMENT = Statement(
    subjects={"chunk-000000": "sha256:" + "ab" * 32},
    predicate_type="urn:test:v1",
    predicate={"rows": 3, "expires_at": timestamp(NOW + timedelta(days=1))},
)
ENVELOPE = sign(STATEMENT, KEY).envelope


def refusal(envelope, *, trusted=(KEY.public,), kind="urn:test:v1", now=NOW):
    with pytest.raises(StatementInvalid) as caught:
        verify(envelope, trusted=trusted, predicate_type=kind, now=now)
    return caught.value.reason


def test_a_signed_statement_verifies():
    assert verify(ENVELOPE, trusted=[KEY.public], predicate_type="urn:test:v1", now=NOW).statement == STATEMENT


def test_no_statement_is_no_statement():
    assert refusal(b"") is Reason.STATEMENT_MISSING


def test_an_empty_list_of_trusted_keys_trusts_nothing():
    assert refusal(ENVELOPE, trusted=()) is Reason.KEY_UNKNOWN


def test_a_statement_by_another_key_is_refused():
    assert refusal(sign(STATEMENT, OTHER).envelope) is Reason.KEY_UNKNOWN


def test_another_keys_signature_under_our_key_id_is_refused():
    forged = json.loads(sign(STATEMENT, OTHER).envelope)
    forged["signatures"][0]["keyid"] = KEY.public.keyid
    assert refusal(json.dumps(forged).encode()) is Reason.STATEMENT_INVALID


def test_a_statement_of_another_type_is_refused():
    assert refusal(ENVELOPE, kind="urn:test:v2") is Reason.STATEMENT_INVALID


def test_a_statement_is_refused_from_the_moment_it_expires():
    assert refusal(ENVELOPE, now=NOW + timedelta(days=1)) is Reason.STATEMENT_EXPIRED


def test_old_evidence_verifies_without_a_clock():
    assert verify(ENVELOPE, trusted=[KEY.public], predicate_type="urn:test:v1", now=None)


def test_a_payload_that_was_exchanged_is_refused():
    forged = json.loads(ENVELOPE)
    payload = json.loads(base64.b64decode(forged["payload"]))
    payload["predicate"]["rows"] = 4
    forged["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()
    assert refusal(json.dumps(forged).encode()) is Reason.STATEMENT_INVALID


@pytest.mark.parametrize("envelope", [b"{}", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"payload": 1}'])
def test_what_is_no_envelope_is_refused(envelope):
    assert refusal(envelope) is Reason.STATEMENT_INVALID


@given(st.integers(0, len(ENVELOPE) - 1), st.integers(1, 255))
def test_no_changed_byte_goes_unnoticed(position, change):
    mutated = bytearray(ENVELOPE)
    mutated[position] ^= change
    try:
        found = verify(bytes(mutated), trusted=[KEY.public], predicate_type="urn:test:v1", now=NOW)
    except FabricError:
        return
    assert found.statement == STATEMENT  # a byte of the envelope that carries no meaning


def test_the_encoding_is_dsses_own_example():
    # DSSE v1.0, protocol.md, test vector.
    assert pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_securesystemslib_verifies_what_we_sign():
    public = SSlibKey(KEY.public.keyid, "ed25519", "ed25519", {"public": KEY.public.raw.hex()})
    envelope = Envelope.from_dict(json.loads(ENVELOPE))
    assert envelope.verify([public], 1)


def test_a_trusted_key_that_is_not_a_key_is_refused():
    with pytest.raises(StatementInvalid):
        PublicKey.from_text("not base64")
    assert PublicKey.from_text(KEY.public.to_text()) == KEY.public
