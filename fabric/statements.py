"""Statements: who says what about which digest.

A statement is in-toto Statement v1 (subjects, predicate type, predicate) in a DSSE envelope, signed with Ed25519.
Verification refuses before it believes: unknown key, bad signature, wrong payload or predicate type, expiry.
This module reads no clock and no file; time and keys come in as arguments.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fabric.artifacts import bare, canonical, digest
from fabric.errors import Reason, StatementInvalid

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
MAX_ENVELOPE_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class SigningKey:
    """An Ed25519 private key."""

    private: Ed25519PrivateKey

    @classmethod
    def generate(cls) -> SigningKey:
        """Return a new random key."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> SigningKey:
        """Return the key of a 32-byte seed (RFC 8032, 5.1.5)."""
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @property
    def seed(self) -> bytes:
        """Return the 32-byte seed."""
        return self.private.private_bytes_raw()

    @property
    def public(self) -> PublicKey:
        """Return the public half."""
        return PublicKey(self.private.public_key().public_bytes_raw())

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte Ed25519 signature of `message`."""
        return self.private.sign(message)


_PRINTED = "copy it as `fabric evidence keys` prints it, or ask who signs"


@dataclass(frozen=True, slots=True)
class PublicKey:
    """An Ed25519 public key of 32 bytes; its id is the SHA-256 of those bytes."""

    raw: bytes

    @property
    def keyid(self) -> str:
        """Return the key's id: 64 hex digits."""
        return hashlib.sha256(self.raw).hexdigest()

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Say whether `signature` over `message` was made with this key."""
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, message)
        except InvalidSignature:
            return False
        return True

    def to_text(self) -> str:
        """Return the key as base64 text."""
        return base64.b64encode(self.raw).decode()

    @classmethod
    def from_text(cls, text: str) -> PublicKey:
        """Read a key from base64 text.

        Raises:
            StatementInvalid: `KEY_UNKNOWN` if it is not 32 bytes in base64.
        """
        try:
            raw = base64.b64decode(text, validate=True)
        except ValueError:
            raw = b""
        if len(raw) != 32:
            raise StatementInvalid(Reason.KEY_UNKNOWN, "a trusted key is not 32 bytes in base64", _PRINTED)
        return cls(raw)


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What is said: subjects by digest, a predicate type and a predicate.

    Attributes:
        subjects: name to `sha256:<hex>`.
        expires_at: ISO 8601 in UTC, from the predicate's `expires_at`; every statement has one.
    """

    subjects: Mapping[str, str]
    predicate_type: str
    predicate: Mapping[str, Any]

    @property
    def expires_at(self) -> datetime:
        """Return when the statement stops being valid."""
        return datetime.fromisoformat(self.predicate["expires_at"])

    def payload(self) -> bytes:
        """Return the in-toto Statement v1 as canonical JSON."""
        return canonical(
            {
                "_type": STATEMENT_TYPE,
                "subject": [{"name": n, "digest": {"sha256": bare(d)}} for n, d in self.subjects.items()],
                "predicateType": self.predicate_type,
                "predicate": self.predicate,
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """A verified statement with the envelope it came in."""

    statement: Statement
    envelope: bytes

    @property
    def digest(self) -> str:
        """Return the digest of the envelope's bytes."""
        return digest(self.envelope)


def pae(payload_type: str, payload: bytes) -> bytes:
    """Return DSSE's pre-authentication encoding (DSSE v1.0, protocol.md)."""
    kind = payload_type.encode()
    return b" ".join([b"DSSEv1", str(len(kind)).encode(), kind, str(len(payload)).encode(), payload])


def sign(statement: Statement, key: SigningKey) -> Signed:
    """Sign `statement` and return it with its DSSE envelope."""
    payload = statement.payload()
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [
            {"keyid": key.public.keyid, "sig": base64.b64encode(key.sign(pae(PAYLOAD_TYPE, payload))).decode()}
        ],
    }
    return Signed(statement=statement, envelope=canonical(envelope))


def verify(envelope: bytes, *, trusted: Sequence[PublicKey], predicate_type: str, now: datetime | None) -> Signed:
    """Return the statement in `envelope` if a trusted key signed it.

    Args:
        envelope: DSSE envelope as JSON bytes; empty means that none was given.
        trusted: keys believed; none means that nothing is.
        predicate_type: the only type accepted.
        now: time to hold the expiry against; None when old evidence is verified.

    Raises:
        StatementInvalid: `STATEMENT_MISSING`, `STATEMENT_INVALID`, `KEY_UNKNOWN` or `STATEMENT_EXPIRED`.
    """
    if not envelope:
        raise StatementInvalid(
            Reason.STATEMENT_MISSING, "there is no statement", "sanitize the records; only a sealed matrix carries one"
        )
    payload_type, payload, signatures = _open(envelope)
    if payload_type != PAYLOAD_TYPE:
        raise StatementInvalid(Reason.STATEMENT_INVALID, "the envelope's payload type is not in-toto's")
    # 1. The signature, over the very bytes received.
    keys = {key.keyid: key for key in trusted}
    signers = [keys[keyid] for keyid in signatures if keyid in keys]
    if not signers:
        raise StatementInvalid(Reason.KEY_UNKNOWN, "no trusted key signed the statement", "trust the issuer's key")
    message = pae(payload_type, payload)
    if not any(key.verifies(signatures[key.keyid], message) for key in signers):
        raise StatementInvalid(Reason.STATEMENT_INVALID, "the statement's signature does not verify")
    # 2. The content, once it is known who wrote it.
    statement = _parse(payload)
    if statement.predicate_type != predicate_type:
        raise StatementInvalid(Reason.STATEMENT_INVALID, f"the statement is not a {predicate_type}")
    # 3. The time.
    if now is not None and now >= statement.expires_at:
        raise StatementInvalid(Reason.STATEMENT_EXPIRED, "the statement has expired", "sanitize the records again")
    return Signed(statement=statement, envelope=envelope)


def is_bare(envelope: bytes, trusted: Sequence[PublicKey]) -> bool:
    """Say whether a verified envelope holds nothing but its payload and signatures of trusted keys that verify.

    DSSE lets an envelope carry more: fields that nobody reads, signatures of strangers. None of that may cross.
    """
    payload_type, payload, signatures = _open(envelope)
    keys = {key.keyid: key for key in trusted}
    message = pae(payload_type, payload)
    if not all(keyid in keys and keys[keyid].verifies(one, message) for keyid, one in signatures.items()):
        return False
    rebuilt = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": payload_type,
        "signatures": [{"keyid": keyid, "sig": base64.b64encode(one).decode()} for keyid, one in signatures.items()],
    }
    return type(envelope) is bytes and canonical(rebuilt) == envelope


