"""Staging: what the border service may hand out, laid ready by the private zone.

An offer is one crossing: a folder named after it, with every byte string that `crossing.admit` needs under its digest,
a list that names them, and the ledger's proof that the crossing was recorded. It becomes visible whole, by one rename,
and goes away by one; it ends with its grant. What a client names is looked up in the list, and never is a path.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path

from fabric.artifacts import bare, canonical, chunk_name, digest
from fabric.crossing import BESIDE, CAPSULE, GRANT, PARAMETERS, STATEMENT, Cargo
from fabric.errors import EvidenceInvalid, FabricError, Reason
from fabric.matrix import StoredChunks
from fabric.statements import PublicKey
from fabric.stores import Home
from fabric.tokens import Recorded, closed, is_crossing_id, prove
from fabric.verification import Receipt

_LIST = "offer.json"


@dataclass(frozen=True, slots=True)
class Item:
    """One byte string of an offer."""

    digest: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A crossing that may be fetched: what the ledger proves of it, and its byte strings by name."""

    recorded: Recorded
    items: Mapping[str, Item]
    folder: Path

    @property
    def size_bytes(self) -> int:
        """Return the size of all items."""
        return sum(item.size for item in self.items.values())

    def listing(self) -> bytes:
        """Return what a client is told of the items: name, digest and size of each."""
        return canonical({name: [item.digest, item.size] for name, item in self.items.items()})

    def path(self, item: Item) -> Path:
        """Return the file of an item."""
        return self.folder / bare(item.digest)


@dataclass(frozen=True, slots=True)
class Staging:
    """The offers of one fabric, in its home folder. Safe to share between threads and processes.

    Attributes:
        keys: that the fabric's ledger was signed with.
    """

    folder: Path
    keys: tuple[PublicKey, ...]
    _known: dict[str, tuple[int, Offer]] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @classmethod
    def of(cls, home: Home, keys: Sequence[PublicKey]) -> Staging:
        """Return the staging of a home folder, made if need be.

        Raises:
            FabricError: `EVIDENCE_UNWRITABLE`.
        """
        return cls(home.border_folder("offers"), tuple(keys))

    def offer(self, cargo: Cargo, grant: bytes, receipt: Receipt, record: bytes) -> Offer:
        """Lay a recorded crossing ready to be fetched; done again for the same crossing, it changes nothing.

        Raises:
            EvidenceInvalid: the receipt does not prove that the crossing was recorded.
            FabricError: `EVIDENCE_UNWRITABLE`: the folder cannot be written.
        """
        # 1. No receipt, no offer.
        recorded = prove(receipt, record, grant, keys=self.keys)
        target = self.folder / recorded.crossing
        part = self.folder / f".{recorded.crossing}.{secrets.token_hex(4)}"
        try:
            # 2. Every byte string under its digest, beside what names and proves them.
            part.mkdir(mode=0o700)
            items = _lay(part, _contents(cargo, grant)) | _lay_chunks(part, cargo.matrix.chunks)
            listed = {
                "items": {name: [item.digest, item.size] for name, item in items.items()},
                "receipt": asdict(receipt),
                "record": record.decode(),
            }
            _write(part / _LIST, json.dumps(listed).encode())
            # 3. Visible at once, or not at all.
            if not target.exists():
                part.rename(target)
        except OSError:
            raise _unwritable(self.folder) from None
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return Offer(recorded=recorded, items=items, folder=target)

    def find(self, crossing: str, *, now: datetime) -> Offer | None:
        """Return the offer of a crossing, if it is open: laid ready, not closed, not ended.

        Raises:
            EvidenceInvalid: what lies there is not what was offered.
        """
        if not is_crossing_id(crossing):
            return None
        listing = self.folder / crossing / _LIST
        try:
            seen = listing.stat()
        except OSError:
            return None
        with self._lock:
            marked, offer = self._known.get(crossing, (0, None))
        if offer is None or marked != seen.st_ino:
            offer = self._read(listing)
            with self._lock:
                self._known[crossing] = (seen.st_ino, offer)
        return offer if now < offer.recorded.expires_at else None

    def is_open(self, offer: Offer, *, now: datetime) -> bool:
        """Say whether an offer that was found is still open: cheap enough to ask for every piece."""
        return now < offer.recorded.expires_at and (offer.folder / _LIST).exists()

    def close(self, crossing: str) -> bool:
        """Close a crossing: from now on its tokens open nothing. Return whether it was open."""
        if not is_crossing_id(crossing):
            return False
        gone = self.folder / f".{crossing}.{secrets.token_hex(4)}"
        try:
            (self.folder / crossing).rename(gone)
        except OSError:
            return False
        shutil.rmtree(gone, ignore_errors=True)
        with self._lock:
            self._known.pop(crossing, None)
        return True

    def crossings(self) -> list[str]:
        """Return the crossings that lie ready, whether their time is over or not."""
        return sorted(path.name for path in self.folder.iterdir() if is_crossing_id(path.name))

    def expire(self, *, now: datetime) -> list[str]:
        """Close every crossing whose grant has ended, and return them."""
        ended, ready = [], self.crossings()
        with self._lock:
            for crossing in set(self._known) - set(ready):
                del self._known[crossing]  # closed by another process
        for crossing in ready:
            try:
                over = self.find(crossing, now=now) is None
            except FabricError:
                over = True  # what nobody can believe is not kept ready
            if over and self.close(crossing):
                ended.append(crossing)
        return ended

    def _read(self, listing: Path) -> Offer:
        try:
            told = json.loads(listing.read_bytes())
            receipt = Receipt(**{**told["receipt"], "proof": tuple(told["receipt"]["proof"])})
            items = {str(name): Item(str(stated), int(size)) for name, (stated, size) in told["items"].items()}
            grant = (listing.parent / bare(items[GRANT].digest)).read_bytes()
            recorded = prove(receipt, told["record"].encode(), grant, keys=self.keys)
        except OSError:
            raise closed() from None  # closed between two looks
        except (ValueError, TypeError, KeyError):
            raise EvidenceInvalid(
                Reason.EVIDENCE_INVALID, "an offer of the border is not whole", "close it and run the job again"
            ) from None
        if recorded.crossing != listing.parent.name:
            raise EvidenceInvalid(Reason.EVIDENCE_INVALID, "an offer lies under another name", "run the job again")
        return Offer(recorded=recorded, items=items, folder=listing.parent)


