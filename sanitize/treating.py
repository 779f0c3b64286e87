"""The first stages: check that the recipe fits the records, and turn each unit of rows into columns of numbers."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from fabric.errors import InvalidInput, Reason, Refused
from sanitize.bench import SUBJECT, Bench, Facts, Values
from sanitize.blocks import Block
from sanitize.ordering import derived, mixed, scrambled
from sanitize.presets import check_preset, is_person, words_of
from sanitize.recipe import Bin, Clip, Column, Keep, Recipe, Round
from sanitize.settling import check_levels
from sanitize.sources import Source
from sanitize.task import joined, wanted
from sanitize.treatment import Made, Secrets, make
from sanitize.treatments import Duration, Grid, Perturb
from sanitize.verdict import Thresholds

READINGS = Keep | Round | Clip | Bin | Grid | Perturb
_MOST_DIGITS, _MOST_DIGITS_OF_RECORDS = 6, 8  # the records' own names may hold a date
_ONE_ROW_IS_ONE = frozenset({"patient", "person", "subject", "beneficiary"})


def start(bench: Bench, _: str) -> Facts:
    """Check that the recipe fits the records; return what there is to do."""
    recipe, inputs = bench.task.recipe, list(bench.main.columns)
    for name in recipe.joins:
        inputs += [f"{name}.{column}" for column in bench.task.sources[name].columns]
    _check_words(bench)
    for source in bench.task.sources.values():
        _check_names(bench, source)
    recipe.check(dict.fromkeys(inputs, ""))
    _check_readings(recipe)
    _check_earlier(bench, inputs)
    if not recipe.subject and bench.limits.k > 1:
        _check_subject(recipe, bench.main.columns)
    if recipe.preset:
        check_preset(recipe, inputs)
    made_from = {source for column in recipe.columns for source in (column.source, *column.also_reads)}
    return {
        "units": len(bench.main.units),
        "rows": bench.rows,
        "leveled": [name for name, column in bench.columns.items() if column.leveled],
        "outgoing": list(recipe.outgoing),
        "staying": [name for name in inputs if name not in made_from],
    }


def readings_of(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Return how each number leaves, by the column of the records that it is."""
    found = {}
    for column in recipe.columns:
        if isinstance(column.treatment, READINGS):
            joined = column.source.partition(".")[0] in recipe.joins
            source = column.source if joined else f"{recipe.records}.{column.source}"
            found[source] = {"treatment": column.action, **column.settings()}
    return found


def _check_readings(recipe: Recipe) -> None:
    """Refuse a number that leaves in more than one way: put side by side, coarse readings make a fine one."""
    coarse = [column for column in recipe.columns if isinstance(column.treatment, READINGS)]
    for column in coarse:
        same = [other.name for other in coarse if other.source == column.source]
        if len(same) > 1:
            raise Refused(
                Reason.COLUMN_REFUSED,
                f"the columns {', '.join(map(repr, same))} are all made from {column.source!r}: together they tell "
                "more of it than each",
                "make one column of it",
            )


def _check_earlier(bench: Bench, inputs: Sequence[str]) -> None:
    """Refuse records that lack what an earlier release told of them: both could not be weighed together."""
    read = [source for column in bench.task.earlier for source in (column.source, *column.also_reads)]
    if lacking := sorted({*read} - {*inputs}):
        raise Refused(
            Reason.RISK_TOO_HIGH,
            f"an earlier release of these records told of {', '.join(map(repr, lacking))}, which this recipe cannot "
            "read: the two cannot be weighed together",
            "join the records that the earlier recipe joined, under the same names",
        )


def _check_subject(recipe: Recipe, columns: Sequence[str]) -> None:
    """Refuse to count every row as another person where a column says whose row it is."""
    for column in columns:
        words = words_of(column)
        if is_person(column) and ("id" in words or (len(words) == 1 and words <= _ONE_ROW_IS_ONE)):
            raise Refused(
                Reason.RECIPE_INVALID,
                f"recipe {recipe.name!r} names no subject, and {column!r} seems to say whose row each is: many rows of "
                "one person would count as many persons",
                f'write subject = "{column}"',
            )


def _check_words(bench: Bench) -> None:
    """Refuse a recipe whose own words look like data: they go into statements."""
    recipe = bench.task.recipe
    words = {"the recipe's name": recipe.name, "its purpose": recipe.purpose}
    words |= {f"the name of records {place}": name for place, name in enumerate(recipe.sources, start=1)}
    words |= {f"the name of outgoing column {place}": c.name for place, c in enumerate(recipe.columns, start=1)}
    for what, text in words.items():
        if found := _looks_like_data(bench, text, _MOST_DIGITS):
            raise InvalidInput(Reason.RECIPE_INVALID, f"{what} looks like {found}", "name it after what it is")


def _check_names(bench: Bench, source: Source) -> None:
    """Refuse a header that is really a row: the names of columns go into statements."""
    if len({*source.columns}) < len(source.columns):
        raise InvalidInput(
            Reason.RECORDS_UNREADABLE, f"records {source.name!r}: two columns share a name", "rename one"
        )
    for position, column in enumerate(source.columns, start=1):
        if found := _looks_like_data(bench, column, _MOST_DIGITS_OF_RECORDS):
            raise InvalidInput(
                Reason.RECORDS_UNREADABLE,
                f"records {source.name!r}: the name of column {position} looks like {found}",
                "give the file a header line",
            )