def timestamp(moment: datetime) -> str:
    """Return `moment` as ISO 8601 in UTC with microseconds."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def _open(envelope: bytes) -> tuple[str, bytes, dict[str, bytes]]:
    if len(envelope) > MAX_ENVELOPE_BYTES:
        raise StatementInvalid(Reason.STATEMENT_INVALID, f"the envelope is larger than {MAX_ENVELOPE_BYTES} bytes")
    try:
        raw = json.loads(envelope)
        payload = base64.b64decode(raw["payload"], validate=True)
        signatures = {s["keyid"]: base64.b64decode(s["sig"], validate=True) for s in raw["signatures"]}
        return str(raw["payloadType"]), payload, signatures
    except (ValueError, KeyError, TypeError, RecursionError):
        raise StatementInvalid(Reason.STATEMENT_INVALID, "the envelope is not a DSSE envelope") from None


def _parse(payload: bytes) -> Statement:
    try:
        raw = json.loads(payload)
        if raw["_type"] != STATEMENT_TYPE:
            raise ValueError("not a Statement v1")
        statement = Statement(
            subjects={s["name"]: "sha256:" + s["digest"]["sha256"] for s in raw["subject"]},
            predicate_type=raw["predicateType"],
            predicate=raw["predicate"],
        )
        if not statement.subjects or statement.expires_at.tzinfo is None:
            raise ValueError("no subject, or an expiry without a time zone")
        return statement
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise StatementInvalid(Reason.STATEMENT_INVALID, "the payload is not an in-toto Statement v1") from None
