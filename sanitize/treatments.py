"""Treatments: what a recipe may have done to a column, as values. Pure: settings and their limits, no data.

The name of a class in lower case is the treatment's name in a recipe's file, its fields are the keys there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from fabric.errors import InvalidInput, Reason

CLOSED = ConfigDict(extra="forbid")
RESTRICTED_ZIPS = (
    *("036", "059", "102", "203", "205", "369", "556", "692", "753"),
    *("772", "821", "823", "878", "879", "884", "890", "893"),
)
"""The three-digit ZIP codes of 20,000 or fewer people in the census of 2000, as the guidance of the U.S. Department of
Health and Human Services on 45 CFR 164.514(b)(2)(i)(B) lists them (26 November 2012)."""

_MOST_STEPS = Decimal(2) ** 40  # of the grid in one scale of the noise: 40 scales of it still count exactly in a real
_EXACT = Decimal(2) ** 52
_PREFIX = re.compile(r"[0-9A-Z]{1,10}\Z")


def number(value: object) -> object:
    """Return `value` if a TOML file wrote it as a number.

    Raises:
        ValueError: it is text, a date or a list.
    """
    if not isinstance(value, int | Decimal):
        raise ValueError("not a number")
    return value


Number = Annotated[Decimal, Field(max_digits=18), BeforeValidator(number)]
Text = Annotated[str, Field(min_length=1, max_length=200)]
Count = Annotated[int, Field(ge=2, strict=True)]


def require(holds: bool, message: str, hint: str = "") -> None:
    """Refuse a recipe unless `holds`.

    Raises:
        InvalidInput: `RECIPE_INVALID`.
    """
    if not holds:
        raise InvalidInput(Reason.RECIPE_INVALID, message, hint)


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """Numbers and booleans as they are."""

    __pydantic_config__ = CLOSED


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Numbers to the nearest multiple of `to`, first held within `low` and `high` where given."""

    __pydantic_config__ = CLOSED
    to: Number
    low: Number | None = None
    high: Number | None = None

    def __post_init__(self) -> None:
        require(self.to > 0, "round needs a positive `to`")
        require(self.low is None or self.high is None or self.low < self.high, "`low` must be below `high`")


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """Numbers held within `low` and `high`."""

    __pydantic_config__ = CLOSED
    low: Number
    high: Number

    def __post_init__(self) -> None:
        require(self.low < self.high, "`low` must be below `high`")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """The number of the interval between `edges`: 0 missing, 1 below the first edge, and so on."""

    __pydantic_config__ = CLOSED
    edges: Annotated[tuple[Number, ...], Field(min_length=1, max_length=100)]

    def __post_init__(self) -> None:
        require(all(a < b for a, b in zip(self.edges, self.edges[1:], strict=False)), "`edges` must rise")


@dataclass(frozen=True, slots=True, kw_only=True)
class Year:
    """The year of a date."""

    __pydantic_config__ = CLOSED


@dataclass(frozen=True, slots=True, kw_only=True)
class Age:
    """Whole years from a birth date to `at`, a column or a literal date; 90 stands for every age over 89.

    With `band`, the lowest age of a band of so many years. HIPAA 164.514(b)(2)(i)(C).
    """

    __pydantic_config__ = CLOSED
    at: Text | date
    band: Annotated[int, Field(ge=1, le=90, strict=True)] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Duration:
    """Minutes from one time to the column `until`, to the nearest multiple of `to`."""

    __pydantic_config__ = CLOSED
    until: Text
    to: Number = Decimal(1)

    def __post_init__(self) -> None:
        require(self.to > 0, "duration needs a positive `to`")


