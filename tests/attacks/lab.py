"""What a way is, what it is tried against, and a search of what was carried.

A way tries to get planted values out of the private zone, or something hostile into it. It must end in a `FabricError`,
or in nothing planted among the bytes that were carried. `LocalLab` carries in memory, so that a way takes no cluster; a
lab over a real cluster offers the same names.
"""

from __future__ import annotations

import base64
import itertools
import json
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import torch

from fabric.artifacts import digest
from fabric.border import Border, Errand
from fabric.capsule import open_capsule, seal_capsule
from fabric.config import Environment
from fabric.constants import InspectText
from fabric.crossing import Cargo, Parcel, admit
from fabric.errors import Reason
from fabric.labels import Labels
from fabric.learning import Arrays, Layout, Trainer
from fabric.ledger import Ledger
from fabric.matrix import SealedMatrix
from fabric.parameters import seal_parameters
from fabric.policy import Policy
from fabric.quarantine import admit_model
from fabric.results import decode, encode, encode_error
from fabric.session import Session
from fabric.specs import ModelSpec, SweepSpec, TrainingSpec, crossing_form
from fabric.starter import write_starter
from fabric.statements import SigningKey
from fabric.testing import MemoryCarrier, sealed_matrix
from fabric.zones import Zone, ZoneKind

NOW = datetime(2026, 6, 1, tzinfo=UTC)
KEY, STRANGER = SigningKey.from_seed(bytes(32)), SigningKey.from_seed(bytes(31) + b"\1")
PRIVATE = Zone(name="private", kind=ZoneKind.PRIVATE, jurisdiction="EU", cpus=2)
PUBLIC = Zone(name="public", kind=ZoneKind.PUBLIC, jurisdiction="EU")
MATRIX = sealed_matrix({"visits": list(range(40)), "cost": [n * 2 for n in range(40)]}, key=KEY, now=NOW, chunk_rows=16)
SPEC = TrainingSpec(epochs=4, batch_size=16, learning_rate=0.01, checkpoint_every=2, model=ModelSpec(hidden=[4]))
LAYOUT = Layout(numeric=("a", "b"), encoded=(), target="y", classes=0)
ERRAND = Errand(
    zone=PUBLIC,
    labels=Labels(
        allowed_execution_zone=frozenset({"private", "public"}),
        burst_eligible=True,
        purpose="test",
        residency=frozenset({"EU"}),
        export_control="none",
    ),
    purpose="test",
    justification="queue",
    justification_key="hmac-sha256:0",
    job="job-1",
    person="p-1",
)


class Lab(Protocol):
    """What a way may use. Ways that need more than these say so in `Way.needs`.

    Attributes:
        records: a raw table with planted values; its last row is the planted person's.
        matrix: a sealed matrix made from it.
    """

    records: pa.Table
    matrix: SealedMatrix

    def burst(self, function: Callable[..., Any], parameters: Mapping[str, Any] | None = None) -> Any:
        """Run a function over the matrix in the public zone."""

    def train(self, spec: TrainingSpec | SweepSpec, network: Callable[[int, int], Any] | None = None) -> Any:
        """Train on the matrix in the public zone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to try.

    Attributes:
        id: stable.
        what: what it tries, in one line.
        wall: what stops it; `NOT_STOPPED` where nothing can.
        by: reasons of the refusal; none where the data is left behind and the rest crosses.
        needs: what of the lab it needs beyond `records` and `matrix`: "burst", "train", or "local" for a `LocalLab`.
    """

    id: str
    what: str
    wall: str
    by: frozenset[Reason]
    needs: str
    attempt: Callable[[Any], None]

    def __call__(self, lab: Lab) -> None:
        """Try it.

        Raises:
            FabricError: it was refused.
        """
        self.attempt(lab)


CAPSULE, PARAMETERS, BORDER, ADMIT = "capsule", "parameters", "border", "admission"
SEALING, QUARANTINE, RESULTS, SPECS = "sealing", "quarantine", "results", "specs"
NOT_STOPPED = "not stopped"


def way(wall: str, *by: Reason, needs: str = "burst") -> Callable[[Callable[[Any], None]], Way]:
    """Make a way of a function: its name is the id, its docstring says what it tries."""

    def made(attempt: Callable[[Any], None]) -> Way:
        what = " ".join((attempt.__doc__ or "").split()).rstrip(".")
        return Way(
            id=attempt.__name__.replace("_", "-"),
            what=what,
            wall=wall,
            by=frozenset(by),
            needs=needs,
            attempt=attempt,
        )

    return made


def ways_in(namespace: Mapping[str, Any]) -> tuple[Way, ...]:
    """Return the ways of a module, in the order in which it has them."""
    return tuple(value for value in namespace.values() if isinstance(value, Way))


def person(lab: Lab) -> dict[str, Any]:
    """Return the planted row."""
    (row,) = lab.records.slice(lab.records.num_rows - 1, 1).to_pylist()
    return row


