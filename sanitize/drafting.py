"""Drafting: what a recipe may make of one profiled column, or why it stays inside. Pure.

A kind that tells persons apart has no treatment here, and one that is not understood has none either.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal

from sanitize.kinds import MIN_HOLDERS, Family, Kind, Shape
from sanitize.presets import words_of
from sanitize.profile import ColumnProfile, Profile
from sanitize.recipe import Column, Join, Role
from sanitize.treatments import Age, Bin, Clip, Duration, Encode, Keep, Prefix, Round, Treatment, Year

_MIN_SUBJECTS = 50
_BANDS = (1, 5, 10, 20, 40)  # the last two do not part the few over 89 from the rest
_OLDEST = 90  # 45 CFR 164.514(b)(2)(i)(C)
_DEATH = frozenset({"death", "deathdate", "died", "dod", "deceased"})
_QUASI = (
    *({"age", "ages"}, {"sex", "gender"}, {"race", "ethnic", "ethnicity"}, {"marital", "married"}),
    *({"region", "state", "province", "country"}, {"nationality", "citizenship", "language", "religion"}),
    {"education", "occupation", "profession"},
)
_QUASI_KINDS = (Kind.BIRTH_DATE, Kind.AGE, Kind.PLACE, Kind.POSTCODE, Kind.YEAR, Kind.DATE, Kind.TIME)
_LONGEST = 63
_STAYS = {
    Kind.COORDINATE: "; `grid` lets out half a degree",
    Kind.FREE_TEXT: "; `vectorise` makes numbers of it inside",
    Kind.IDENTIFIER: "",
    Kind.KEY: "",
    Kind.EMPTY: "",
    Kind.CONSTANT: ", so it says nothing",
    Kind.UNKNOWN: ": not understood",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A column that may leave, and why.

    Attributes:
        levels: how many values it would have.
        rank: its turn among the quasi-identifiers, the most useful first.
        place: whether it says where a subject is.
    """

    column: Column
    why: str
    levels: int
    rank: int
    place: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Stay:
    """A column that stays inside, and why."""

    source: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is known when columns are judged: the profile, the joins, and the moment that ages are counted at."""

    profile: Profile
    records: str
    joins: Mapping[str, Join]
    at: str | date | None
    subjects: int
    target: str

    def source(self, column: ColumnProfile) -> str:
        """Return the column's name in a recipe."""
        return column.name if column.records == self.records else f"{column.records}.{column.name}"

    def columns(self) -> list[ColumnProfile]:
        """Return the columns that a recipe could read."""
        return [column for name in (self.records, *self.joins) for column in self.profile.of(name)]


def drafts_of(plan: Plan, column: ColumnProfile) -> Iterator[Draft | Stay]:
    """Yield what may become of one column: what is made of it, or that it stays."""
    source, facts, reason = plan.source(column), column.facts, "; ".join(column.reasons[:2])
    if column.kind in _STAYS:
        yield Stay(source=source, why=reason + _STAYS[column.kind])
    elif facts.holders < MIN_HOLDERS:
        yield Stay(source=source, why=f"{reason}; only {facts.holders} subjects have a value")
    elif column.twin:
        yield Stay(source=source, why=f"it tells the same as {column.twin!r}")
    elif column.kind in (Kind.DATE, Kind.TIME, Kind.BIRTH_DATE):
        yield from _of_date(plan, column)
    else:
        made = _treatment(column)
        if isinstance(made, str):
            yield Stay(source=source, why=f"{reason}; {made}")
        else:
            treatment, levels, what = made
            yield _draft(plan, column, token(column.name), treatment, levels, f"{what}; {column.reasons[0]}")


