"""Signed notes and checkpoints (C2SP signed-note and tlog-checkpoint), signed with Ed25519.

A checkpoint says: the log called `origin` had `size` records, and this was the root of their tree. Any tool that
reads the C2SP formats can check one, and an outside witness can add its signature. Pure: no file, no clock.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from fabric.errors import EvidenceInvalid, InvalidInput, Reason
from fabric.statements import PublicKey, SigningKey

ED25519 = b"\x01"
MAX_NOTE_CHARACTERS = 65_536
MAX_SIGNATURES = 100

_KEY_ID_BYTES = 4
_NAME = re.compile(r"[^\s+\x00-\x1f\x7f\ud800-\udfff]{1,255}\Z")
_SIGNATURE_LINE = re.compile(r"— ([^\s+]+) ([A-Za-z0-9+/]+={0,2})\Z")
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f\ud800-\udfff]")
# 43 characters and one '=' are 32 bytes.
_CHECKPOINT = re.compile(r"([^\n]+)\n(0|[1-9][0-9]{0,15})\n([A-Za-z0-9+/]{43}=)\n\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A verified checkpoint: the log's name, its number of records, and the root of their tree."""

    origin: str
    size: int
    root: bytes


def key_id(name: str, key: PublicKey) -> bytes:
    """Return the four bytes that tell keys of one name apart (C2SP signed-note, "Signatures")."""
    return hashlib.sha256(name.encode() + b"\n" + ED25519 + key.raw).digest()[:_KEY_ID_BYTES]


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
    signature = key_id(name, key.public) + key.sign(text.encode())
    return f"{text}\n— {name} {base64.b64encode(signature).decode()}\n"


def open_note(note: str, name: str, trusted: Sequence[PublicKey]) -> str:
    """Return the text of `note` if a trusted key signed it under `name`.

    Signatures by others (witnesses) are passed over; one that claims a trusted key and does not verify is refused.

    Raises:
        EvidenceInvalid: `EVIDENCE_INVALID`, or `KEY_UNKNOWN` if no trusted key signed.
    """
    text, lines = _split(note)
    keys = {key_id(name, key): key for key in trusted}
    believed = False
    for line in lines:
        match = _SIGNATURE_LINE.match(line)
        if match is None:
            raise EvidenceInvalid(Reason.EVIDENCE_INVALID, "a note has a malformed signature line")
        signature = _base64(match[2])
        key = keys.get(signature[:_KEY_ID_BYTES]) if match[1] == name else None
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


def open_checkpoint(note: str, origin: str, trusted: Sequence[PublicKey]) -> Checkpoint:
    """Return the checkpoint in `note` if a trusted key signed it for `origin`.

    Extension lines are refused: the log writes none, so nobody could say what one means.

    Raises:
        EvidenceInvalid: `EVIDENCE_INVALID`, or `KEY_UNKNOWN` if no trusted key signed.
    """
    if note.partition("\n")[0] != origin:
        raise EvidenceInvalid(Reason.EVIDENCE_INVALID, "a checkpoint belongs to a log of another origin")
    match = _CHECKPOINT.match(open_note(note, origin, trusted))
    if match is None:
        raise EvidenceInvalid(Reason.EVIDENCE_INVALID, "a note is signed but is not a checkpoint")
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


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise EvidenceInvalid(Reason.EVIDENCE_INVALID, "a note holds malformed base64") from None
