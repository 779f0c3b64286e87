"""Verdicts: whether a treated column may cross. Pure: counts in, objections out.

Presidio cannot tell a record number from an amount, so three more things speak against a column: its name, its shape,
and what is known of its levels. Each can only make the column's fate stricter. The rule, in order:

1. A column named after a direct identifier crosses under no treatment but the one that is made for it: postcodes by
   prefix, coordinates on a grid, anything as a pseudonym; a birth date only as an age or in bins. A key by which
   records are joined, or that says whose row it is, crosses only as codes or pseudonyms.
2. Any finding on any value refuses the column. Only PHONE_NUMBER needs more: some plain amounts read as phone numbers
   of some country, so it must cover a share of the distinct values. What is found only when a number is spelt in
   another way (zeros in front, a date without dashes, seconds since 1970) must cover half of them.
3. A value that few subjects share names them: too few subjects with a value, values that are nearly one to a subject,
   whole numbers far apart (record numbers, code systems), reals with many decimals (coordinates) are refused.
4. Codes cross, but a level that is itself an identifier makes its code a pseudonym: refused, unless the recipe names
   the subject and each level is shared by many of them.
5. Pseudonyms are drawn by lot or by a key: what they look like says nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from sanitize.inspection import ColumnFindings
from sanitize.presets import is_birth, words_of
from sanitize.recipe import Age, Bin, Clip, Column, Duration, Encode, Grid, Keep, Perturb, Prefix, Pseudonymise, Round

_DIRECT = frozenset(
    {
        *("account", "iban", "ssn", "sin", "nino", "nhs", "mbi", "mrn", "npi", "id", "uuid"),
        *("passport", "license", "licence", "drivers", "dl"),
        *("name", "surname", "maiden", "email", "phone", "telephone", "fax", "url", "ip"),
        *("address", "fips"),
        *("firstname", "lastname", "fullname", "nickname", "username", "login", "pid", "guid"),
        *("cellphone", "phonenumber", "msisdn", "imei", "vin", "creditcard", "hicn"),
    }
)
_POSTCODES = frozenset({"zip", "zipcode", "postcode", "postal"})
_COORDINATES = frozenset({"lat", "latitude", "lon", "lng", "longitude"})
_WAY_OUT = "round or bin it more coarsely, or leave it inside"


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """Where shapes and findings turn into objections, and why there.

    Attributes:
        phone_share: of 12 kinds of plain amounts, ages, years and durations below ten million at most 4.4 per cent
            of the distinct values read as phone numbers; of true phone numbers 92 per cent.
        phone_count: two hits among few distinct values are chance.
        min_subjects: fewer rows than this can be told apart by eye.
        min_holders: the usual smallest cell of public health releases.
        unique_share: distinct values over subjects that have one; identifiers have about 1.
        steps: how many steps a coarsened column may have between its ends and still be nearly unique by chance.
        sparse: distance in steps between distinct whole numbers; amounts lie close, record numbers far apart.
        sparse_distinct: a handful of outliers is not a pattern.
        decimals: a thousandth of a degree is a hundred metres.
        levels: more than this many codes is not a category.
        level_share: where half the levels are identifiers, the column is one.
        even: from this share of the highest entropy its values can have, a column is spread as digits are: amounts,
            counts and measures lie below it.
        digits: the entropy, in decimal digits, from which such columns together may be a record number.
        few_days: where one end of a duration lies on fewer days, its minutes tell the other end.
    """

    phone_share: float = 0.10
    phone_count: int = 3
    min_subjects: int = 50
    min_holders: int = 11
    unique_share: float = 0.9
    steps: int = 10_000
    sparse: int = 1_000
    sparse_distinct: int = 20
    decimals: int = 3
    levels: int = 1_000
    level_share: float = 0.5
    few_days: int = 11
    even: float = 0.95
    digits: float = 5.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How a column's values are spread.

    Attributes:
        distinct: distinct values.
        holders: distinct pairs of a value and a subject that has it.
        steps: steps of the column's grain between its lowest and highest value.
        decimals: most digits after the point in any value.
        key: records are joined by it, it says whose row it is, or its values are those of another table's key.
    """

    distinct: int
    holders: int
    steps: int
    decimals: int
    key: bool = False


