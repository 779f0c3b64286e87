"""Kinds: what a column is, decided from counts about it. Pure: it sees no value.

The rules stand in order in `_RULES`, and the first that speaks decides; where type, name and shape disagree the
column is what is more identifying. A column that no rule understands is unknown, which nothing proposes to let out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from sanitize.presets import HIPAA, PRESETS, is_birth, words_of

MIN_HOLDERS = 11
"""The usual smallest cell of public health releases: a level that fewer subjects share names them."""

MAX_LEVELS = 1_000
"""More levels than this are not a category."""

NEAR_UNIQUE = 0.9
"""Distinct values over distinct pairs of value and subject, from which on a value tells subjects apart."""

_STRONG_SHARE = 0.1
_MOST = 0.5  # validators pass plain numbers by chance: one in ten has a right check digit
_COVERED = 0.5
_FREE_WORDS = 4.0
_MAX_COUNTS = 100
_MOST_FINDINGS = 2
_SURE = frozenset({"UUID", "EMAIL_ADDRESS", "IP_ADDRESS", "MAC_ADDRESS", "URL", "CREDIT_CARD", "IBAN_CODE"})

_POSTCODE = frozenset({"zip", "zipcode", "postcode", "postal", "plz"})
_DEGREES = frozenset({"lat", "latitude", "lon", "lng", "longitude", "gps", "geo", "geohash"})
_STREET = frozenset({"address", "addr", "street"})
_REGION = frozenset({"region", "state", "province", "country", "nation", "bundesland", "canton"})
_AMOUNT = frozenset(
    {
        *("cost", "costs", "amount", "price", "income", "salary", "wage", "expense", "expenses", "coverage", "balance"),
        *("paid", "payment", "charge", "charges", "fee", "fees", "total", "revenue", "premium", "loan", "debt"),
    }
)
_CODED = ("code", "type", "class", "category", "kind", "status", "group", "icd", "snomed", "drg", "cpt", "loinc", "ndc")
_YEAR = frozenset({"year", "yr", "jahr"})
_AGE = frozenset({"age", "ages"})


class Family(StrEnum):
    """What a column's cells are, whatever their width."""

    FLAG = "flag"
    WHOLE = "whole numbers"
    REAL = "numbers"
    DATE = "dates"
    TIME = "times"
    TEXT = "text"
    NONE = "none"
    OTHER = "other"


class Kind(StrEnum):
    """What a column is."""

    EMPTY = "empty"
    CONSTANT = "constant"
    IDENTIFIER = "identifier"
    KEY = "key"
    BIRTH_DATE = "birth date"
    DATE = "date"
    TIME = "time"
    POSTCODE = "postcode"
    COORDINATE = "coordinate"
    PLACE = "place"
    AGE = "age"
    YEAR = "year"
    FREE_TEXT = "free text"
    FLAG = "flag"
    CATEGORY = "category"
    COUNT = "count"
    AMOUNT = "amount"
    MEASURE = "measure"
    UNKNOWN = "unknown"


class Shape(StrEnum):
    """How a column's values lie."""

    NEAR_UNIQUE = "nearly one value to a subject"
    SPARSE = "whole numbers far apart"
    TO_THE_SECOND = "times to the second"
    TO_THE_METRE = "numbers as coordinates to the metre"
    AS_DATES = "whole numbers as dates, yyyymmdd"
    AS_EPOCHS = "whole numbers as times since 1970"
    ZERO_ONE = "0 and 1"
    AGES = "nearly all whole numbers from 0 to 120"
    YEARS = "nearly all whole numbers from 1900 to 2100"
    POSTCODES = "five digits, as a ZIP code"
    NARROW = "whole numbers close together"
    CENTS = "numbers of at most two decimals"


