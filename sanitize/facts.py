"""Facts: counts and steps measured on the sampled cells of one column. What goes out of here holds no value."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sanitize.keys import step_up
from sanitize.kinds import MIN_HOLDERS, NEAR_UNIQUE, Facts, Family, Kind, Shape

_MOST_STEPS = 10_000
_SPARSE, _SPARSE_DISTINCT = 1_000, 20
_DECIMALS, _DECIMALS_OF = 4, 1_000
_EPOCHS = ((6e8, 2.1e9), (6e11, 2.1e12), (6e14, 2.1e15))  # seconds, milliseconds, microseconds: 1989 to 2036
_ALMOST_ALL = 0.95
_NARROW = 1_000
_PER_VALUE = 5
_SCALED = frozenset({Kind.AMOUNT, Kind.MEASURE, Kind.COUNT, Kind.YEAR})
_ZIP = r"^[0-9]{5}(-[0-9]{4})?$"
_AREA = 3

Ints = np.ndarray[Any, np.dtype[np.int64]]
Reals = np.ndarray[Any, np.dtype[np.float64]]


class Findings(Protocol):
    """What an inspection of a column's values gives; `sanitize.inspection.ColumnFindings` is one."""

    @property
    def entities(self) -> Mapping[str, tuple[int, int]]:
        """Return for each entity in how many distinct values it was found, strong and weak."""


class Inspecting(Protocol):
    """What reads values for identifiers; `sanitize.inspection.Inspector` is one."""

    def inspect_column(self, name: str, values: pa.Array, *, also_called: Sequence[str] = ()) -> Findings:
        """Inspect each distinct value, with the column's names as context."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Steps to round, clip or bin a column of numbers by.

    Attributes:
        to: step to round to.
        low, high: multiples of `to`, with at least `MIN_HOLDERS` subjects at or beyond each; a low of 0 stands for all
            that lies between it and the first step.
        edges: for numbers over so many orders of magnitude that no one step serves; empty where one does.
    """

    to: Decimal
    low: Decimal
    high: Decimal
    edges: tuple[Decimal, ...] = ()

    @property
    def levels(self) -> int:
        """Return how many values are left after rounding."""
        return len(self.edges) + 2 if self.edges else int((self.high - self.low) / self.to) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """The sampled cells of one column, as places in the list of its distinct values.

    Attributes:
        places: for each row with a value, where it stands in `distinct`; in order of first appearance.
        known: whether each row has a value.
        whose: the subject of each row with a value, as a number.
    """

    type: pa.DataType
    family: Family
    distinct: pa.Array = field(repr=False)
    places: Ints = field(repr=False)
    known: np.ndarray[Any, np.dtype[np.bool_]] = field(repr=False)
    whose: Ints = field(repr=False)

    @classmethod
    def of(cls, cells: pa.ChunkedArray, whose: Ints) -> Sampled:
        """Return the cells of a column whose rows belong to the subjects `whose`."""
        kind = cells.type
        known = ~cells.is_null(nan_is_null=True).to_numpy(zero_copy_only=False).astype(bool)
        try:
            coded = cells.filter(pa.array(known)).combine_chunks().dictionary_encode()
        except pa.ArrowException:  # nested cells have no distinct values
            none = np.zeros(0, dtype=np.int64)
            return cls(type=kind, family=Family.OTHER, distinct=pa.nulls(0), places=none, known=known, whose=none)
        if isinstance(coded, pa.ChunkedArray):
            coded = coded.combine_chunks()
        places = coded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        family = _family(kind, coded.dictionary)
        return cls(type=kind, family=family, distinct=coded.dictionary, places=places, known=known, whose=whose[known])

    def numbers(self) -> Reals:
        """Return the distinct values as reals; none for a family that is no number."""
        if self.family not in (Family.WHOLE, Family.REAL):
            return np.zeros(0)
        return np.asarray(self.distinct.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))

    def fingerprint(self) -> bytes:
        """Return a digest that two columns share if and only if each tells the same of every row."""
        rows = np.full(len(self.known), -1, dtype=np.int64)
        rows[self.known] = self.places
        return hashlib.blake2b(rows.tobytes(), digest_size=32).digest()


def codes_of(cells: pa.ChunkedArray) -> Ints:
    """Return each row's place in the list of distinct values; a missing value is one of them."""
    coded = cells.combine_chunks().dictionary_encode(null_encoding="encode")
    if isinstance(coded, pa.ChunkedArray):
        coded = coded.combine_chunks()
    return np.asarray(coded.indices.to_numpy(zero_copy_only=False).astype(np.int64))


