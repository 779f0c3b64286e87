"""The first stages: check that the recipe fits the records, and turn each unit of rows into columns of numbers."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa

from fabric.errors import InvalidInput, Reason, Refused
from sanitize.bench import SUBJECT, Bench, Facts, Values
from sanitize.ordering import derived, mixed
from sanitize.presets import check_preset
from sanitize.recipe import Bin, Clip, Keep, Recipe, Round
from sanitize.settling import check_levels
from sanitize.sources import Source
from sanitize.task import joined, wanted
from sanitize.treatment import Made, Secrets, make
from sanitize.treatments import Grid, Perturb

_READINGS = Keep | Round | Clip | Bin | Grid | Perturb


def start(bench: Bench, _: str) -> Facts:
    """Check that the recipe fits the records; return what there is to do."""
    recipe, inputs = bench.task.recipe, list(bench.main.columns)
    for name in recipe.joins:
        inputs += [f"{name}.{column}" for column in bench.task.sources[name].columns]
    for source in bench.task.sources.values():
        _check_names(bench, source)
    recipe.check(dict.fromkeys(inputs, ""))
    _check_readings(recipe)
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


def _check_readings(recipe: Recipe) -> None:
    """Refuse a number that leaves in more than one way: put side by side, coarse readings make a fine one."""
    coarse = [column for column in recipe.columns if isinstance(column.treatment, _READINGS)]
    for column in coarse:
        same = [other.name for other in coarse if other.source == column.source]
        if len(same) > 1:
            raise Refused(
                Reason.COLUMN_REFUSED,
                f"the columns {', '.join(map(repr, same))} are all made from {column.source!r}: together they tell "
                "more of it than each",
                "make one column of it",
            )


def _check_names(bench: Bench, source: Source) -> None:
    """Refuse a header that is really a row: the names of columns go into statements."""
    for position, column in enumerate(source.columns, start=1):
        if found := bench.inspector.inspect_text(column):
            raise InvalidInput(
                Reason.RECORDS_UNREADABLE,
                f"records {source.name!r}: the name of column {position} looks like {', '.join(sorted(found))}",
                "give the file a header line",
            )


def treat(bench: Bench, item: str) -> Facts:
    """Turn one unit of rows into columns of numbers."""
    unit = int(item)
    at = bench.firsts[unit]
    unmatched = dict.fromkeys(bench.task.recipe.joins, 0)
    nulls, clipped = dict.fromkeys(bench.columns, 0), dict.fromkeys(bench.columns, 0)
    levels: dict[str, dict[str | None, int]] = {}
    secrets = _secrets(bench)
    for raw in bench.main.read(unit, wanted(bench.task)[bench.main.name]):
        block = joined(bench.task, bench.rights, raw, unmatched)
        bench.spool.put(SUBJECT, at, _subjects(bench, block, at))
        for name, column in bench.columns.items():
            made = make(column, block, first_row=at, secrets=secrets)
            nulls[name] += made.nulls
            clipped[name] += made.clipped
            _keep(bench, name, at, made, levels.setdefault(name, {}))
        at += block.num_rows
    for name, places in levels.items():
        if bench.columns[name].leveled:
            bench.spool.put_levels(name, unit, list(places))
    bench.spool.sync()
    return {"nulls": nulls, "clipped": clipped, "unmatched": unmatched}


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
    return Secrets(rows=derived(bench.key, "rows"), purpose=purpose)


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
    names = [b"\0" if name is None else name.encode() for name in coded.dictionary.to_pylist()]
    words = b"".join(hashlib.blake2b(name, key=key, digest_size=8).digest() for name in names)
    subjects: Values = np.frombuffer(words, dtype=np.uint64)[coded.indices.to_numpy(zero_copy_only=False)]
    return subjects