def objections(
    column: Column,
    findings: ColumnFindings,
    shape: Shape,
    *,
    levels: ColumnFindings | None,
    subject_known: bool,
    limits: Thresholds,
) -> tuple[str, ...]:
    """Return what speaks against letting the treated column cross; nothing if it may.

    Args:
        findings: in the outgoing values.
        levels: findings in the levels behind the codes of an encoded column.
    """
    if isinstance(column.treatment, Pseudonymise):
        return ()
    against = [*_named(column), *_found(findings, limits)]
    if levels is not None:
        return (*against, *_leveled(levels, subject_known, limits))
    return (*against, *_shaped(column, shape, limits))


def _named(column: Column) -> list[str]:
    return [why for source in (column.source, *column.also_reads) for why in _named_after(column, source)]


def _named_after(column: Column, source: str) -> list[str]:
    words = words_of(source)
    for direct, cure, way_out in (
        (_DIRECT, None, "leave it inside, or pseudonymise it"),
        (_POSTCODES, Prefix, "use the treatment prefix"),
        (_COORDINATES, Grid, "use the treatment grid"),
    ):
        if (found := words & direct) and not (cure and isinstance(column.treatment, cure)):
            return [f"{source!r} is named after a direct identifier ({', '.join(sorted(found))}); {way_out}"]
    age = isinstance(column.treatment, Age | Bin) and source == column.source
    if is_birth(source) and not age:
        return [f"{source!r} is named after a birth date; use the treatment age"]
    return []


def _found(findings: ColumnFindings, limits: Thresholds) -> list[str]:
    against = []
    for entity, (strong, weak) in findings.entities.items():
        hits = strong + weak
        chance = hits < limits.phone_count or hits < limits.phone_share * findings.distinct
        if not (entity == "PHONE_NUMBER" and chance):
            against.append(f"{hits:,} of {findings.distinct:,} distinct values look like {entity}")
    for entity, hits in findings.respelled.items():
        if hits >= max(limits.phone_count, limits.level_share * findings.distinct):
            against.append(f"{hits:,} of {findings.distinct:,} distinct values look like {entity}, spelt otherwise")
    return against


def _shaped(column: Column, shape: Shape, limits: Thresholds) -> list[str]:
    if not shape.holders:
        return []
    if shape.holders < limits.min_holders:
        return [f"only {shape.holders} subjects have a value"]
    against = []
    if shape.key:
        against.append("it is a key that joins records; leave it inside, or pseudonymise it")
    fine = isinstance(column.treatment, Keep | Clip)
    many = shape.distinct > limits.unique_share * shape.holders
    if many and (fine or shape.steps > limits.steps or shape.distinct == shape.holders):
        against.append(f"{shape.distinct:,} distinct values among {shape.holders:,}: it tells rows apart; {_WAY_OUT}")
    if shape.distinct >= limits.sparse_distinct and shape.steps > limits.sparse * shape.distinct:
        against.append(f"its {shape.distinct:,} distinct values lie far apart, as record numbers do; {_WAY_OUT}")
    decimals = shape.decimals if fine else _decimals_of(column)
    if decimals > limits.decimals:
        against.append(f"it has values with {decimals} decimals; {_WAY_OUT}")
    return against


def _decimals_of(column: Column) -> int:
    """Return how many decimals a recipe's step leaves: fine steps keep what rounding should take away."""
    if not isinstance(column.treatment, Round | Perturb | Duration):
        return 0
    return max(0, -int(column.treatment.to.normalize().as_tuple().exponent))


def _leveled(levels: ColumnFindings, subject_known: bool, limits: Thresholds) -> list[str]:
    if levels.distinct > limits.levels:
        return [f"{levels.distinct:,} levels are not a category; raise min_count"]
    like = sorted(e for e, hits in levels.entities.items() if sum(hits) >= limits.level_share * levels.distinct)
    if like and not subject_known:
        return [f"its levels look like {', '.join(like)}; name the recipe's `subject`, so that levels of few fold"]
    return []


def is_code(column: Column) -> bool:
    """Say whether the column crosses as codes of our own making, whose size says nothing."""
    return isinstance(column.treatment, Encode | Bin | Prefix)
