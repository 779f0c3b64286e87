"""The pipeline: from raw records and a recipe to sealed numbers and a report of what was done.

`course` is the order of the stages, whoever does their pieces: one process here, a pool of actors in
`sanitize.actor`. Nothing is sealed unless every outgoing column may cross, and all of them together. The report holds
counts, digests, names of columns and words of ours; it becomes part of a signed statement and leaves, so it holds no
level, no value and no float.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fabric.errors import InvalidInput, Reason, nearest
from sanitize import risk
from sanitize.bench import Bench, Facts
from sanitize.inspection import Inspector
from sanitize.reading import RawTable, TableSource
from sanitize.recipe import Column, Pseudonymise, Recipe
from sanitize.sources import BLOCK_ROWS, UNIT_ROWS, Source
from sanitize.spool import HELD_BACK, TRAIN, Spool
from sanitize.stages import do
from sanitize.surrogates import Surrogates
from sanitize.task import Task

_NONE = risk.Limits()

Call = Callable[[str, Sequence[str]], Sequence[Facts]]
"""Does the pieces of a stage, in any order, and returns what was found of each, in the order of the pieces."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """What the course of a task ends with, in counts and digests.

    Attributes:
        rows: of each part.
        digests: of each part's chunks, in order.
        staying: names of the columns that nothing is made from.
    """

    rows: Mapping[str, int]
    digests: Mapping[str, tuple[str, ...]]
    staying: tuple[str, ...]


def course(call: Call, *, chunk_rows: int) -> Finished:
    """Run every stage, in order, each over all of its pieces.

    Raises:
        InvalidInput: the recipe does not fit the records.
        Refused: `COLUMN_REFUSED`, `RISK_TOO_HIGH` or `INSPECTION_FAILED`; nothing was sealed.
    """
    (todo,) = call("start", ["all"])
    call("treat", [str(unit) for unit in range(todo["units"])])
    call("settle", todo["leveled"])
    (weighed,) = call("weigh", ["first"])
    if weighed["again"]:
        call("resettle", todo["leveled"])
        call("weigh", ["again"])
    call("inspect", todo["outgoing"])
    call("judge", ["all"])
    (rows,) = call("cut", ["all"])
    digests = {}
    for part, count in rows.items():
        sealed = call("seal", [f"{part}.{index}" for index in range(-(-count // chunk_rows))])
        digests[part] = tuple(chunk["digest"] for chunk in sealed)
    return Finished(rows=rows, digests=digests, staying=tuple(todo["staying"]))


def sanitize(
    raw: Mapping[str, RawTable],
    recipe: Recipe,
    *,
    inspector: Inspector,
    hold_back: float,
    seed: int,
    secret: bytes = bytes(32),
    limits: risk.Limits = _NONE,
    earlier: tuple[Column, ...] = (),
    unit_rows: int = UNIT_ROWS,
    block_rows: int = BLOCK_ROWS,
    chunk_rows: int = 65_536,
) -> Sanitized:
    """Return what `recipe` lets out of tables in memory, sealed, its rows in an order that only the records give.

    Args:
        raw: the records that the recipe reads, by name.
        hold_back: share of the rows, from 0 to less than 1, that is sealed apart.
        seed: changes the order of rows; the records' own bytes are its secret part.
        secret: 32 bytes of the fabric's own.
        limits: what the risk of the whole must keep to.
        earlier: quasi-identifiers of earlier releases of the same records.
        unit_rows, block_rows: how the work is cut; the result does not depend on it.
        chunk_rows: rows in each sealed chunk.

    Raises:
        InvalidInput: the recipe does not fit the records.
        Refused: `COLUMN_REFUSED`, `RISK_TOO_HIGH` or `INSPECTION_FAILED`; nothing was sealed.
    """
    sources: dict[str, Source] = {}
    for name in recipe.sources:
        if name not in raw:
            message = f"recipe {recipe.name!r} reads the records {name!r}, which are not given"
            raise InvalidInput(Reason.UNKNOWN_RECORDS, message, nearest(name, raw))
        sources[name] = TableSource(raw[name], unit_rows, block_rows)
    with tempfile.TemporaryDirectory(prefix="fabric-spool-") as folder:
        spool = Spool(Path(folder), durable=False)
        spool.prepare()
        task = Task(
            recipe=recipe,
            sources=sources,
            hold_back=hold_back,
            seed=seed,
            secret=secret,
            limits=limits,
            earlier=earlier,
            surrogates=Surrogates(Path(folder) / "surrogates.sqlite").draw,
            chunk_rows=chunk_rows,
        )
        bench = Bench(task, spool, lambda: inspector)
        done = course(lambda stage, items: [do(bench, stage, item) for item in items], chunk_rows=chunk_rows)
        return Sanitized(
            train=_part(bench, done, TRAIN),
            held_back=_part(bench, done, HELD_BACK) if HELD_BACK in done.rows else None,
            dictionaries=dictionaries(bench),
            staying=done.staying,
            versions={name: source.version for name, source in sources.items()},
            report=report(bench),
        )


def dictionaries(bench: Bench) -> dict[str, tuple[str, ...]]:
    """Return for each column of codes the level behind each code; for the private zone alone."""
    found = {}
    for column in bench.task.recipe.columns:
        if column.leveled and not isinstance(column.treatment, Pseudonymise):
            found[column.name] = tuple(bench.dictionary(column.name))
    return found


def report(bench: Bench) -> dict[str, Any]:
    """Return what was done, for the statement: counts, digests, names and words of ours."""
    task, weighed = bench.task, bench.weighed()
    units = [bench.facts("treat", str(unit)) for unit in range(len(bench.main.units))]
    columns = [_column_note(bench, outgoing) for outgoing in task.recipe.outgoing]
    coverage = bench.inspector.coverage()
    staying = bench.facts("start", "all")["staying"]
    return {
        "recipe": task.recipe.digest,
        "recipe_name": task.recipe.name,
        "columns": columns,
        "dropped": len(staying),
        "unmatched": {name: sum(unit["unmatched"][name] for unit in units) for name in task.recipe.joins},
        "rows_in": bench.rows,
        "rows_out": bench.rows - weighed["suppressed"],
        "suppressed": weighed["suppressed"],
        "quasi_identifiers": [name for name in weighed["quasi"] if name not in bench.phantoms],
        "risk": weighed["risk"],
        "risk_limits": bench.limits.to_json(),
        "inspection": {
            "fast": sorted(coverage.fast),
            "slow": sorted(coverage.slow),
            "audited": sum(bench.facts("inspect", name)["findings"]["audited"] for name in task.recipe.outgoing),
        },
        "engines": bench.inspector.engine_versions(),
    }


def _column_note(bench: Bench, outgoing: str) -> dict[str, Any]:
    column = bench.column_of(outgoing)
    note, found = bench.note_of(column), bench.facts("inspect", outgoing)
    said: dict[str, Any] = {
        "name": outgoing,
        "from": column.source,
        "treatment": column.action,
        "why": note.why,
        "role": column.role.value,
        "type": bench.type_of(outgoing),
        "levels": note.levels,
        "nulls": note.nulls,
        "clipped": note.clipped,
        "folded": note.folded,
        "distinct": found["distinct"],
        "findings": bench.findings(outgoing).to_json(),
    }
    return said | {name: value for name in ("epsilon", "tokens") if (value := getattr(note, name))}


def _part(bench: Bench, done: Finished, part: str) -> Part:
    return Part(
        chunks=tuple(bench.spool.sealed(part, index).read_bytes() for index in range(len(done.digests[part]))),
        rows=done.rows[part],
        columns={name: bench.type_of(name) for name in bench.task.recipe.outgoing},
    )
