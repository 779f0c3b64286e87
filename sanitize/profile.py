"""Profile: what the columns of records are, in counts, kinds and steps. It holds no value.

A bounded sample of rows is read, spread evenly over the records, and every count is the sample's. What a column is,
its `kind`, is decided in `sanitize.kinds` and comes with its reasons. The steps of a `Scale` come from quantiles that
at least `MIN_HOLDERS` subjects lie at or beyond, rounded to multiples of 1, 2 or 5 times a power of ten: no record's
value stands in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from fabric.errors import InvalidInput, Reason, nearest
from sanitize.facts import Inspecting, Sampled, Scale, codes_of, facts_of, scale_of
from sanitize.keys import KeyMatch, Span, find_keys, find_spans
from sanitize.kinds import Facts, Kind, Shape, kind_of
from sanitize.presets import PERSONS, is_person, words_of

ONE = "records"
"""What a single table is called that was given without a name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnProfile:
    """One column: the facts, what they make it, and its steps where it is numbers.

    Attributes:
        twin: the first column of the same table that tells exactly the same of every sampled row; empty if none does.
    """

    records: str
    facts: Facts
    kind: Kind
    reasons: tuple[str, ...]
    scale: Scale | None = None
    twin: str = ""

    @property
    def name(self) -> str:
        """Return the column's name."""
        return self.facts.name

    def to_json(self) -> dict[str, Any]:
        """Return the profile as JSON values without floats."""
        facts = self.facts
        return {
            "records": self.records,
            "name": facts.name,
            "type": facts.type,
            "kind": self.kind.value,
            "reasons": list(self.reasons),
            "rows": facts.rows,
            "nulls": facts.nulls,
            "distinct": facts.distinct,
            "subjects": facts.holders,
            "distinct_per_subject": f"{facts.per_subject:.2f}",
            "common_levels": facts.common,
            "covered": f"{facts.covered:.2f}",
            "ascii": f"{facts.ascii:.2f}",
            "words": f"{facts.words:.1f}",
            "inspected": facts.inspected,
            "entities": {e: {"strong": s, "weak": w} for e, (s, w) in sorted(facts.entities.items())},
            "shapes": [shape.value for shape in Shape if shape in facts.shapes],
            "refers_to": facts.refers_to,
            "twin": self.twin,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TableProfile:
    """One table: its rows, how many of them were read, and whose they are.

    Attributes:
        subject: the column that says whose row it is; empty where every row is counted as another subject.
        subjects: how many there are among the rows read.
    """

    name: str
    rows: int
    sampled: int
    subject: str
    subjects: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Records as a recipe's writer needs to know them; the first table is the one that the others may be joined to."""

    tables: Mapping[str, TableProfile]
    columns: tuple[ColumnProfile, ...]
    matches: tuple[KeyMatch, ...]
    spans: tuple[Span, ...]

    def of(self, records: str) -> tuple[ColumnProfile, ...]:
        """Return the columns of one table, in its order."""
        return tuple(column for column in self.columns if column.records == records)

    def to_json(self) -> dict[str, Any]:
        """Return the profile as JSON values without floats."""
        return {
            "tables": [
                {"name": t.name, "rows": t.rows, "sampled": t.sampled, "subject": t.subject, "subjects": t.subjects}
                for t in self.tables.values()
            ],
            "columns": [column.to_json() for column in self.columns],
            "keys": [
                {"from": f"{m.records}.{m.column}", "to": m.target, "distinct": m.distinct, "keys": m.keys}
                for m in self.matches
            ],
            "spans": [{"records": s.records, "start": s.start, "end": s.end} for s in self.spans],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How much of the records a profile reads.

    Attributes:
        rows: of each table.
        values: distinct values of each column that Presidio reads.
        key_rows: a table of more rows is not searched for keys.
    """

    rows: int = 100_000
    values: int = 1_000
    key_rows: int = 2_000_000


def profile(
    records: pa.Table | Mapping[str, pa.Table], inspector: Inspecting, subject: str = "", *, bounds: Bounds = Bounds()
) -> Profile:
    """Return what the columns of `records` are.

    Args:
        records: tables by name, the first the one that a recipe would be of; or one table.
        subject: the column of the first table that says whose row it is; found by its keys and name if empty.

    Raises:
        InvalidInput: `COLUMN_MISSING` if the first table has no such column; `RECORDS_EMPTY` if there is no table.
        Refused: `INSPECTION_FAILED`.
    """
    tables = {ONE: records} if isinstance(records, pa.Table) else dict(records)
    if not tables:
        raise InvalidInput(Reason.RECORDS_EMPTY, "there is no table to profile", "name records")
    first = next(iter(tables))
    if subject and subject not in tables[first].column_names:
        message = f"records {first!r} have no column {subject!r} to take for the subject"
        raise InvalidInput(Reason.COLUMN_MISSING, message, nearest(subject, tables[first].column_names))
    # 1. A sample of each, and how they hang together.
    samples = {name: _sampled(table, bounds.rows) for name, table in tables.items()}
    matches = find_keys(tables, samples, limit=bounds.key_rows)
    subjects = _subjects(samples, matches, subject or _found_subject(samples[first], first, matches))
    # 2. Each column by itself, then beside its neighbours.
    found: dict[str, TableProfile] = {}
    columns: list[ColumnProfile] = []
    for name, sample in samples.items():
        whose = codes_of(sample.column(subjects[name])) if subjects[name] else np.arange(sample.num_rows)
        refers = {m.column: m.target for m in matches if m.records == name}
        found[name] = TableProfile(
            name=name, rows=tables[name].num_rows, sampled=sample.num_rows,
            subject=subjects[name], subjects=len(np.unique(whose)),
        )  # fmt: skip
        columns += _columns(name, sample, whose, refers, inspector, bounds.values)
    spans = tuple(span for name, sample in samples.items() for span in find_spans(name, sample))
    return Profile(tables=found, columns=tuple(columns), matches=matches, spans=spans)


def _sampled(table: pa.Table, rows: int) -> pa.Table:
    if table.num_rows <= rows:
        return table
    return table.take(pa.array(np.linspace(0, table.num_rows - 1, rows).astype(np.int64)))


def _found_subject(sample: pa.Table, name: str, matches: Sequence[KeyMatch]) -> str:
    """Return the column of the first table that names a person: by the records it refers to, or by its own name."""
    own = [match for match in matches if match.records == name]
    for match in own:
        if words_of(match.to_records) & {*PERSONS, *(f"{word}s" for word in PERSONS)}:
            return match.column
    for column in map(str, sample.column_names):
        key = "id" in words_of(column) or any(m.column == column for m in own)
        if is_person(column) and key and not sample.column(column).null_count:
            return column
    return ""


def _subjects(samples: Mapping[str, pa.Table], matches: Sequence[KeyMatch], subject: str) -> dict[str, str]:
    """Return each table's column of the same subjects, or "" where it has none."""
    first = next(iter(samples))
    target = next((m for m in matches if (m.records, m.column) == (first, subject)), None)
    found = {first: subject}
    for name, sample in samples.items():
        if name == first:
            continue
        if target is not None and target.to_records == name:
            found[name] = target.to_column
        else:
            same = [m.column for m in matches if m.records == name and target is not None and m.target == target.target]
            same += [m.column for m in matches if m.records == name and m.target == f"{first}.{subject}"]
            found[name] = next(iter(same), subject if subject in sample.column_names else "")
    return found


def _columns(
    records: str, sample: pa.Table, whose: np.ndarray, refers: Mapping[str, str], inspector: Inspecting, values: int
) -> list[ColumnProfile]:
    cells = {name: Sampled.of(sample.column(name), whose) for name in sample.column_names}
    facts = {name: facts_of(name, read, refers.get(name, ""), inspector, values) for name, read in cells.items()}
    facts = _beside(facts)
    seen: dict[bytes, str] = {}
    columns = []
    for name, fact in facts.items():
        kind, reasons = kind_of(fact)
        twin = "" if fact.distinct in (0, 1, fact.rows) else seen.setdefault(cells[name].fingerprint(), name)
        found = ColumnProfile(
            records=records, facts=fact, kind=kind, reasons=reasons, scale=scale_of(cells[name], kind)
        )
        columns.append(replace(found, twin="" if twin == name else twin))
    return columns


def _beside(facts: Mapping[str, Facts]) -> dict[str, Facts]:
    """Take a coordinate's shape from columns that have no neighbour of the same: one alone is a fine measure."""
    names = list(facts)
    fine = [Shape.TO_THE_METRE in facts[name].shapes for name in names]
    kept = {}
    for i, name in enumerate(names):
        beside = [j for j in (i - 1, i + 1) if 0 <= j < len(names) and fine[j]]
        alone = fine[i] and not any(facts[names[j]].nulls == facts[name].nulls for j in beside)
        kept[name] = replace(facts[name], shapes=facts[name].shapes - {Shape.TO_THE_METRE}) if alone else facts[name]
    return kept
