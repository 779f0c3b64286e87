"""Tokens of the border: what a job in another zone shows to fetch one crossing, or to bring results of it back.

A token is a JWT (RFC 7519) signed with Ed25519 (RFC 8037, RFC 9864) and no other algorithm, good for fifteen minutes at
most, for one crossing, one direction, one zone, one job and one grant. None is minted without the ledger's proof that
the crossing's intent was recorded: `mint` takes a `Recorded`, and only `prove` makes one. Pure but for the keys.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import OKPKey

from fabric.crossing import GRANT_TYPE
from fabric.errors import EvidenceInvalid, Reason, Refused
from fabric.records import read_record
from fabric.statements import PublicKey, SigningKey, verify
from fabric.verification import Receipt, verify_receipt

MAX_LIFE = timedelta(minutes=15)
MAX_TOKEN_CHARS = 4_096
_ALGORITHM = "Ed25519"
_SKEW_S = 5  # between the clocks of the machines of one zone
_MOVES = ("crossing", "delivery")
_CROSSING = re.compile(r"[0-9a-f]{32}\Z")
_TEXTS = ("iss", "aud", "sub", "jti", "crossing", "direction", "zone", "grant")
_TIMES = ("iat", "nbf", "exp")


class Direction(StrEnum):
    """Which way a token is good for."""

    FETCH = "fetch"
    RETURN = "return"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A crossing of which the ledger has proven that its intent is recorded. Only `prove` makes one.

    Attributes:
        job: as the grant names it.
        grant: digest of the grant's envelope.
        expires_at: when the grant ends, and every token with it.
    """

    crossing: str
    zone: str
    job: str
    grant: str
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """What a verified token lets its bearer do."""

    id: str
    crossing: str
    direction: Direction
    zone: str
    job: str
    grant: str
    expires_at: datetime


def is_crossing_id(text: object) -> bool:
    """Say whether a text can be the id of a crossing: 32 hex digits, so never a path."""
    return isinstance(text, str) and _CROSSING.match(text) is not None


def prove(receipt: Receipt, record: bytes, grant: bytes, *, keys: Sequence[PublicKey]) -> Recorded:
    """Return the crossing that a grant speaks of, once its intent is proven to be in the ledger.

    Args:
        receipt: the ledger's, of the crossing's intent.
        record: the record that it is for.
        grant: the grant's envelope.
        keys: that the ledger was signed with.

    Raises:
        EvidenceInvalid: the receipt does not prove the record, or the record is not of this crossing's intent.
        StatementInvalid: the grant is none of the fabric's.
    """
    # 1. The record is in the log.
    _check_receipt(receipt, record, keys)
    told = read_record(record)
    # 2. It is the intent to move exactly what this grant names.
    signed = verify(grant, trusted=keys, predicate_type=GRANT_TYPE, now=None)
    terms, body = signed.statement.predicate, told["body"]
    if told["phase"] != "intent" or told["action"] not in _MOVES or not is_crossing_id(terms.get("crossing")):
        raise _unproven("the receipt is not of the intent of a crossing")
    stated = (terms["crossing"], terms["to_zone"], dict(signed.statement.subjects))
    if stated != (body.get("crossing"), body.get("to_zone"), body.get("subjects")):
        raise _unproven("the receipt is of another crossing than the grant")
    if signed.digest not in body.get("statements", ()):
        raise _unproven("the record does not name the grant")
    return Recorded(
        crossing=str(terms["crossing"]),
        zone=str(terms["to_zone"]),
        job=str(terms["job"]),
        grant=signed.digest,
        expires_at=signed.statement.expires_at,
    )


def mint(
    recorded: Recorded,
    direction: Direction,
    *,
    fabric: str,
    key: SigningKey,
    lasts: timedelta,
    now: datetime,
    token_id: str,
) -> str:
    """Return a token for a recorded crossing; it ends with the grant, and within fifteen minutes.

    Raises:
        Refused: `CROSSING_CLOSED` if the grant has ended.
    """
    if now >= recorded.expires_at:
        raise closed()
    start = int(now.timestamp())
    claims: dict[str, Any] = {
        "iss": fabric,
        "aud": f"{fabric}/border",
        "sub": recorded.job,
        "jti": token_id,
        "iat": start,
        "nbf": start,
        "exp": min(start + int(min(lasts, MAX_LIFE).total_seconds()), int(recorded.expires_at.timestamp())),
        "crossing": recorded.crossing,
        "direction": direction.value,
        "zone": recorded.zone,
        "grant": recorded.grant,
    }
    header = {"alg": _ALGORITHM, "typ": "JWT"}
    return jwt.encode(header, claims, OKPKey.import_key(key.private), algorithms=[_ALGORITHM])


