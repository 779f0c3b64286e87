"""Constants: texts, bytes and numbers inside outbound code, read for identifiers and for their size.

A text is read as written, normalized (NFKC, decimal digits of any script, no invisible characters), and decoded where
it holds base64 or hex. This stops what honest code carries along; an author bent on hiding a value can still encode it,
which no inspection of constants can prevent.
"""

from __future__ import annotations

import base64
import binascii
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from fabric.errors import CapsuleRefused, Reason

InspectText = Callable[[str], Collection[str]]

NO_DATA = "pass the matrix as the function's argument"
NO_IDENTIFIER = "delete the identifier from the code"

_DECODE_DEPTH = 2
_SHORTEST_NUMBER = 100_000  # six digits: shorter numbers identify nobody and are everywhere
_HEX = re.compile(r"(?:[0-9A-Fa-f]{2}){4,}")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{8,}")
_PRINTABLE = re.compile(rb"[\x20-\x7e]{8,}")
_INVISIBLE = {"\x00", "\u034f", "\u115f", "\u1160", "\u3164", "\uffa0"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CapsuleLimits:
    """How much a capsule may hold.

    Attributes:
        payload_bytes: the whole capsule.
        items: values in captured lists, tuples, sets and dicts, all of them together.
        constants: values written into the code of all its functions together.
        text_chars: one text.
        run_chars: one text between two white spaces; longer ones are opaque.
        all_text_chars: all distinct texts together.
        bytes_len: one bytes constant.
    """

    payload_bytes: int = 256 * 1024
    items: int = 64
    constants: int = 512
    text_chars: int = 2_000
    run_chars: int = 200
    all_text_chars: int = 32_000
    bytes_len: int = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Why a value must not cross, its size in words, and the way out."""

    reason: Reason
    size_text: str
    fix: str
    size_bytes: int | None = None


class Constants:
    """Reads the constants of one capsule. Counts the entities found, each distinct text once."""

    def __init__(self, inspect_text: InspectText, limits: CapsuleLimits) -> None:
        self.limits = limits
        self.entities: Counter[str] = Counter()
        self._inspect_text = inspect_text
        self._read: dict[str, frozenset[str]] = {}
        self._held: set[str] = set()

    def problem(self, value: str | bytes | float | complex) -> Problem | None:
        """Say what is wrong with one constant.

        Raises:
            CapsuleRefused: `INSPECTION_FAILED` if the inspection of a text failed.
        """
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, bytes):
            return self._bytes(value)
        if isinstance(value, complex):
            return self.problem(value.real) or self.problem(value.imag)
        if isinstance(value, float):
            return self._number(int(value)) if abs(value) < 2**63 else None
        return self._number(value)

    def machine_code(self, code: bytes) -> Problem | None:
        """Say whether the printable parts of bytecode hold an identifier."""
        for run in _PRINTABLE.findall(code):
            if problem := self._identifier(run.decode("ascii"), "bytecode"):
                return problem
        return None

    def joined(self, texts: Sequence[str]) -> Problem | None:
        """Say whether texts that are harmless one by one make an identifier when put together, in order."""
        return self._identifier("".join(texts), f"{len(texts):,} texts")

    def shown(self, name: str) -> str:
        """Return the last part of `name` if it may stand in a message: printable, short and free of identifiers."""
        name = name.rpartition("<locals>.")[2]
        words = name.replace(".", " ")  # a dotted name is not the web address that a recognizer takes it for
        safe = name.isprintable() and len(name) <= self.limits.run_chars and not self._found(words)
        return name if safe else "(name withheld)"

    def _found(self, text: str) -> frozenset[str]:
        if text not in self._read:
            readings = {*_readings(text, _DECODE_DEPTH)}
            self._read[text] = frozenset().union(*(self._inspect(reading) for reading in readings))
        return self._read[text]

    def _inspect(self, text: str) -> set[str]:
        try:
            return set(self._inspect_text(text))
        except Exception:  # noqa: BLE001 - whatever a recognizer raises may quote the text
            raise CapsuleRefused(
                Reason.INSPECTION_FAILED, "a text in the function could not be inspected", "nothing crosses unread"
            ) from None

    def _text(self, text: str) -> Problem | None:
        size_text = f"{len(text):,} characters"
        size_bytes = len(text.encode("utf-8", "surrogatepass"))
        longest_run = max((len(run) for run in text.split()), default=0)
        if len(text) > self.limits.text_chars or longest_run > self.limits.run_chars:
            return Problem(
                reason=Reason.CAPSULE_CAPTURES_DATA,
                size_text=size_text,
                size_bytes=size_bytes,
                fix=f"{NO_DATA}; a text may have {self.limits.text_chars:,} characters, "
                f"{self.limits.run_chars} without a space",
            )
        if problem := self._identifier(text, size_text):
            return problem
        if (chars := sum(map(len, self._held))) > self.limits.all_text_chars:
            return Problem(
                reason=Reason.CAPSULE_TOO_LARGE,
                size_text=f"{chars:,} characters so far",
                fix=f"shorten the texts: all together may have {self.limits.all_text_chars:,} characters",
            )
        return None

    def _bytes(self, value: bytes) -> Problem | None:
        size_text = f"{len(value):,} bytes"
        if len(value) > self.limits.bytes_len:
            return Problem(
                reason=Reason.CAPSULE_CAPTURES_DATA,
                size_text=size_text,
                size_bytes=len(value),
                fix=f"{NO_DATA}; a bytes constant may have {self.limits.bytes_len} bytes",
            )
        return self._identifier(value.decode("latin-1"), size_text)

    def _number(self, value: int) -> Problem | None:
        if value.bit_length() > 64:
            return Problem(
                reason=Reason.CAPSULE_CAPTURES_DATA,
                size_text=f"{value.bit_length():,} bits",
                fix=f"{NO_DATA}; a number may have 64 bits",
            )
        return self._identifier(str(abs(value)), "a number") if abs(value) >= _SHORTEST_NUMBER else None

    def _identifier(self, text: str, size_text: str) -> Problem | None:
        found = self._found(text)
        if text not in self._held:
            self._held.add(text)
            self.entities.update(found)
        if not found:
            return None
        return Problem(
            reason=Reason.CAPSULE_IDENTIFIER, size_text=f"{size_text}, {', '.join(sorted(found))}", fix=NO_IDENTIFIER
        )


def _readings(text: str, depth: int) -> Iterator[str]:
    plain = _normalized(text)
    yield from (text, plain)
    if "_" in plain:
        yield plain.replace("_", "-")
    if depth:
        for decoded in {*_decodings(plain), *_decodings("".join(plain.split()))}:
            yield from _readings(decoded, depth - 1)


def _normalized(text: str) -> str:
    out = []
    for char in unicodedata.normalize("NFKC", text):
        category = unicodedata.category(char)
        if category == "Nd":
            out.append(str(unicodedata.decimal(char)))
        elif category == "Pd":
            out.append("-")
        elif category != "Cf" and char not in _INVISIBLE:
            out.append(char)
    return "".join(out)


def _decodings(text: str) -> Iterator[str]:
    for match in _HEX.finditer(text):
        yield from _as_text(bytes.fromhex(match.group()))
    for match in _BASE64.finditer(text):
        run = match.group().replace("-", "+").replace("_", "/")
        try:
            yield from _as_text(base64.b64decode(run + "=" * (-len(run) % 4)))
        except binascii.Error:
            continue


def _as_text(raw: bytes) -> Iterator[str]:
    try:
        decoded = raw.decode("utf-8")
    except UnicodeDecodeError:
        return
    if decoded.isprintable():
        yield decoded
