"""Releases: what was let out of the same records before, so that two releases cannot be subtracted from each other.

A release is proposed when a matrix is sealed, and counts once it crossed. Kept are digests, definitions of columns and
keyed ids of subjects; never a value, never a plain identifier.

Two releases whose subjects differ by one say of that one what the difference of any count or sum says (trackers:
Denning, Denning & Schwartz 1979; Denning & Schlorer 1980). So the subjects of two releases are the same, or at least k
are in the one and not in the other. Limits of the rule: it compares releases two by two, not with what several earlier
ones say together; it sees subjects, not rows, so a further row of a subject who was there before goes unseen; and who
learns from elsewhere which of the k stand in both may still subtract. What earlier releases tell of a row must
therefore be measured together with what this one tells: `earlier_quasi`. A number leaves in one reading only, release
after release: bins of other edges each time would find it.

Subjects are told by the keyed ids of the recipe's `subject`, whatever the records are called that they come from.
Without a subject they are numbers of rows: rows that are exchanged between two versions of a file go unseen then.

Files of the folder, each written whole or not at all:

    <digest>.npy     sorted keyed ids of a release's subjects, uint64
    <digest>.json    the release, with the digest of its ids
    crossed.json     which releases crossed, in order, each with the digest of its <digest>.json
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import re
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fabric.artifacts import bare, canonical, digest, digest_of
from fabric.errors import EvidenceInvalid, FabricError, InvalidInput, Reason, Refused
from fabric.statements import timestamp

Subjects = np.ndarray[Any, np.dtype[np.uint64]]

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
_INDEX = "crossed.json"
_LOCK = "lock"
_PART = ".part"
_MAX_RELEASE_BYTES = 4 * 1024 * 1024
_MAX_INDEX_BYTES = 256 * 1024 * 1024
_BLOCK = 1 << 20
_AGAIN = "sanitize the records again: what has crossed since counts against it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A matrix that was sealed.

    Attributes:
        matrix: its digest.
        records: keyed digest of the version of each records file that it was made from, by name.
        recipe: the recipe's digest.
        quasi: definitions of its quasi-identifiers, as the recipe's JSON has them.
        sequence: how many releases of these records had crossed when this one was checked.
        main: the name of the records that the recipe starts from.
        subject: the column that says whose row it is; empty if every row was another subject.
        readings: for each number that left, its column (`<records>.<column>`), and the treatment with its settings.
    """

    matrix: str
    records: Mapping[str, str]
    recipe: str
    purpose: str
    quasi: tuple[Mapping[str, Any], ...]
    rows: int
    sequence: int
    main: str = ""
    subject: str = ""
    readings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _DIGEST.match(self.matrix) or not self.records:
            raise InvalidInput(Reason.DIGEST_MISMATCH, "a release names no matrix by its digest, or no records")

    def to_json(self) -> dict[str, Any]:
        """Return the release as JSON without floats."""
        return {
            "matrix": self.matrix,
            "records": dict(self.records),
            "recipe": self.recipe,
            "purpose": self.purpose,
            "quasi": [dict(column) for column in self.quasi],
            "rows": self.rows,
            "sequence": self.sequence,
            "main": self.main,
            "subject": self.subject,
            "readings": {column: dict(reading) for column, reading in self.readings.items()},
        }

    def shares(self, records: Collection[str]) -> bool:
        """Say whether the release was made from any of `records`."""
        return not self.records.keys().isdisjoint(records)


