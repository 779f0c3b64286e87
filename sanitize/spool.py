"""The spool: a folder of the private zone where treated columns lie as plain numbers while a matrix is being made.

Every column is one file of fixed-width numbers, written by many workers at different places. What a worker finished is
marked after its bytes are on disk, so that work which died goes on where it stopped. The same work writes the same
bytes, so it does no harm if two workers do it.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fabric.artifacts import chunk_name
from fabric.errors import FabricError, Reason

TRAIN, HELD_BACK = "matrix", "held-back"

STRIDE = 1 << 20
"""How many rows of a column are read at a time."""

WORK_LASTS_S = 7 * 24 * 3600
"""How long work that was stopped is kept, so that it can go on; raw levels lie in it."""

Column = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Spool:
    """The folder of one piece of work.

    Attributes:
        durable: whether a mark may be believed after the machine itself went down.
    """

    folder: Path
    durable: bool = True

    def prepare(self) -> None:
        """Make the folder, for its owner alone."""
        inner = ("marks", "levels", "sealed", f"sealed/{TRAIN}", f"sealed/{HELD_BACK}")
        for part in (self.folder, *(self.folder / name for name in inner)):
            part.mkdir(mode=0o700, parents=True, exist_ok=True)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no other driver works in the folder, and keep others out meanwhile.

        The lock lies beside the folder, which may be removed; it is gone when its holder is, however that ended.

        Raises:
            FabricError: `EVIDENCE_UNWRITABLE`.
        """
        try:
            self.folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self._lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError:
            raise FabricError(
                Reason.EVIDENCE_UNWRITABLE, f"cannot write to {self.folder.parent}", "make the folder writable"
            ) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    @property
    def _lock(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.lock")

    def clear(self) -> None:
        """Remove everything, raw levels included."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def put(self, name: str, first: int, values: Column) -> None:
        """Write `values` as rows from `first` on of the column `name`."""
        with open(os.open(self._path(name), os.O_RDWR | os.O_CREAT, 0o600), "rb+") as file:
            file.seek(first * values.dtype.itemsize)
            file.write(np.ascontiguousarray(values).data)

    def sync(self) -> None:
        """Put what was written of every column on the disk."""
        for path in self.folder.glob("*.col") if self.durable else ():
            with path.open("rb") as file:
                os.fsync(file.fileno())

    def column(self, name: str, dtype: Any) -> Column:
        """Return the whole column as an array that is read from disk where it is touched."""
        return np.memmap(self._path(name), dtype=dtype, mode="r")

    def strides(self, name: str, dtype: Any) -> Iterator[tuple[int, Column]]:
        """Yield the column in pieces that fit into memory, each with its first row."""
        size = np.dtype(dtype).itemsize
        with self._path(name).open("rb") as file:
            first = 0
            while block := file.read(STRIDE * size):
                values = np.frombuffer(block, dtype=dtype)
                yield first, values
                first += len(values)

    def remove(self, name: str) -> None:
        """Remove a column."""
        self._path(name).unlink(missing_ok=True)

    def has(self, name: str) -> bool:
        """Say whether the column was written."""
        return self._path(name).exists()

    def put_levels(self, column: str, unit: int, levels: Sequence[str | None]) -> None:
        """Write the raw levels that one unit's rows of a column have; they never leave this folder."""
        table = pa.table({"level": pa.array(levels, pa.large_string())})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        self.write(self.folder / "levels" / f"{column}.{unit}", memoryview(sink.getvalue()))

    def levels(self, column: str, unit: int) -> list[str | None]:
        """Return the raw levels of one unit."""
        with pa.memory_map(str(self.folder / "levels" / f"{column}.{unit}")) as file, pa.ipc.open_file(file) as reader:
            found: list[str | None] = reader.read_all().column("level").to_pylist()
        return found

    def sealed(self, part: str, index: int) -> Path:
        """Return where a chunk of a part lies once it is sealed."""
        return self.folder / "sealed" / part / chunk_name(index)

    def mark(self, stage: str, item: str, facts: Mapping[str, Any]) -> None:
        """Say that a stage is done with an item, and what it found: counts, never a value."""
        self.write(self.folder / "marks" / f"{stage}.{item}", json.dumps(facts).encode())

    def facts(self, stage: str, item: str) -> dict[str, Any] | None:
        """Return what a stage found of an item, or None if it is not done."""
        try:
            found: dict[str, Any] = json.loads((self.folder / "marks" / f"{stage}.{item}").read_bytes())
        except (OSError, ValueError):
            return None
        return found

    def write(self, path: Path, content: bytes | memoryview) -> None:
        """Write a file of mode 0600 whole or not at all."""
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        with open(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            if self.durable:
                os.fsync(file.fileno())
        part.replace(path)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.col"


def sweep(folder: Path, before: float) -> int:
    """Remove work that nobody does and nobody touched since `before`, seconds since 1970; return how much it was.

    Work that a crash stopped holds raw levels, and a CSV written again; it is kept only so that it can go on.
    """
    removed = 0
    for work in sorted(path for path in folder.glob("*") if path.is_dir() and not path.is_symlink()):
        spool = Spool(work)
        try:
            lock = os.open(spool._lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if max(path.stat().st_mtime for path in (work, *work.glob("*"))) < before:
                    spool.clear()
                    removed += 1
            finally:
                os.close(lock)
        except OSError:
            continue  # somebody works there, or has just removed it
    return removed
