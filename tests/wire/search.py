"""A search for planted values in bytes, files, folders and processes; packed data is opened and searched too.

A strong pattern is a hit. A weak one (a number that says less than six bytes, days since 1970) lies about by chance,
so it counts only where `TOGETHER` different rows of its column and encoding lie within `NEAR_BYTES`, as a column of a
table would. Not found: values that were encrypted, keyed, XORed, split over two messages, or small numbers strewn one
by one.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import hyperscan

from wire.needles import Kind, Needle, needles
from wire.unpacking import packages

NEAR_BYTES = 16 * 1024
TOGETHER = 4
DEPTH = 3
"""How many packages within packages are opened."""

_PIECE = 64 << 20
_OVERLAP = 1 << 20
_UNWRITTEN = re.compile(r"\.so[.\d]*$|/(?:lib|bin|share)/|/usr/")


@dataclass(frozen=True, slots=True, order=True)
class Hit:
    """A planted value that was found: which, and where. Never the value."""

    column: str
    encoding: str
    place: str


@dataclass(slots=True)
class Found:
    """What a search saw: its hits, and how much there was to see, so that nothing passes because nothing was read."""

    hits: set[Hit] = field(default_factory=set)
    searched_bytes: int = 0
    places: int = 0
    unread: list[str] = field(default_factory=list)

    def columns(self) -> set[str]:
        """Return the columns of which a value was found."""
        return {hit.column for hit in self.hits}

    def __iadd__(self, other: Found) -> Found:
        self.hits |= other.hits
        self.searched_bytes += other.searched_bytes
        self.places += other.places
        self.unread += other.unread
        return self


class Search:
    """The patterns of all planted values, compiled once."""

    def __init__(self, patterns: Sequence[Needle]) -> None:
        self._patterns = patterns
        self._database = hyperscan.Database(mode=hyperscan.HS_MODE_BLOCK)
        self._database.compile(
            expressions=[b"".join(b"\\x%02x" % byte for byte in each.pattern) for each in patterns],
            ids=list(range(len(patterns))),
            elements=len(patterns),
            # A strong pattern is reported once in a piece; a weak one each time, to see what is beside it.
            flags=[0 if each.weak else hyperscan.HS_FLAG_SINGLEMATCH for each in patterns],
        )

    @classmethod
    def for_columns(cls, values: Mapping[str, Sequence[str]], kinds: Mapping[str, Kind]) -> Search:
        """Return the search for the values of each column."""
        return cls([each for column, kind in kinds.items() for each in needles(column, kind, values[column])])

    def content(self, content: bytes, place: str, *, depth: int = DEPTH) -> Found:
        """Search bytes, and what is packed in them."""
        found = Found(searched_bytes=len(content), places=1)
        found.hits = {Hit(needle.column, needle.encoding, place) for needle in self._matches(content)}
        if depth:
            for kind, start, unpacked in packages(content):
                found += self.content(unpacked, f"{place} > {kind} at {start}", depth=depth - 1)
        return found

    def file(self, path: Path, place: str = "") -> Found:
        """Search a file's content; its name is searched by `folder`."""
        found = Found()
        try:
            with path.open("rb") as file:
                for piece in _pieces(file, 0, path.stat().st_size or _OVERLAP):
                    found += self.content(piece, place or str(path))
        except OSError as error:
            found.unread.append(f"{place or path}: {type(error).__name__}")
        return found

    def folder(self, path: Path) -> Found:
        """Search every plain file below a folder, and the names of all that lies there."""
        found = Found()
        for each in _all_below(path):
            # os.fsencode would do, but a name is text to whoever wrote it
            found += self.content(str(each).encode("utf-8", "surrogateescape"), f"name of {each.parent}/…")
            if each.is_symlink():
                found += self.content(str(each.readlink()).encode("utf-8", "surrogateescape"), f"link in {each.parent}")
            elif each.is_file():
                found += self.file(each)
                with suppress(FileNotFoundError):  # it may go meanwhile
                    for name in os.listxattr(each):
                        found += self.content(name.encode() + b"=" + os.getxattr(each, name), f"attribute of {each}")
        return found

    def process(self, pid: int) -> Found:
        """Search a process: environment, command line, memory that it can read, files that it holds open and unlinked.

        Memory holds shared memory too: an object store is mapped by every process that uses it.
        """
        found, root = Found(), Path(f"/proc/{pid}")
        for name in ("environ", "cmdline", "comm"):
            found += self.file(root / name)
        for opened in _unlinked(root):
            found += self.file(opened)
        for thread in root.glob("task/*/comm"):
            with suppress(OSError):  # it may end meanwhile
                found += self.content(thread.read_bytes(), str(thread))
        try:
            maps = (root / "maps").read_text().splitlines()
            memory = (root / "mem").open("rb", buffering=0)
        except OSError as error:
            found.unread.append(f"{root}: {type(error).__name__}")
            return found
        with memory:
            for line in maps:
                span, mode, *_ = line.split(maxsplit=5)
                start, stop = (int(part, 16) for part in span.split("-"))
                mapped = line.split(maxsplit=5)[5] if len(line.split(maxsplit=5)) == 6 else ""
                if not _worth_reading(mode, mapped):
                    continue
                try:
                    for piece in _pieces(memory, start, stop):
                        found += self.content(piece, f"memory of {pid} {mapped}".rstrip(), depth=1)
                except (OSError, ValueError, OverflowError):
                    continue  # unmapped since it was listed, or a device
        return found

    def _matches(self, content: bytes) -> Iterator[Needle]:
        seen: set[int] = set()
        near: dict[tuple[str, str], deque[tuple[int, int]]] = defaultdict(deque)

        def on_match(index: int, start: int, end: int, flags: int, context: object) -> None:
            needle = self._patterns[index]
            if not needle.weak:
                seen.add(index)
                return
            together = near[needle.column, needle.encoding]
            together.append((end, needle.row))
            while end - together[0][0] > NEAR_BYTES:
                together.popleft()
            aligned = {row for at, row in together if (end - at) % needle.step == 0}
            if len(aligned) >= TOGETHER:
                seen.add(index)

        self._database.scan(content, match_event_handler=on_match)
        return (self._patterns[index] for index in seen)


def _all_below(path: Path) -> list[Path]:
    """Return a folder and all that lies in it; a folder that goes meanwhile is passed over."""
    return [path, *(Path(at, name) for at, folders, files in os.walk(path) for name in (*folders, *files))]


def _worth_reading(mode: str, mapped: str) -> bool:
    """Skip what cannot hold a value: the kernel's pages, and libraries as they lie on the disk."""
    if mode[0] != "r" or mapped.startswith(("[v", "/dev/nvidia", "anon_inode")):
        return False
    return mode[1] == "w" or not mapped.startswith("/") or not _UNWRITTEN.search(mapped)


def _unlinked(root: Path) -> Iterator[Path]:
    """Yield files that a process holds open and that have no name any more: spools, sealed memory."""
    try:
        opened = list((root / "fd").iterdir())
    except OSError:
        return
    for each in opened:
        try:
            target = str(each.readlink())
        except OSError:
            continue
        if target.endswith("(deleted)") and each.is_file():
            yield each


def _pieces(file: object, start: int, stop: int) -> Iterator[bytes]:
    """Yield a file's bytes in pieces that overlap, so that what lies over an edge is seen; zeros are left out."""
    for at in range(start, stop, _PIECE):
        file.seek(at)  # type: ignore[attr-defined]
        piece = file.read(min(_PIECE + _OVERLAP, stop - at))  # type: ignore[attr-defined]
        if piece.count(0) < len(piece):  # most of an object store was never written
            yield piece