def read_token(text: str, *, fabric: str, key: PublicKey, now: datetime) -> Pass:
    """Return what a token from anywhere is good for.

    Raises:
        Refused: `TOKEN_INVALID`, `TOKEN_EXPIRED`.
    """
    # 1. The signature, by the one algorithm and the one key.
    if not 0 < len(text) <= MAX_TOKEN_CHARS or not text.isascii():
        raise _invalid("there is no token, or it is too long")
    try:
        token = jwt.decode(text, _public(key), algorithms=[_ALGORITHM])
    except (JoseError, ValueError, TypeError, KeyError, RecursionError):
        raise _invalid("the token is not one that this border signed") from None
    # 2. Every claim, each of its kind, and nothing beside them.
    claims: Mapping[str, Any] = token.claims
    if set(token.header) != {"alg", "typ"} or set(claims) != {*_TEXTS, *_TIMES}:
        raise _invalid("the token does not have the claims of this border's tokens")
    if not all(isinstance(claims[name], str) for name in _TEXTS) or any(type(claims[n]) is not int for n in _TIMES):
        raise _invalid("a claim of the token is of another kind")
    if (claims["iss"], claims["aud"]) != (fabric, f"{fabric}/border"):
        raise _invalid("the token is of another fabric, or for another service")
    if claims["direction"] not in tuple(Direction) or not is_crossing_id(claims["crossing"]):
        raise _invalid("the token names no crossing, or no direction")
    # 3. The time.
    moment = now.timestamp()
    if max(claims["iat"], claims["nbf"]) > moment + _SKEW_S or claims["exp"] - claims["iat"] > MAX_LIFE.total_seconds():
        raise _invalid("the token is not good yet, or for too long")
    if moment >= claims["exp"]:
        raise Refused(Reason.TOKEN_EXPIRED, "the token has expired", "renew it in time, or start the job again")
    return Pass(
        id=claims["jti"],
        crossing=claims["crossing"],
        direction=Direction(claims["direction"]),
        zone=claims["zone"],
        job=claims["sub"],
        grant=claims["grant"],
        expires_at=datetime.fromtimestamp(claims["exp"], UTC),
    )


def check_use(found: Pass, *, crossing: str, direction: Direction, zone: str) -> None:
    """Refuse a token that is used for anything but what it was minted for.

    Raises:
        Refused: `TOKEN_MISUSED`.
    """
    for name, used, meant in (
        ("zone", zone, found.zone),
        ("direction", direction, found.direction),
        ("crossing", crossing, found.crossing),
    ):
        if used != meant:
            raise Refused(
                Reason.TOKEN_MISUSED,
                f"the token is for another {name}",
                "a token is good for one crossing, one direction, one zone: use the one that came with the job",
            )


def check_open(found: Pass, recorded: Recorded | None) -> Recorded:
    """Return the crossing of a token while it is open.

    Raises:
        Refused: `CROSSING_CLOSED`.
    """
    if recorded is None or (recorded.zone, recorded.job, recorded.grant) != (found.zone, found.job, found.grant):
        raise closed()
    return recorded


def closed() -> Refused:
    """Return the refusal of a crossing that has ended, was closed, or never was."""
    return Refused(Reason.CROSSING_CLOSED, "the crossing is not open", "start the job again: it crosses anew")


def _check_receipt(receipt: Receipt, record: bytes, keys: Sequence[PublicKey]) -> None:
    for key in keys:
        try:
            verify_receipt(receipt, record, key)
        except EvidenceInvalid as error:
            if error.reason is not Reason.KEY_UNKNOWN:
                raise
        else:
            return
    raise EvidenceInvalid(Reason.KEY_UNKNOWN, "no key of the ledger signed the receipt", "ask this fabric's ledger")


def _public(key: PublicKey) -> OKPKey:
    return OKPKey.import_key(Ed25519PublicKey.from_public_bytes(key.raw))


def _invalid(message: str) -> Refused:
    return Refused(Reason.TOKEN_INVALID, message, "use the token that came with the job, from the zone it was given to")


def _unproven(message: str) -> EvidenceInvalid:
    return EvidenceInvalid(Reason.EVIDENCE_INVALID, message, "only a recorded crossing gets a token")
