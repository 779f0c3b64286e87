"""The x-ray of a function: what it captures, how large that is, and what must not cross. Holds names, never values."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fabric.constants import Problem
from fabric.errors import CapsuleRefused, Reason

_SEVERITY = (
    Reason.CAPSULE_CAPTURES_DATA,
    Reason.CAPSULE_IDENTIFIER,
    Reason.CAPSULE_UNREADABLE,
    Reason.CAPSULE_TOO_LARGE,
)
_HEADINGS = ("name", "captured as", "type", "size", "where", "verdict", "fix")
_NAMED_IN_MESSAGE = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """One thing that would cross with a function.

    Attributes:
        kind: how it is captured: "closure variable", "global", "default", "keyword default", "class attribute",
            "instance attribute", "function attribute", "partial argument", "constant", "annotation", ...
        reason: why it is refused; None where it is allowed.
        findings: the identifier entities that were found in it.
        function: the function that uses it.
        line: the line of the file where it is used, if that can be found.
        fix: the way out in one line; empty where it is allowed.
    """

    name: str
    kind: str
    type_name: str
    size_bytes: int | None = None
    size_text: str = ""
    reason: Reason | None = None
    findings: tuple[str, ...] = ()
    function: str = ""
    line: int | None = None
    fix: str = ""

    @property
    def verdict(self) -> str:
        """Return "allowed" or "refused"."""
        return "refused" if self.reason else "allowed"

    @property
    def where(self) -> str:
        """Return the function and the line, as far as they are known."""
        return f"{self.function}, line {self.line}" if self.line else self.function

    @property
    def label(self) -> str:
        """Return the name with the type and size."""
        return f"`{self.name}` ({', '.join(filter(None, (self.type_name, self.size_text)))})"

    @property
    def advice(self) -> str:
        """Return how the thing is captured and the way out, in one line."""
        article = "an" if self.kind[0] in "aeiou" else "a"
        line = f" at line {self.line}" if self.line else ""
        return f"{self.label} is captured as {article} {self.kind}{line}: {self.fix}"

    def to_json(self) -> dict[str, Any]:
        """Return the capture as plain JSON values."""
        return {
            "name": self.name,
            "kind": self.kind,
            "type": self.type_name,
            "size_bytes": self.size_bytes,
            "size": self.size_text,
            "verdict": self.verdict,
            "reason": self.reason.value if self.reason else None,
            "findings": list(self.findings),
            "function": self.function,
            "line": self.line,
            "fix": self.fix,
        }


def refused(name: str, kind: str, type_name: str, problem: Problem) -> Capture:
    """Return a refused capture in the bytes, where no function or line is known."""
    return Capture(
        name=name,
        kind=kind,
        type_name=type_name,
        size_bytes=problem.size_bytes,
        size_text=problem.size_text,
        reason=problem.reason,
        findings=problem.findings,
        fix=problem.fix,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class XRay:
    """What a function would carry over the border.

    Attributes:
        size_bytes: the bytes that would cross; None where the function is refused before there are any.
        entities: how many distinct texts held each identifier entity.
    """

    function: str
    size_bytes: int | None
    captures: tuple[Capture, ...]
    entities: Mapping[str, int] = field(default_factory=dict)

    @property
    def refused(self) -> bool:
        """Say whether anything in it must not cross."""
        return any(capture.reason for capture in self.captures)

    @property
    def refusals(self) -> tuple[Capture, ...]:
        """Return the refused captures, worst first."""
        bad = [capture for capture in self.captures if capture.reason]
        return tuple(sorted(bad, key=_badness))

    def error(self) -> CapsuleRefused:
        """Return the refusal that names each refused capture, and the fix of the worst."""
        first, *_ = bad = self.refusals
        names = ", ".join(capture.label for capture in bad[:_NAMED_IN_MESSAGE])
        more = f" and {len(bad) - _NAMED_IN_MESSAGE} more" if len(bad) > _NAMED_IN_MESSAGE else ""
        return CapsuleRefused(
            first.reason or Reason.CAPSULE_UNREADABLE,
            f"the function `{self.function}` must not cross with {names}{more}",
            first.advice,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the x-ray as plain JSON values."""
        return {
            "function": self.function,
            "refused": self.refused,
            "size_bytes": self.size_bytes,
            "captures": [capture.to_json() for capture in self.captures],
            "entities": dict(sorted(self.entities.items())),
        }

    def __str__(self) -> str:
        rows = [_HEADINGS, *(_row(capture) for capture in self.captures)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([self._summary(), *table]) if self.captures else self._summary()

    def _repr_html_(self) -> str:
        heading = "".join(f"<th>{name}</th>" for name in _HEADINGS)
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in _row(capture)) + "</tr>"
            for capture in self.captures
        )
        return f"<p>{html.escape(self._summary())}</p><table><tr>{heading}</tr>{rows}</table>"

    def _summary(self) -> str:
        size = "" if self.size_bytes is None else f", {human_size(self.size_bytes)}"
        bad = len(self.refusals)
        verdict = f"refused, {bad} of {len(self.captures)} captures must not cross" if bad else "nothing is refused"
        return f"{self.function}{size}: {verdict}"


def human_size(size_bytes: int) -> str:
    """Return a size as people write it: 812 B, 4.1 MB."""
    size = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"


def _row(capture: Capture) -> tuple[str, ...]:
    verdict = f"refused {capture.reason}" if capture.reason else "allowed"
    return (
        capture.name,
        capture.kind,
        capture.type_name,
        capture.size_text,
        capture.where,
        verdict,
        capture.fix,
    )


def _badness(capture: Capture) -> tuple[int, int]:
    rank = _SEVERITY.index(capture.reason) if capture.reason in _SEVERITY else len(_SEVERITY)
    return rank, -(capture.size_bytes or 0)
