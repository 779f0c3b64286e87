"""The recipe: what the data owner allows to leave, column by column.

It is an allow-list. A column of the records that no outgoing column is made from stays inside; an empty recipe lets
nothing leave. Pure: no records are read here.
"""

from __future__ import annotations

import re
from datetime import date
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field

from fabric.artifacts import digest_of
from fabric.errors import InvalidInput, Reason, nearest
from fabric.specs import Spec, parse

_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}\Z")

Role = Literal["feature", "quasi-identifier", "target"]
Number = Annotated[float, Field(allow_inf_nan=False)] | int
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)] | Annotated[int, Field(gt=0)]


class _Column(Spec):
    """What every outgoing column says.

    Attributes:
        source: the column of the records it is made from ("from" in the file).
        role: what the column is to the model and to privacy.
    """

    source: Annotated[str, Field(alias="from", min_length=1)]
    role: Role

    @property
    def sources(self) -> tuple[str, ...]:
        """Return every column of the records that this one reads."""
        return (self.source,)

    @property
    def coarse(self) -> bool:
        """Say whether the treatment makes values coarser, so that near-unique ones are not identifiers."""
        return True

    @property
    def why(self) -> str:
        """Return the treatment in words, for the egress plan."""
        raise NotImplementedError


class Keep(_Column):
    """A number or boolean as it is."""

    treatment: Literal["keep"]

    @property
    def coarse(self) -> bool:
        """Say no: the value is the record's own."""
        return False

    @property
    def why(self) -> str:
        """Return the treatment in words."""
        return "the number as it is"


class Round(_Column):
    """A number rounded to a multiple of `to`, first clipped to `low` and `high` if given."""

    treatment: Literal["round"]
    to: Positive
    low: Number | None = None
    high: Number | None = None

    @property
    def why(self) -> str:
        """Return the treatment in words."""
        return f"rounded to multiples of {self.to:g}{_between(self.low, self.high)}"


class Clip(_Column):
    """A number between `low` and `high`; outside values become the bound."""

    treatment: Literal["clip"]
    low: Number
    high: Number

    @property
    def coarse(self) -> bool:
        """Say no: values between the bounds are the record's own."""
        return False

    @property
    def why(self) -> str:
        """Return the treatment in words."""
        return f"the number{_between(self.low, self.high)}"


class Bin(_Column):
    """Which of the bins between `edges` a number falls into: 0 below the first edge."""

    treatment: Literal["bin"]
    edges: Annotated[list[Number], Field(min_length=1, max_length=100)]

    @property
    def why(self) -> str:
        """Return the treatment in words."""
        return f"which of {len(self.edges) + 1} bins it falls into"


class Year(_Column):
    """The year of a date."""

    treatment: Literal["year"]

    @property
    def why(self) -> str:
        """Return the treatment in words."""
        return "the year of the date"


class Age(_Column):
    """Whole years at another date; ages over 89 together as 90 (HIPAA 45 CFR 164.514(b)(2)(i)(C)).

    Attributes:
        at: a column of dates, or an ISO date.
    """

    treatment: Literal["age"]
    at: Annotated[str, Field(min_length=1)]

    @property
    def fixed_date(self) -> date | None:
        """Return the date, if `at` is one and no column."""
        try:
            return date.fromisoformat(self.at)
        except ValueError:
            return None

    @property
    def sources(self) -> tuple[str, ...]:
        """Return every column of the records that this one reads."""
        return (self.source,) if self.fixed_date else (self.source, self.at)

    @property
    def why(self) -> str:
        """Return the treatment in words."""
        return f"whole years at {self.at}, ages over 89 together"


class Duration(_Column):
    """Minutes from one time to another, to a multiple of `to`."""

    treatment: Literal["duration"]
    until: Annotated[str, Field(min_length=1)]
    to: Positive = 1

    @property
    def sources(self) -> tuple[str, ...]:
        """Return every column of the records that this one reads."""
        return (self.source, self.until)

    @property
    def why(self) -> str:
        """Return the treatment in words."""
        return f"minutes until {self.until}, to multiples of {self.to:g}"


class Encode(_Column):
    """A code per level; the dictionary stays inside. Levels rarer than `min_count` share code 0 with missing values."""

    treatment: Literal["encode"]
    min_count: Annotated[int, Field(ge=2)] = 11

    @property
    def why(self) -> str:
        """Return the treatment in words."""
        return f"a code; the dictionary stays, levels under {self.min_count} rows share one"


Column = Annotated[Keep | Round | Clip | Bin | Year | Age | Duration | Encode, Field(discriminator="treatment")]


class Join(Spec):
    """Records joined in: each row's `left` looks up `right`, which must be unique."""

    left: str
    right: str


class Recipe(Spec):
    """A recipe, checked.

    Attributes:
        records: name of the records whose rows become the matrix's.
        join: other records by name; their columns are called "<name>.<column>".
        columns: outgoing columns by name.
    """

    name: str
    purpose: str
    records: str
    join: Annotated[dict[str, Join], Field(default_factory=dict)]
    columns: dict[str, Column]

    @cached_property
    def digest(self) -> str:
        """Return the digest of the recipe's canonical JSON."""
        return digest_of(self.to_json())

    @property
    def sources(self) -> tuple[str, ...]:
        """Return the names of all records that the recipe reads."""
        return (self.records, *self.join)

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as plain JSON."""
        return self.model_dump(mode="json", by_alias=True)

    def check(self, names: list[str]) -> None:
        """Hold the recipe against the columns of the joined records.

        Raises:
            InvalidInput: `COLUMN_MISSING`, with the nearest column.
        """
        for outgoing, column in self.columns.items():
            for source in column.sources:
                if source not in names:
                    raise InvalidInput(
                        Reason.COLUMN_MISSING,
                        f"recipe {self.name!r} makes {outgoing!r} from {source!r}, which the records do not have",
                        nearest(source, names),
                    )


def parse_recipe(text: str, *, source: str) -> Recipe:
    """Read a recipe from TOML.

    Raises:
        InvalidInput: `RECIPE_INVALID`, `RECIPE_EMPTY` or `UNKNOWN_KEY`.
    """
    recipe = parse(Recipe, text, source=source, reason=Reason.RECIPE_INVALID)
    if not recipe.columns:
        raise InvalidInput(Reason.RECIPE_EMPTY, f"{source} lets no column leave", "add [columns.NAME] tables")
    for name in recipe.columns:
        if not _NAME.match(name):
            raise InvalidInput(
                Reason.RECIPE_INVALID,
                f"{source}: outgoing column {name!r} is not a plain name",
                "use a lower-case letter, then up to 62 lower-case letters, digits or '_'",
            )
    targets = [name for name, column in recipe.columns.items() if column.role == "target"]
    if len(targets) > 1:
        raise InvalidInput(Reason.RECIPE_INVALID, f"{source} has {len(targets)} targets", "give one column that role")
    return recipe


def _between(low: float | None, high: float | None) -> str:
    parts = [f"{word} {bound:g}" for word, bound in (("from", low), ("to", high)) if bound is not None]
    return f", clipped {' '.join(parts)}" if parts else ""
