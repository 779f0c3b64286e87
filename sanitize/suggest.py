"""Suggest: a first recipe from a profile, for the data owner to read, change and sign. Pure.

It is cautious: what it does not understand stays inside, with the reason as a comment; nothing is a target unless it
was told so; and quasi-identifiers are let out only as long as their cells would hold `MIN_HOLDERS` subjects on the
average, the most useful first. What it writes parses as a recipe, and holds no value of a record.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from datetime import date
from decimal import Decimal

from fabric.errors import InvalidInput, Reason, Refused, nearest
from sanitize.drafting import Draft, Plan, Stay, drafts_of, is_moment
from sanitize.kinds import MIN_HOLDERS, Kind
from sanitize.presets import HIPAA, Preset, objections, preset_of, words_of
from sanitize.profile import ColumnProfile, Profile
from sanitize.recipe import Column, Join, Keep, Recipe, Role, parse_recipe

_BARE = re.compile(r"[A-Za-z0-9_-]+\Z")
_WIDE = frozenset({"state", "province", "country", "nation"})  # the rule speaks of what is smaller than a State
_LONGEST_NAME = 63


def suggest(
    profile: Profile,
    *,
    records: str,
    joins: Mapping[str, Join] | None,
    purpose: str,
    name: str,
    subject: str,
    preset: str | None = None,
    target: str = "",
    today: date | None = None,
) -> str:
    """Return the TOML text of a recipe that the owner of the profiled records may start from.

    Args:
        records: the table that the recipe is of.
        joins: records to join; None takes those that a key of `records` refers to.
        subject: the column that says whose row it is; empty takes the one that the profile found.
        target: the column to predict; empty makes none.
        today: counts ages where the records have no date of their own.

    Raises:
        InvalidInput: `UNKNOWN_RECORDS`, `COLUMN_MISSING`, or `RECIPE_INVALID` for an unknown preset.
        Refused: `RECIPE_EMPTY` if no column may leave; `COLUMN_REFUSED` if the target may not.
    """
    # 1. What is joined, and whose rows they are.
    plan = _planned(profile, records, joins, target, today)
    whose = subject or profile.tables[records].subject
    # 2. Each column by itself.
    found = [item for column in plan.columns() for item in drafts_of(plan, column)]
    drafts = [item for item in found if isinstance(item, Draft)]
    stays = [item for item in found if isinstance(item, Stay)]
    # 3. What the preset lets out of that.
    stub = Recipe(name=name, purpose=purpose, records=records, columns=(_PLACEHOLDER,))
    if preset:
        stub = replace(stub, preset=preset, identifiers=_mapped(plan, preset_of(preset)))
        drafts, held = _kept_by(stub, drafts)
        stays += held
    # 4. As many quasi-identifiers as the number of subjects bears.
    drafts, held = _borne(plan, drafts)
    stays += held
    _check_left(plan, drafts, stays)
    # 5. The text, which must be a recipe.
    recipe = replace(stub, subject=whose, joins=plan.joins, columns=tuple(_renamed(drafts)))
    text = "\n".join(_lines(recipe, drafts, stays, plan)) + "\n"
    parse_recipe(text, source="the suggested recipe")
    return text


_PLACEHOLDER = Column(name="none", source="none", treatment=Keep(), role=Role.FEATURE)


def _planned(profile: Profile, records: str, joins: Mapping[str, Join] | None, target: str, today: date | None) -> Plan:
    if records not in profile.tables:
        raise InvalidInput(
            Reason.UNKNOWN_RECORDS, f"the profile has no records {records!r}", nearest(records, profile.tables)
        )
    if joins is None:
        own = [m for m in profile.matches if m.records == records]
        joins = {m.to_records: Join(left=m.column, right=m.to_column) for m in reversed(own)}
        joins = {name: joins[name] for name in profile.tables if name in joins}
    for name in joins:
        if name not in profile.tables:
            raise InvalidInput(
                Reason.UNKNOWN_RECORDS, f"the profile has no records {name!r}", nearest(name, profile.tables)
            )
    plan = Plan(
        profile=profile, records=records, joins=joins, at=_moment(profile, records) or today,
        subjects=profile.tables[records].subjects, target=target,
    )  # fmt: skip
    there = [plan.source(column) for column in plan.columns()]
    if target and target not in there:
        message = f"the records have no column {target!r} to predict"
        raise InvalidInput(Reason.COLUMN_MISSING, message, nearest(target, there))
    return plan


def _moment(profile: Profile, records: str) -> str | None:
    """Return the column that says when a row happened: the beginning of something, else the first complete date."""
    starts = [span.start for span in profile.spans if span.records == records]
    dated = [c.name for c in profile.of(records) if is_moment(c) and not c.facts.nulls]
    return next((name for name in dated if name in starts), next(iter(dated), None))


def _check_left(plan: Plan, drafts: Sequence[Draft], stays: Sequence[Stay]) -> None:
    """Refuse a target that stays inside, and records of which nothing leaves."""
    if plan.target and not any(draft.column.role is Role.TARGET for draft in drafts):
        why = next((stay.why for stay in stays if stay.source == plan.target), "nothing was made of it")
        raise Refused(
            Reason.COLUMN_REFUSED, f"the target {plan.target!r} stays inside: {why}", "predict another column"
        )
    if not drafts:
        raise Refused(
            Reason.RECIPE_EMPTY,
            f"no column of {plan.records!r} may leave as it is",
            "name a subject, more records, or write the recipe by hand",
        )


def _kept_by(stub: Recipe, drafts: Sequence[Draft]) -> tuple[list[Draft], list[Stay]]:
    """Part the drafts into those that the recipe's preset lets out and those that stay, with its objection."""
    kept, held = [], []
    for draft in drafts:
        against = objections(stub, draft.column)
        if against:
            held.append(Stay(source=draft.column.source, why=f"{draft.column.action}: {against[0]}"))
        else:
            kept.append(draft)
    return kept, held