@dataclass(frozen=True, slots=True)
class Releases:
    """The releases of one fabric, in a folder of its private home, which is made when the first is proposed."""

    folder: Path

    def propose(self, release: Release, subjects: Subjects) -> None:
        """Remember a release that was sealed and has not crossed.

        Args:
            subjects: keyed ids of the subjects of its rows; sorted ones may be mapped from a file.

        Raises:
            FabricError: `EVIDENCE_UNWRITABLE`.
            EvidenceInvalid: what is kept is corrupt.
        """
        path = self._path(release.matrix)
        with self._locked():
            index = self._index()
            if any(entry["matrix"] == release.matrix for entry in index):
                return  # the same bytes crossed already: they say nothing new
            ids = _sorted(subjects)
            if not len(ids):
                raise InvalidInput(Reason.RECORDS_EMPTY, "a release of no subjects is none")
            if not (self.folder / _INDEX).exists():
                _write(self.folder / _INDEX, canonical(index))
            content = _write_ids(path.with_suffix(".npy"), ids)
            _write(path, canonical({**release.to_json(), "subjects": len(ids), "ids": content}))

    def crossed(self, matrix: str, zone: str, at: datetime) -> None:
        """Remember that a matrix crosses; call it before the first byte moves.

        Raises:
            Refused: `RELEASE_STALE`: it was not proposed here, or was checked before another release crossed.
            EvidenceInvalid: what is kept is corrupt.
        """
        with self._locked():
            index = self._index()
            if any(entry["matrix"] == matrix for entry in index):
                return
            path = self._path(matrix)
            if not path.exists():
                raise Refused(Reason.RELEASE_STALE, f"the release of {matrix} is not known here", _AGAIN)
            content = _read(path, _MAX_RELEASE_BYTES)
            release, _ = _release(path.name, content)
            now = sum(each.shares(release.records) for each in self._all())
            check_sequence(release.sequence, now)
            entry = {"matrix": matrix, "zone": zone, "at": timestamp(at), "release": digest(content)}
            _write(self.folder / _INDEX, canonical([*index, entry]))

    def earlier(self, records: Collection[str]) -> tuple[Release, ...]:
        """Return the releases made from any of `records` that crossed, newest last.

        Raises:
            EvidenceInvalid: what is kept is corrupt.
        """
        return tuple(release for release in self._all() if release.shares(records))

    def sequence(self, records: Collection[str]) -> int:
        """Return how many releases made from any of `records` crossed.

        Raises:
            EvidenceInvalid: what is kept is corrupt.
        """
        return len(self.earlier(records))

    def earlier_quasi(self, records: Collection[str]) -> tuple[Mapping[str, Any], ...]:
        """Return the quasi-identifiers of all earlier releases, each definition once.

        Raises:
            EvidenceInvalid: what is kept is corrupt.
        """
        definitions = [column for release in self.earlier(records) for column in release.quasi]
        return tuple({digest_of(column): column for column in definitions}.values())

    def check(self, subjects: Subjects, records: Collection[str], k: int, *, named: bool = False) -> tuple[str, ...]:
        """Return what speaks against releasing rows of `subjects` after what was released before; nothing if it may be.

        Args:
            named: the ids are of persons, not of rows: most of them are the same people, whatever the records' name.

        Raises:
            EvidenceInvalid: what is kept is corrupt.
        """
        now = _sorted(subjects)
        against = []
        for release in self._all():
            then = self._ids(release.matrix)
            both = _common(now, then)
            if not (release.shares(records) or (named and 2 * both > min(len(now), len(then)))):
                continue
            added, gone = len(now) - both, len(then) - both
            few = [f"{count:,} {what}" for count, what in ((added, "more"), (gone, "fewer")) if 0 < count < k]
            if few:
                against.append(
                    f"beside the release {release.matrix[:19]} of the same people it holds {' and '.join(few)} "
                    f"subjects: subtracted, they say what is true of fewer than {k}"
                )
        return tuple(against)

    def comparable(self, release: Release) -> tuple[str, ...]:
        """Return why `release` cannot be held against what was released before; nothing if it can be.

        Raises:
            EvidenceInvalid: what is kept is corrupt.
        """
        against = []
        for earlier in self._all():
            beside = f"beside the release {earlier.matrix[:19]}"
            if not release.shares(earlier.records) and {*release.records.values()} & {*earlier.records.values()}:
                against.append(f"{beside} it reads a file under another name than then; call it {earlier.main!r} again")
            if not release.shares(earlier.records):
                continue
            if earlier.main == release.main and earlier.subject != release.subject:
                whose = f"{earlier.subject!r} was" if earlier.subject else "no column was"
                against.append(f"{beside} its subjects mean nothing: {whose} the subject then; name the same")
            for column, reading in release.readings.items():
                if earlier.readings.get(column, reading) != reading:
                    then = earlier.readings[column]["treatment"]
                    against.append(f"{beside} it tells more of {column!r}, which left by {then} of other settings")
        return tuple(dict.fromkeys(against))

    def _all(self) -> Iterator[Release]:
        for entry in self._index():
            path = self._path(entry["matrix"])
            content = _read(path, _MAX_RELEASE_BYTES)
            if digest(content) != entry["release"]:
                raise _corrupt(path.name, "is not what crossed")
            yield _release(path.name, content)[0]

    def _index(self) -> list[dict[str, str]]:
        if not (self.folder / _INDEX).exists() and not any(self.folder.glob("*.json")):
            return []
        content = _read(self.folder / _INDEX, _MAX_INDEX_BYTES)
        index = _parsed(_INDEX, content)
        if not isinstance(index, list) or not all(_is_entry(entry) for entry in index):
            raise _corrupt(_INDEX, "is no list of releases")
        return index

    def _ids(self, matrix: str) -> Subjects:
        """Return the subjects of a release, mapped from their file once its digest is checked."""
        path = self._path(matrix)
        _, stated = _release(path.name, _read(path, _MAX_RELEASE_BYTES))
        ids = path.with_suffix(".npy")
        try:
            with ids.open("rb") as file:
                actual = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
            mapped: Subjects = np.load(ids, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            raise _corrupt(ids.name, "cannot be read") from None
        if actual != stated or mapped.dtype != np.uint64 or mapped.ndim != 1:
            raise _corrupt(ids.name, "is not what was written")
        return mapped

    def _path(self, matrix: str) -> Path:
        if not _DIGEST.match(matrix):
            raise InvalidInput(Reason.DIGEST_MISMATCH, "a matrix is named by its digest, sha256:<64 hex digits>")
        return self.folder / f"{bare(matrix)}.json"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Let one process at a time change the folder; what a process left that was killed is removed."""
        with _writing(self.folder):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self.folder / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for part in self.folder.glob(f".*{_PART}"):
                part.unlink(missing_ok=True)
            yield
        finally:
            os.close(lock)


def check_sequence(stated: int, now: int) -> None:
    """Refuse a matrix that was checked before another release of its records crossed.

    Args:
        stated: how many releases had crossed when it was sealed, as its statement says.
        now: how many have.

    Raises:
        Refused: `RELEASE_STALE`.
    """
    if stated != now:
        message = f"the matrix was checked beside {stated} releases of its records, and {now} have crossed"
        raise Refused(Reason.RELEASE_STALE, message, _AGAIN)


def _common(one: Subjects, other: Subjects) -> int:
    """Return how many ids are in both sorted arrays, a block at a time."""
    few, many = sorted((one, other), key=len)
    if not len(many):
        return 0
    both = 0
    for start in range(0, len(few), _BLOCK):
        block = np.asarray(few[start : start + _BLOCK])
        place = np.minimum(np.searchsorted(many, block), len(many) - 1)
        both += int((many[place] == block).sum())
    return both


def _sorted(subjects: Subjects) -> Subjects:
    """Return each id once, in order; ids that are so already are not read into memory."""
    if subjects.dtype != np.uint64 or subjects.ndim != 1:
        raise InvalidInput(Reason.MATRIX_MALFORMED, f"the subjects are {subjects.dtype}, not uint64")
    parts = (subjects[start : start + _BLOCK + 1] for start in range(0, len(subjects), _BLOCK))
    return subjects if all(bool((part[1:] > part[:-1]).all()) for part in parts) else np.unique(subjects)


def _release(name: str, content: bytes) -> tuple[Release, str]:
    """Return a kept release and the digest of its ids."""
    raw = _parsed(name, content)
    try:
        ids = str(raw["ids"])
        return Release(
            matrix=raw["matrix"],
            records={str(key): str(value) for key, value in raw["records"].items()},
            recipe=raw["recipe"],
            purpose=raw["purpose"],
            quasi=tuple(dict(column) for column in raw["quasi"]),
            rows=int(raw["rows"]),
            sequence=int(raw["sequence"]),
            main=str(raw.get("main", "")),
            subject=str(raw.get("subject", "")),
            readings={str(column): dict(reading) for column, reading in raw.get("readings", {}).items()},
        ), ids
    except (KeyError, TypeError, ValueError, AttributeError, FabricError):
        raise _corrupt(name, "is no release") from None


def _is_entry(entry: object) -> bool:
    keys = ("matrix", "zone", "at", "release")
    return isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in keys)


def _parsed(name: str, content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise _corrupt(name, "is not JSON") from None


def _read(path: Path, most: int) -> bytes:
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
            content = file.read(most + 1)
    except OSError:
        raise _corrupt(path.name, "cannot be read") from None
    if len(content) > most:
        raise _corrupt(path.name, f"is larger than {most:,} bytes")
    return content


def _write(path: Path, content: bytes) -> None:
    _replace(path, lambda file: file.write(content))


def _write_ids(path: Path, ids: Subjects) -> str:
    """Write ids as .npy and return the file's digest."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<u8", "fortran_order": False, "shape": (len(ids),)})
    seen = hashlib.sha256(header.getvalue())

    def write(file: BinaryIO) -> None:
        file.write(header.getvalue())
        for start in range(0, len(ids), _BLOCK):
            part = np.ascontiguousarray(ids[start : start + _BLOCK], dtype="<u8").tobytes()
            seen.update(part)
            file.write(part)

    _replace(path, write)
    return "sha256:" + seen.hexdigest()


def _replace(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file of mode 0600 whole or not at all, and its name with it."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_PART}")
    with _writing(path):
        try:
            with open(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600), "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError:
        raise FabricError(
            Reason.EVIDENCE_UNWRITABLE,
            f"cannot write to {path}",
            "nothing crosses that is not remembered: make the folder writable",
        ) from None


def _corrupt(name: str, what: str) -> EvidenceInvalid:
    return EvidenceInvalid(
        Reason.EVIDENCE_INVALID,
        f"what is kept of earlier releases is not whole: {name} {what}",
        "restore the folder of releases from a backup; until then nothing of these records crosses",
    )
