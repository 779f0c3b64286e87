"""Signed notes, checkpoints and cosignatures (C2SP signed-note, tlog-checkpoint, tlog-cosignature), with Ed25519.

A checkpoint says: the log called `origin` had `size` records, and this was the root of their tree. A cosignature says:
by this time, a witness had seen no larger tree of that log, and this one continues all it saw before. Any tool that
reads the C2SP formats can check both. Pure: no file, no clock.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from fabric.errors import EvidenceInvalid, InvalidInput, Reason
from fabric.statements import PublicKey, SigningKey

ED25519 = b"\x01"
COSIGNATURE = b"\x04"
MAX_NOTE_CHARACTERS = 65_536
MAX_SIGNATURES = 100

_KEY_ID_BYTES = 4
_NAME = re.compile(r"[^\s+\x00-\x1f\x7f\ud800-\udfff]{1,255}\Z")
_SIGNATURE_LINE = re.compile(r"— ([^\s+]+) ([A-Za-z0-9+/]+={0,2})\Z")
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f\ud800-\udfff]")
# The last second that a datetime can hold.
_LAST_SECOND = 253_402_300_799
# 43 characters and one '=' are 32 bytes.
_CHECKPOINT = re.compile(r"([^\n]+)\n(0|[1-9][0-9]{0,15})\n([A-Za-z0-9+/]{43}=)\n\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A verified checkpoint: the log's name, its number of records, and the root of their tree."""

    origin: str
    size: int
    root: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class WitnessKey:
    """A witness as its verifiers know it: a name and a public key (C2SP tlog-cosignature, "Format")."""

    name: str
    key: PublicKey

    def to_text(self) -> str:
        """Return the key as `name+id+base64` (C2SP signed-note, "Verifier keys", type 0x04)."""
        material = base64.b64encode(COSIGNATURE + self.key.raw).decode()
        return f"{self.name}+{key_id(self.name, self.key, COSIGNATURE).hex()}+{material}"

    @classmethod
    def from_text(cls, text: str) -> WitnessKey:
        """Read a key from `name+id+base64`.

        Raises:
            EvidenceInvalid: `KEY_UNKNOWN` if it is not the key of a witness.
        """
        name, _, rest = text.strip().partition("+")
        stated, _, material = rest.partition("+")
        try:
            raw = base64.b64decode(material, validate=True)
        except ValueError:
            raw = b""
        if not _NAME.match(name) or len(raw) != 33 or raw[:1] != COSIGNATURE:
            raise _no_witness_key()
        key = cls(name=name, key=PublicKey(raw[1:]))
        if key_id(name, key.key, COSIGNATURE).hex() != stated:
            raise _no_witness_key()
        return key


def key_id(name: str, key: PublicKey, kind: bytes = ED25519) -> bytes:
    """Return the four bytes that tell keys of one name apart (C2SP signed-note, "Signatures")."""
    return hashlib.sha256(name.encode() + b"\n" + kind + key.raw).digest()[:_KEY_ID_BYTES]


def sign_note(text: str, name: str, key: SigningKey) -> str:
    """Return `text` as a note signed by `key` under `name`.

    Raises:
        InvalidInput: `CONFIG_INVALID` if a note cannot carry the name or the text.
    """
    if not _NAME.match(name):
        raise InvalidInput(
            Reason.CONFIG_INVALID,
            "a signer's name is not usable in a note",
            "use 1 to 255 characters, no space, no '+'",
        )
    if not text.endswith("\n") or _CONTROL.search(text):
        raise InvalidInput(Reason.CONFIG_INVALID, "a note's text has control characters or no final newline")
    return f"{text}\n{_line(name, key_id(name, key.public) + key.sign(text.encode()))}"


def sign_again(note: str, name: str, key: SigningKey) -> str:
    """Return `note` with one more signature, by `key` under `name`.

    Raises:
        EvidenceInvalid: `EVIDENCE_INVALID` if it is no note.
    """
    text, _ = _split(note)
    return note + _line(name, key_id(name, key.public) + key.sign(text.encode()))


def cosign(note: str, name: str, key: SigningKey, at: datetime) -> str:
    """Return the line by which a witness cosigns `note` at the time `at` (C2SP tlog-cosignature, "Ed25519").

    Raises:
        EvidenceInvalid: `EVIDENCE_INVALID` if it is no note.
    """
    text, _ = _split(note)
    seconds = int(at.timestamp())
    signature = key.sign(_cosigned(text, seconds))
    return _line(name, key_id(name, key.public, COSIGNATURE) + seconds.to_bytes(8, "big") + signature)


def cosigned_at(note: str, witness: WitnessKey) -> datetime | None:
    """Return when `witness` cosigned `note`, the last time if it did so twice, or None if it did not.

    Raises:
        EvidenceInvalid: `EVIDENCE_INVALID` if it is no note, or a cosignature of this witness does not verify.
    """
    text, lines = _split(note)
    expected = key_id(witness.name, witness.key, COSIGNATURE)
    times = []
    for name, signature in map(_read_line, lines):
        if name != witness.name or signature[:_KEY_ID_BYTES] != expected:
            continue
        seconds = int.from_bytes(signature[_KEY_ID_BYTES:12], "big")
        if seconds > _LAST_SECOND or not witness.key.verifies(signature[12:], _cosigned(text, seconds)):
            raise EvidenceInvalid(Reason.EVIDENCE_INVALID, "a witness's cosignature does not verify")
        times.append(seconds)
    return datetime.fromtimestamp(max(times), UTC) if times else None


