"""The pipeline: from raw records and a recipe to sealed numbers and a report of what was done.

Nothing is sealed unless every outgoing column may cross. The report holds counts, digests, names of columns and words
of ours; it becomes part of a signed statement and leaves, so it holds no level, no value and no float.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from fabric.errors import InvalidInput, Reason, Refused, nearest
from sanitize.inspection import ColumnFindings, Inspector
from sanitize.reading import RawTable, join_records
from sanitize.recipe import Clip, Column, Keep, Recipe
from sanitize.sealing import seal
from sanitize.treatment import Ints, Reals, Treated, apply
from sanitize.verdict import Shape, Thresholds, is_code, objections


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Rows that were sealed together."""

    chunks: tuple[bytes, ...] = field(repr=False)
    rows: int
    columns: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sanitized:
    """What sanitizing gives.

    Attributes:
        held_back: rows of other subjects than those of `train`; None where none were asked for.
        dictionaries: for each encoded column the level behind each code; never crosses.
        staying: names of the columns that nothing is made from; a name may itself say something, so it stays too.
        versions: digest of each records file; whoever knows most of a file could confirm a guess of the rest by it.
        report: what was done, for the statement.
    """

    train: Part
    held_back: Part | None
    dictionaries: Mapping[str, tuple[str, ...]] = field(repr=False)
    staying: tuple[str, ...]
    versions: Mapping[str, str]
    report: Mapping[str, Any]


def sanitize(
    raw: Mapping[str, RawTable], recipe: Recipe, *, inspector: Inspector, hold_back: float, seed: int
) -> Sanitized:
    """Return what `recipe` lets out of `raw`, sealed, its rows in an order that only the raw records give.

    Args:
        raw: the records that the recipe reads, by name.
        hold_back: share of the rows, from 0 to less than 1, that is sealed apart.
        seed: changes the order of rows; the records' own bytes are its secret part.

    Raises:
        InvalidInput: the recipe does not fit the records.
        Refused: `COLUMN_REFUSED` or `INSPECTION_FAILED`; nothing was sealed.
    """
    # 1. Join.
    table, inputs, unmatched = _joined(raw, recipe, inspector)
    # 2. Treat.
    treated = apply(recipe, table)
    # 3. Inspect everything that would leave.
    notes = _inspected(recipe, treated, inspector, Thresholds())
    # 4. Shuffle, hold back, seal.
    made_from = {source for column in recipe.columns for source in (column.source, *column.also_reads)}
    staying = [name for name in inputs if name not in made_from]
    train, held_back = _split(treated.subjects, hold_back, np.random.default_rng(_entropy(raw[recipe.records], seed)))
    return Sanitized(
        train=_sealed(treated.table, train),
        held_back=_sealed(treated.table, held_back) if hold_back else None,
        dictionaries=treated.dictionaries,
        staying=tuple(staying),
        versions={name: raw[name].version for name in recipe.sources},
        report={
            "recipe": recipe.digest,
            "recipe_name": recipe.name,
            "columns": notes,
            "dropped": len(staying),
            "unmatched": unmatched,
            "rows_in": table.num_rows,
            "rows_out": table.num_rows,
            "engines": inspector.engine_versions(),
        },
    )


def _joined(
    raw: Mapping[str, RawTable], recipe: Recipe, inspector: Inspector
) -> tuple[pa.Table, list[str], dict[str, int]]:
    """Return the columns that the recipe reads, the names of all columns there are, and rows without a match."""
    for name in recipe.sources:
        if name not in raw:
            message = f"recipe {recipe.name!r} reads the records {name!r}, which are not given"
            raise InvalidInput(Reason.UNKNOWN_RECORDS, message, nearest(name, raw))
        _check_names(name, raw[name].table.column_names, inspector)
    inputs = list(raw[recipe.records].table.column_names)
    for name in recipe.joins:
        inputs += [f"{name}.{column}" for column in raw[name].table.column_names]
    schema = dict.fromkeys(inputs, "")
    recipe.check(schema)
    table, unmatched = raw[recipe.records].table, {}
    for name, join in recipe.joins.items():
        table, unmatched[name] = join_records(table, raw[name], left_key=join.left, right_key=join.right)
    return table.select(list(recipe.reads())), inputs, unmatched


def _check_names(records: str, columns: list[str], inspector: Inspector) -> None:
    """Refuse a header that is really a row: the names of columns go into statements."""
    for position, column in enumerate(columns, start=1):
        if found := inspector.inspect_text(column):
            raise InvalidInput(
                Reason.RECORDS_UNREADABLE,
                f"records {records!r}: the name of column {position} looks like {', '.join(sorted(found))}",
                "give the file a header line",
            )


