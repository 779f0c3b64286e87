"""The egress plan: what would move, why, and what policy says of it, before anything does."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fabric.matrix import SealedMatrix
from fabric.policy import Decision
from fabric.zones import Zone


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnPlan:
    """What happens to one column.

    Attributes:
        name: the outgoing column, or the column of the records that stays.
        source: the column of the records it is made from; empty for one that stays.
        fate: "crosses" or "stays".
        why: the treatment and its effect, or why it stays.
    """

    name: str
    source: str
    fate: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressPlan:
    """Everything that one crossing would move, and the decisions on it."""

    destination: str
    columns: tuple[ColumnPlan, ...]
    rows: int
    size_bytes: int
    digest: str
    statement: str
    decisions: tuple[Decision, ...]

    @property
    def permit(self) -> bool:
        """Say whether every decision is a permit."""
        return all(decision.permit for decision in self.decisions)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain JSON."""
        return {
            "destination": self.destination,
            "permit": self.permit,
            "rows": self.rows,
            "bytes": self.size_bytes,
            "digest": self.digest,
            "statement": self.statement,
            "columns": [{"name": c.name, "from": c.source, "fate": c.fate, "why": c.why} for c in self.columns],
            "decisions": [decision.to_json() for decision in self.decisions],
        }

    def __str__(self) -> str:
        lines = [
            f"Egress plan to {self.destination}: {'permitted' if self.permit else 'DENIED'}",
            f"  {self.rows:,} rows, {self.size_bytes:,} bytes, matrix {self.digest}",
            f"  statement {self.statement}",
        ]
        lines += _table([("column", "from", "fate", "why"), *((c.name, c.source, c.fate, c.why) for c in self.columns)])
        for decision in self.decisions:
            lines.append(f"  {decision.action} -> {decision.zone.name}: {'permit' if decision.permit else 'deny'}")
            for rule in decision.rules:
                lines.append(f"    [{rule.id}] {rule.reason}" + (f"; way out: {rule.way_out}" if rule.way_out else ""))
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        verdict = "permitted" if self.permit else "<strong>denied</strong>"
        head = (
            f"<p>Egress plan to <b>{html.escape(self.destination)}</b>: {verdict}; {self.rows:,} rows, "
            f"{self.size_bytes:,} bytes, <code>{html.escape(self.digest)}</code></p>"
        )
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in (c.name, c.source, c.fate, c.why)) + "</tr>"
            for c in self.columns
        )
        rules = "".join(
            f"<li><code>{html.escape(rule.id)}</code> {html.escape(rule.reason)}</li>"
            for decision in self.decisions
            for rule in decision.rules
        )
        header = "<tr><th>column</th><th>from</th><th>fate</th><th>why</th></tr>"
        return f"{head}<table>{header}{body}</table><ul>{rules}</ul>"


def plan_of(matrix: SealedMatrix, staying: Sequence[str], zone: Zone, decisions: Sequence[Decision]) -> EgressPlan:
    """Return the plan of moving `matrix` to `zone`, as its signed statement describes it.

    Args:
        staying: names of the columns that stay; the statement does not name them, because it crosses.
    """
    crossing = [
        ColumnPlan(name=name, source=str(note["from"]), fate="crosses", why=str(note["why"]))
        for name, note in matrix.columns.items()
    ]
    return EgressPlan(
        destination=f"zone {zone.name} ({zone.kind.value}, {zone.provider}, {zone.region}, {zone.jurisdiction})",
        columns=(
            *crossing,
            *(ColumnPlan(name=name, source="", fate="stays", why="not in the recipe") for name in staying),
        ),
        rows=matrix.rows,
        size_bytes=matrix.size_bytes,
        digest=matrix.digest,
        statement=matrix.signed.digest,
        decisions=tuple(decisions),
    )


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