@dataclass(frozen=True, slots=True, kw_only=True)
class Encode:
    """Codes for levels: 0 other, 1 missing, then one for each level that at least `min_count` subjects share.

    The dictionary stays inside. 11 is the usual smallest cell of public health releases.
    """

    __pydantic_config__ = CLOSED
    min_count: Count = 11


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """The first `digits` of a postcode, as codes like those of `Encode`.

    A postcode that begins with one of `restricted`, areas of few people, counts as zeros: HIPAA 164.514(b)(2)(i)(B).
    Where `restricted` is not empty, the cells must be ZIP codes; a whole number is read as one of five digits.
    """

    __pydantic_config__ = CLOSED
    digits: Annotated[int, Field(ge=1, le=8, strict=True)] = 3
    restricted: Annotated[tuple[str, ...], Field(max_length=10_000)] = RESTRICTED_ZIPS
    min_count: Count = 11

    def __post_init__(self) -> None:
        sound = all(_PREFIX.match(start) for start in self.restricted)
        require(sound, "`restricted` lists what is no beginning of a postcode", "use digits and capital letters")


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Decimal degrees to the nearest multiple of `to`: half a degree of latitude is 55 km."""

    __pydantic_config__ = CLOSED
    to: Number = Decimal("0.5")

    def __post_init__(self) -> None:
        require(Decimal("0.1") <= self.to <= 90, "grid needs a `to` from 0.1 to 90 degrees")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pseudonymise:
    """A whole number in place of each value, 0 where it is missing.

    `random` numbers are drawn by lot and the map stays inside. `hmac` computes them with a key of the purpose, so that
    matrices of one purpose can be joined without a map; they are then derived from the value (HIPAA 164.514(c)(1)).
    """

    __pydantic_config__ = CLOSED
    by: Literal["random", "hmac"] = "random"


@dataclass(frozen=True, slots=True, kw_only=True)
class Vectorise:
    """Text as `size` numbers: its words, or the `ngram` characters in a row within them, hashed with a key and counted.

    Signed feature hashing (Weinberger et al., Feature Hashing for Large Scale Multitask Learning, ICML 2009). The
    rows have length 1, or with `cap` they are counts held within it.
    """

    __pydantic_config__ = CLOSED
    size: Annotated[int, Field(ge=8, le=512, strict=True)] = 64
    words: Annotated[bool, Field(strict=True)] = True
    ngram: Annotated[int, Field(ge=2, le=6, strict=True)] | None = None
    cap: Annotated[int, Field(ge=1, le=1_000, strict=True)] | None = None

    def __post_init__(self) -> None:
        require(self.words or self.ngram is not None, "vectorise needs `words = true` or an `ngram`")


@dataclass(frozen=True, slots=True, kw_only=True)
class Perturb:
    """Numbers held within `low` and `high`, to the nearest multiple of `to`, and noise of `epsilon` added to each.

    The noise is Laplace's of scale (high - low) / epsilon on the grid itself, so each cell is epsilon-differentially
    private by itself (Dwork et al., Calibrating Noise to Sensitivity, TCC 2006, in the local model; the discrete form
    is of Ghosh, Roughgarden and Sundararajan, STOC 2009). No real number is rounded after the noise was added, so its
    low bits tell nothing (Mironov, On Significance of the Least Significant Bits, CCS 2012).
    """

    __pydantic_config__ = CLOSED
    low: Number
    high: Number
    epsilon: Number
    to: Number

    def __post_init__(self) -> None:
        require(self.low < self.high, "`low` must be below `high`")
        require(0 < self.epsilon <= 100, "perturb needs an `epsilon` above 0, at most 100")
        require(self.to > 0, "perturb needs a positive `to`")
        near = max(abs(self.low), abs(self.high)) <= _EXACT * self.to
        require(near, "the bounds are too many steps of `to` away from 0", "choose a larger `to`")
        require(not (self.low % self.to or self.high % self.to), "`low` and `high` must be multiples of `to`")
        few = self.high - self.low <= _MOST_STEPS * self.to * self.epsilon
        require(few, "the noise is too wide for its grid", "choose a larger `to` or `epsilon`")


@dataclass(frozen=True, slots=True, kw_only=True)
class Redact:
    """Text with every identifier and name that is found replaced by its kind. It needs a model that finds names."""

    __pydantic_config__ = CLOSED


Treatment = (
    Keep
    | Round
    | Clip
    | Bin
    | Year
    | Age
    | Duration
    | Encode
    | Prefix
    | Grid
    | Pseudonymise
    | Vectorise
    | Perturb
    | Redact
)

TREATMENTS: Mapping[str, type[Treatment]] = {
    "keep": Keep,
    "round": Round,
    "clip": Clip,
    "bin": Bin,
    "year": Year,
    "age": Age,
    "duration": Duration,
    "encode": Encode,
    "prefix": Prefix,
    "grid": Grid,
    "pseudonymise": Pseudonymise,
    "vectorise": Vectorise,
    "perturb": Perturb,
    "redact": Redact,
}