_TELLING = (
    *(Shape.NEAR_UNIQUE, Shape.SPARSE, Shape.TO_THE_SECOND, Shape.TO_THE_METRE, Shape.AS_DATES, Shape.AS_EPOCHS),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Counts about the sampled cells of one column.

    Attributes:
        rows, nulls: sampled cells, and how many are missing.
        distinct: distinct values.
        holders: subjects that have a value.
        pairs: distinct pairs of a value and a subject that has it.
        common: values that at least `MIN_HOLDERS` subjects share.
        rarest: subjects that share the value that fewest share.
        covered: share of the cells with a value whose value is common.
        ascii, words: share of ASCII texts and mean words of a text, over distinct values; 1 and 0 for other families.
        entities: Presidio's findings in the distinct values inspected, strong and weak.
        inspected: how many distinct values Presidio read.
        coarse: years that dates lie in, or areas of three digits of ZIP codes, those of few subjects as one; else 0.
        refers_to: the key of other records that holds all its values, as `records.column`; empty if there is none.
    """

    name: str
    type: str
    family: Family
    rows: int
    nulls: int
    distinct: int
    holders: int
    pairs: int
    common: int
    rarest: int
    covered: float
    ascii: float
    words: float
    entities: Mapping[str, tuple[int, int]]
    inspected: int
    shapes: frozenset[Shape]
    coarse: int = 0
    refers_to: str = ""

    @property
    def per_subject(self) -> float:
        """Return the mean number of distinct values of a subject that has one."""
        return self.pairs / self.holders if self.holders else 0.0

    def share(self, entity: str, *, strong: bool) -> float:
        """Return the share of the inspected values in which `entity` was found, strongly or at all."""
        hits = self.entities.get(entity, (0, 0))
        return (hits[0] if strong else sum(hits)) / self.inspected if self.inspected else 0.0


Verdict = tuple[Kind, str]


def kind_of(facts: Facts) -> tuple[Kind, tuple[str, ...]]:
    """Return what the column is, and why: the rule's reason first, then its shapes and findings."""
    kind, reason = next(found for rule in _RULES if (found := rule(facts)) is not None)
    seen = [str(shape) for shape in _TELLING if shape in facts.shapes and str(shape) not in reason]
    likely = [f"{share:.0%} of its values look like {entity}" for share, entity in _likely(facts)]
    return kind, (reason, *seen, *(text for text in likely if text != reason))


def _likely(facts: Facts) -> list[tuple[float, str]]:
    """Return what most of the values look like, the likeliest first."""
    shares = sorted(((facts.share(entity, strong=False), entity) for entity in facts.entities), reverse=True)
    return [(share, entity) for share, entity in shares if share >= _STRONG_SHARE][:_MOST_FINDINGS]


def _nothing(facts: Facts) -> Verdict | None:
    if facts.family is Family.OTHER:
        return Kind.UNKNOWN, f"cells of type {facts.type}"
    if not facts.distinct:
        return Kind.EMPTY, "it has no value"
    return (Kind.CONSTANT, "it has one value in every row") if facts.distinct == 1 and not facts.nulls else None


def _named(facts: Facts) -> Verdict | None:
    """An identifier by its name. A place, a date and an age are judged further on."""
    if is_birth(facts.name):
        return Kind.BIRTH_DATE, "its name says a birth date"
    category = PRESETS[HIPAA].named(facts.name)
    if category is None or category.key == "dates":
        return None
    words = words_of(facts.name)
    if category.key != "geographic" or words & _STREET:
        return Kind.IDENTIFIER, f"its name says {category.what}"
    if words & _POSTCODE:
        return Kind.POSTCODE, "its name says a postcode"
    if words & _DEGREES:
        return Kind.COORDINATE, "its name says a coordinate"
    return Kind.PLACE, "its name says a place"


def _referring(facts: Facts) -> Verdict | None:
    return (Kind.KEY, f"all its values are keys of {facts.refers_to}") if facts.refers_to else None


def _found(facts: Facts) -> Verdict | None:
    """An identifier by its values. A code system looks like many weak things, which count where few share a value."""
    if facts.family in (Family.DATE, Family.TIME, Family.FLAG):
        return None
    text, alone = facts.family is Family.TEXT, facts.covered < _COVERED
    for share, entity in sorted(((facts.share(e, strong=False), e) for e in facts.entities), reverse=True):
        strong = facts.share(entity, strong=True) >= (_STRONG_SHARE if text else _MOST)
        weak = text and share >= _MOST and (alone or entity in _SURE)
        if entity != "DATE_TIME" and (strong or weak):
            return Kind.IDENTIFIER, f"{share:.0%} of its values look like {entity}"
    return None


def _dated(facts: Facts) -> Verdict | None:
    if facts.family is Family.DATE:
        return Kind.DATE, "its cells are dates"
    if facts.family is Family.TIME:
        return Kind.TIME, "its cells are times"
    if facts.family is Family.TEXT and facts.share("DATE_TIME", strong=False) >= _MOST:
        return Kind.DATE, "its texts look like dates, not written in ISO 8601"
    if Shape.AS_DATES in facts.shapes:
        return Kind.DATE, "whole numbers as dates, yyyymmdd"
    return (Kind.TIME, "whole numbers as times since 1970") if Shape.AS_EPOCHS in facts.shapes else None


def _text(facts: Facts) -> Verdict | None:
    if facts.family is not Family.TEXT:
        return None
    if _shared(facts):
        place = bool(words_of(facts.name) & _REGION)
        reason = f"a text of {facts.distinct:,} levels, {facts.common:,} of them shared by {MIN_HOLDERS} subjects"
        return (Kind.PLACE if place else Kind.CATEGORY), reason
    if facts.words >= _FREE_WORDS:
        return Kind.FREE_TEXT, f"texts of {facts.words:.0f} words on average"
    if Shape.NEAR_UNIQUE in facts.shapes:
        return Kind.IDENTIFIER, "a text with nearly one value to a subject"
    return Kind.UNKNOWN, f"a text of {facts.distinct:,} values, most shared by fewer than {MIN_HOLDERS} subjects"


def _flag(facts: Facts) -> Verdict | None:
    if facts.family is Family.FLAG or Shape.ZERO_ONE in facts.shapes:
        return Kind.FLAG, "it has two values"
    return None


def _whole(facts: Facts) -> Verdict | None:
    if facts.family is not Family.WHOLE:
        return None
    words, amount = words_of(facts.name), bool(words_of(facts.name) & _AMOUNT)
    if words & _AGE and Shape.AGES in facts.shapes:
        return Kind.AGE, "its name says an age"
    if Shape.YEARS in facts.shapes and (words & _YEAR or facts.distinct <= _MAX_COUNTS):
        return Kind.YEAR, "whole numbers that may be years"
    if not amount and (any(word.endswith(_CODED) for word in words) or Shape.SPARSE in facts.shapes):
        return _coded(facts)
    if not amount and facts.distinct > MIN_HOLDERS and facts.distinct == facts.pairs:
        return Kind.IDENTIFIER, "no two subjects share one of its numbers"
    if amount:
        return Kind.AMOUNT, "its name says an amount"
    if facts.distinct <= _MAX_COUNTS and Shape.NARROW in facts.shapes:
        return Kind.COUNT, f"{facts.distinct:,} whole numbers close together"
    return Kind.MEASURE, "whole numbers"


def _coded(facts: Facts) -> Verdict:
    if _shared(facts):
        return Kind.CATEGORY, f"numbers as {facts.distinct:,} codes, {facts.common:,} shared by {MIN_HOLDERS} subjects"
    if Shape.NEAR_UNIQUE in facts.shapes:
        return Kind.IDENTIFIER, "numbers as record numbers, nearly one to a subject"
    return Kind.UNKNOWN, f"numbers as codes, most of them shared by fewer than {MIN_HOLDERS} subjects"


def _real(facts: Facts) -> Verdict:
    if Shape.TO_THE_METRE in facts.shapes:
        return Kind.COORDINATE, "two such columns side by side look like coordinates to the metre"
    if words_of(facts.name) & _AMOUNT or Shape.CENTS in facts.shapes:
        return Kind.AMOUNT, "numbers of at most two decimals, or an amount by name"
    return Kind.MEASURE, "numbers"


def _shared(facts: Facts) -> bool:
    return facts.common > 0 and facts.distinct <= MAX_LEVELS and facts.covered >= _COVERED


_RULES: tuple[Callable[[Facts], Verdict | None], ...] = (
    *(_nothing, _named, _referring, _found, _dated, _text, _flag, _whole, _real),
)
