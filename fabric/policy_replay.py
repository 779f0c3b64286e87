"""Trying a policy before it is in force: a table of expected decisions, and the past decided again.

`run_table` answers the rows of a TOML file. `replay` takes the decisions that the ledger holds, each with the
attributes it was decided by, and shows who would be blocked, freed or moved under another policy. Pure but for the
parsing of the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from fabric.errors import InvalidInput, Reason, nearest
from fabric.labels import Labels
from fabric.policy import Policy, Verdict
from fabric.requests import Action, ActRequest, MoveRequest, Request, Risk, RunRequest
from fabric.specs import Spec, parse
from fabric.zones import Zone, find_zone

_ACTS = tuple(action.value for action in Action)
_COMMON = ("name", "expect", "rules", "action", "zone", "labels", "purpose", "justification", "person")
_OF_RUN = ("reads_records",)
_OF_ACT = ("roles", "own", "verified", "approved")
_OF_MOVE = (
    "artifact",
    "inspected",
    "expired",
    "statement_purpose",
    "text_columns",
    "keyed_tokens",
    "risk",
    "approved",
)


class _RiskTable(Spec):
    k: Annotated[int, Field(ge=0)] = 0
    k_required: Annotated[int, Field(ge=0)] = 0
    l: Annotated[int, Field(ge=0)] = 0  # noqa: E741 - the measure's own name
    l_required: Annotated[int, Field(ge=0)] = 0
    t: Annotated[int, Field(ge=0, le=1_000_000)] = 1_000_000
    t_allowed: Annotated[int, Field(ge=0, le=1_000_000)] = 1_000_000


class _Row(Spec):
    """One row; what is left out is the most restrictive value."""

    name: str
    expect: Literal["permit", "deny"]
    rules: list[str] | None = None
    action: str
    zone: str
    labels: Annotated[dict[str, Any], Field(default_factory=dict)]
    person: str = "p-0"
    purpose: str = ""
    justification: str = ""
    reads_records: bool = True
    artifact: Literal["records", "matrix", "held-back", "capsule", "model"] = "records"
    inspected: bool = False
    expired: bool = True
    statement_purpose: str = ""
    text_columns: Annotated[list[str], Field(default_factory=list)]
    keyed_tokens: Annotated[int, Field(ge=0)] = 0
    risk: _RiskTable | None = None
    roles: Annotated[list[str], Field(default_factory=list)]
    own: bool = True
    verified: bool = False
    approved: bool = False


class _Table(Spec):
    case: Annotated[list[_Row], Field(min_length=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowResult:
    """What became of one row of a table of expected decisions."""

    name: str
    expected: str
    decided: str
    rules: tuple[str, ...]
    passed: bool

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain JSON."""
        return {
            "name": self.name,
            "expected": self.expected,
            "decided": self.decided,
            "rules": list(self.rules),
            "passed": self.passed,
        }


def run_table(policy: Policy, text: str, zones: Mapping[str, Zone], *, source: str) -> list[RowResult]:
    """Decide every row of a table of expected decisions.

    Args:
        policy: what decides.
        text: TOML of `[[case]]` tables.
        zones: the zones that a row may name.
        source: name of the file, for messages.

    Raises:
        InvalidInput: `CONFIG_INVALID`, `UNKNOWN_KEY`, `UNKNOWN_ZONE`, `UNKNOWN_LABEL` or `LABEL_INVALID`.
    """
    rows = parse(_Table, text, source=source).case
    decisions = policy.decide_all([_request(row, zones, source) for row in rows])
    results = []
    for row, decision in zip(rows, decisions, strict=True):
        decided = "permit" if decision.permit else "deny"
        rules = tuple(rule.id for rule in decision.rules)
        passed = decided == row.expect and (row.rules is None or sorted(row.rules) == sorted(rules))
        results.append(RowResult(name=row.name, expected=row.expect, decided=decided, rules=rules, passed=passed))
    return results


