"""Recipes: what the owner of records allows to leave, column by column.

A recipe is an allow-list in TOML. A column it does not name stays inside. Numbers are held as decimals and written
as text, so that a recipe's digest is the same everywhere and no float enters the evidence.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import date
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from fabric.artifacts import digest_of
from fabric.errors import InvalidInput, Reason, nearest

_TOKEN = re.compile(r"[a-z][a-z0-9_]{0,62}\Z")
_CLOSED = ConfigDict(extra="forbid")
_MAX_COLUMNS = 1_000
_UNKNOWN_KEY = ("unexpected_keyword_argument", "extra_forbidden")
_TOKEN_HINT = "use a lower-case letter, then up to 62 lower-case letters, digits or '_'"  # noqa: S105 - a column name

_T = TypeVar("_T")


def _number(value: object) -> object:
    if not isinstance(value, int | Decimal):
        raise ValueError("not a number")
    return value


_Number = Annotated[Decimal, Field(max_digits=18), BeforeValidator(_number)]
_Text = Annotated[str, Field(min_length=1, max_length=200)]


class Role(StrEnum):
    """What an outgoing column is for."""

    FEATURE = "feature"
    QUASI_IDENTIFIER = "quasi-identifier"
    TARGET = "target"


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """Numbers and booleans as they are."""

    __pydantic_config__ = _CLOSED


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Numbers to the nearest multiple of `to`, first held within `low` and `high` where given."""

    __pydantic_config__ = _CLOSED
    to: _Number
    low: _Number | None = None
    high: _Number | None = None

    def __post_init__(self) -> None:
        _require(self.to > 0, "round needs a positive `to`")
        _require(self.low is None or self.high is None or self.low < self.high, "`low` must be below `high`")


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """Numbers held within `low` and `high`."""

    __pydantic_config__ = _CLOSED
    low: _Number
    high: _Number

    def __post_init__(self) -> None:
        _require(self.low < self.high, "`low` must be below `high`")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """The number of the interval between `edges`: 0 missing, 1 below the first edge, and so on."""

    __pydantic_config__ = _CLOSED
    edges: Annotated[tuple[_Number, ...], Field(min_length=1, max_length=100)]

    def __post_init__(self) -> None:
        _require(all(a < b for a, b in zip(self.edges, self.edges[1:], strict=False)), "`edges` must rise")


@dataclass(frozen=True, slots=True, kw_only=True)
class Year:
    """The year of a date."""

    __pydantic_config__ = _CLOSED


@dataclass(frozen=True, slots=True, kw_only=True)
class Age:
    """Whole years from a birth date to `at`, a column or a literal date; 90 stands for every age over 89.

    HIPAA 164.514(b)(2)(i)(C).
    """

    __pydantic_config__ = _CLOSED
    at: _Text | date


@dataclass(frozen=True, slots=True, kw_only=True)
class Duration:
    """Minutes from one time to the column `until`, to the nearest multiple of `to`."""

    __pydantic_config__ = _CLOSED
    until: _Text
    to: _Number = Decimal(1)

    def __post_init__(self) -> None:
        _require(self.to > 0, "duration needs a positive `to`")


@dataclass(frozen=True, slots=True, kw_only=True)
class Encode:
    """Codes for levels: 0 other, 1 missing, then one for each level that at least `min_count` subjects share.

    The dictionary stays inside. 11 is the usual smallest cell of public health releases.
    """

    __pydantic_config__ = _CLOSED
    min_count: Annotated[int, Field(ge=2, strict=True)] = 11


Treatment = Keep | Round | Clip | Bin | Year | Age | Duration | Encode

