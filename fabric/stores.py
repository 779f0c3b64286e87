"""The home of a fabric: the folder of its keys, evidence, models and quarantine, in the private zone.

Everything in it is made with mode 0700 or 0600. Only the outbox is for other zones: what a public zone writes lands
there and is read as untrusted.
"""

from __future__ import annotations

import hmac
import os
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fabric.artifacts import digest
from fabric.errors import FabricError, InvalidInput, Reason
from fabric.statements import SigningKey


@dataclass(frozen=True, slots=True)
class Home:
    """The folders of one fabric."""

    path: Path

    @classmethod
    def open(cls, path: Path) -> Home:
        """Return the home at `path`, made if need be.

        Raises:
            FabricError: `EVIDENCE_UNWRITABLE`.
        """
        home = cls(path)
        for folder in (path, home.evidence, home.keys, home.models, home.quarantine, home.justifications):
            home._make(folder)
        return home

    @property
    def evidence(self) -> Path:
        """Return the folder of the ledger."""
        return self.path / "evidence"

    @property
    def keys(self) -> Path:
        """Return the folder of the signing key and the pseudonym key."""
        return self.path / "keys"

    @property
    def signing_key_file(self) -> Path:
        """Return the file of the fabric's signing key, which is made on first use."""
        return self.keys / "signing.key"

    @property
    def models(self) -> Path:
        """Return the folder of models that were admitted."""
        return self.path / "models"

    @property
    def quarantine(self) -> Path:
        """Return the folder where results land before they are checked."""
        return self.path / "quarantine"

    @property
    def justifications(self) -> Path:
        """Return the folder of justifications; the ledger holds only their keyed digests."""
        return self.path / "justifications"

    @property
    def matrices(self) -> Path:
        """Return the folder of sealed matrices, each under the digest of its statement."""
        return self.path / "matrices"

    @property
    def releases(self) -> Path:
        """Return the folder of what is remembered of matrices that crossed."""
        return self.path / "releases"

    @property
    def surrogates(self) -> Path:
        """Return the file of the map from values to random surrogates."""
        return self.path / "surrogates.sqlite"

    @property
    def border(self) -> Path:
        """Return the folder of the border service: its keys, what it offers, what was returned to it."""
        return self.path / "border"

    def border_folder(self, name: str) -> Path:
        """Return a folder of the border service, made if need be.

        Raises:
            FabricError: `EVIDENCE_UNWRITABLE`.
        """
        self._make(self.border)
        self._make(self.border / name)
        return self.border / name

    def token_key(self) -> SigningKey:
        """Return the key that signs the border's tokens, made on first use; it signs nothing else."""
        return SigningKey.from_seed(self._secret("token.key"))

    def keep_matrix(self, folder: Path, name: str) -> Path:
        """Move a folder of sealed parts to where matrices are kept, and return where it is now.

        Raises:
            FabricError: `EVIDENCE_UNWRITABLE`.
        """
        target = self.matrices / name
        self._make(self.matrices)
        try:
            folder.rename(target)
        except OSError:
            raise _unwritable(target) from None
        return target

    def work(self, name: str) -> Path:
        """Return the folder of one piece of sanitizing, so that it can go on after a crash; not made here."""
        return self.path / "work" / name

    def sanitizing_key(self) -> Path:
        """Return the file of the secret from which the keys of subjects and purposes are derived, made on first use."""
        self._secret("sanitizing.key")
        return self.keys / "sanitizing.key"

    def outbox(self, zone: str) -> Path:
        """Return the folder that workers of `zone` write to, made if need be."""
        folder = self.path / "outbox" / zone
        self._make(folder)
        return folder

    def signing_key(self) -> SigningKey:
        """Return the fabric's signing key, made on first use."""
        return SigningKey.from_seed(self._secret(self.signing_key_file.name))

    def pseudonym(self, person: str) -> str:
        """Return the id under which `person` stands in the evidence: a keyed hash, so it cannot be guessed back."""
        return "p-" + hmac.digest(self._secret("pseudonym.key"), person.encode(), "sha256").hex()[:16]

    def keyed(self, text: str) -> str:
        """Return the keyed digest of `text`, for the ledger; an empty text has an empty digest."""
        key = hmac.digest(self._secret("pseudonym.key"), text.encode(), "sha256").hex()[:32]
        return f"hmac-sha256:{key}" if text else ""

    def keep_justification(self, text: str) -> None:
        """Keep `text` inside, under its keyed digest."""
        if text:
            self.write(self.justifications / f"{self.keyed(text).partition(':')[2]}.txt", text.encode())

    def justification(self, key: str) -> str:
        """Return the text that is kept under a keyed digest; empty where there is none."""
        path = self.justifications / f"{key.partition(':')[2]}.txt"
        return path.read_text(encoding="utf-8") if key and path.is_file() else ""

    def keep_recipe(self, text: str) -> None:
        """Keep the text of a recipe under its digest, so that what was submitted is what is done."""
        folder = self.path / "recipes"
        self._make(folder)
        self.write(folder / f"{digest(text.encode()).removeprefix('sha256:')}.toml", text.encode())

    def kept_recipe(self, name: str) -> str:
        """Return the text of a kept recipe by its digest.

        Raises:
            InvalidInput: `RECIPE_INVALID` if it is gone or was changed.
        """
        try:
            text = (self.path / "recipes" / f"{name.removeprefix('sha256:')}.toml").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            text = ""
        if digest(text.encode()) != name:
            raise InvalidInput(Reason.RECIPE_INVALID, "the submitted recipe is gone or was changed", "submit it again")
        return text

    def keep_code(self, payload: bytes, envelope: bytes) -> None:
        """Keep outbound code for a job that waits, under its digest, and the statement of its inspection.

        The same code again takes the newer statement, which lasts longer.
        """
        folder, name = self.path / "code", digest(payload).removeprefix("sha256:")
        self._make(folder)
        self.write(folder / f"{name}.capsule", payload)
        self.write(folder / f"{name}.statement", envelope)

    def kept_code(self, name: str) -> tuple[bytes, bytes]:
        """Return kept code and its statement's envelope by the code's digest; the statement is still to be verified.

        Raises:
            InvalidInput: `CAPSULE_UNREADABLE` if it is gone or was changed.
        """
        file = self.path / "code" / name.removeprefix("sha256:")
        try:
            payload, envelope = (file.with_suffix(suffix).read_bytes() for suffix in (".capsule", ".statement"))
        except OSError:
            payload, envelope = b"", b""
        if digest(payload) != name:
            raise InvalidInput(Reason.CAPSULE_UNREADABLE, "the kept code is gone or was changed", "submit it again")
        return payload, envelope

    def write(self, path: Path, content: bytes) -> None:
        """Write a file of mode 0600 whole or not at all.

        Raises:
            FabricError: `EVIDENCE_UNWRITABLE`.
        """
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            with open(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except OSError:
            part.unlink(missing_ok=True)
            raise _unwritable(path) from None

    def write_once(self, path: Path, content: bytes) -> None:
        """Write a file of mode 0600 if it is not there; who comes second changes nothing.

        Raises:
            FabricError: `EVIDENCE_UNWRITABLE`.
        """
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        self.write(part, content)
        try:
            os.link(part, path)
        except FileExistsError:
            pass  # another process made it first; its is the one
        except OSError:
            raise _unwritable(path) from None
        finally:
            part.unlink(missing_ok=True)

    def _secret(self, name: str) -> bytes:
        path = self.keys / name
        if not path.exists():
            self.write_once(path, secrets.token_bytes(32))
        secret = path.read_bytes()
        if len(secret) != 32:
            raise FabricError(
                Reason.KEY_UNKNOWN, f"{path} is not a key of 32 bytes", "restore it: without it nothing can be signed"
            )
        return secret

    def _make(self, folder: Path) -> None:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(folder)
        except OSError:
            raise _unwritable(folder) from None


def read_bounded(folder: Path, limits: Mapping[str, int], *, root: Path | None = None) -> dict[str, bytes]:
    """Read the named files of `folder` that another zone wrote, each up to its limit in bytes.

    No link is followed, also none put in place of a folder while this reads, and a file with a second name is refused:
    what came back may point anywhere. What changes while it is read is refused too.

    Args:
        folder: where the files are.
        limits: largest size of each file, by name.
        root: a folder of ours that `folder` must lie in; by default `folder` itself is believed to be ours.

    Raises:
        InvalidInput: `RESULT_REFUSED` if a file is missing, no plain file, or too large.
    """
    opened = _open_folder(root or folder, folder)
    try:
        return {name: _read_plain(opened, name, limit) for name, limit in limits.items()}
    finally:
        os.close(opened)


def _open_folder(root: Path, folder: Path) -> int:
    """Return a descriptor of `folder`, opened part by part from `root`."""
    here = -1
    try:
        inside = folder if folder.is_relative_to(root) else root / folder.relative_to(root.resolve())
        parts = inside.relative_to(root).parts
        here = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        for part in parts:
            if part == "..":
                raise ValueError("a way out of the folder")
            above, here = here, os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
            os.close(above)
    except (OSError, ValueError):
        if here >= 0:
            os.close(here)
        raise InvalidInput(
            Reason.RESULT_REFUSED, "the result lies outside the zone's outbox", "run the job again"
        ) from None
    return here


def _read_plain(folder: int, name: str, limit: int) -> bytes:
    try:
        with open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder), "rb") as file:
            before = os.fstat(file.fileno())
            plain = stat.S_ISREG(before.st_mode) and before.st_nlink == 1
            content = file.read(limit + 1) if plain and before.st_size <= limit else b""
            after = os.fstat(file.fileno())
    except OSError:
        plain = False
    if not plain:
        raise InvalidInput(Reason.RESULT_REFUSED, f"the result has no plain file {name!r}", "run the job again")
    if before.st_size > limit or len(content) > limit:
        raise InvalidInput(
            Reason.RESULT_REFUSED, f"the result's file {name!r} is larger than {limit} bytes", "return less"
        )
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise InvalidInput(
            Reason.RESULT_REFUSED, f"the result's file {name!r} changed while it was read", "wait for it"
        )
    return content


def _unwritable(path: Path) -> FabricError:
    return FabricError(
        Reason.EVIDENCE_UNWRITABLE,
        f"cannot write to {path}",
        "nothing moves without evidence: make the folder writable, or set fabric.state in fabric.toml to one that is",
    )
