"""The egress plan: what would move, why, and what policy says of it, before anything does.

`matrix_request` and `capsule_request` are the one place where a signed statement becomes what policy reads; border,
plans and the queue use them.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal, InvalidOperation
from typing import Any

from fabric.approvals import Approvals, Bound, Question
from fabric.artifacts import digest_of
from fabric.labels import Labels, most_restrictive
from fabric.matrix import SealedMatrix, columns_of
from fabric.policy import Decision
from fabric.requests import MILLION, MoveRequest, Risk
from fabric.statements import Signed
from fabric.zones import Zone

NUMBER_TYPES = frozenset(
    {"bool", "double", "float", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))}
)


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


def matrix_request(
    signed: Signed,
    *,
    zone: Zone,
    labels: Labels,
    purpose: str,
    justification: str,
    person: str,
    now: datetime,
    approvals: Approvals,
    code: str,
) -> MoveRequest:
    """Return the question whether the matrix that `signed` describes may move to `zone`.

    Args:
        signed: its verified statement; what it says counts, not what a caller says.
        labels: of the job; the signed labels of the matrix count too, whichever are stricter, unless a data steward
            has lowered them.
        approvals: by second persons, of this very matrix's recipe and schema and of the code of digest `code`.

    Raises:
        InvalidInput: `LABELS_CONFLICT`, or labels in the statement that are no labels.
    """
    predicate = signed.statement.predicate
    notes = columns_of(signed)
    both = most_restrictive(Labels.from_json(predicate["labels"]), labels)
    question = question_of(signed, zone=zone.name, purpose=purpose, requester=person, code=code)
    return MoveRequest(
        person=person,
        zone=zone,
        labels=approvals.lowered(both, digest_of(dict(signed.statement.subjects)), now),
        purpose=purpose,
        justification=justification,
        # Rows held back to measure models on are no matrix: they stay.
        artifact="matrix" if predicate["part"] == "matrix" else "held-back",
        inspected=True,
        expired=now >= signed.statement.expires_at,
        statement_purpose=str(predicate["purpose"]),
        text_columns=frozenset(name for name, note in notes.items() if note["type"] not in NUMBER_TYPES),
        keyed_tokens=sum(note.get("tokens") == "hmac" for note in notes.values()),
        risk=risk_of(predicate),
        approved=approvals.hold(question, now),
    )


def capsule_request(signed: Signed, *, beside: MoveRequest, now: datetime) -> MoveRequest:
    """Return the question whether the outbound code that `signed` describes may move beside a matrix."""
    return MoveRequest(
        person=beside.person,
        zone=beside.zone,
        labels=beside.labels,
        purpose=beside.purpose,
        justification=beside.justification,
        artifact="capsule",
        inspected=True,
        expired=now >= signed.statement.expires_at,
        statement_purpose="",
        approved=beside.approved,
    )


def question_of(signed: Signed, *, zone: str, purpose: str, requester: str, code: str) -> Question:
    """Return what a second person would have to approve before this matrix moves to `zone`.

    Args:
        code: digest of the capsule that moves with it; empty if none does.
    """
    recipe = str(signed.statement.predicate.get("recipe", ""))
    bound = Bound(code=code, recipe=recipe, schema=schema_digest(signed))
    return Question(action="move", zone=zone, purpose=purpose, requester=requester, bound=bound)


def risk_of(predicate: Mapping[str, Any]) -> Risk | None:
    """Return the risk that a statement states with its limits; None where it does not state both, or states nonsense.

    A measure that is limited and not stated counts as the worst value; an empty `t` among the limits asks nothing.
    Where the statement says that no column is sensitive, there is nothing for l and t to be measured on, as in
    `sanitize.risk.objections`.
    """
    stated, limits = predicate.get("risk"), predicate.get("risk_limits")
    if not isinstance(stated, Mapping) or not isinstance(limits, Mapping):
        return None
    moot = stated.get("sensitive") == []
    try:
        return Risk(
            k=_count(stated.get("k", 0)),
            k_required=_count(limits.get("k", 0)),
            l=_count(stated.get("l", 0)),
            l_required=0 if moot else _count(limits.get("l", 0)),
            t=_millionths(stated.get("t", "1") or "1", ROUND_CEILING),
            t_allowed=MILLION if moot else _millionths(limits.get("t", "1") or "1", ROUND_FLOOR),
        )
    except (ValueError, InvalidOperation):
        return None


def schema_digest(signed: Signed) -> str:
    """Return the digest of the outgoing columns' names and types, in order."""
    return digest_of([[name, note["type"]] for name, note in columns_of(signed).items()])


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**53:
        raise ValueError("not a count")
    return value


def _millionths(value: object, rounding: str) -> int:
    if not isinstance(value, str):
        raise ValueError("not a decimal as text")
    share = Decimal(value)
    if not 0 <= share <= 1:
        raise ValueError("not a share")
    return int((share * MILLION).to_integral_value(rounding))


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
