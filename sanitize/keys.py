"""Keys: which column of one table refers to another's unique key, and which time comes after which.

It answers with names and counts. A foreign key is a claim about all values, so a table of more rows than a limit is
not searched for keys: a sample of a key proves nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sanitize.presets import is_birth, words_of

_FIRST = 100
_MIN_KEYS = 10
_MAX_TIMES = 20
_GENERIC = frozenset({"id", "key", "no", "nr", "number", "code", "guid", "uuid", "fk", "pk"})


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyMatch:
    """A column all of whose sampled values are contained in the unique key of another table.

    Attributes:
        distinct: sampled values that were looked up.
        keys: values of the key.
    """

    records: str
    column: str
    to_records: str
    to_column: str
    distinct: int
    keys: int

    @property
    def target(self) -> str:
        """Return the key as `records.column`."""
        return f"{self.to_records}.{self.to_column}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Two times of one table, of which the second is in no sampled row before the first.

    Attributes:
        to: minutes to round to, 1, 2 or 5 times a power of ten, or whole days.
    """

    records: str
    start: str
    end: str
    to: Decimal


def find_keys(tables: Mapping[str, pa.Table], samples: Mapping[str, pa.Table], *, limit: int) -> tuple[KeyMatch, ...]:
    """Return every column of `samples` that refers to a unique key of another of the `tables`.

    Args:
        tables: whole, for the keys; of more than `limit` rows they have none.
        samples: the same tables, fewer rows.
    """
    if len(tables) < 2:
        return ()
    keys = [(name, key) for name, table in tables.items() if table.num_rows <= limit for key in _unique(table)]
    found = []
    for name, sample in samples.items():
        for column in sample.column_names:
            values = pc.drop_null(pc.unique(sample.column(column))) if _may_be_key(sample, column) else None
            if values is None or not len(values):
                continue
            for other, key in keys:
                offered = tables[other].column(key)
                if other != name and _agree(column, other, key, values) and _within(values, offered):
                    found.append(
                        KeyMatch(
                            records=name, column=column, to_records=other, to_column=key,
                            distinct=len(values), keys=len(offered),
                        )
                    )  # fmt: skip
                    break
    return tuple(found)


def find_spans(name: str, sample: pa.Table) -> tuple[Span, ...]:
    """Return the pairs of times of one table that begin and end something; a time begins at most one."""
    times = [c for c in sample.column_names if pa.types.is_temporal(sample.schema.field(c).type) and not is_birth(c)]
    found: list[Span] = []
    for start, end in _pairs(sample, times[:_MAX_TIMES]):
        if start not in {span.start for span in found} and (minutes := _minutes(sample, start, end)) is not None:
            found.append(Span(records=name, start=start, end=end, to=_grain(minutes)))
    return tuple(found)


def _unique(table: pa.Table) -> Iterator[str]:
    for name in table.column_names:
        cells = table.column(name)
        if _may_be_key(table, name) and len(cells) >= _MIN_KEYS:
            first = cells.slice(0, _FIRST)
            if pc.count_distinct(first).as_py() == len(first) and pc.count_distinct(cells).as_py() == len(cells):
                yield name


def _may_be_key(table: pa.Table, name: str) -> bool:
    kind = table.schema.field(name).type
    return bool(pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _agree(column: str, other: str, key: str, values: pa.Array) -> bool:
    """Say whether names and types allow a match: small whole numbers are contained in any row number by chance."""
    if not pa.types.is_integer(values.type):
        return len(values) >= _MIN_KEYS or _shares_word(column, other, key)
    return _shares_word(column, other, key)


def _shares_word(column: str, other: str, key: str) -> bool:
    wanted = {word.removesuffix("s") for word in words_of(column) - _GENERIC}
    offered = {word.removesuffix("s") for word in (words_of(other) | words_of(key)) - _GENERIC}
    return any(a in (b, f"{b}id") for a in wanted for b in offered)


def _within(values: pa.Array, offered: pa.ChunkedArray) -> bool:
    if pa.types.is_integer(values.type) != pa.types.is_integer(offered.type):
        return False
    keys = offered.combine_chunks().cast(values.type)
    return all(pc.all(pc.is_in(part, value_set=keys)).as_py() for part in (values[:_FIRST], values))


def _pairs(sample: pa.Table, times: list[str]) -> Iterator[tuple[str, str]]:
    for start in times:
        for end in times:
            kinds = [sample.schema.field(name).type for name in (start, end)]
            zones = {getattr(kind, "tz", None) is None for kind in kinds}
            if start != end and len(zones) == 1 and not any(pa.types.is_time(kind) for kind in kinds):
                yield start, end


def _minutes(sample: pa.Table, start: str, end: str) -> np.ndarray | None:
    """Return the minutes from one to the other, or None where they are not a beginning and an end."""
    moments = [sample.column(name).cast(pa.timestamp("us"), safe=False).to_numpy() for name in (start, end)]
    minutes = (moments[1] - moments[0]).astype("timedelta64[us]")
    known = minutes[~np.isnat(minutes)].astype(np.int64) / 60e6
    if not len(known) or known.min() < 0 or known.max() == known.min():
        return None
    return np.asarray(known)


def _grain(minutes: np.ndarray) -> Decimal:
    """Return a step that keeps the middle of the durations apart and the longest within some thousand steps."""
    low, high = np.quantile(minutes, (0.1, 0.9))
    grain = step_up(max((high - low) / 50, float(minutes.max()) / 10_000, 1.0))
    whole_days = bool(np.all(minutes % 1_440 == 0))
    return Decimal(1_440) * max(Decimal(1), step_up(float(grain) / 1_440)) if whole_days else grain


def step_up(amount: float) -> Decimal:
    """Return the smallest 1, 2 or 5 times a power of ten that is at least `amount`, which must be above zero."""
    power = Decimal(10) ** int(np.floor(np.log10(amount)))
    for leading in (1, 2, 5, 10):
        if float(power * leading) >= amount * (1 - 1e-12):
            return (power * leading).normalize()
    return power * 10
