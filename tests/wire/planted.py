"""Values that cannot be mistaken for anything else, planted as a few rows of the records.

They are drawn anew for each run, so that no source file, cache or package holds one: a hit is a leak. Each row differs
from the others in every column that must not cross.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from random import Random

from fabric.people import COLUMNS, write_people
from wire.needles import Kind

ROWS = 8
KINDS: dict[str, Kind] = {
    "name": "text",
    "email": "text",
    "national_id": "text",
    "phone": "text",
    "notes": "text",
    "birth_date": "date",
    "income": "integer",
    "cost": "float",
}
"""Columns whose raw values must not cross: the starter's recipe drops or coarsens each of them."""

_SYLLABLES = ("zyx", "quor", "vex", "wanq", "jhul", "kibz", "fyoq", "xand", "vruz", "oqti", "phlu", "gwej")
_AREAS = (202, 303, 404, 505, 606, 707, 808, 909, 212, 313, 414, 515, 616, 717, 818, 919)
"""Of real phone numbers, or no recognizer would know one; 555-0130 to 0199 of each is nobody's, and no example's."""

_FIRST_DAY = date(1936, 1, 1)
_DAYS_APART = 1500


@dataclass(frozen=True, slots=True)
class Planted:
    """The planted rows, each a cell of text by column; ages, regions and the like are plausible, so that they cross."""

    rows: tuple[dict[str, str], ...]

    @classmethod
    def draw(cls, random: Random) -> Planted:
        """Return rows of values that were never used before."""
        return cls(tuple(_row(random, index) for index in range(ROWS)))

    def column(self, name: str) -> list[str]:
        """Return the cells of one column."""
        return [row[name] for row in self.rows]

    def recipe(self, starter: str) -> str:
        """Return the starter's recipe with income in bins: planted incomes are too far apart to cross rounded."""
        return starter.replace('treatment = "round"\nto = 5000', 'treatment = "bin"\nedges = [0, 20000, 60000, 100000]')

    def write(self, path: Path, *, rows: int) -> None:
        """Write made-up people and the planted ones among them as CSV."""
        write_people(path, rows=rows, seed=3)
        with path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([row[column] for column in COLUMNS] for row in self.rows)


def _row(random: Random, index: int) -> dict[str, str]:
    first, last = (("".join(random.sample(_SYLLABLES, 3))).title() for _ in range(2))
    last += "é"  # JSON, URLs and UTF-16 write it each in its own way
    birth = _FIRST_DAY + timedelta(days=index * _DAYS_APART + random.randrange(1, 300))
    national_id = f"{random.randrange(900, 1000)}-{random.randrange(10, 99)}-{random.randrange(1000, 9999)}"
    return {
        "name": f"{first} {last}",
        "email": f"{first}{random.randrange(10**5):05}@planted.example".lower(),
        "national_id": national_id,
        "phone": f"{random.choice(_AREAS)}-555-{random.randrange(130, 200):04}",
        "birth_date": birth.isoformat(),
        "region": "north",
        "condition": "renal",
        "plan": "basic",
        "visits": "7",
        "income": str(random.randrange(2**48, 2**52) | 1),  # fewer bytes lie about by chance
        "notes": f"{first} told {_word(random)} about «{_word(random)}».",
        "cost": f"{random.randrange(5_000, 15_000)}.{random.randrange(10**9) | 1:09}",  # amounts in cents are settings
    }


def _word(random: Random) -> str:
    """Return letters that mean nothing; with digits among them, one note in eight reads as a telephone number."""
    return "".join(random.choices("bcdfghjklmnpqrstvwxz", k=14))
