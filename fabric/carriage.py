"""Carriage in a stretched cluster: a cargo travels through Ray's object store.

What arrives is plain bytes; the worker believes them only after `crossing.admit`. Two clusters with a border between
them will have a carrier of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import ray

from fabric.artifacts import digest
from fabric.capsule import open_capsule
from fabric.config import Environment
from fabric.crossing import Admitted, Cargo, Parcel, Ticket, admit
from fabric.statements import Signed
from fabric.verification import Receipt


@dataclass(frozen=True, slots=True)
class ObjectTicket:
    """Refs of a cargo's byte strings in the object store."""

    chunks: tuple[ray.ObjectRef, ...]
    papers: ray.ObjectRef
    checkpoint: ray.ObjectRef | None = None

    @property
    def chunk_count(self) -> int:
        """Return how many chunks the matrix has."""
        return len(self.chunks)

    def collect(self, chunks: Sequence[int]) -> Parcel:
        """Fetch the named chunks with everything that goes with them."""
        grant, statement, capsule, parameters = ray.get(self.papers)
        fetched = ray.get([self.chunks[index] for index in chunks])
        return Parcel(
            grant=grant,
            statement=statement,
            chunks=dict(zip(chunks, fetched, strict=True)),
            capsule=capsule,
            parameters=parameters,
            checkpoint=ray.get(self.checkpoint) if self.checkpoint is not None else {},
        )


class ObjectStoreCarrier:
    """Puts a cargo into the object store of the private node; workers pull it when they collect."""

    def carry(self, cargo: Cargo, grant: Signed, receipt: Receipt) -> ObjectTicket:
        """Put every byte string and return the ticket."""
        capsule = cargo.capsule.payload if cargo.capsule else b""
        papers = (grant.envelope, cargo.matrix.signed.envelope, capsule, cargo.parameters)
        checkpoint = ray.put(dict(cargo.checkpoint.files)) if cargo.checkpoint else None
        return ObjectTicket(tuple(ray.put(chunk) for chunk in cargo.matrix.chunks), ray.put(papers), checkpoint)


def admitted_network(admitted: Admitted) -> Callable[[int, int], Any] | None:
    """Return the user's network that crossed with the matrix, or None for the built-in one."""
    return open_capsule(admitted.capsule, digest(admitted.capsule)) if admitted.capsule else None


def receive(ticket: Ticket, chunks: Sequence[int] | None = None) -> Admitted:
    """Collect a parcel on the node this runs on, and admit it.

    Raises:
        StatementInvalid: it is not what was signed, or not for this zone.
    """
    node = Environment.read()
    wanted = range(ticket.chunk_count) if chunks is None else chunks
    return admit(ticket.collect(list(wanted)), zone=node.zone, trusted=node.trusted, now=datetime.now(UTC))
