"""Sealed matrices: chunks of Arrow bytes, and the statement signed about them.

A `SealedMatrix` exists only if the statement's signature and the digest of every chunk have been verified. Its bytes
are what crosses; its table is opened from those bytes alone. They may lie in files: then each chunk is held against the
statement again whenever it is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, overload

import pyarrow as pa

from fabric.artifacts import chunk_name, digest, digest_of
from fabric.errors import Reason, StatementInvalid
from fabric.statements import PublicKey, Signed, verify
from sanitize.sealing import open_chunks

STATEMENT = "statement.json"
CHUNK_ROWS = 65_536
MATRIX_TYPE = "urn:zonefabric:statement:sanitized-matrix:v1"


@dataclass(frozen=True, slots=True)
class StoredChunks(Sequence[bytes]):
    """Chunks in files of a folder, read one at a time and held against their digests each time."""

    folder: Path
    digests: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.digests)

    @property
    def size_bytes(self) -> int:
        """Return the size of all files in bytes."""
        return sum((self.folder / chunk_name(index)).stat().st_size for index in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[bytes, ...]: ...
    def __getitem__(self, index: int | slice) -> bytes | tuple[bytes, ...]:
        """Return one chunk, or several.

        Raises:
            StatementInvalid: `DIGEST_MISMATCH`: the file is gone, or not what was sealed.
        """
        if isinstance(index, slice):
            return tuple(self[each] for each in range(*index.indices(len(self))))
        name = chunk_name(range(len(self))[index])
        try:
            chunk = (self.folder / name).read_bytes()
        except OSError:
            chunk = b""
        if digest(chunk) != self.digests[index]:
            raise StatementInvalid(Reason.DIGEST_MISMATCH, f"{name} is not what was sealed", "sanitize again")
        return chunk


@dataclass(frozen=True, slots=True)
class SealedMatrix:
    """A matrix of numbers with the statement about it.

    Attributes:
        chunks: one Arrow IPC stream each, rows in order.
        signed: the verified statement.
    """

    chunks: Sequence[bytes]
    signed: Signed

    @classmethod
    def open(
        cls, chunks: Sequence[bytes], envelope: bytes, *, trusted: Sequence[PublicKey], now: datetime | None
    ) -> SealedMatrix:
        """Verify `envelope` and every chunk against it.

        Raises:
            StatementInvalid: no or no valid statement, or `DIGEST_MISMATCH` if a chunk is not what was sealed.
        """
        signed = verify(envelope, trusted=trusted, predicate_type=MATRIX_TYPE, now=now)
        if len(chunks) != len(signed.statement.subjects):
            raise StatementInvalid(
                Reason.DIGEST_MISMATCH,
                f"the statement names {len(signed.statement.subjects)} chunks, {len(chunks)} are given",
                "sanitize the records again",
            )
        # Of a class that could answer otherwise the second time, only what it answers now is held.
        held = (
            chunks
            if type(chunks) is StoredChunks
            else tuple(chunks[index] for index in range(len(signed.statement.subjects)))
        )
        for index, chunk in enumerate(held):
            check_chunk(signed, index, chunk)
        return cls(held, signed)

    @classmethod
    def load(cls, folder: Path, *, trusted: Sequence[PublicKey]) -> SealedMatrix:
        """Open the matrix in `folder`: chunks by name, and the statement beside them.

        Raises:
            StatementInvalid: as `open` does.
        """
        try:
            envelope = (folder / STATEMENT).read_bytes()
        except OSError:
            raise StatementInvalid(
                Reason.STATEMENT_MISSING, "the matrix has no statement", "sanitize the records again"
            ) from None
        named = verify(envelope, trusted=trusted, predicate_type=MATRIX_TYPE, now=None).statement.subjects
        digests = tuple(named.get(chunk_name(index), "") for index in range(len(named)))
        return cls.open(StoredChunks(folder, digests), envelope, trusted=trusted, now=None)

    @property
    def predicate(self) -> Mapping[str, Any]:
        """Return what the statement says of the matrix."""
        return self.signed.statement.predicate

    @property
    def columns(self) -> Mapping[str, Mapping[str, Any]]:
        """Return each column's note (treatment, role, type, levels), by name, in order."""
        return columns_of(self.signed)

    @property
    def rows(self) -> int:
        """Return the number of rows."""
        return int(self.predicate["rows"])

    @property
    def size_bytes(self) -> int:
        """Return the size of all chunks in bytes."""
        if isinstance(self.chunks, StoredChunks):
            return self.chunks.size_bytes
        return sum(len(chunk) for chunk in self.chunks)

    @property
    def purpose(self) -> str:
        """Return the purpose the matrix was made for."""
        return str(self.predicate["purpose"])

    @property
    def digest(self) -> str:
        """Return one digest for the matrix: of its chunks' digests by name."""
        return digest_of(dict(self.signed.statement.subjects))

    def table(self) -> pa.Table:
        """Return the matrix as an Arrow table, opened from the sealed bytes.

        Raises:
            StatementInvalid: `MATRIX_MALFORMED`.
        """
        return open_table(self.signed, dict(enumerate(self.chunks)))


def columns_of(signed: Signed) -> dict[str, Mapping[str, Any]]:
    """Return each column's note by name, in order; the statement holds a list, because canonical JSON sorts keys."""
    return {str(note["name"]): note for note in signed.statement.predicate["columns"]}


def check_chunk(signed: Signed, index: int, chunk: bytes) -> str:
    """Hold chunk `index` against the statement, and return its digest.

    Raises:
        StatementInvalid: `DIGEST_MISMATCH`.
    """
    if type(chunk) is not bytes:
        raise StatementInvalid(
            Reason.MATRIX_MALFORMED,
            f"{chunk_name(index)} is not plain bytes, which nobody can change",
            "sanitize again",
        )
    stated = signed.statement.subjects.get(chunk_name(index))
    actual = digest(chunk)
    if stated != actual:
        raise StatementInvalid(
            Reason.DIGEST_MISMATCH,
            f"{chunk_name(index)} has digest {actual}, the statement says {stated or 'nothing of it'}",
            "it was altered after sealing: sanitize the records again",
        )
    return actual


def open_table(signed: Signed, chunks: Mapping[int, bytes]) -> pa.Table:
    """Return the table of some of a matrix's chunks, which must already have been checked.

    Raises:
        StatementInvalid: `MATRIX_MALFORMED`.
    """
    schema = {name: str(note["type"]) for name, note in columns_of(signed).items()}
    return pa.Table.from_batches(list(open_chunks((chunks[index] for index in sorted(chunks)), schema)))