class LocalLab:
    """A lab in this process: the same capsule, parameters, border and admission, and a carrier in memory."""

    def __init__(self, records: pa.Table, inspect_text: InspectText, folder: Path) -> None:
        self.records = records
        self.matrix = MATRIX
        self.inspect_text = inspect_text
        self.folder = folder
        self.now = NOW
        self.carrier = MemoryCarrier()
        self.carried: list[bytes] = []
        ids = (f"{number:032x}" for number in itertools.count())
        self.border = Border(
            home_zone=PRIVATE,
            policy=Policy.default(),
            ledger=Ledger.open(
                folder / "evidence", key=KEY, origin="test/ledger", clock=lambda: self.now, new_id=lambda: next(ids)
            ),
            key=KEY,
            trusted=(KEY.public,),
            grant_lasts=timedelta(hours=1),
            clock=lambda: self.now,
            new_id=lambda: next(ids),
        )

    def burst(self, function: Callable[..., Any], parameters: Mapping[str, Any] | None = None) -> Any:
        """Do what `bursting.burst` does, without Ray."""
        capsule = seal_capsule(function, inspect_text=self.inspect_text)
        sealed = self.border.state_capsule(capsule.payload, capsule.xray.to_json())
        settings = seal_parameters(parameters or {}, inspect_text=self.inspect_text, columns=self.matrix.columns)
        parcel = self.export(Cargo(matrix=self.matrix, capsule=sealed, parameters=settings))
        admitted = admit(parcel, zone="public", trusted=[KEY.public], now=self.now)
        try:
            fn = open_capsule(admitted.capsule, digest(admitted.capsule))
            answer = encode(fn(admitted.table, **json.loads(admitted.parameters)))
        except Exception as error:
            answer = encode_error(error)
        return decode(answer)

    def train(self, spec: TrainingSpec | SweepSpec, network: Callable[[int, int], Any] | None = None) -> Any:
        """Let cross what a training or sweep lets cross: the matrix, the network, the specs."""
        sealed = None
        if network is not None:
            capsule = seal_capsule(network, inspect_text=self.inspect_text)
            sealed = self.border.state_capsule(capsule.payload, capsule.xray.to_json())
        trials = [crossing_form(trial) for trial in (spec.trials() if isinstance(spec, SweepSpec) else [spec])]
        self.export(Cargo(matrix=self.matrix, capsule=sealed))
        self.carried += [json.dumps(trial).encode() for trial in trials]

    def export(self, cargo: Cargo, errand: Errand = ERRAND) -> Parcel:
        """Move a cargo by the border, and return it as it arrives."""
        crossing = self.border.export(cargo, errand, self.carrier)
        parcel = crossing.ticket.collect(range(crossing.ticket.chunk_count))
        self.carried += [parcel.grant, parcel.statement, parcel.capsule, parcel.parameters, *parcel.chunks.values()]
        return parcel

    def carrying(
        self, cargo: Cargo, *, before: Callable[[], object] = lambda: None, seen: list[Cargo] | None = None
    ) -> None:
        """Move a cargo by a carrier of the caller's own, which does something before it reads what it carries."""
        lab = self

        class Own(MemoryCarrier):
            def carry(self, cargo: Cargo, grant: Any, receipt: Any) -> Any:
                before()
                if seen is not None:
                    seen.append(cargo)
                lab.carried += [grant.envelope, cargo.matrix.signed.envelope, cargo.parameters, *cargo.matrix.chunks]
                return super().carry(cargo, grant, receipt)

        self.border.export(cargo, ERRAND, Own())

    def returns(
        self, change: Callable[[Path], object], *, place: Callable[[Path], Path] = lambda folder: folder
    ) -> Any:
        """Train a small model, let `change` at its checkpoint in the outbox, and bring it back from `place`."""
        write_starter(self.folder)
        session = Session.open(Environment.read({"FABRIC_PERSON": "someone"}), config_path=self.folder)
        try:
            generator = torch.Generator().manual_seed(0)
            numeric = torch.randn(64, 2, generator=generator)
            trainer = Trainer(SPEC, LAYOUT, Arrays(numeric, torch.zeros((64, 0), dtype=torch.int64), numeric[:, 0]))
            list(trainer.epochs())
            folder = session.home.outbox("public") / "run" / "checkpoint_1"
            folder.mkdir(parents=True)
            trainer.save(folder)
            change(folder)
            return admit_model(
                session, place(folder), spec=SPEC, layout=LAYOUT, network=None, zone="public", provenance={"spec": "x"}
            )
        finally:
            session.ledger.close()

    def made_by_hand(self, matrix: SealedMatrix) -> Parcel:
        """Return a parcel for a matrix that no border has seen, with a grant signed by the fabric's key."""
        cargo = Cargo(matrix=matrix)
        grant = self.border._grant("c" * 32, cargo, ERRAND)
        return Parcel(grant=grant.envelope, statement=matrix.signed.envelope, chunks=dict(enumerate(matrix.chunks)))


def planted_in(carried: list[bytes], row: Mapping[str, Any]) -> list[str]:
    """Return which planted values lie in what was carried, and in which form."""
    everything = b"\x00".join(bytes(part) for part in carried)
    return [f"{column} as {form}" for column, form, needle in _needles(row) if needle in everything]


def _needles(row: Mapping[str, Any]) -> Iterator[tuple[str, str, bytes]]:
    for column, value in row.items():
        telling = isinstance(value, int | float) and abs(value) >= 1_000  # a small number is everywhere
        if telling:
            yield column, "float64", struct.pack("<d", float(value))
        if telling and isinstance(value, int):
            yield column, "int32", struct.pack("<i", value)
            yield column, "int64", struct.pack("<q", value)
        text = str(value)
        if len(text) >= 6:
            plain = text.encode()
            yield column, "utf-8", plain
            yield column, "utf-16", text.encode("utf-16-le")
            yield column, "backwards", plain[::-1]
            yield column, "hex", plain.hex().encode()
            for shift in range(3):
                inside = base64.b64encode(b"\0" * shift + plain)[4 if shift else 0 : -4]
                if len(inside) >= 10:  # shorter ones turn up by chance
                    yield column, "base64", inside