def _borne(plan: Plan, drafts: Sequence[Draft]) -> tuple[list[Draft], list[Stay]]:
    """Keep quasi-identifiers while `MIN_HOLDERS` subjects come to a cell on the average; one place at most."""
    cells, product, placed = plan.subjects // MIN_HOLDERS, 1, False
    held: dict[int, Stay] = {}
    quasi = [(d.rank, i, d) for i, d in enumerate(drafts) if d.column.role is Role.QUASI_IDENTIFIER]
    for _, i, draft in sorted(quasi, key=lambda item: item[:2]):
        again = draft.place and placed
        if product * draft.levels <= cells and not again:
            product, placed = product * draft.levels, placed or draft.place
        else:
            few = f"{draft.levels} levels would leave fewer than {MIN_HOLDERS} of {plan.subjects:,} subjects to a cell"
            why = "a quasi-identifier; " + ("another one tells the place" if again else few)
            held[i] = Stay(source=draft.column.source, why=f"{draft.why}; {why}")
    return [draft for i, draft in enumerate(drafts) if i not in held], list(held.values())


def _mapped(plan: Plan, preset: Preset) -> dict[str, tuple[str, ...]]:
    """Return which columns hold each category of the preset, by their names, kinds and findings."""
    found: dict[str, list[str]] = {category.key: [] for category in preset.categories}
    for column in plan.columns():
        source = plan.source(column)
        key = _category(preset, column, source)
        if key is not None:
            found[key].append(source)
    return {key: tuple(columns) for key, columns in found.items()}


def _category(preset: Preset, column: ColumnProfile, source: str) -> str | None:
    """Return the category of one column: what its name says, else what its kind and findings say."""
    hipaa = preset.name == HIPAA
    named = preset.named(source)
    if named is not None:
        return named.key
    if column.kind in (Kind.PLACE, Kind.POSTCODE, Kind.COORDINATE):
        wide = hipaa and words_of(column.name) & _WIDE
        return None if wide else "geographic" if hipaa else "location_data"
    if column.kind in (Kind.DATE, Kind.TIME, Kind.BIRTH_DATE, Kind.AGE):
        return "dates" if hipaa else None
    if column.kind not in (Kind.IDENTIFIER, Kind.KEY):
        return None
    entity = max(column.facts.entities, key=lambda e: column.facts.share(e, strong=False), default="")
    likely = entity if column.facts.share(entity, strong=False) >= 0.5 else ""
    return _HIPAA_OF.get(likely, "other_unique") if hipaa else _GDPR_OF.get(likely, "identification_numbers")