def _looks_like_data(bench: Bench, name: str, most_digits: int) -> str:
    """Return what a name looks like, nothing if it is one; "_" stands where a name may hold no other mark."""
    spelt = {name, name.replace("_", "-"), name.replace("_", " "), name.replace("_", "")}
    found = {entity for text in sorted(spelt) for entity in bench.inspector.inspect_text(text)}
    digits = sum(character.isdigit() for character in unicodedata.normalize("NFKC", name))
    return ", ".join(sorted(found)) or (f"a number of {digits} digits" if digits > most_digits else "")


def treat(bench: Bench, item: str) -> Facts:
    """Turn one unit of rows into columns of numbers."""
    unit = int(item)
    at = bench.firsts[unit]
    unmatched = dict.fromkeys(bench.task.recipe.joins, 0)
    nulls, clipped = dict.fromkeys(bench.columns, 0), dict.fromkeys(bench.columns, 0)
    levels: dict[str, dict[str | None, int]] = {}
    days: dict[str, list[set[int]]] = {}
    secrets = _secrets(bench)
    for raw in bench.main.read(unit, wanted(bench.task)[bench.main.name]):
        block = joined(bench.task, bench.rights, raw, unmatched)
        bench.spool.put(SUBJECT, at, _subjects(bench, block, at))
        for name, column in bench.columns.items():
            made = make(column, block, first_row=at, secrets=secrets)
            nulls[name] += made.nulls
            clipped[name] += made.clipped
            _keep(bench, name, at, made, levels.setdefault(name, {}))
            if isinstance(column.treatment, Duration):
                for few, some in zip(days.setdefault(name, [set(), set()]), _days(bench, column, block), strict=True):
                    few |= some
        at += block.num_rows
    for name, places in levels.items():
        if bench.columns[name].leveled:
            bench.spool.put_levels(name, unit, list(places))
    bench.spool.sync()
    few_days = {name: [sorted(few)[: Thresholds().few_days] for few in ends] for name, ends in days.items()}
    return {"nulls": nulls, "clipped": clipped, "unmatched": unmatched, "days": few_days}


def _days(bench: Bench, column: Column, block: pa.Table) -> list[set[int]]:
    """Return keyed words of the days on which a duration begins, and of those on which it ends: a few of each."""
    key, cells = derived(bench.task.secret, "days"), Block(column=column, table=block, first_row=0)
    ends = [cells.days(source) for source in (column.source, *column.also_reads)]
    known = [np.unique(days[~np.isnat(days)].astype(np.int64)).astype(np.uint64) for days in ends]
    return [set(np.sort(scrambled(days, key))[: Thresholds().few_days].tolist()) for days in known]


def _keep(bench: Bench, name: str, at: int, made: Made, places: dict[str | None, int]) -> None:
    if made.levels is None:
        for outgoing, values in made.values.items():
            bench.spool.put(outgoing, at, values)
        return
    (positions,) = made.values.values()
    place = np.array([places.setdefault(level, len(places)) for level in made.levels], dtype=np.int32)
    bench.spool.put(f"{name}.level", at, place[positions])
    check_levels(bench.columns[name], len(places))


def _secrets(bench: Bench) -> Secrets:
    purpose = derived(bench.task.secret, f"purpose {bench.task.recipe.purpose}")
    # Noise depends on neither seed nor recipe: drawn anew for each, it could be averaged away.
    rows = derived(bench.task.secret, f"rows of {bench.main.order_key.hex()}")
    return Secrets(rows=rows, purpose=purpose)


def _subjects(bench: Bench, block: pa.Table, first: int) -> Values:
    """Return a keyed word for each row's subject, the same in every release; a null is one subject of its own."""
    key = derived(bench.task.secret, "subjects")
    if not bench.task.recipe.subject:
        rows = np.arange(first, first + block.num_rows, dtype=np.uint64)
        return mixed(rows ^ np.frombuffer(key[:8], dtype=np.uint64)[0])
    try:
        cells = block.column(bench.task.recipe.subject).cast(pa.large_string()).combine_chunks()
    except pa.ArrowException:
        raise InvalidInput(
            Reason.RECIPE_INVALID,
            f"the subject {bench.task.recipe.subject!r} is neither text nor numbers",
            "name a column that says whose row it is",
        ) from None
    coded = cells.dictionary_encode(null_encoding="encode")
    names = [b"\0" if name is None else _one_spelling(name) for name in coded.dictionary.to_pylist()]
    words = b"".join(hashlib.blake2b(name, key=key, digest_size=8).digest() for name in names)
    subjects: Values = np.frombuffer(words, dtype=np.uint64)[coded.indices.to_numpy(zero_copy_only=False)]
    return subjects


def _one_spelling(name: str) -> bytes:
    """Return a subject's name as all spellings of it are counted: without case, spaces around it and unseen marks."""
    seen = "".join(c for c in unicodedata.normalize("NFKC", name) if unicodedata.category(c) != "Cf")
    whole, point, rest = seen.strip().casefold().partition(".")
    return (whole if point and whole.isdecimal() and not rest.strip("0") else f"{whole}{point}{rest}").encode()
