"""The sanitizer as a Ray actor in the private zone: reads records, sanitizes them, signs the statement.

Raw records are read in this actor and nowhere else; what it returns is sealed bytes, signed statements and counts.
Its methods return errors instead of raising them, so that no foreign traceback travels with one.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import ray

from fabric.artifacts import chunk_name, digest
from fabric.errors import FabricError, Reason, Refused
from fabric.statements import SigningKey, Statement, sign, timestamp
from sanitize.inspection import Inspector
from sanitize.pipeline import Part, Sanitized, sanitize
from sanitize.reading import read_records
from sanitize.recipe import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What the sanitizer is asked to do.

    Attributes:
        records: path of each records source, by name, in the private zone.
        labels: of the records, for the statement.
        key_path: file of the 32-byte seed that signs; read by the actor, so that no key travels.
        predicate_type: of the statement.
    """

    records: Mapping[str, Path]
    recipe: Recipe
    hold_back: float
    seed: int
    labels: Mapping[str, Any]
    key_path: Path
    predicate_type: str
    issued_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedPart:
    """A sealed matrix as bytes: its chunks and the envelope of its statement."""

    chunks: tuple[bytes, ...]
    envelope: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What the sanitizer returns: the matrix, the rows held back, and the levels of each encoded column.

    Attributes:
        dictionaries: codes to levels; stays in the private zone.
        staying: names of the columns of the records that nothing is made from.
    """

    matrix: SealedPart
    held_back: SealedPart | None
    dictionaries: Mapping[str, tuple[str, ...]]
    staying: tuple[str, ...]


class Sanitizer:
    """Sanitizes records. A plain class; `start` wraps it in Ray."""

    def run(self, order: Order) -> Delivery | FabricError:
        """Sanitize, sign and return the sealed bytes, or the error that stopped it."""
        try:
            raw = {name: read_records(path, name=name) for name, path in order.records.items()}
            done = sanitize(raw, order.recipe, inspector=Inspector(), hold_back=order.hold_back, seed=order.seed)
            key = SigningKey.from_seed(order.key_path.read_bytes())
            return Delivery(
                matrix=_seal(done, done.train, "matrix", order, key),
                held_back=_seal(done, done.held_back, "held-back", order, key) if done.held_back else None,
                dictionaries=done.dictionaries,
                staying=done.staying,
            )
        except FabricError as error:
            return error
        except Exception as error:  # noqa: BLE001 - a message of any class may carry a cell
            return Refused(
                Reason.INSPECTION_FAILED,
                f"sanitizing failed with {type(error).__name__}; nothing was sealed",
                "what cannot be inspected does not leave; the message stays unsaid, because messages carry cells",
            )


def start(zone_resource: str, label_selector: Mapping[str, str]) -> Any:
    """Start a sanitizer actor in the private zone and return its handle."""
    return (
        ray.remote(Sanitizer)
        .options(
            num_cpus=1,
            resources={zone_resource: 0.001},
            label_selector=dict(label_selector),
            max_restarts=0,
            name=None,
        )
        .remote()
    )


def _seal(done: Sanitized, part: Part, name: str, order: Order, key: SigningKey) -> SealedPart:
    statement = Statement(
        subjects={chunk_name(index): digest(chunk) for index, chunk in enumerate(part.chunks)},
        predicate_type=order.predicate_type,
        predicate={
            **done.report,
            # Keyed: from a plain digest of a file, whoever knows most of it could confirm a guess of the rest.
            "inputs": {
                name: "hmac-sha256:" + hmac.digest(key.seed, version.encode(), "sha256").hex()
                for name, version in done.versions.items()
            },
            "part": name,
            "rows": part.rows,
            "purpose": order.recipe.purpose,
            "labels": dict(order.labels),
            "issued_at": timestamp(order.issued_at),
            "expires_at": timestamp(order.expires_at),
        },
    )
    return SealedPart(chunks=part.chunks, envelope=sign(statement, key).envelope)