def signature_lines(note: str) -> str:
    """Return the signature lines of `note`, each with its newline.

    Raises:
        EvidenceInvalid: `EVIDENCE_INVALID` if it is no note.
    """
    return "".join(f"{line}\n" for line in _split(note)[1])


def last_signer(note: str, name: str) -> bytes:
    """Return the key id of the last signature under `name`, or nothing if there is none.

    Raises:
        EvidenceInvalid: `EVIDENCE_INVALID` if it is no note.
    """
    signed = [signature[:_KEY_ID_BYTES] for signer, signature in map(_read_line, _split(note)[1]) if signer == name]
    return signed[-1] if signed else b""


def open_note(note: str, name: str, trusted: Sequence[PublicKey]) -> str:
    """Return the text of `note` if a trusted key signed it under `name`.

    Signatures by others (witnesses) are passed over; one that claims a trusted key and does not verify is refused.

    Raises:
        EvidenceInvalid: `EVIDENCE_INVALID`, or `KEY_UNKNOWN` if no trusted key signed.
    """
    text, lines = _split(note)
    keys = {key_id(name, key): key for key in trusted}
    believed = False
    for signer, signature in map(_read_line, lines):
        key = keys.get(signature[:_KEY_ID_BYTES]) if signer == name else None
        if key is None:
            continue
        if not key.verifies(signature[_KEY_ID_BYTES:], text.encode()):
            raise EvidenceInvalid(Reason.EVIDENCE_INVALID, "a note's signature does not verify")
        believed = True
    if not believed:
        raise EvidenceInvalid(
            Reason.KEY_UNKNOWN, "no trusted key signed the note", "give the public key that the log signs with"
        )
    return text


def sign_checkpoint(origin: str, size: int, root: bytes, key: SigningKey) -> str:
    """Return a signed checkpoint (C2SP tlog-checkpoint); the key's name is the origin.

    Raises:
        InvalidInput: `CONFIG_INVALID` if the origin is not usable as a key's name.
    """
    return sign_note(f"{origin}\n{size}\n{base64.b64encode(root).decode()}\n", origin, key)


_ORIGIN = "a log keeps its fabric's name: restore fabric.name in fabric.toml, or set fabric.state to a new folder"


def open_checkpoint(note: str, origin: str, trusted: Sequence[PublicKey]) -> Checkpoint:
    """Return the checkpoint in `note` if a trusted key signed it for `origin`.

    Extension lines are refused: the log writes none, so nobody could say what one means.

    Raises:
        EvidenceInvalid: `EVIDENCE_INVALID`, or `KEY_UNKNOWN` if no trusted key signed.
    """
    if note.partition("\n")[0] != origin:
        raise EvidenceInvalid(Reason.EVIDENCE_INVALID, "a checkpoint belongs to a log of another origin", _ORIGIN)
    match = _CHECKPOINT.match(open_note(note, origin, trusted))
    if match is None:
        raise EvidenceInvalid(Reason.EVIDENCE_INVALID, "a note is signed but is not a checkpoint")
    return Checkpoint(origin=match[1], size=int(match[2]), root=_base64(match[3]))


def stated_checkpoint(note: str) -> Checkpoint:
    """Return what `note` says, whoever signed it: for a caller that has the log and compares the root itself.

    Raises:
        EvidenceInvalid: `EVIDENCE_INVALID` if it is no checkpoint.
    """
    match = _CHECKPOINT.match(_split(note)[0])
    if match is None:
        raise EvidenceInvalid(Reason.EVIDENCE_INVALID, "a note is not a checkpoint")
    return Checkpoint(origin=match[1], size=int(match[2]), root=_base64(match[3]))


def _split(note: str) -> tuple[str, list[str]]:
    if len(note) > MAX_NOTE_CHARACTERS:
        raise EvidenceInvalid(Reason.EVIDENCE_INVALID, f"a note is longer than {MAX_NOTE_CHARACTERS} characters")
    # The last blank line parts the text from the signatures (C2SP signed-note, "Format").
    text, blank, signatures = note.rpartition("\n\n")
    if not blank or not signatures.endswith("\n") or _CONTROL.search(note):
        raise EvidenceInvalid(Reason.EVIDENCE_INVALID, "a note is malformed or carries no signature")
    lines = signatures[:-1].split("\n")
    if len(lines) > MAX_SIGNATURES:
        raise EvidenceInvalid(Reason.EVIDENCE_INVALID, f"a note carries more than {MAX_SIGNATURES} signatures")
    return text + "\n", lines


def _line(name: str, signature: bytes) -> str:
    return f"— {name} {base64.b64encode(signature).decode()}\n"


def _read_line(line: str) -> tuple[str, bytes]:
    match = _SIGNATURE_LINE.match(line)
    if match is None:
        raise EvidenceInvalid(Reason.EVIDENCE_INVALID, "a note has a malformed signature line")
    return match[1], _base64(match[2])


def _cosigned(text: str, seconds: int) -> bytes:
    return f"cosignature/v1\ntime {seconds}\n{text}".encode()


def _no_witness_key() -> EvidenceInvalid:
    return EvidenceInvalid(
        Reason.KEY_UNKNOWN, "a witness's key is not of the form name+id+base64", "`fabric witness key` prints it"
    )


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise EvidenceInvalid(Reason.EVIDENCE_INVALID, "a note holds malformed base64") from None
