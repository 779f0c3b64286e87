"""The inbox: where the border service puts what other zones return, piece by piece, unread.

A delivery is a few files under names of a closed list, each with the size and digest that were declared of it. Pieces
come in order and are appended; a file counts once its digest is the declared one; a delivery is visible by one rename.
Nothing here is parsed, unpacked or believed: it is bytes on a disk, within limits, for quarantine to look at. A sender
that did not hear what became of its delivery may send it again, also once it was taken: it is taken once.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from fabric.artifacts import canonical, digest
from fabric.errors import InvalidInput, Reason, StatementInvalid
from fabric.stores import Home
from fabric.tokens import is_crossing_id

MIB = 1024 * 1024
RETURN_LIMITS: Mapping[str, int] = MappingProxyType(
    {
        "model.safetensors": 2 * 1024 * MIB,
        "optimizer.safetensors": 6 * 1024 * MIB,
        "state.json": 16 * MIB,
        "history.json": 16 * MIB,
        "progress.json": 1 * MIB,
        "result.json": 64 * MIB,
        "result.arrow": 64 * MIB,
        "answer.json": 1 * MIB,
        "content": 64 * MIB,
    }
)
"""What may come back, by name, and how large; beside it `chunk-000000` and so on, of 64 MiB each."""

MAX_FILES = 1_024  # of one delivery
MAX_SLOT = 999_999
FORGOTTEN_S = 3_600.0
"""After so long, what nobody took of a crossing that is over is removed."""

_CHUNK = re.compile(r"chunk-[0-9]{6}\Z")
_CHUNK_BYTES = 64 * MIB
_MAX_WAITING = 64  # deliveries that nobody took, of one crossing
_KEEP_FREE = 256 * MIB  # of the disk
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})\Z")
_LIST = "delivery.json"
_PIECES = "pieces"
_TAKEN = ".taken"


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """A file that is to come: its name, size and digest, checked against the closed list."""

    name: str
    size: int
    digest: str

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or limit_of(self.name) < 0:
            raise _refused("the file has a name that is not on the list", f"names: {', '.join(sorted(RETURN_LIMITS))}")
        if type(self.size) is not int or not 0 <= self.size <= limit_of(self.name):
            raise _refused(f"the file {self.name!r} may have {limit_of(self.name)} bytes at most", "return less")
        if not isinstance(self.digest, str) or not _DIGEST.match(self.digest):
            raise _refused("the file is declared without a SHA-256 digest", "sha256: and 64 hex digits")

    @property
    def place(self) -> str:
        """Return the name of the file in which its pieces are gathered."""
        return f"{self.digest[7:]}.{self.size}"


@dataclass(frozen=True, slots=True)
class Inbox:
    """What was returned to one fabric. One border service writes to it; safe to share between its threads.

    Attributes:
        most: bytes that one crossing may have lying here.
    """

    folder: Path
    most: int
    _locks: tuple[threading.Lock, ...] = field(default_factory=lambda: tuple(threading.Lock() for _ in range(64)))

    @classmethod
    def of(cls, home: Home, *, most: int) -> Inbox:
        """Return the inbox of a home folder, made if need be."""
        return cls(home.border_folder("inbox"), most)

    def landed(self, crossing: str, declared: Declared) -> int:
        """Return how many bytes of a file are here: where its sender goes on."""
        with self._locked(crossing) as folder:
            return _size(folder / _PIECES / declared.place)

    def put(self, crossing: str, declared: Declared, offset: int, piece: memoryview) -> int:
        """Append a piece, and return how many bytes of the file are here now.

        A piece that is here already changes nothing; one that comes too early is answered with where to go on.

        Raises:
            InvalidInput: `RESULT_REFUSED`: more than was declared, or than may lie here.
        """
        with self._locked(crossing) as folder:
            pieces = folder / _PIECES
            path = pieces / declared.place
            here = _size(path)
            if offset != here:
                return here
            if here + len(piece) > declared.size:
                raise _refused(f"more came of {declared.name!r} than was declared", "declare what is sent")
            if here == 0:
                if len(list(pieces.iterdir())) >= MAX_FILES:
                    raise _refused("too many files of this crossing are under way", "send one after the other")
                self._make_room(folder, declared.size)
            with open(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY | os.O_NOFOLLOW, 0o600), "ab") as file:
                file.write(piece)
            return here + len(piece)

    def commit(self, crossing: str, slot: int, files: Mapping[str, Declared], digest_of: Callable[[Path], str]) -> None:
        """Make a delivery of files that are all here, visible at once; done again, it changes nothing.

        Args:
            digest_of: reads a file and returns its digest; may take its time.

        Raises:
            InvalidInput: `RESULT_REFUSED`: a file is not here whole, or the slot holds another delivery.
            StatementInvalid: `DIGEST_MISMATCH`: a file is not what was declared; its bytes are gone then.
        """
        if type(slot) is not int or not 0 <= slot <= MAX_SLOT or not 0 < len(files) <= MAX_FILES:
            raise _refused("the delivery has no number, no file or too many", f"at most {MAX_FILES} files")
        listed = canonical({name: {"digest": one.digest, "size": one.size} for name, one in files.items()})
        with self._locked(crossing) as folder:
            target = folder / f"{slot:06d}"
            if _came(folder, slot, digest(listed)):
                return
            _put_back(folder)
            self._make_room(folder, sum(one.size for one in _again(files)))
            _check_whole(folder / _PIECES, files, digest_of)
            part = folder / f".{slot:06d}.{secrets.token_hex(4)}"
            part.mkdir(mode=0o700)
            (part / _LIST).write_bytes(listed)  # first: whoever finds this half done knows what is what
            moved: dict[str, Path] = {}
            for name, one in sorted(files.items()):
                if one.place in moved:
                    shutil.copyfile(moved[one.place], part / name)
                else:
                    moved[one.place] = (folder / _PIECES / one.place).rename(part / name)
            part.rename(target)

    def deliveries(self, crossing: str) -> dict[int, Path]:
        """Return the deliveries of a crossing that lie here, by number: folders of plain files, nothing checked yet."""
        folder = self.folder / crossing
        if not is_crossing_id(crossing) or not folder.is_dir():
            return {}
        return {int(path.name): path for path in sorted(folder.iterdir()) if path.name.isdigit()}

    def declared(self, delivery: Path) -> dict[str, Declared]:
        """Return what was declared of the files of a delivery, and found to be so."""
        told = json.loads((delivery / _LIST).read_bytes())
        return {name: Declared(name=name, **stated) for name, stated in told.items()}

    def take(self, crossing: str, slot: int, target: Path) -> Path:
        """Move a delivery into the folder `target` and return where it is now. Deliveries are taken in their order."""
        source = self.folder / crossing / f"{slot:06d}"
        # The note comes first: whoever asks for the delivery finds it here or taken, at any moment.
        note = source.parent / f"{_TAKEN}.{secrets.token_hex(4)}"
        note.write_text(f"{slot} {digest((source / _LIST).read_bytes())}")
        note.replace(source.parent / _TAKEN)
        return source.rename(target / source.name)

    def discard(self, crossing: str, slot: int | None = None) -> None:
        """Remove a delivery, or all that a crossing returned."""
        if not is_crossing_id(crossing):
            return
        folder = self.folder / crossing
        shutil.rmtree(folder if slot is None else folder / f"{slot:06d}", ignore_errors=True)

    def clear(self, keep: Callable[[str], bool], *, now_s: float) -> None:
        """Remove what is not whole of every crossing that is not to be kept, and in time what nobody took of it."""
        for path in self.folder.iterdir():
            if not is_crossing_id(path.name) or keep(path.name):
                continue
            with suppress(FileNotFoundError):  # its driver discards it
                if path.stat().st_mtime < now_s - FORGOTTEN_S:
                    shutil.rmtree(path, ignore_errors=True)
                    continue
                for each in path.iterdir():
                    if not each.name.isdigit():
                        shutil.rmtree(each, ignore_errors=True)

    def size_bytes(self, crossing: str) -> int:
        """Return how many bytes of a crossing lie here, those that are declared and still to come included."""
        return _declared_bytes(self.folder / crossing)

    def _make_room(self, folder: Path, more: int) -> None:
        """Refuse what would fill the disk: too many deliveries, or too many bytes."""
        if len([path for path in folder.iterdir() if path.name.isdigit()]) >= _MAX_WAITING:
            raise _refused("too many deliveries of this crossing lie here", "wait until they are taken")
        if _declared_bytes(folder) + more > self.most:
            raise _refused(f"more than {self.most} bytes of one crossing would lie here", "return less")
        if shutil.disk_usage(folder).free < more + _KEEP_FREE:
            raise _refused("the private zone has no room for the file", "return less, or later")

    def _locked(self, crossing: str) -> _Place:
        if not is_crossing_id(crossing):
            raise _refused("the crossing has no id that could be one", "use the ticket that came with the job")
        return _Place(self._locks[int(crossing[:2], 16) % len(self._locks)], self.folder / crossing)


class _Place:
    """The folder of one crossing, held by one thread at a time."""

    def __init__(self, lock: threading.Lock, folder: Path) -> None:
        self._lock, self._folder = lock, folder

    def __enter__(self) -> Path:
        self._lock.acquire()
        try:
            (self._folder / _PIECES).mkdir(mode=0o700, parents=True, exist_ok=True)
        except BaseException:
            self._lock.release()
            raise
        return self._folder

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def limit_of(name: str) -> int:
    """Return the largest size of a file of that name; -1 if none of that name may come back."""
    return _CHUNK_BYTES if _CHUNK.match(name) else RETURN_LIMITS.get(name, -1)


def _again(files: Mapping[str, Declared]) -> list[Declared]:
    """Return the files whose content stands under an earlier name too: it is sent once, and takes room twice."""
    seen: set[str] = set()
    return [one for one in files.values() if one.place in seen or seen.add(one.place)]  # type: ignore[func-returns-value]


def _came(folder: Path, slot: int, listed: str) -> bool:
    """Say whether that delivery, by the digest of its list, is here or was taken; refuse another one of its number."""
    try:
        found = digest((folder / f"{slot:06d}" / _LIST).read_bytes())
    except OSError:
        try:
            number, found = (folder / _TAKEN).read_text().split()
        except OSError:
            return False
        if slot > int(number):
            return False
        found = found if slot == int(number) else ""
    if found != listed:
        raise _refused("another delivery has that number", "number deliveries one by one")
    return True


def _put_back(folder: Path) -> None:
    """Put what a commit that was cut off had moved back among the pieces, so that it can be committed again."""
    for part in folder.glob(".[0-9]*"):
        # In the order in which they were moved: of one content under two names the first is whole.
        with suppress(OSError, ValueError):
            for name, stated in sorted(json.loads((part / _LIST).read_bytes()).items()):
                back = folder / _PIECES / Declared(name=name, **stated).place
                if not back.exists():
                    (part / name).rename(back)
        shutil.rmtree(part, ignore_errors=True)


def _check_whole(pieces: Path, files: Mapping[str, Declared], digest_of: Callable[[Path], str]) -> None:
    checked: set[str] = set()
    for name, one in files.items():
        path = pieces / one.place
        if one.place in checked:
            continue
        checked.add(one.place)
        if one.size == 0:
            path.touch(mode=0o600)
        if _size(path) != one.size or not path.exists():
            raise _refused(f"{name!r} is not here whole", "send the rest of it first")
        if digest_of(path) != one.digest:
            path.unlink()
            raise StatementInvalid(
                Reason.DIGEST_MISMATCH, f"{name!r} is not what was declared", "it was altered on the way: send it again"
            )


def _declared_bytes(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):  # which passes over what is taken meanwhile
        if Path(place).name == _PIECES:
            total += sum(int(name.rpartition(".")[2]) for name in names)
        else:
            total += sum(_size(Path(place) / name) for name in names)
    return total


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _refused(message: str, hint: str) -> InvalidInput:
    return InvalidInput(Reason.RESULT_REFUSED, message, hint)
