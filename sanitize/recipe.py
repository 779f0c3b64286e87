"""Recipes: what the owner of records allows to leave, column by column.

A recipe is an allow-list in TOML. A column it does not name stays inside. Numbers are held as decimals and written
as text, so that a recipe's digest is the same everywhere and no float enters the evidence.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import date
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from fabric.artifacts import digest_of
from fabric.errors import InvalidInput, Reason, nearest
from sanitize.treatments import (
    CLOSED,
    TREATMENTS,
    Age,
    Bin,
    Clip,
    Duration,
    Encode,
    Grid,
    Keep,
    Number,
    Perturb,
    Prefix,
    Pseudonymise,
    Redact,
    Round,
    Text,
    Treatment,
    Vectorise,
    Year,
    require,
)

__all__ = [
    "TREATMENTS",
    "Age",
    "Bin",
    "Clip",
    "Column",
    "Duration",
    "Encode",
    "Grid",
    "Join",
    "Keep",
    "Perturb",
    "Prefix",
    "Pseudonymise",
    "Recipe",
    "Redact",
    "RiskTable",
    "Role",
    "Round",
    "Treatment",
    "Vectorise",
    "Year",
    "column_of",
    "parse_recipe",
]

_TOKEN = re.compile(r"[a-z][a-z0-9_]{0,62}\Z")
_MAX_COLUMNS = 1_000
_LONGEST_WHY = 500
_UNKNOWN_KEY = ("unexpected_keyword_argument", "extra_forbidden")
_TOKEN_HINT = "use a lower-case letter, then up to 62 lower-case letters, digits or '_'"  # noqa: S105 - a column name

_NUMBERS = ("to", "low", "high", "edges", "epsilon")

_T = TypeVar("_T")


class Role(StrEnum):
    """What an outgoing column is for."""

    FEATURE = "feature"
    QUASI_IDENTIFIER = "quasi-identifier"
    TARGET = "target"


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """What is made of one column: under which name, by which treatment, what for.

    Attributes:
        why: why the purpose needs it (data minimisation); may be empty.
    """

    name: str
    source: str
    treatment: Treatment
    role: Role
    why: str = ""

    @property
    def action(self) -> str:
        """Return the treatment's name, as a recipe writes it."""
        return type(self.treatment).__name__.lower()

    @property
    def outgoing(self) -> tuple[str, ...]:
        """Return the names of the columns that it becomes in the matrix."""
        if isinstance(self.treatment, Vectorise):
            return tuple(f"{self.name}_{place}" for place in range(self.treatment.size))
        return (self.name,)

    @property
    def leveled(self) -> bool:
        """Say whether its numbers stand for levels, and are settled when the levels of all rows are known."""
        if isinstance(self.treatment, Pseudonymise):
            return self.treatment.by == "random"
        return isinstance(self.treatment, Encode | Prefix | Redact)

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

    def to_json(self) -> dict[str, Any]:
        """Return the column as JSON values without floats."""
        named = {"name": self.name, "from": self.source, "treatment": self.action, "role": self.role.value}
        return {**named, **self.settings(), **({"why": self.why} if self.why else {})}


@dataclass(frozen=True, slots=True, kw_only=True)
class Join:
    """Other records whose columns are joined in, prefixed `<records>.`, where `left` equals their `right`."""

    __pydantic_config__ = CLOSED
    left: Text
    right: Text


