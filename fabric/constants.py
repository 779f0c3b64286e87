"""Constants: texts, bytes and numbers inside outbound code, read for identifiers and for their size.

A text is read as written and in the readings of `fabric.readings`: normalized, decoded, backwards. This stops what
honest code carries along, and the plain ways of hiding it; an author bent on hiding a value can still compute it from
others, which no inspection of constants can prevent. What they can hide is bounded by the limits here.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from fabric.errors import CapsuleRefused, Reason
from fabric.readings import readings_of, readings_of_bytes, readings_of_number, readings_of_numbers

InspectText = Callable[[str], Collection[str]]

NO_DATA = "pass the matrix as the function's argument"
NO_IDENTIFIER = "delete the identifier from the code"

_SHORTEST_NUMBER = 100_000  # six digits: shorter numbers identify nobody and are everywhere
_PRINTABLE = re.compile(rb"[\x20-\x7e]{8,}")
_SETTING = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}\Z")
_NAME = re.compile(r"(?:\.?\w[\w.]*|<(?:generic parameters of )?\w+>)\Z")
_SHOWN = re.compile(r"[\w.<>]*(?:\[\.\.\.\]|\.[\w.<>]+)*(?: argument \d+)?(?:s, joined| texts, joined)?\Z")
_SETTING_DIGITS = 5
"""Significant digits of a number that is a setting; 16 or 17 are a measurement, or a reading of somebody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CapsuleLimits:
    """How much a capsule may hold.

    Attributes:
        payload_bytes: the whole capsule.
        items: values in captured lists, tuples, sets and dicts, all of them together.
        computed: captured values that the program computed; all others must be written in it.
        constants: values written into the code of all its functions together.
        text_chars: one text.
        run_chars: one text between two white spaces; longer ones are opaque.
        all_text_chars: all distinct texts together.
        bytes_len: one bytes constant.
    """

    payload_bytes: int = 256 * 1024
    items: int = 64
    computed: int = 8
    constants: int = 512
    text_chars: int = 2_000
    run_chars: int = 200
    all_text_chars: int = 32_000
    bytes_len: int = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Why a value must not cross, its size in words, and the way out.

    Attributes:
        findings: the entities that were found in it.
    """

    reason: Reason
    size_text: str
    fix: str
    size_bytes: int | None = None
    findings: tuple[str, ...] = ()


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
        """Say whether texts, harmless one by one, make an identifier when put together, in order or backwards."""
        forwards = self._identifier("".join(texts), f"{len(texts):,} texts")
        return forwards or self._identifier("".join(reversed(texts)), f"{len(texts):,} texts")

    def spelled(self, numbers: Sequence[object]) -> Problem | None:
        """Say whether small numbers in a row are the characters of an identifier."""
        texts = readings_of_numbers(numbers)
        return next((p for text in texts if (p := self._identifier(text, f"{len(numbers):,} numbers"))), None)

    def shown(self, name: str) -> str:
        """Return the last part of `name` if it may stand in a message: words of code, short, free of identifiers."""
        name = name.rpartition("<locals>.")[2]
        words = name.replace(".", " ")  # a dotted name is not the web address that a recognizer takes it for
        safe = _SHOWN.match(name) and len(name) <= self.limits.run_chars and not self._found(words)
        return name if safe else "(name withheld)"

    def name_problem(self, name: str) -> Problem | None:
        """Say what is wrong with a name in code: it must be one, and hold no identifier."""
        if (problem := self.problem(name)) is not None or _NAME.match(name):
            return problem
        return Problem(
            reason=Reason.CAPSULE_CAPTURES_DATA,
            size_text="a name that is no word of Python",
            fix="use names that stand in code: a name taken from data is data",
        )

    def _found(self, text: str) -> frozenset[str]:
        if text not in self._read:
            self._read[text] = frozenset().union(*(self._inspect(reading) for reading in readings_of(text)))
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
        texts = readings_of_bytes(value)
        return next((p for text in texts if (p := self._identifier(text, size_text))), None)

    def _number(self, value: int) -> Problem | None:
        if value.bit_length() > 64:
            return Problem(
                reason=Reason.CAPSULE_CAPTURES_DATA,
                size_text=f"{value.bit_length():,} bits",
                fix=f"{NO_DATA}; a number may have 64 bits",
            )
        texts = readings_of_number(abs(value)) if abs(value) >= _SHORTEST_NUMBER else ()
        return next((p for text in texts if (p := self._identifier(text, "a number"))), None)

    def _identifier(self, text: str, size_text: str) -> Problem | None:
        found = self._found(text)
        if text not in self._held:
            self._held.add(text)
            self.entities.update(found)
        if not found:
            return None
        return Problem(
            reason=Reason.CAPSULE_IDENTIFIER,
            size_text=f"{size_text}, {', '.join(sorted(found))}",
            fix=NO_IDENTIFIER,
            findings=tuple(sorted(found)),
        )


def is_setting(value: object) -> bool:
    """Say whether a value is short enough to be a setting: a word of up to 32 characters, or five significant digits.

    A cell of a record is longer, as a rule: names and notes have spaces, dates and numbers of people more digits.
    """
    if isinstance(value, str):
        return bool(_SETTING.match(value)) and sum(char.isdigit() for char in value) <= _SETTING_DIGITS
    if isinstance(value, bool) or value is None:
        return True
    if isinstance(value, int):
        return value.bit_length() <= 64 and len(str(abs(value)).rstrip("0")) <= _SETTING_DIGITS
    if isinstance(value, float):
        return not math.isfinite(value) or float(f"{value:.{_SETTING_DIGITS}g}") == value
    return isinstance(value, complex) and is_setting(value.real) and is_setting(value.imag)
