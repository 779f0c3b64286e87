"""Treatment: from raw columns to columns of numbers, as the recipe says, block by block.

`make` treats one block of rows. What it gives for a column is final, or, where numbers stand for levels, the place of
each cell among the block's levels; `settle` gives the levels of all blocks their codes. The outcome is the same
however the rows are cut into blocks, and `apply`, which takes them as one, shows it. What comes out is float64
(measures; NaN is missing), float32 (vectors), int32 (codes) or int64 (pseudonyms). Text never comes out, but for
`redact`: its codes stand for texts that cross only where policy allows it. A cell that does not fit its treatment
refuses the column.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from fabric.artifacts import digest_of
from fabric.errors import InvalidInput, Reason, Refused
from sanitize.blocks import Block, Ints, Places, Reals, distinct
from sanitize.keyed import TOKEN_BITS, VECTOR_STEPS, noisy_steps, on_grid, tokens, vectors
from sanitize.ordering import derived
from sanitize.recipe import Column, Recipe
from sanitize.treatments import (
    Age,
    Bin,
    Clip,
    Duration,
    Encode,
    Grid,
    Perturb,
    Prefix,
    Pseudonymise,
    Redact,
    Round,
    Vectorise,
    Year,
)

OTHER, MISSING = "(other)", "(missing)"
_SECRET_BYTES = 32
_LARGEST_SURROGATE = 2**53

Values = np.ndarray[Any, Any]
Surrogates = Callable[[Sequence[str]], Sequence[int]]


class Rewriter(Protocol):
    """What redacts texts; `sanitize.redaction` has one."""

    def redact(self, texts: Sequence[str]) -> list[str]:
        """Return each text without what identifies."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Secrets:
    """Two keys of 32 bytes.

    Attributes:
        rows: of these very records; noise comes from it.
        purpose: of this purpose; tokens and vectors come from it, so a model can read later rows.
    """

    rows: bytes = field(repr=False)
    purpose: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.rows) != _SECRET_BYTES or len(self.purpose) != _SECRET_BYTES:
            raise InvalidInput(Reason.CONFIG_INVALID, f"a secret is not {_SECRET_BYTES} bytes", "use 32 random bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What was made of one column in one block.

    Attributes:
        values: for each outgoing name one number per row; with `levels` the places of the cells among them.
        levels: the block's levels, each once, None for missing; None where the values are final.
        nulls: rows without a value.
        clipped: cells that lay outside the treatment's bounds.
    """

    values: Mapping[str, Values] = field(repr=False)
    levels: tuple[str | None, ...] | None = field(repr=False, default=None)
    nulls: int
    clipped: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """The code of each level.

    Attributes:
        names: the level behind each code; stays inside, but for redacted text. Empty for pseudonyms.
        folded: levels that share the code 0.
    """

    codes: Values = field(repr=False)
    names: tuple[str, ...] = field(repr=False)
    folded: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """What a treatment did to a column, in counts and words.

    Attributes:
        grain: the step between values; None where there is no fixed one.
        levels: number of codes, or 0 for a measure.
        epsilon: of each cell, where noise was added; else empty.
        tokens: `random` or `hmac` for pseudonyms; else empty.
    """

    why: str
    nulls: int
    clipped: int = 0
    folded: int = 0
    levels: int = 0
    grain: float | None = None
    epsilon: str = ""
    tokens: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Treated:
    """The outgoing columns as numbers, with what stays inside.

    Attributes:
        subjects: whose row each is, as numbers from 0.
        dictionaries: for each column of codes the level behind each code; never crosses.
    """

    table: pa.Table = field(repr=False)
    subjects: Ints = field(repr=False)
    dictionaries: Mapping[str, tuple[str, ...]] = field(repr=False)
    notes: Mapping[str, Note]


def make(
    column: Column, block: pa.Table, *, first_row: int, secrets: Secrets, redactor: Rewriter | None = None
) -> Made:
    """Return what `column` becomes in one block of rows.

    Args:
        first_row: number of the block's first row among all rows; names rows in refusals and chooses their noise.

    Raises:
        Refused: `COLUMN_REFUSED` if cells do not fit their treatment, or if there is no `redactor` for `redact`.
    """
    cells = Block(column=column, table=block, first_row=first_row)
    treatment = column.treatment
    match treatment:
        case Encode():
            return _placed(column, *cells.levels())
        case Prefix():
            return _placed(column, *cells.prefixes(treatment))
        case Redact():
            return _placed(column, *cells.rewritten(_redactor(column, redactor).redact))
        case Pseudonymise():
            places, levels = cells.levels()
            if treatment.by == "random":
                return _placed(column, places, levels)
            coded = tokens(levels.to_pylist(), secrets.purpose)[places]
            return Made(values={column.name: coded}, nulls=int((coded == 0).sum()))
        case Vectorise():
            texts = cells.texts()
            arrays = vectors(texts, treatment, derived(secrets.purpose, f"vectorise {column.name}"))
            return Made(values=dict(zip(column.outgoing, arrays, strict=True)), nulls=texts.null_count)
        case Bin():
            numbers = cells.reals()
            missing = np.isnan(numbers)
            edges = [float(edge) for edge in treatment.edges]
            codes = np.where(missing, 0, np.searchsorted(edges, numbers, side="right") + 1).astype(np.int32)
            return Made(values={column.name: codes}, nulls=int(missing.sum()))
        case _:
            numbers, clipped = _measure(cells, secrets)
            return Made(values={column.name: numbers}, nulls=int(np.isnan(numbers).sum()), clipped=clipped)


def _measure(cells: Block, secrets: Secrets) -> tuple[Reals, int]:
    treatment = cells.column.treatment
    match treatment:
        case Year():
            return cells.years(), 0
        case Age():
            return cells.ages(treatment), 0
        case Duration():
            return _rounded(cells.minutes(treatment), treatment.to), 0
        case Grid():
            degrees = cells.reals()
            if (far := np.abs(degrees) > 180).any():
                raise cells.misfit(far, "are not decimal degrees")
            return _rounded(degrees, treatment.to), 0
        case Round():
            numbers, clipped = _clipped(cells.reals(), treatment.low, treatment.high)
            return _rounded(numbers, treatment.to), clipped
        case Clip():
            return _clipped(cells.reals(), treatment.low, treatment.high)
        case Perturb():
            held, clipped = _clipped(cells.reals(), treatment.low, treatment.high)
            # A column's own key for each setting: the same noise at two scales would cancel itself out.
            key = derived(secrets.rows, f"perturb {cells.column.source} {digest_of(cells.column.settings())}")
            return on_grid(noisy_steps(held, treatment, first_row=cells.first_row, key=key), treatment.to), clipped
        case _:
            return cells.reals(), 0


def settle(
    column: Column,
    levels: Sequence[str | None],
    holders: Ints,
    rest_holders: Callable[[Sequence[int]], int],
    surrogates: Surrogates | None = None,
) -> Settled:
    """Return the codes of the levels of all blocks.

    Args:
        levels: every level once, None for missing.
        holders: distinct subjects that have each level; 0 for a level that no row has any more.
        rest_holders: returns how many distinct subjects have any of the levels at these places.
        surrogates: returns a random whole number for each value, the same for one it has seen before.

    Raises:
        InvalidInput: `CONFIG_INVALID`: pseudonyms by lot, and no `surrogates`, or none that can be told apart.
    """
    treatment = column.treatment
    if isinstance(treatment, Pseudonymise):
        return Settled(codes=_drawn(column, levels, surrogates), names=())
    if isinstance(treatment, Redact):
        return _coded(levels, range(len(levels)), first=1, missing=0, names=(MISSING,))
    if not isinstance(treatment, Encode | Prefix):
        raise InvalidInput(Reason.CONFIG_INVALID, f"column {column.name!r} ({column.action}) has no levels to settle")
    kept = _levels_of_many(levels, holders, rest_holders, treatment.min_count)
    return _coded(levels, kept, first=2, missing=1, names=(OTHER, MISSING))


def note(column: Column, settled: Settled | None, *, nulls: int, clipped: int) -> Note:
    """Return what was done to `column` over all blocks.

    Args:
        settled: the codes of a column with levels; None for any other.
        nulls: rows without a value.
        clipped: cells that lay outside the bounds.
    """
    treatment = column.treatment
    names, folded = (settled.names, settled.folded) if settled else ((), 0)
    inside = f"{len(names)} levels, whose dictionary stays inside; {folded} rare levels as one"
    counts: dict[str, Any] = {"nulls": nulls, "clipped": clipped, "folded": folded}
    match treatment:
        case Encode():
            return Note(why=f"codes of {inside}", levels=len(names), **counts)
        case Prefix():
            why = f"codes of the first {treatment.digits} digits, {inside}"
            return Note(why=why, levels=len(names), **counts)
        case Redact():
            return Note(why="text with what was found replaced by its kind", levels=len(names), **counts)
        case Pseudonymise():
            drawn = "numbers drawn by lot, whose map stays inside"
            hashed = f"the first {TOKEN_BITS} bits of an HMAC-SHA256 under a key of the purpose"
            return Note(why=drawn if treatment.by == "random" else hashed, tokens=treatment.by, **counts)
        case Bin():
            count = len(treatment.edges) + 2
            return Note(why=f"codes of {count - 1} intervals, 0 for missing", levels=count, **counts)
        case _:
            why, grain = _why(column)
            epsilon = _short(treatment.epsilon) if isinstance(treatment, Perturb) else ""
            return Note(why=why, grain=grain, epsilon=epsilon, **counts)


def dtype_of(column: Column) -> type[np.generic]:
    """Return the type of the numbers that `column` becomes."""
    match column.treatment:
        case Encode() | Prefix() | Bin() | Redact():
            return np.int32
        case Pseudonymise():
            return np.int64
        case Vectorise():
            return np.float32
        case _:
            return np.float64


def apply(
    recipe: Recipe,
    table: pa.Table,
    *,
    secrets: Secrets,
    surrogates: Surrogates | None = None,
    redactor: Rewriter | None = None,
) -> Treated:
    """Return the columns that `recipe` lets out of `table`, treated as one block.

    Raises:
        Refused: `COLUMN_REFUSED` if cells do not fit their treatment.
        InvalidInput: `CONFIG_INVALID`: pseudonyms by lot, and no `surrogates`.
    """
    subjects = _subjects(recipe, table)
    columns: dict[str, Values] = {}
    notes: dict[str, Note] = {}
    dictionaries: dict[str, tuple[str, ...]] = {}
    for column in recipe.columns:
        made = make(column, table, first_row=0, secrets=secrets, redactor=redactor)
        settled = None
        if made.levels is None:
            columns.update(made.values)
        else:
            places = made.values[column.name]
            settled = settle(column, made.levels, *_counted(places, subjects, len(made.levels)), surrogates)
            columns[column.name] = settled.codes[places]
            if settled.names:
                dictionaries[column.name] = settled.names
        notes[column.name] = note(column, settled, nulls=made.nulls, clipped=made.clipped)
    return Treated(table=pa.table(columns), subjects=subjects, dictionaries=dictionaries, notes=notes)


def _subjects(recipe: Recipe, table: pa.Table) -> Ints:
    if not recipe.subject:
        return np.arange(table.num_rows, dtype=np.int64)
    return distinct(table.column(recipe.subject))[0].astype(np.int64)


def _counted(places: Places, subjects: Ints, count: int) -> tuple[Ints, Callable[[Sequence[int]], int]]:
    people = int(subjects.max(initial=0)) + 1
    holders = np.bincount(np.unique(places * people + subjects) // people, minlength=count)
    return holders, lambda some: len(np.unique(subjects[np.isin(places, list(some))]))


def _placed(column: Column, places: Places, levels: pa.Array) -> Made:
    texts = tuple(levels.to_pylist())
    nulls = int((places == texts.index(None)).sum()) if None in texts else 0
    return Made(values={column.name: places}, levels=texts, nulls=nulls)


def _levels_of_many(
    levels: Sequence[str | None], holders: Ints, rest_holders: Callable[[Sequence[int]], int], min_count: int
) -> list[int]:
    """Return the levels that `min_count` subjects share, such that all the others together are shared by as many."""
    kept = [int(place) for place in np.flatnonzero(holders >= min_count)]
    kept.sort(key=lambda place: (int(holders[place]), levels[place] is None, levels[place] or ""))
    rest = [int(place) for place in np.flatnonzero((holders < min_count) & (holders > 0))]
    if rest and kept and rest_holders(rest) < min_count:
        kept.pop(0)  # the rarest of those kept has enough subjects by itself
    return kept


def _coded(
    levels: Sequence[str | None], kept: Sequence[int], *, first: int, missing: int, names: tuple[str, ...]
) -> Settled:
    """Return codes in the order of the kept levels' names, from `first` on; 0 for every other level."""
    codes = np.zeros(len(levels), dtype=np.int32)
    named = sorted((level, place) for place in kept if (level := levels[place]) is not None)
    for code, (_, place) in enumerate(named, start=first):
        codes[place] = code
    for place in kept:
        if levels[place] is None:
            codes[place] = missing
    return Settled(codes=codes, names=(*names, *(level for level, _ in named)), folded=len(levels) - len(kept))


def _drawn(column: Column, levels: Sequence[str | None], surrogates: Surrogates | None) -> Ints:
    if surrogates is None:
        raise InvalidInput(Reason.CONFIG_INVALID, f"column {column.name!r} needs a map of surrogates", "pass one")
    known = [place for place, level in enumerate(levels) if level is not None]
    numbers = np.array(surrogates([level for level in levels if level is not None]), dtype=np.int64)
    apart = len(np.unique(numbers)) == len(numbers) == len(known)
    if not apart or (len(numbers) and not 0 < numbers.min() <= numbers.max() < _LARGEST_SURROGATE):
        message = f"the map of surrogates of column {column.name!r} does not give each value a number of its own"
        raise InvalidInput(Reason.CONFIG_INVALID, message, "restore the map, or name another")
    codes = np.zeros(len(levels), dtype=np.int64)
    codes[known] = numbers
    return codes


def _redactor(column: Column, redactor: Rewriter | None) -> Rewriter:
    if redactor is None:
        raise Refused(
            Reason.COLUMN_REFUSED,
            f"column {column.name!r} (from {column.source!r}, redact): text does not cross",
            "use the treatment vectorise: only numbers leave",
        )
    return redactor


def _why(column: Column) -> tuple[str, float | None]:
    """Return what is done to a measure in words, and the step between its values."""
    treatment = column.treatment
    match treatment:
        case Year():
            return "the year only", 1.0
        case Age():
            bands = f" in bands of {treatment.band}" if treatment.band else ""
            return f"whole years at {treatment.at}{bands}, over 89 as 90", float(treatment.band or 1)
        case Duration():
            return f"minutes until {treatment.until}, rounded to {_short(treatment.to)}", float(treatment.to)
        case Grid():
            return f"decimal degrees, rounded to {_short(treatment.to)}", float(treatment.to)
        case Round():
            within = _within(treatment.low, treatment.high)
            return ", ".join(filter(None, (f"rounded to {_short(treatment.to)}", within))), float(treatment.to)
        case Clip():
            return _within(treatment.low, treatment.high), None
        case Perturb():
            noise = (
                f"noise of epsilon {_short(treatment.epsilon)} for each cell, on multiples of {_short(treatment.to)}"
            )
            return f"{_within(treatment.low, treatment.high)}, {noise}", float(treatment.to)
        case Vectorise():
            grams = f"{treatment.ngram} characters in a row" if treatment.ngram else ""
            of = " and ".join(filter(None, ("words" if treatment.words else "", grams)))
            size = f"counts within {treatment.cap}" if treatment.cap else "length 1"
            grain = 1.0 if treatment.cap else 1 / VECTOR_STEPS
            return f"{of}, hashed with a key into {treatment.size} numbers, {size}", grain
        case _:
            return "kept as it is: a number", None


def _clipped(values: Reals, low: Decimal | None, high: Decimal | None) -> tuple[Reals, int]:
    bottom = -np.inf if low is None else float(low)
    top = np.inf if high is None else float(high)
    return np.clip(values, bottom, top), int(((values < bottom) | (values > top)).sum())


def _rounded(values: Reals, to: Decimal) -> Reals:
    return on_grid(np.rint(values / float(to)), to)


def _within(low: Decimal | None, high: Decimal | None) -> str:
    bounds = (("at least", low), ("at most", high))
    return ", ".join(f"{word} {_short(bound)}" for word, bound in bounds if bound is not None)


def _short(number: Decimal) -> str:
    return format(number.normalize(), "f")
