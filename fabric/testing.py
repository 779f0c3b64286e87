"""Public fakes for tests: a carrier that keeps the cargo in memory, and a matrix sealed from plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import MappingProxyType

import pyarrow as pa

from fabric.artifacts import chunk_name, digest
from fabric.crossing import Cargo, Parcel
from fabric.matrix import MATRIX_TYPE, SealedMatrix
from fabric.statements import Signed, SigningKey, Statement, sign, timestamp
from sanitize.sealing import seal

OPEN_LABELS: dict[str, object] = {
    "data_classification": "restricted",
    "allowed_execution_zone": ["private", "public"],
    "burst_eligible": True,
    "purpose": "test",
    "residency": ["EU"],
    "export_control": "none",
}
LOW_RISK: Mapping[str, object] = MappingProxyType({"k": 20, "l": 4, "t": "0.2"})
RISK_LIMITS: Mapping[str, object] = MappingProxyType({"k": 11, "l": 2, "t": "0.5"})


@dataclass(frozen=True, slots=True)
class MemoryTicket:
    """A ticket on a cargo in memory."""

    cargo: Cargo
    grant: Signed

    @property
    def chunk_count(self) -> int:
        """Return how many chunks the matrix has."""
        return len(self.cargo.matrix.chunks)

    def collect(self, chunks: Sequence[int]) -> Parcel:
        """Return the named chunks with everything that goes with them."""
        return Parcel(
            grant=self.grant.envelope,
            statement=self.cargo.matrix.signed.envelope,
            chunks={index: self.cargo.matrix.chunks[index] for index in chunks},
            capsule=self.cargo.capsule.payload if self.cargo.capsule else b"",
            parameters=self.cargo.parameters,
        )


@dataclass(slots=True)
class MemoryCarrier:
    """A carrier that keeps what it carried.

    Attributes:
        fails: raise this instead of carrying.
    """

    carried: list[MemoryTicket] = field(default_factory=list)
    fails: Exception | None = None

    def carry(self, cargo: Cargo, grant: Signed) -> MemoryTicket:
        """Keep the cargo and return a ticket on it."""
        if self.fails is not None:
            raise self.fails
        self.carried.append(MemoryTicket(cargo, grant))
        return self.carried[-1]


def sealed_matrix(
    columns: Mapping[str, Sequence[float]],
    *,
    key: SigningKey,
    now: datetime,
    purpose: str = "test",
    lasts: timedelta = timedelta(days=1),
    chunk_rows: int = 65_536,
    part: str = "matrix",
    labels: Mapping[str, object] = MappingProxyType(OPEN_LABELS),
    stated: Mapping[str, object] = MappingProxyType({}),
) -> SealedMatrix:
    """Seal and sign plain values as the sanitizer would, with the last column as the target.

    Args:
        stated: entries of the predicate to add or to put in place of the usual ones.
    """
    table = pa.table(dict(columns))
    chunks = seal(table, chunk_rows=chunk_rows)
    *_, target = table.column_names
    notes = [
        {
            "name": name,
            "from": name,
            "why": "a test",
            "type": str(table.schema.field(name).type),
            "role": "target" if name == target else "feature",
            "levels": 0,
        }
        for name in table.column_names
    ]
    statement = Statement(
        subjects={chunk_name(index): digest(chunk) for index, chunk in enumerate(chunks)},
        predicate_type=MATRIX_TYPE,
        predicate={
            "columns": notes,
            "dropped": 0,
            "rows": table.num_rows,
            "purpose": purpose,
            "part": part,
            "labels": dict(labels),
            "recipe": digest(b"a recipe"),
            "risk": dict(LOW_RISK),
            "risk_limits": dict(RISK_LIMITS),
            "expires_at": timestamp(now + lasts),
            **stated,
        },
    )
    return SealedMatrix(chunks, sign(statement, key))