def facts_of(name: str, read: Sampled, refers_to: str, inspector: Inspecting, values: int) -> Facts:
    """Return the facts of one column; at most `values` of its distinct values are inspected.

    Raises:
        Refused: `INSPECTION_FAILED`.
    """
    count, people = len(read.distinct), int(read.whose.max(initial=0)) + 1
    pairs = np.unique(read.places * people + read.whose)
    shared = np.bincount(pairs // people, minlength=count)
    cells = np.bincount(read.places, minlength=count)
    inspected = _some(read.distinct, values) if read.family not in (Family.FLAG, Family.OTHER, Family.NONE) else None
    entities = {} if inspected is None else dict(inspector.inspect_column(name, inspected).entities)
    ascii_share, words = _texts(read)
    return Facts(
        name=name,
        type=str(read.type),
        family=read.family,
        rows=len(read.known),
        nulls=int((~read.known).sum()),
        distinct=count,
        holders=len(np.unique(read.whose)),
        pairs=len(pairs),
        common=int((shared >= MIN_HOLDERS).sum()),
        rarest=int(shared.min(initial=people)) if count else 0,
        covered=float(cells[shared >= MIN_HOLDERS].sum() / max(cells.sum(), 1)),
        ascii=ascii_share,
        words=words,
        entities=entities,
        inspected=0 if inspected is None else len(inspected),
        shapes=frozenset(_shapes(read, len(pairs))),
        coarse=_coarse(read),
        refers_to=refers_to,
    )


def _family(kind: pa.DataType, distinct: pa.Array) -> Family:
    if pa.types.is_null(kind):
        return Family.NONE
    if pa.types.is_boolean(kind):
        return Family.FLAG
    if pa.types.is_integer(kind):
        return Family.WHOLE
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        numbers = distinct.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        return Family.WHOLE if len(numbers) and bool(np.all(numbers == np.rint(numbers))) else Family.REAL
    if pa.types.is_date(kind):
        return Family.DATE
    if pa.types.is_timestamp(kind):
        return Family.TIME
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return Family.TEXT if text else Family.OTHER


def _coarse(read: Sampled) -> int:
    """Return how many years the dates lie in, or areas of three digits the ZIP codes; 0 for what is neither."""
    if read.family in (Family.DATE, Family.TIME):
        return int(pc.count_distinct(pc.year(read.distinct)).as_py())
    if not _are_zips(read):
        return 0
    texts = pc.utf8_lpad(read.distinct.cast(pa.string()), 5, "0")
    areas = codes_of(pa.chunked_array([pc.utf8_slice_codeunits(texts, 0, _AREA)]))
    people = int(read.whose.max()) + 1
    holders = np.bincount(np.unique(areas[read.places] * people + read.whose) // people)
    return int((holders >= MIN_HOLDERS).sum()) + int((holders < MIN_HOLDERS).any())


def _are_zips(read: Sampled) -> bool:
    if read.family is Family.TEXT and len(read.distinct):
        return bool(pc.all(pc.match_substring_regex(read.distinct.cast(pa.string()), _ZIP)).as_py())
    numbers = read.numbers() if pa.types.is_integer(read.type) else np.zeros(0)
    return bool(len(numbers) and numbers.min() >= 0 and numbers.max() < 100_000)


def _some(distinct: pa.Array, count: int) -> pa.Array:
    if len(distinct) <= count:
        return distinct
    return distinct.take(pa.array(np.linspace(0, len(distinct) - 1, count).astype(np.int64)))


def _texts(read: Sampled) -> tuple[float, float]:
    if read.family is not Family.TEXT or not len(read.distinct):
        return 1.0, 0.0
    texts = read.distinct.cast(pa.string())
    words = pc.count_substring_regex(texts, r"\S+")
    return float(pc.mean(pc.string_is_ascii(texts)).as_py()), float(pc.mean(words).as_py())


def _shapes(read: Sampled, pairs: int) -> set[Shape]:
    found = set()
    if len(read.distinct) > 1 and len(read.distinct) > NEAR_UNIQUE * pairs:
        found.add(Shape.NEAR_UNIQUE)
    if read.family is Family.TIME and _has_seconds(read.distinct):
        found.add(Shape.TO_THE_SECOND)
    if _are_zips(read):
        found.add(Shape.POSTCODES)
    numbers = np.sort(read.numbers())
    if not len(numbers):
        return found
    if read.family is Family.REAL:
        return found | _real_shapes(numbers)
    return found | _whole_shapes(numbers)


def _has_seconds(moments: pa.Array) -> bool:
    stamps = moments.cast(pa.timestamp("us", tz=moments.type.tz), safe=False).cast(pa.int64()).to_numpy()
    return bool(np.any(stamps % 60_000_000))


def _real_shapes(numbers: Reals) -> set[Shape]:
    found = set()
    if np.allclose(numbers * 100, np.rint(numbers * 100), rtol=0, atol=1e-6):
        found.add(Shape.CENTS)
    some = numbers[np.linspace(0, len(numbers) - 1, min(len(numbers), _DECIMALS_OF)).astype(np.int64)]
    written = [np.format_float_positional(number, trim="-").partition(".")[2] for number in some]
    fine = sum(len(decimals) >= _DECIMALS for decimals in written) > len(written) / 2
    if fine and np.abs(numbers).max() <= 180 and abs(float(np.median(numbers))) > 1:
        found.add(Shape.TO_THE_METRE)
    return found


def _whole_shapes(numbers: Reals) -> set[Shape]:
    """Return the shapes of whole numbers, in rising order. One that is far off does not hide a shape."""
    found, span = set(), float(np.subtract(*np.quantile(numbers, (0.95, 0.05))))

    def mostly(low: float, high: float) -> bool:
        return float(np.mean((numbers >= low) & (numbers <= high))) >= _ALMOST_ALL

    if set(numbers.tolist()) <= {0.0, 1.0}:
        found.add(Shape.ZERO_ONE)
    if mostly(0, 120):
        found.add(Shape.AGES)
    if mostly(1900, 2100):
        found.add(Shape.YEARS)
    if span <= _NARROW:
        found.add(Shape.NARROW)
    if len(numbers) >= _SPARSE_DISTINCT and span > _SPARSE * len(numbers):
        found.add(Shape.SPARSE)
    months, days = numbers // 100 % 100, numbers % 100
    dates = (numbers >= 19_000_101) & (numbers <= 21_001_231) & (months >= 1) & (months <= 12)
    if np.mean(dates & (days >= 1) & (days <= 31)) >= _ALMOST_ALL:
        found.add(Shape.AS_DATES)
    if len(numbers) >= _SPARSE_DISTINCT and any(mostly(*epoch) for epoch in _EPOCHS):
        found.add(Shape.AS_EPOCHS)
    return found


def scale_of(read: Sampled, kind: Kind) -> Scale | None:
    """Return the steps of a column of numbers; None where it is none, or too few subjects have one."""
    distinct = read.numbers()
    if kind not in _SCALED or not len(distinct) or not np.all(np.isfinite(distinct)):
        return None
    values, ends = distinct[read.places], _ends(distinct[read.places], read.whose)
    if ends is None:
        return None
    quarters = np.quantile(values, (0.25, 0.75))
    to = step_up(float(quarters[1] - quarters[0] or ends[1] - ends[0]) / 20)
    to = max(to, Decimal(1)) if read.family is Family.WHOLE else to
    pairs = len(np.unique(read.places * (int(read.whose.max()) + 1) + read.whose))
    while (scale := _within(*ends, to)) is not None and _too_fine(scale, distinct, pairs):
        to = step_up(float(to) * 1.5)
    if scale is not None and scale.levels > _MOST_STEPS:
        return Scale(to=scale.to, low=scale.low, high=scale.high, edges=_edges(values))
    return scale


def _ends(values: Reals, whose: Ints) -> tuple[float, float] | None:
    """Return a low and a high value that `MIN_HOLDERS` subjects and a hundredth of the rows lie at or beyond."""
    people, places = np.unique(whose, return_inverse=True)
    if len(people) < MIN_HOLDERS:
        return None
    tops, bottoms = np.full(len(people), -np.inf), np.full(len(people), np.inf)
    np.maximum.at(tops, places, values)
    np.minimum.at(bottoms, places, values)
    high = min(float(np.quantile(values, 0.99)), float(np.sort(tops)[-MIN_HOLDERS]))
    low = max(float(np.quantile(values, 0.01)), float(np.sort(bottoms)[MIN_HOLDERS - 1]))
    return (low, high) if low < high else None


def _within(low: float, high: float, to: Decimal) -> Scale | None:
    """Return the multiples of `to` just inside `low` and `high`, or None if they do not lie apart."""
    bottom, top = (Decimal(int(np.ceil(low / float(to) - 1e-9))), Decimal(int(np.floor(high / float(to) + 1e-9))))
    bottom = Decimal(0) if 0 <= low < to else bottom
    return Scale(to=to, low=bottom * to, high=top * to) if bottom < top else None


def _too_fine(scale: Scale, distinct: Reals, pairs: int) -> bool:
    """Say whether rounding leaves so many values, beside the pairs of value and subject, that few share one."""
    kept = np.clip(distinct, float(scale.low), float(scale.high))
    left = len(np.unique(np.rint(kept / float(scale.to))))
    return left > max(10, pairs // _PER_VALUE) and scale.levels <= _MOST_STEPS


def _edges(values: Reals) -> tuple[Decimal, ...]:
    """Return the deciles of positive values, each taken up to 1, 2 or 5 times a power of ten."""
    deciles = np.quantile(values[values > 0], np.arange(0.1, 1.0, 0.1)) if np.any(values > 0) else np.zeros(0)
    return tuple(sorted({step_up(float(decile)) for decile in deciles}))