TREATMENTS: Mapping[str, type[Treatment]] = {
    "keep": Keep,
    "round": Round,
    "clip": Clip,
    "bin": Bin,
    "year": Year,
    "age": Age,
    "duration": Duration,
    "encode": Encode,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One outgoing column: its name, the column it comes from, what is done to it, what it is for."""

    name: str
    source: str
    treatment: Treatment
    role: Role

    @property
    def action(self) -> str:
        """Return the treatment's name, as a recipe writes it."""
        return type(self.treatment).__name__.lower()

    @property
    def also_reads(self) -> tuple[str, ...]:
        """Return the other columns that the treatment reads."""
        if isinstance(self.treatment, Age) and isinstance(self.treatment.at, str):
            return (self.treatment.at,)
        return (self.treatment.until,) if isinstance(self.treatment, Duration) else ()

    def settings(self) -> dict[str, Any]:
        """Return the treatment's settings as JSON values, numbers as text."""
        values = {f.name: getattr(self.treatment, f.name) for f in fields(self.treatment)}
        return {name: _plain(value) for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Join:
    """Other records whose columns are joined in, prefixed `<records>.`, where `left` equals their `right`."""

    __pydantic_config__ = _CLOSED
    left: _Text
    right: _Text


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What may leave, for which purpose.

    Attributes:
        subject: column that says whose row it is; empty means that every row is another subject. Small cells and
            near-unique values are counted over subjects, and a subject is never split between training and held-back
            rows.
    """

    name: str
    purpose: str
    records: str
    subject: str = ""
    joins: Mapping[str, Join] = field(default_factory=dict)
    columns: tuple[Column, ...]

    def __post_init__(self) -> None:
        if not self.columns:
            raise InvalidInput(
                Reason.RECIPE_EMPTY,
                f"recipe {self.name!r} lets no column out",
                "declare each column that may leave as [columns.<name>]",
            )
        for column in self.columns:
            _require(bool(_TOKEN.match(column.name)), f"the outgoing name {column.name!r} is not a token", _TOKEN_HINT)
        _require(len(self.columns) <= _MAX_COLUMNS, f"more than {_MAX_COLUMNS} columns")
        _require(len({c.name for c in self.columns}) == len(self.columns), "two columns share a name")
        _require(sum(c.role is Role.TARGET for c in self.columns) <= 1, "more than one column has the role target")
        _require(self.records not in self.joins, "the records are joined with themselves")

    @property
    def digest(self) -> str:
        """Return the digest of the recipe's canonical JSON."""
        return digest_of(self.to_json())

    @property
    def sources(self) -> tuple[str, ...]:
        """Return the names of the records that are read: its own, then those it joins."""
        return (self.records, *self.joins)

    def reads(self) -> dict[str, str]:
        """Return every input column that is read, with what reads it."""
        read = {source: f"column {c.name!r}" for c in self.columns for source in (c.source, *c.also_reads)}
        return {self.subject: "subject", **read} if self.subject else read

    def check(self, schema: Mapping[str, str]) -> None:
        """Check that the records, joined, have every column that the recipe reads.

        Raises:
            InvalidInput: `COLUMN_MISSING`, with the nearest column there is.
        """
        for source, reader in self.reads().items():
            if source not in schema:
                raise InvalidInput(
                    Reason.COLUMN_MISSING,
                    f"recipe {self.name!r}: {reader} reads {source!r}, which the records do not have",
                    nearest(source, schema),
                )

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as JSON values without floats; columns are a list, because their order is the matrix's."""
        return {
            "name": self.name,
            "purpose": self.purpose,
            "records": self.records,
            "subject": self.subject,
            "join": {name: {"left": j.left, "right": j.right} for name, j in self.joins.items()},
            "columns": [
                {"name": c.name, "from": c.source, "treatment": c.action, "role": c.role.value, **c.settings()}
                for c in self.columns
            ],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """The tables and keys of a recipe's file."""

    __pydantic_config__ = _CLOSED
    name: _Text
    purpose: _Text
    records: _Text
    subject: str = ""
    join: dict[str, Join] = field(default_factory=dict)
    columns: dict[str, dict[str, Any]] = field(default_factory=dict)


def parse_recipe(text: str, *, source: str) -> Recipe:
    """Return the recipe in the TOML `text`; `source` names its file in messages.

    Raises:
        InvalidInput: `RECIPE_INVALID`, `RECIPE_EMPTY` or `UNKNOWN_KEY`, with the nearest right name.
    """
    try:
        raw = tomllib.loads(text, parse_float=Decimal)
    except (ValueError, ArithmeticError, RecursionError):
        raise InvalidInput(Reason.RECIPE_INVALID, f"{source} is not TOML", "check its quotes and brackets") from None
    read = _validate(_File, raw, source)
    try:
        return Recipe(
            name=read.name,
            purpose=read.purpose,
            records=read.records,
            subject=read.subject,
            joins=read.join,
            columns=tuple(_column(name, table, f"{source}: [columns.{name}]") for name, table in read.columns.items()),
        )
    except InvalidInput as wrong:
        message = wrong.message if wrong.message.startswith(source) else f"{source}: {wrong.message}"
        raise InvalidInput(wrong.reason, message, wrong.hint) from None


def _column(name: str, table: Mapping[str, Any], where: str) -> Column:
    wanted = {key: table.get(key) for key in ("from", "treatment", "role")}
    for key, value in wanted.items():
        _require(isinstance(value, str) and bool(value), f"{where} needs {key!r} as text")
    kind, role = str(wanted["treatment"]), str(wanted["role"])
    _require(kind in TREATMENTS, f"{where} has the unknown treatment {kind!r}", nearest(kind, TREATMENTS))
    roles = [r.value for r in Role]
    _require(role in roles, f"{where} has the unknown role {role!r}", nearest(role, roles))
    settings = {key: value for key, value in table.items() if key not in wanted}
    treatment = _validate(TREATMENTS[kind], settings, where, also_known=tuple(wanted))
    if isinstance(treatment, Age) and isinstance(treatment.at, str):
        treatment = Age(at=_as_date(treatment.at))
    return Column(name=name, source=str(wanted["from"]), treatment=treatment, role=Role(role))


def _as_date(text: str) -> str | date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        return text


def _validate(kind: type[_T], raw: Mapping[str, Any], where: str, *, also_known: tuple[str, ...] = ()) -> _T:
    """Read `raw` as `kind`; pydantic's errors are told again without the input they quote."""
    try:
        return TypeAdapter(kind).validate_python(raw)
    except InvalidInput as wrong:
        raise InvalidInput(wrong.reason, f"{where}: {wrong.message}", wrong.hint) from None
    except ValidationError as wrong:
        errors = wrong.errors(include_input=False, include_url=False, include_context=False)
        first = min(
            errors, key=lambda error: error["type"] not in _UNKNOWN_KEY
        )  # a misspelt key explains a missing one
        holder: Any = Join if len(first["loc"]) == 3 else kind
        raise _told(first, where, [*(f.name for f in fields(holder)), *also_known]) from None


def _told(first: ErrorDetails, where: str, known: list[str]) -> InvalidInput:
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] in _UNKNOWN_KEY:
        hint = nearest(str(first["loc"][-1]), known)
        return InvalidInput(Reason.UNKNOWN_KEY, f"{where}: unknown key {place!r}", hint)
    return InvalidInput(Reason.RECIPE_INVALID, f"{where}: {place!r} is missing or of the wrong kind ({first['type']})")


def _require(holds: bool, message: str, hint: str = "") -> None:
    if not holds:
        raise InvalidInput(Reason.RECIPE_INVALID, message, hint)


def _plain(value: object) -> object:
    if isinstance(value, Decimal):
        return format(value.normalize(), "f")
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value.isoformat() if isinstance(value, date) else value