def _contents(cargo: Cargo, grant: bytes) -> dict[str, bytes]:
    found = {GRANT: grant, STATEMENT: cargo.matrix.signed.envelope, PARAMETERS: cargo.parameters}
    if cargo.capsule is not None:
        found[CAPSULE] = cargo.capsule.payload
    if cargo.checkpoint is not None:
        found |= {f"{BESIDE}{name}": content for name, content in cargo.checkpoint.files.items()}
    return found


def _lay(folder: Path, contents: Mapping[str, bytes]) -> dict[str, Item]:
    items = {}
    for name, content in contents.items():
        items[name] = Item(digest(content), len(content))
        _write(folder / bare(items[name].digest), content)
    return items


def _lay_chunks(folder: Path, chunks: Sequence[bytes]) -> dict[str, Item]:
    """Lay the chunks of a matrix; those in files of the same disk are not copied."""
    items = {}
    for index in range(len(chunks)):
        name = chunk_name(index)
        if isinstance(chunks, StoredChunks):
            stated, source = chunks.digests[index], chunks.folder / name
            try:
                if not (folder / bare(stated)).exists():
                    os.link(source, folder / bare(stated))
                items[name] = Item(stated, source.stat().st_size)
                continue
            except OSError:
                pass  # another disk: it is copied
        items |= _lay(folder, {name: chunks[index]})
    return items


def _write(path: Path, content: bytes) -> None:
    with open(os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _unwritable(path: Path) -> FabricError:
    return FabricError(
        Reason.EVIDENCE_UNWRITABLE,
        f"cannot write to {path}",
        "what crosses is laid ready there: make the folder writable, or free space on its disk",
    )