def _request(row: _Row, zones: Mapping[str, Zone], source: str) -> Request:
    if row.action not in ("run", "move", *_ACTS):
        message = f"{source}: case {row.name!r} has the unknown action {row.action!r}"
        raise InvalidInput(Reason.CONFIG_INVALID, message, nearest(row.action, ("run", "move", *_ACTS)))
    own = {"run": _OF_RUN, "move": _OF_MOVE}.get(row.action, _OF_ACT)
    for key in sorted(row.model_fields_set):
        if key not in (*_COMMON, *own):
            message = f"{source}: case {row.name!r} has a key {key!r} that {row.action!r} does not read"
            raise InvalidInput(Reason.UNKNOWN_KEY, message, f"Allowed: {', '.join((*_COMMON, *own))}.")
    labels, zone = Labels.parse(row.labels), find_zone(zones, row.zone)
    common: dict[str, Any] = {"person": row.person, "zone": zone, "labels": labels}
    common |= {"purpose": row.purpose, "justification": row.justification}
    if row.action == "run":
        return RunRequest(**common, reads_records=row.reads_records)
    if row.action == "move":
        return MoveRequest(
            **common,
            artifact=row.artifact,
            inspected=row.inspected,
            expired=row.expired,
            statement_purpose=row.statement_purpose,
            text_columns=frozenset(row.text_columns),
            keyed_tokens=row.keyed_tokens,
            risk=Risk(**row.risk.model_dump()) if row.risk else None,
            approved=row.approved,
        )
    return ActRequest(
        **common,
        action=Action(row.action),
        roles=frozenset(row.roles),
        own=row.own,
        verified=row.verified,
        approved=row.approved,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """One decision as the ledger holds it.

    Attributes:
        attributes: what the rules read; empty where the record is older than that, or had the wrong shape.
    """

    index: int
    at: str
    job: str
    permit: bool
    attributes: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One past decision that would be another under the new policy.

    Attributes:
        kind: "blocked", "freed", or "moves": blocked where it was, but permitted in the zones `to`.
        rules: of the new policy, that decided.
    """

    kind: str
    recorded: Recorded
    action: str
    zone: str
    rules: tuple[str, ...]
    to: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the difference as plain JSON."""
        return {
            "kind": self.kind,
            "index": self.recorded.index,
            "at": self.recorded.at,
            "job": self.recorded.job,
            "action": self.action,
            "zone": self.zone,
            "rules": list(self.rules),
            "to": list(self.to),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """The past decided again.

    Attributes:
        same: decisions that stay as they are.
        unlike_record: indices of records that the old policy decides otherwise than they say: another was in force.
        unreplayable: decisions recorded without what the rules read.
    """

    differences: tuple[Difference, ...]
    same: int
    unlike_record: tuple[int, ...]
    unreplayable: int

    def to_json(self) -> dict[str, Any]:
        """Return the replay as plain JSON."""
        return {
            "differences": [difference.to_json() for difference in self.differences],
            "same": self.same,
            "unlike_record": list(self.unlike_record),
            "unreplayable": self.unreplayable,
        }


def recorded_decisions(
    entries: Iterable[tuple[int, Mapping[str, Any]]], *, since: datetime | None = None
) -> Iterator[Recorded]:
    """Yield every decision that records of the ledger hold, in order.

    Args:
        entries: index and record.
        since: leave out what is older.
    """
    for index, record in entries:
        if since is not None and datetime.fromisoformat(str(record["at"])) < since:
            continue
        decisions = record["body"].get("decisions")
        for decision in decisions if isinstance(decisions, list) else ():
            if isinstance(decision, dict):
                yield Recorded(
                    index=index,
                    at=str(record["at"]),
                    job=str(record["body"].get("job", "")),
                    permit=decision.get("effect") == "permit",
                    attributes=decision.get("attributes") or {},
                )


def replay(old: Policy, new: Policy, recorded: Iterable[Recorded], zones: Sequence[Zone]) -> Replay:
    """Decide the past again under `new`, and say what differs from `old`.

    Args:
        old: the policy to compare with.
        new: the policy to try.
        recorded: what the ledger holds.
        zones: where what is blocked might go instead.
    """
    past = list(recorded)
    known = [one for one in past if one.attributes]
    before = old.judge([one.attributes for one in known])
    after = new.judge([one.attributes for one in known])
    differences, unlike = [], []
    for one, was, is_now in zip(known, before, after, strict=True):
        if was.permit != one.permit:
            unlike.append(one.index)
        if was.permit != is_now.permit:
            differences.append(_difference(new, one, is_now, zones))
    return Replay(
        differences=tuple(differences),
        same=len(known) - len(differences),
        unlike_record=tuple(dict.fromkeys(unlike)),
        unreplayable=len(past) - len(known),
    )


def _difference(new: Policy, one: Recorded, verdict: Verdict, zones: Sequence[Zone]) -> Difference:
    here = str(one.attributes["zone"]["name"])
    others = [zone for zone in zones if zone.name != here and not verdict.permit]
    elsewhere = new.judge([{**one.attributes, "zone": _attributes(zone)} for zone in others])
    to = tuple(zone.name for zone, found in zip(others, elsewhere, strict=True) if found.permit)
    kind = "freed" if verdict.permit else "moves" if to else "blocked"
    return Difference(
        kind=kind,
        recorded=one,
        action=str(one.attributes["action"]),
        zone=here,
        rules=tuple(rule.id for rule in verdict.rules),
        to=to,
    )


def _attributes(zone: Zone) -> dict[str, str]:
    return {"name": zone.name, "kind": zone.kind.value, "jurisdiction": zone.jurisdiction}
