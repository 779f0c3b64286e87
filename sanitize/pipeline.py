"""The pipeline: records in, a sealed matrix and a report out, or a refusal that says why.

1. Join the records the recipe names.
2. Treat: make every outgoing column.
3. Inspect: Presidio reads every distinct value that would leave.
4. Shuffle, hold back, seal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from fabric.errors import InvalidInput, Reason
from sanitize.inspection import Inspector
from sanitize.reading import RawTable, join_records
from sanitize.recipe import Recipe
from sanitize.sealing import seal
from sanitize.treatment import Treated, treat


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A sealed part of the rows."""

    chunks: tuple[bytes, ...]
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sanitized:
    """Sealed parts and what was done, found and left inside.

    Attributes:
        held_back: rows for measuring models; None if none were asked for.
        dictionaries: levels of each encoded column, by code; they stay inside.
        report: plain JSON without floats, for the statement.
    """

    train: Part
    held_back: Part | None
    dictionaries: Mapping[str, tuple[str, ...]]
    report: Mapping[str, Any]


def sanitize(
    raw: Mapping[str, RawTable], recipe: Recipe, *, inspector: Inspector, hold_back: float, seed: int
) -> Sanitized:
    """Sanitize records by a recipe.

    Args:
        raw: the records the recipe names, by name.
        recipe: what may leave.
        inspector: Presidio.
        hold_back: share of the rows to seal apart, from 0 to less than 1.
        seed: of the order of rows, which is not the records'.

    Raises:
        InvalidInput: the recipe does not fit the records.
        Refused: `COLUMN_REFUSED` or `INSPECTION_FAILED`.
    """
    # 1. Join.
    table, unmatched = raw[recipe.records].table, {}
    for name, join in recipe.join.items():
        table, unmatched[name] = join_records(table, raw[name], left_key=join.left, right_key=join.right)
    # 2. Treat.
    treated = treat(recipe, table)
    # 3. Inspect.
    columns = [_inspected(name, one, recipe, inspector) for name, one in treated.items()]
    # 4. Shuffle, hold back, seal.
    order = np.random.default_rng(seed).permutation(table.num_rows)
    held = round(table.num_rows * hold_back)
    if held == table.num_rows or (hold_back and not held):
        raise InvalidInput(
            Reason.RECORDS_EMPTY,
            f"holding back {held} of {table.num_rows} rows leaves one part empty",
            "change hold_back",
        )
    return Sanitized(
        train=_part(treated, order[held:]),
        held_back=_part(treated, order[:held]) if held else None,
        dictionaries={name: one.levels for name, one in treated.items() if one.levels},
        report={
            "recipe": recipe.digest,
            "recipe_name": recipe.name,
            "inputs": {name: raw[name].version for name in recipe.sources},
            "columns": columns,
            "dropped": _dropped(table.column_names, recipe),
            "unmatched": unmatched,
            "rows_in": table.num_rows,
            "engines": inspector.versions(),
        },
    )


def _inspected(name: str, one: Treated, recipe: Recipe, inspector: Inspector) -> dict[str, Any]:
    column = recipe.columns[name]
    values = pa.chunked_array([one.values])
    findings = inspector.inspect_column(name, values)
    inspector.judge(name, values, findings, coarse=column.coarse)
    return {
        "name": name,
        "from": ", ".join(column.sources),
        "treatment": column.treatment,
        "why": column.why,
        "role": column.role,
        "type": str(one.values.type),
        "levels": len(one.levels),
        "missing": one.missing,
        "folded": one.folded,
        "distinct": findings.distinct,
        "findings": findings.to_json(),
    }


def _dropped(names: list[str], recipe: Recipe) -> list[str]:
    used = {source for column in recipe.columns.values() for source in column.sources}
    return [name for name in names if name not in used]


def _part(treated: Mapping[str, Treated], rows: np.ndarray[Any, Any]) -> Part:
    table = pa.table({name: one.values.take(pa.array(rows)) for name, one in treated.items()})
    return Part(chunks=seal(table), rows=len(rows))