def _inspected(recipe: Recipe, treated: Treated, inspector: Inspector, limits: Thresholds) -> list[dict[str, Any]]:
    """Return a note on each outgoing column, or refuse them all if one may not cross."""
    subjects = len(np.unique(treated.subjects))
    if subjects < limits.min_subjects:
        raise Refused(
            Reason.COLUMN_REFUSED,
            f"the records hold {subjects} subjects: rows of fewer than {limits.min_subjects} can be told apart by eye",
            "sanitize more records at once",
        )
    notes, against = [], []
    for column in recipe.columns:
        values = treated.table.column(column.name)
        findings = inspector.inspect_column(column.name, values, also_called=(column.source,))
        levels = _level_findings(column, treated, inspector)
        wrong = objections(
            column,
            findings,
            _shape(column, treated),
            levels=levels,
            subject_known=bool(recipe.subject),
            limits=limits,
        )
        against += [f"column {column.name!r} (from {column.source!r}): {reason}" for reason in wrong]
        notes.append(_note(column, treated, findings))
    if against:
        raise Refused(Reason.COLUMN_REFUSED, "; ".join(against), "change the recipe; nothing was sealed")
    return notes


def _level_findings(column: Column, treated: Treated, inspector: Inspector) -> ColumnFindings | None:
    if not is_code(column):
        return None
    levels = treated.dictionaries.get(column.name, ())[2:]  # after "other" and "missing"
    hits = Counter(entity for level in levels for entity in inspector.inspect_text(level))
    return ColumnFindings(entities={e: (n, 0) for e, n in hits.items()}, distinct=len(levels), cells=len(levels))


def _shape(column: Column, treated: Treated) -> Shape:
    cells: Reals = treated.table.column(column.name).to_numpy().astype(np.float64)
    known = ~np.isnan(cells)
    values, places = np.unique(cells[known], return_inverse=True)
    people = int(treated.subjects.max()) + 1
    holders = len(np.unique(places.astype(np.int64) * people + treated.subjects[known]))
    span = float(values[-1] - values[0]) if len(values) else 0.0
    fine = isinstance(column.treatment, Keep | Clip)
    written = [np.format_float_positional(value, trim="-") for value in values] if fine else []
    return Shape(
        distinct=len(values),
        holders=holders,
        steps=round(span / (treated.notes[column.name].grain or 1.0)),
        decimals=max((len(text.partition(".")[2]) for text in written), default=0),
    )


def _note(column: Column, treated: Treated, findings: ColumnFindings) -> dict[str, Any]:
    note = treated.notes[column.name]
    return {
        "name": column.name,
        "from": column.source,
        "treatment": column.action,
        "why": note.why,
        "role": column.role.value,
        "type": str(treated.table.schema.field(column.name).type),
        "levels": note.levels,
        "nulls": note.nulls,
        "clipped": note.clipped,
        "folded": note.folded,
        "distinct": findings.distinct,
        "findings": findings.to_json(),
    }


def _entropy(records: RawTable, seed: int) -> list[int]:
    """Return what seeds the order: nobody who lacks the raw bytes can put the rows back in the records' order."""
    if seed < 0:
        raise InvalidInput(Reason.CONFIG_INVALID, "the seed is negative", "use 0 or more")
    return [seed, *np.frombuffer(records.order_key, dtype=np.uint32).tolist()]


def _split(subjects: Ints, hold_back: float, random: np.random.Generator) -> tuple[Ints, Ints]:
    """Return the shuffled rows of the two parts; no subject is in both."""
    if not 0 <= hold_back < 1:
        raise InvalidInput(Reason.CONFIG_INVALID, "hold_back is not a share", "use 0 to less than 1")
    names, place, counts = np.unique(subjects, return_inverse=True, return_counts=True)
    order = random.permutation(len(names))
    held = np.zeros(len(names), dtype=bool)
    held[order[np.cumsum(counts[order]) <= round(hold_back * len(subjects))]] = True
    rows = random.permutation(len(subjects))
    aside = held[place][rows]
    if hold_back and not (aside.any() and not aside.all()):
        raise InvalidInput(
            Reason.CONFIG_INVALID, "hold_back leaves one part without rows", "hold back a larger or smaller share"
        )
    return rows[~aside], rows[aside]


def _sealed(table: pa.Table, rows: Ints) -> Part:
    schema = {name: str(table.schema.field(name).type) for name in table.column_names}
    return Part(chunks=seal(table.take(pa.array(rows))), rows=len(rows), columns=schema)
