"""Public fakes for tests: a carrier in memory, a launcher of plain processes, a matrix sealed from plain values, and a
border that is off.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from types import MappingProxyType

import psutil
import pyarrow as pa

from fabric.artifacts import chunk_name, digest
from fabric.crossing import GRANT_TYPE, Cargo, Carrier, Parcel, Ticket
from fabric.launching import Drive, Life
from fabric.ledger import Ledger
from fabric.matrix import MATRIX_TYPE, SealedMatrix
from fabric.statements import Signed, SigningKey, Statement, sign, timestamp
from fabric.verification import Receipt
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
            checkpoint=self.cargo.checkpoint.files if self.cargo.checkpoint else {},
        )


@dataclass(slots=True)
class MemoryCarrier:
    """A carrier that keeps what it carried.

    Attributes:
        fails: raise this instead of carrying.
    """

    carried: list[MemoryTicket] = field(default_factory=list)
    fails: Exception | None = None

    def carry(self, cargo: Cargo, grant: Signed, receipt: Receipt) -> MemoryTicket:
        """Keep the cargo and return a ticket on it."""
        if self.fails is not None:
            raise self.fails
        self.carried.append(MemoryTicket(cargo, grant))
        return self.carried[-1]


@dataclass(frozen=True, slots=True)
class ProcessLauncher:
    """A launcher of plain processes. Like Ray's Jobs API it refuses an id that was used, and outlives who asked it.

    Attributes:
        folder: where it keeps, per id, the process; it is all the state there is.
        command: the words before those of a drive.
        pending_s: how long a start that was cut off may still be one.
    """

    folder: Path
    command: tuple[str, ...]
    pending_s: float = 5.0

    def start(self, drive: Drive) -> None:
        """Start a process; an id that was used before starts nothing."""
        try:
            mark = os.open(self.folder / drive.submission, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        except FileExistsError:
            return
        with open(mark, "w") as file:
            process = subprocess.Popen(
                [*self.command, *drive.words, drive.submission], start_new_session=True, stdin=subprocess.DEVNULL
            )
            process.returncode = 0  # whoever asked may go; the process stays
            file.write(str(process.pid))

    def lives(self) -> dict[str, Life]:
        """Return every process by its id; one whose number is not written down yet counts as alive for a while."""
        return {path.name: self._life(path) for path in self.folder.iterdir() if path.suffix != ".stopped"}

    def stop(self, submission: str) -> None:
        """Kill the process."""
        (self.folder / f"{submission}.stopped").touch()
        with suppress(OSError, ValueError):
            os.kill(int((self.folder / submission).read_text()), signal.SIGKILL)

    def _life(self, path: Path) -> Life:
        with suppress(OSError):
            about = path.stat()
            young = time.time() - about.st_mtime < self.pending_s
            if not about.st_size and (young or self._is_there(path.name)):
                return Life.ALIVE
        with suppress(OSError, ValueError, psutil.Error):
            process = psutil.Process(int(path.read_text()))
            if process.status() != psutil.STATUS_ZOMBIE:
                return Life.ALIVE
        return Life.STOPPED if path.with_name(f"{path.name}.stopped").exists() else Life.GONE

    def _is_there(self, submission: str) -> bool:
        """Look for a process whose number was never written down, because whoever started it was killed."""
        return any(submission in (process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"]))


class UnsafeBorderWarning(UserWarning):
    """The border is off: nothing decides, checks or grants what is carried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnsafeBorder:
    """A border that is off, to show that whatever watches behind it can see raw data. No part of a fabric ever uses it.

    No file, setting or variable turns a border off: somebody has to write this name into a program. It warns when it is
    made and records each use in the ledger. It owns no key that any node believes: what it carried is never admitted.

    Attributes:
        ledger: where each use is recorded before anything moves.
    """

    ledger: Ledger
    clock: Callable[[], datetime]
    _key: SigningKey = field(default_factory=SigningKey.generate, init=False, repr=False)

    def __post_init__(self) -> None:
        warnings.warn("UnsafeBorder: the border is OFF, raw data will leave", UnsafeBorderWarning, stacklevel=3)

    def carry(self, contents: Sequence[bytes], to_zone: str, carrier: Carrier) -> Ticket:
        """Carry any bytes whatsoever as if they were the chunks of a matrix.

        Raises:
            FabricError: `EVIDENCE_UNWRITABLE`: without a record not even this moves anything.
        """
        subjects = {chunk_name(index): digest(content) for index, content in enumerate(contents)}
        receipt = self.ledger.observe("unsafe-border", {"to_zone": to_zone, "checked": "nothing", "subjects": subjects})
        until = {"expires_at": timestamp(self.clock())}
        matrix, grant = (
            sign(Statement(subjects=subjects, predicate_type=kind, predicate=until), self._key)
            for kind in (MATRIX_TYPE, GRANT_TYPE)
        )
        return carrier.carry(Cargo(matrix=SealedMatrix(tuple(contents), matrix)), grant, receipt)


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