_HIPAA_OF = {
    "PHONE_NUMBER": "telephone",
    "EMAIL_ADDRESS": "email",
    "US_SSN": "social_security",
    "US_ITIN": "social_security",
    "MEDICAL_RECORD_NUMBER": "medical_record",
    "UK_NHS": "medical_record",
    "US_MBI": "health_plan",
    "CREDIT_CARD": "account",
    "IBAN_CODE": "account",
    "US_BANK_NUMBER": "account",
    "US_DRIVER_LICENSE": "certificate_or_licence",
    "US_PASSPORT": "certificate_or_licence",
    "MEDICAL_LICENSE": "certificate_or_licence",
    "US_NPI": "certificate_or_licence",
    "MAC_ADDRESS": "device",
    "URL": "url",
    "IP_ADDRESS": "ip_address",
}
_GDPR_OF = {
    **dict.fromkeys(("PHONE_NUMBER", "EMAIL_ADDRESS"), "contact_details"),
    **dict.fromkeys(("URL", "IP_ADDRESS", "MAC_ADDRESS"), "online_identifiers"),
}


def _renamed(drafts: Sequence[Draft]) -> Iterator[Column]:
    """Yield the columns, the target last, each under a name of its own."""
    taken: set[str] = set()
    for draft in sorted(drafts, key=lambda draft: draft.column.role is Role.TARGET):
        name, count = draft.column.name, 1
        while name in taken:
            count += 1
            name = f"{draft.column.name[: _LONGEST_NAME - 4]}_{count}"
        taken.add(name)
        yield replace(draft.column, name=name)


def _lines(recipe: Recipe, drafts: Sequence[Draft], stays: Sequence[Stay], plan: Plan) -> Iterator[str]:
    """Yield the recipe's file, line by line."""
    table = plan.profile.tables[plan.records]
    yield f"# Proposed from {table.sampled:,} of {table.rows:,} rows, of {table.subjects:,} subjects. All counts are of"
    yield "# that sample, and no value of a record stands here. A proposal: read each line, change it, and sign it."
    yield ""
    yield from (f"{key} = {_quoted(text)}" for key, text in _head(recipe) if text)
    if not recipe.subject:
        yield "# subject = ...  # no column was found that says whose row it is: each row counts as another subject"
    for name, join in recipe.joins.items():
        yield from ("", f"[join.{_key(name)}]", f"left = {_quoted(join.left)}", f"right = {_quoted(join.right)}")
    if recipe.preset:
        yield from ("", f"[identifiers]  # {preset_of(recipe.preset).source}")
        yield from (f"{_key(key)} = {_value(columns)}" for key, columns in recipe.identifiers.items())
    why = {(d.column.source, d.column.action): d.why for d in drafts}
    for column in recipe.columns:
        yield from ("", *_table(column, why[column.source, column.action], recipe))
    out = {column.source for column in recipe.columns} | {s for column in recipe.columns for s in column.also_reads}
    if any(column.role is Role.QUASI_IDENTIFIER for column in recipe.columns):
        yield from (
            "",
            "# Cells are counted when the matrix is made; this would leave out the rows of small ones:",
        )
        yield from ("# [risk]", "# suppress = 0.05")
    yield from ("", "# What stays inside, and why:")
    for stay in stays:
        yield f"# {_quoted(stay.source)}: {stay.why}" + (" (used above otherwise)" if stay.source in out else "")
    for name in plan.profile.tables:
        if name not in (plan.records, *plan.joins):
            yield f"# all of {_quoted(name)}: {_quoted(plan.records)} has no column that refers to a unique key of it"


def _head(recipe: Recipe) -> tuple[tuple[str, str], ...]:
    return (
        ("name", recipe.name), ("purpose", recipe.purpose), ("records", recipe.records),
        ("subject", recipe.subject), ("preset", recipe.preset),
    )  # fmt: skip


def _table(column: Column, why: str, recipe: Recipe) -> Iterator[str]:
    yield f"[columns.{column.name}]  # {why}"
    yield f"from = {_quoted(column.source)}"
    yield f"treatment = {_quoted(column.action)}"
    for field in fields(column.treatment):
        value = getattr(column.treatment, field.name)
        if value is not None and value != field.default:
            yield f"{field.name} = {_value(value)}"
    yield f"role = {_quoted(column.role.value)}"
    if recipe.preset and preset_of(recipe.preset).needs_why:
        yield f"# why = ...  # the owner says why {_quoted(recipe.purpose)} needs it"


def _value(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(_value(item) for item in value)}]"
    if isinstance(value, Decimal):
        return format(value, "f").rstrip("0").rstrip(".") if "." in format(value, "f") else format(value, "f")
    if isinstance(value, bool | int):
        return str(value).lower()
    return _quoted(value.isoformat() if isinstance(value, date) else str(value))


def _key(name: str) -> str:
    return name if _BARE.match(name) else _quoted(name)


def _quoted(text: str) -> str:
    """Return `text` as a TOML string, whose escapes are JSON's."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
