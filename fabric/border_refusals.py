"""Refusals at the border's port, as records: each of the first ones, then fewer and fewer, none uncounted.

A hostile peer can be refused a million times an hour. The first three refusals of one zone for one reason are
records of their own; after those comes one record at growing intervals that says how many were left out. What a peer
sent is in none.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from fabric.errors import FabricError
from fabric.ledger import Ledger
from fabric.records import is_token

_LOG = logging.getLogger("fabric.border")
_SINGLE = 3
_FIRST_WAIT_S = 60.0
_LONGEST_WAIT_S = 3_600.0
_MOST_KINDS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """What is told of one: who by zone, what by verb, why by code; job and crossing only from a verified token."""

    zone: str
    what: str
    code: str
    job: str = ""
    crossing: str = ""

    @property
    def kind(self) -> tuple[str, str, str]:
        """Return what is counted together."""
        return self.zone, self.what, self.code


@dataclass(slots=True)
class _Count:
    seen: int = 0
    omitted: int = 0
    due_s: float = 0.0
    wait_s: float = _FIRST_WAIT_S


class Meter:
    """Which refusals become records. Pure: the time comes in."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str, str], _Count] = {}

    def admit(self, kind: tuple[str, str, str], now_s: float) -> int:
        """Return how many like it were left out before this one becomes a record; -1 if it is left out itself."""
        if kind not in self._counts and len(self._counts) >= _MOST_KINDS:
            kind = ("", "other", kind[2])
        count = self._counts.setdefault(kind, _Count())
        if count.seen and now_s > count.due_s + _LONGEST_WAIT_S:
            count.seen, count.wait_s = 0, _FIRST_WAIT_S  # quiet for long: told one by one again
        count.seen += 1
        if count.seen > _SINGLE and now_s < count.due_s:
            count.omitted += 1
            return -1
        omitted, count.omitted = count.omitted, 0
        if count.seen > _SINGLE:
            count.wait_s = min(2 * count.wait_s, _LONGEST_WAIT_S)
        count.due_s = now_s + (count.wait_s if count.seen >= _SINGLE else 0.0)
        return omitted

    def due(self, now_s: float, *, all_of_them: bool = False) -> list[tuple[tuple[str, str, str], int]]:
        """Return the kinds of which some were left out and it is time to say how many; they count from zero again."""
        found = []
        for kind, count in self._counts.items():
            if count.omitted and (all_of_them or now_s >= count.due_s):
                found.append((kind, count.omitted))
                count.omitted, count.wait_s = 0, min(2 * count.wait_s, _LONGEST_WAIT_S)
                count.due_s = now_s + count.wait_s
        return found


@dataclass(slots=True)
class Recorder:
    """Writes refusals into the ledger and the log. Safe to share between threads."""

    ledger: Ledger
    monotonic: Callable[[], float]
    _meter: Meter = field(default_factory=Meter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def refused(self, refusal: Refusal) -> bool:
        """Record a refusal, or count it; say which."""
        with self._lock:
            omitted = self._meter.admit(refusal.kind, self.monotonic())
        if omitted >= 0:
            self._write(refusal, omitted)
        return omitted >= 0

    def flush(self, *, all_of_them: bool = False) -> None:
        """Record how many were left out, where it is time to."""
        with self._lock:
            due = self._meter.due(self.monotonic(), all_of_them=all_of_them)
        for (zone, what, code), omitted in due:
            self._write(Refusal(zone=zone, what=what, code=code), omitted)

    def _write(self, refusal: Refusal, omitted: int) -> None:
        body = {name: getattr(refusal, name) for name in ("zone", "what", "code", "job", "crossing")}
        told: dict[str, object] = {name: text for name, text in body.items() if text and is_token(text)}
        if omitted:
            told["omitted"] = omitted
        _LOG.warning("refused", extra={"fabric": told})
        try:
            self.ledger.observe("refusal", told)
        except FabricError as error:
            # The refusal stands; that it is not recorded is told where somebody looks.
            _LOG.error("refusal not recorded", extra={"fabric": {"code": error.reason.value}})