@dataclass(frozen=True, slots=True, kw_only=True)
class RiskTable:
    """What the owner asks of the matrix as a whole; the fabric's own limits hold besides.

    Attributes:
        k: subjects that must share every combination of quasi-identifiers (Sweeney, k-anonymity, 2002).
        l: values of each sensitive column among them (Machanavajjhala et al., l-diversity, 2007).
        t: how far their values may be from everybody's (Li et al., t-closeness, 2007); None asks nothing.
        suppress: share of the rows that may be left out to get there.
        sensitive: outgoing columns that must not be learnt of a subject.
    """

    __pydantic_config__ = CLOSED
    k: Annotated[int, Field(ge=2, strict=True)] = 1
    l: Annotated[int, Field(ge=1, strict=True)] = 1  # noqa: E741 - the literature's name
    t: Annotated[Number, Field(ge=0, le=1)] | None = None
    suppress: Annotated[Number, Field(ge=0, le=Decimal("0.2"))] = Decimal(0)
    sensitive: tuple[Text, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the table as JSON values, shares as text."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: _plain(value) for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What may leave, for which purpose.

    Attributes:
        preset: rules of a law that the recipe is to keep; `sanitize.presets` checks them. May be empty.
        identifiers: for each category of a preset the columns of the records that hold it.
        subject: column that says whose row it is; empty means that every row is another subject. Small cells and
            near-unique values are counted over subjects, and a subject is never split between training and held-back
            rows.
    """

    name: str
    purpose: str
    records: str
    subject: str = ""
    joins: Mapping[str, Join] = field(default_factory=dict)
    preset: str = ""
    identifiers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    risk: RiskTable = field(default_factory=RiskTable)
    columns: tuple[Column, ...]

    def __post_init__(self) -> None:
        if not self.columns:
            raise InvalidInput(
                Reason.RECIPE_EMPTY,
                f"recipe {self.name!r} lets no column out",
                "declare each column that may leave as [columns.<name>]",
            )
        names = self.outgoing
        require(len(names) <= _MAX_COLUMNS, f"more than {_MAX_COLUMNS} columns")
        for name in names:
            require(bool(_TOKEN.match(name)), f"the outgoing name {name!r} is not a token", _TOKEN_HINT)
        require(len({*names}) == len(names), "two columns share a name")
        targets = [column for column in self.columns if column.role is Role.TARGET]
        require(len(targets) <= 1, "more than one column has the role target")
        for column in targets:
            text = isinstance(column.treatment, Vectorise | Redact)
            require(not text, f"the target {column.name!r} is not one number", "predict another column")
        for name in self.risk.sensitive:
            require(name in names, f"[risk] names the column {name!r}, which does not leave", nearest(name, names))
        require(self.records not in self.joins, "the records are joined with themselves")

    @property
    def outgoing(self) -> tuple[str, ...]:
        """Return the names of the matrix's columns, in order."""
        return tuple(name for column in self.columns for name in column.outgoing)

    @property
    def sensitive(self) -> tuple[str, ...]:
        """Return the outgoing columns that must not be learnt of a subject: those of [risk], else the target."""
        return self.risk.sensitive or tuple(column.name for column in self.columns if column.role is Role.TARGET)

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
                    _nearest_there(source, schema, self.reads()),
                )

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as JSON values without floats; columns are a list, because their order is the matrix's."""
        asked = {
            "preset": self.preset,
            "identifiers": {name: list(columns) for name, columns in self.identifiers.items()},
            "risk": self.risk.to_json() if self.risk != RiskTable() else {},
        }
        return {
            "name": self.name,
            "purpose": self.purpose,
            "records": self.records,
            "subject": self.subject,
            "join": {name: {"left": j.left, "right": j.right} for name, j in self.joins.items()},
            "columns": [column.to_json() for column in self.columns],
            **{name: value for name, value in asked.items() if value},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """The tables and keys of a recipe's file."""

    __pydantic_config__ = CLOSED
    name: Text
    purpose: Text
    records: Text
    subject: str = ""
    join: dict[str, Join] = field(default_factory=dict)
    preset: Text = ""
    identifiers: dict[str, tuple[Text, ...]] = field(default_factory=dict)
    risk: RiskTable = field(default_factory=RiskTable)
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
            preset=read.preset,
            identifiers=read.identifiers,
            risk=read.risk,
            columns=tuple(_column(name, table, f"{source}: [columns.{name}]") for name, table in read.columns.items()),
        )
    except InvalidInput as wrong:
        message = wrong.message if wrong.message.startswith(source) else f"{source}: {wrong.message}"
        raise InvalidInput(wrong.reason, message, wrong.hint) from None


def _nearest_there(source: str, schema: Collection[str], reads: Collection[str]) -> str:
    """Return the nearest name there is; where none that is read is there, the names may be a row of values."""
    if any(other in schema for other in reads):
        return nearest(source, schema)
    close = difflib.get_close_matches(source, schema, n=1)
    return f"did you mean {close[0]!r}?" if close else "none of what the recipe reads is there: is there a header line?"


def _column(name: str, table: Mapping[str, Any], where: str) -> Column:
    wanted = {key: table.get(key) for key in ("from", "treatment", "role")}
    for key, value in wanted.items():
        require(isinstance(value, str) and bool(value), f"{where} needs {key!r} as text")
    kind, role = str(wanted["treatment"]), str(wanted["role"])
    require(kind in TREATMENTS, f"{where} has the unknown treatment {kind!r}", nearest(kind, TREATMENTS))
    roles = [r.value for r in Role]
    require(role in roles, f"{where} has the unknown role {role!r}", nearest(role, roles))
    why = table.get("why", "")
    require(isinstance(why, str) and len(why) <= _LONGEST_WHY, f"{where} needs 'why' as a short text")
    settings = {key: value for key, value in table.items() if key not in (*wanted, "why")}
    treatment = _validate(TREATMENTS[kind], settings, where, also_known=(*wanted, "why"))
    if isinstance(treatment, Age) and isinstance(treatment.at, str):
        treatment = replace(treatment, at=_as_date(treatment.at))
    return Column(name=name, source=str(wanted["from"]), treatment=treatment, role=Role(role), why=why)


def column_of(definition: Mapping[str, Any]) -> Column:
    """Return the column that `Column.to_json` told of.

    Raises:
        InvalidInput: `RECIPE_INVALID`.
    """
    table = {key: _decimal(value) if key in _NUMBERS else value for key, value in definition.items() if key != "name"}
    return _column(str(definition.get("name")), table, "an earlier release")


def _decimal(value: Any) -> Any:
    return [Decimal(each) for each in value] if isinstance(value, list) else Decimal(value)


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
        errors = wrong.errors(include_input=False, include_url=False)
        first = min(
            errors, key=lambda error: error["type"] not in _UNKNOWN_KEY
        )  # a misspelt key explains a missing one
        holder: Any = _INNER.get(str(first["loc"][0]), kind) if len(first["loc"]) > 1 else kind
        raise _told(first, where, [*(f.name for f in fields(holder)), *also_known]) from None


def _told(first: ErrorDetails, where: str, known: list[str]) -> InvalidInput:
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] in _UNKNOWN_KEY:
        hint = nearest(str(first["loc"][-1]), known)
        return InvalidInput(Reason.UNKNOWN_KEY, f"{where}: unknown key {place!r}", hint)
    message = f"{where}: {place!r} is missing or of the wrong kind ({first['type']})"
    asked = first.get("ctx", {}).get("expected", "") if first["type"] == "literal_error" else ""
    return InvalidInput(Reason.RECIPE_INVALID, message, f"Allowed: {asked}." if asked else "")


_INNER: Mapping[str, type] = {"join": Join, "risk": RiskTable}


def _plain(value: object) -> object:
    if isinstance(value, Decimal):
        return format(value.normalize(), "f")
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value.isoformat() if isinstance(value, date) else value
