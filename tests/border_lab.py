"""A border service on this machine, with what it serves, for tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import psutil

from fabric.artifacts import digest
from fabric.border import Border, Errand
from fabric.border_carrier import BorderCarrier
from fabric.border_client import BorderTicket
from fabric.border_process import READY, standing
from fabric.border_refusals import Recorder
from fabric.border_service import BorderService
from fabric.certificates import Authority
from fabric.config import BorderTerms
from fabric.crossing import CHECKPOINT_TYPE, Cargo, SealedCheckpoint
from fabric.inbox import Inbox
from fabric.labels import Labels
from fabric.ledger import Ledger
from fabric.policy import Policy
from fabric.recording import new_id, now
from fabric.staging import Staging
from fabric.statements import Statement, sign, timestamp
from fabric.stores import Home
from fabric.testing import sealed_matrix
from fabric.zones import Zone, ZoneKind

BIN = Path(sys.executable).parent
PRIVATE = Zone(name="private", kind=ZoneKind.PRIVATE, jurisdiction="EU", cpus=2)
PUBLIC = Zone(name="public", kind=ZoneKind.PUBLIC, jurisdiction="EU")
ERRAND = Errand(
    zone=PUBLIC,
    labels=Labels(
        allowed_execution_zone=frozenset({"private", "public", "elsewhere"}),
        burst_eligible=True,
        purpose="test",
        residency=frozenset({"EU"}),
        export_control="none",
    ),
    purpose="test",
    justification="queue",
    justification_key="hmac-sha256:" + "0" * 32,
    job="job-1",
    person="p-" + "1" * 16,
)


FABRIC = """
[fabric]
name = "lab"

[zones.private]
kind = "private"
jurisdiction = "EU"
cpus = 2

[zones.public]
kind = "public"
jurisdiction = "EU"
"""


@dataclass
class Lab:
    """A fabric in a folder: border, carrier, and a service when one is started."""

    folder: Path
    terms: BorderTerms = field(default_factory=lambda: BorderTerms(stall_seconds=5))
    time: object = now
    port: int = 0
    services: list = field(default_factory=list)
    processes: list = field(default_factory=list)

    def __post_init__(self) -> None:
        self.config = self.folder / "fabric.toml"
        terms = {f.name: getattr(self.terms, f.name) for f in fields(self.terms)}
        told = "\n".join(f"{name} = {json.dumps(value)}" for name, value in terms.items())
        self.config.write_text(f"{FABRIC}\n[border]\n{told}\n")
        self.home = Home.open(self.folder / ".fabric")
        self.key = self.home.signing_key()
        self.ledger = Ledger.open(self.home.evidence, key=self.key, origin="lab/ledger", clock=now, new_id=new_id)
        self.authority = Authority.open(self.home, now=now())
        self.staging = Staging.of(self.home, self.ledger.keys)
        self.inbox = Inbox.of(self.home, most=self.terms.return_mib << 20)
        self.border = Border(
            home_zone=PRIVATE, policy=Policy.default(), ledger=self.ledger, key=self.key, trusted=self.ledger.keys,
            grant_lasts=timedelta(hours=1), clock=now, new_id=new_id,
        )  # fmt: skip

    def start(self) -> BorderService:
        """Start the service in this process."""
        service = BorderService(
            fabric="lab", terms=self.terms, key=self.home.token_key(), authority=self.authority,
            staging=Staging.of(self.home, self.ledger.keys), inbox=self.inbox,
            recorder=Recorder(self.ledger, time.monotonic), clock=self.time, new_id=new_id,
        )  # fmt: skip
        self.port = service.start(self.port)
        self.services.append(service)
        return service

    def spawn(self) -> subprocess.Popen:
        """Start the service as a process of its own, as `fabric border serve` does, and wait until it is ready."""
        process = subprocess.Popen(
            [BIN / "fabric", "border", "serve", "--config", self.config],
            env=self.env, stdout=subprocess.PIPE, stderr=(self.folder / "service.log").open("ab"), text=True,
        )  # fmt: skip
        line = process.stdout.readline()
        assert line.startswith(READY), (self.folder / "service.log").read_text()
        self.port = int(line.strip().rpartition(":")[2])
        self.processes.append(process)
        return process

    @property
    def env(self) -> dict[str, str]:
        """Return the environment of commands: this tree, whichever one is installed."""
        return {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}

    @property
    def serving(self) -> psutil.Process:
        """Return the process that serves."""
        return psutil.Process(standing(self.home).pid)

    def stop(self) -> None:
        """Stop every service."""
        while self.services:
            self.services.pop().stop(0.2)
        while self.processes:
            process = self.processes.pop()
            process.terminate()
            process.wait(600)
            process.stdout.close()

    def matrix(self, *, rows: int = 40, chunk_rows: int = 16):
        """Return a sealed matrix."""
        columns = {"age": np.arange(rows), "cost": np.arange(rows) * 1.5}
        return sealed_matrix(columns, key=self.key, now=now(), chunk_rows=chunk_rows)

    def checkpoint(self, matrix) -> SealedCheckpoint:
        """Return a checkpoint as quarantine signs it."""
        files = {"model.safetensors": b"tensors", "state.json": b"{}"}
        predicate = {
            "matrix_statement": matrix.signed.digest,
            "issued_at": timestamp(now()),
            "expires_at": timestamp(now() + timedelta(hours=1)),
        }
        subjects = {name: digest(content) for name, content in files.items()}
        statement = Statement(subjects=subjects, predicate_type=CHECKPOINT_TYPE, predicate=predicate)
        return SealedCheckpoint(files=files, signed=sign(statement, self.key))

    def carrier(self) -> BorderCarrier:
        """Return the carrier of the service that was started last."""
        return BorderCarrier(
            fabric="lab", terms=self.terms, address=f"127.0.0.1:{self.port}", ledger=self.ledger,
            key=self.home.token_key(), authority=self.authority, staging=self.staging, inbox=self.inbox,
        )  # fmt: skip

    def export(self, cargo: Cargo | None = None, zone: Zone = PUBLIC) -> BorderTicket:
        """Send a cargo over the border and return its ticket."""
        errand = replace(ERRAND, zone=zone)
        return self.border.export(cargo or Cargo(matrix=self.matrix()), errand, self.carrier()).ticket

    def refusals(self) -> list[dict]:
        """Return what was recorded of refusals."""
        return [e.record["body"] for e in self.ledger.entries() if e.record["action"] == "refusal"]


@contextmanager
def lab(folder: Path, *, spawned: bool = False, **settings):
    """Yield a lab with a service, in this process or one of its own, and stop it."""
    made = Lab(folder, **settings)
    made.spawn() if spawned else made.start()
    try:
        yield made
    finally:
        made.stop()
        made.ledger.close()