def _of_date(plan: Plan, column: ColumnProfile) -> Iterator[Draft | Stay]:
    source, facts = plan.source(column), column.facts
    if facts.family not in (Family.DATE, Family.TIME):
        yield Stay(source=source, why=f"{column.reasons[0]}; an ISO 8601 date would make an age or a year")
    elif column.kind is Kind.BIRTH_DATE:
        if plan.at is None:
            yield Stay(source=source, why="a birth date, and no date to count ages at")
            return
        band = _band(plan.subjects)
        age = Age(at=plan.at, band=None if band == 1 else band)
        yield _draft(plan, column, "age", age, _OLDEST // band + 1, f"bands of {band} years, over 89 together")
    elif words_of(column.name) & _DEATH:
        yield Stay(source=source, why="a date of death")
    else:
        yield from _of_moment(plan, column)


def _of_moment(plan: Plan, column: ColumnProfile) -> Iterator[Draft | Stay]:
    """A time is let out as how long until its end, and as its year."""
    source, facts = plan.source(column), column.facts
    span = next((s for s in plan.profile.spans if (s.records, s.start) == (column.records, column.name)), None)
    if span is not None:
        until = span.end if column.records == plan.records else f"{column.records}.{span.end}"
        lasts = Duration(until=until, to=span.to)
        yield _draft(
            plan, column, token(f"{column.name}_duration"), lasts, 0, f"minutes until {json.dumps(span.end)}, rounded"
        )
    if facts.holders < _MIN_SUBJECTS or facts.coarse < 2:
        yield Stay(source=source, why=f"{column.reasons[0]}; too few subjects or years for its year to leave")
    elif span is None or source != plan.target:
        yield _draft(plan, column, token(f"{column.name}_year"), Year(), facts.coarse, f"{facts.coarse} years")


def _treatment(column: ColumnProfile) -> tuple[Treatment, int, str] | str:
    """Return a treatment, how many levels it leaves, and what it does; or why there is none."""
    facts, scale = column.facts, column.scale
    codes = facts.common + (facts.common < facts.distinct) + (facts.nulls > 0)
    if column.kind is Kind.POSTCODE:
        if Shape.POSTCODES in facts.shapes:
            return Prefix(), facts.coarse, "its first three digits, areas of few people together"
        return "only postcodes of five digits are proposed"
    if column.kind is Kind.PLACE and facts.family is not Family.TEXT:
        return "numbers that stand for places"
    if column.kind is Kind.FLAG:
        return (Keep(), 2, "as it is") if facts.rarest >= MIN_HOLDERS else f"{facts.rarest} subjects share a value"
    if column.kind in (Kind.CATEGORY, Kind.PLACE):
        if not facts.common or codes < 2:
            return f"no two levels are shared by {MIN_HOLDERS} subjects"
        return Encode(), codes, "codes, whose dictionary stays inside; rare levels as one"
    if column.kind is Kind.AGE:
        edges = tuple(Decimal(edge) for edge in range(10, _OLDEST + 1, 10))
        return Bin(edges=edges), len(edges) + 1, "bands of ten years, over 89 together"
    if facts.holders < _MIN_SUBJECTS or scale is None:
        return f"too few subjects, or values that do not spread, among {facts.holders} subjects"
    if scale.edges:
        return Bin(edges=scale.edges), scale.levels, "intervals of 1, 2 and 5"
    if column.kind is Kind.COUNT and scale.to == 1:
        return Clip(low=scale.low, high=scale.high), scale.levels, "held within two bounds"
    return Round(to=scale.to, low=scale.low, high=scale.high), scale.levels, "rounded, held within two bounds"


def _draft(plan: Plan, column: ColumnProfile, name: str, treatment: Treatment, levels: int, why: str) -> Draft:
    source, rank = plan.source(column), _rank(column, treatment)
    role = Role.FEATURE if rank is None else Role.QUASI_IDENTIFIER
    role = Role.TARGET if source == plan.target and not isinstance(treatment, Year) else role
    made = Column(name=name, source=source, treatment=treatment, role=role)
    return Draft(column=made, why=why, levels=levels, rank=rank or 0, place=column.kind in (Kind.PLACE, Kind.POSTCODE))


def is_moment(column: ColumnProfile) -> bool:
    """Say whether the column is a date or time that something happened at, written as one."""
    moment = column.kind in (Kind.DATE, Kind.TIME) and column.facts.family in (Family.DATE, Family.TIME)
    return moment and not words_of(column.name) & _DEATH


def token(text: str) -> str:
    """Return `text` as the name of an outgoing column."""
    plain = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
    return (plain if re.match("[a-z]", plain) else f"c_{plain}")[:_LONGEST].rstrip("_")


def _rank(column: ColumnProfile, treatment: Treatment) -> int | None:
    """Return how early the column has its turn among the quasi-identifiers; None if it is none."""
    if isinstance(treatment, Duration):
        return None
    if isinstance(treatment, Age):
        return 0
    words = words_of(column.name)
    named = next((place for place, known in enumerate(_QUASI) if words & known), None)
    if named is not None:
        return named
    return len(_QUASI) + _QUASI_KINDS.index(column.kind) if column.kind in _QUASI_KINDS else None


def _band(subjects: int) -> int:
    """Return the narrowest band of years that leaves the other quasi-identifiers as many cells as ages have bands."""
    cells = subjects // MIN_HOLDERS
    return next((band for band in _BANDS if (_OLDEST // band + 1) ** 2 <= cells), _BANDS[-1])
