"""Crossings: what one movement over the border carries, and how the other side admits it.

The cargo of a crossing is a sealed matrix, and for a burst also a capsule and small parameters. The grant is a signed
statement that names every digest, the destination, the purpose and the expiry. `admit` runs in the other zone: it
believes nothing but the keys its node was provisioned with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

import pyarrow as pa

from fabric.artifacts import chunk_name, digest, is_chunk_name
from fabric.errors import Reason, StatementInvalid
from fabric.matrix import MATRIX_TYPE, SealedMatrix, check_chunk, columns_of, open_table
from fabric.statements import PublicKey, Signed, verify
from fabric.verification import Receipt

GRANT_TYPE = "urn:zonefabric:statement:crossing:v1"
CAPSULE_TYPE = "urn:zonefabric:statement:capsule:v1"
CHECKPOINT_TYPE = "urn:zonefabric:statement:checkpoint:v1"
CAPSULE = "capsule"
PARAMETERS = "parameters"
GRANT, STATEMENT, BESIDE, LISTING = "grant", "statement", "checkpoint/", "listing"
"""Names of what travels beside the subjects of a grant, where each byte string is asked for by name. A file of a
checkpoint stands behind the third; the last one lists the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedCapsule:
    """Outbound code and the statement of its inspection."""

    payload: bytes
    signed: Signed


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedCheckpoint:
    """Where a training stood when it stopped, and the statement of quarantine about it.

    Attributes:
        files: safetensors and JSON, by name, written inside from what was checked.
    """

    files: Mapping[str, bytes]
    signed: Signed


@dataclass(frozen=True, slots=True, kw_only=True)
class Cargo:
    """What crosses together: a matrix, and for a burst its code and parameters (canonical JSON).

    Attributes:
        checkpoint: where a training on this matrix goes on from.
    """

    matrix: SealedMatrix
    capsule: SealedCapsule | None = None
    parameters: bytes = b"{}"
    checkpoint: SealedCheckpoint | None = None

    def subjects(self) -> dict[str, str]:
        """Return the digest of every byte string that crosses, by name."""
        named = dict(self.matrix.signed.statement.subjects)
        named[PARAMETERS] = digest(self.parameters)
        if self.capsule is not None:
            named[CAPSULE] = digest(self.capsule.payload)
        if self.checkpoint is not None:
            named.update({name: digest(content) for name, content in self.checkpoint.files.items()})
        return named


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """The cargo as it arrives: bytes that nobody has checked yet.

    Attributes:
        chunks: some or all of the matrix's chunks, by index.
    """

    grant: bytes
    statement: bytes
    chunks: Mapping[int, bytes]
    capsule: bytes = b""
    parameters: bytes = b"{}"
    checkpoint: Mapping[str, bytes] = field(default_factory=dict)


class Ticket(Protocol):
    """What a worker is given to collect its parcel with. Small and picklable."""

    @property
    def chunk_count(self) -> int:
        """Return how many chunks the matrix has."""

    def collect(self, chunks: Sequence[int]) -> Parcel:
        """Fetch the named chunks with everything that goes with them."""


class Carrier(Protocol):
    """Moves a cargo to another zone. It is only ever called by the border, after the record."""

    def carry(self, cargo: Cargo, grant: Signed, receipt: Receipt) -> Ticket:
        """Make the cargo available to the workers that hold the ticket.

        Args:
            receipt: of the intent in the ledger; who carries over an open line must show it.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossing:
    """A recorded movement of a cargo."""

    id: str
    grant: Signed
    cargo: Cargo
    ticket: Ticket


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """A parcel that was verified, opened."""

    table: pa.Table
    columns: Mapping[str, Mapping[str, object]]
    capsule: bytes
    parameters: bytes
    checkpoint: Mapping[str, bytes]
    crossing: str


def admit(parcel: Parcel, *, zone: str, trusted: Sequence[PublicKey], now: datetime) -> Admitted:
    """Verify a parcel in the zone where it arrived, and open it.

    Args:
        parcel: bytes as received.
        zone: the zone of this node, from its own configuration.
        trusted: the keys this node was provisioned with.
        now: the time.

    Raises:
        StatementInvalid: missing, altered, expired, unsigned, for another zone or another purpose.
    """
    # 1. The grant: signed, unexpired, for this zone.
    grant = verify(parcel.grant, trusted=trusted, predicate_type=GRANT_TYPE, now=None)
    if now >= grant.statement.expires_at:
        raise StatementInvalid(
            Reason.STATEMENT_EXPIRED, "the crossing has expired", "raise fabric.crossing_minutes and run the job again"
        )
    terms = grant.statement.predicate
    if terms["to_zone"] != zone:
        raise StatementInvalid(
            Reason.WRONG_ZONE, f"the crossing is for zone {terms['to_zone']!r}, this is {zone!r}", "send it there"
        )
    # 2. The matrix's own statement: the one the grant names, for the same purpose.
    matrix = verify(parcel.statement, trusted=trusted, predicate_type=MATRIX_TYPE, now=now)
    if matrix.digest != terms["matrix_statement"]:
        raise StatementInvalid(Reason.STATEMENT_INVALID, "the statement is not the one the crossing names")
    if matrix.statement.predicate["purpose"] != terms["purpose"]:
        raise StatementInvalid(Reason.WRONG_PURPOSE, "the matrix was made for another purpose than the crossing's")
    # 3. Every byte string, against both.
    named = grant.statement.subjects
    for index, chunk in parcel.chunks.items():
        _check(named, chunk_name(index), check_chunk(matrix, index, chunk))
    _check(named, PARAMETERS, digest(parcel.parameters))
    if parcel.capsule or CAPSULE in named:
        _check(named, CAPSULE, digest(parcel.capsule))
    for name in {*parcel.checkpoint, *_beside(named)}:
        _check(named, name, digest(parcel.checkpoint.get(name, b"")))
    # 4. Only now the content.
    return Admitted(
        table=open_table(matrix, parcel.chunks),
        columns=columns_of(matrix),
        capsule=parcel.capsule,
        parameters=parcel.parameters,
        checkpoint=parcel.checkpoint,
        crossing=str(terms["crossing"]),
    )


def _beside(named: Mapping[str, str]) -> set[str]:
    """Return the names of a grant's subjects that are files of a checkpoint."""
    return {name for name in named if name not in (PARAMETERS, CAPSULE) and not is_chunk_name(name)}


def _check(named: Mapping[str, str], name: str, actual: str) -> None:
    if named.get(name) != actual:
        raise StatementInvalid(
            Reason.DIGEST_MISMATCH, f"{name} is not what the crossing names", "it was altered on the way: send it again"
        )
