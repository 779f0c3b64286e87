"""Requests: what policy is asked, and the attributes that its rules read.

A request names zones, labels and facts; of its free text only whether there is any is kept. Every attribute is
written once, as JSON text: for the engine, for the evidence, and to be decided again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from fabric.labels import ContractLimit, ExportControl, Labels, is_token
from fabric.zones import Zone

MILLION = 1_000_000


class Action(StrEnum):
    """What is done with or to what the fabric holds, besides running and moving."""

    SUBMIT = "submit"
    APPROVE = "approve"
    PROMOTE = "promote"
    DEPLOY = "deploy"
    SERVE = "serve"
    READ = "read"
    DELETE = "delete"
    CHANGE_POLICY = "change_policy"
    BREAK_GLASS = "break_glass"


@dataclass(frozen=True, slots=True, kw_only=True)
class Risk:
    """How far a matrix singles people out, beside what is required of it, as its statement says.

    Attributes:
        k: fewest subjects that share their quasi-identifiers (k-anonymity, Sweeney 2002).
        l: fewest distinct sensitive values among such subjects (l-diversity, Machanavajjhala 2007).
        t: greatest distance of their sensitive values from those of all, in millionths (t-closeness, Li 2007).
    """

    k: int = 0
    k_required: int = 0
    l: int = 0  # noqa: E741 - the measure's own name
    l_required: int = 0
    t: int = MILLION
    t_allowed: int = MILLION


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """May a job with these labels run in `zone`?"""

    person: str
    zone: Zone
    labels: Labels
    purpose: str
    justification: str
    reads_records: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveRequest:
    """May an artifact with these labels move to `zone`?

    Attributes:
        artifact: "records", "matrix", "held-back", "capsule" or "model".
        inspected: whether a trusted statement says that it was inspected.
        statement_purpose: the purpose that the statement names.
        text_columns: names of its columns that hold text.
        keyed_tokens: how many of its columns hold keyed hashes of identifiers.
        risk: what the statement says of it; None where nobody has measured.
        approved: whether a second person has signed for this code, recipe and schema.
    """

    person: str
    zone: Zone
    labels: Labels
    purpose: str
    justification: str
    artifact: str
    inspected: bool
    expired: bool
    statement_purpose: str
    text_columns: frozenset[str] = frozenset()
    keyed_tokens: int = 0
    risk: Risk | None = None
    approved: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ActRequest:
    """May `person` do `action` to something with these labels, in `zone`?

    Attributes:
        roles: of the person: "approver", "steward", "operator", "security".
        own: whether the person asked for, or made, what this is about.
        verified: whether its signatures and gates were checked and hold.
    """

    action: Action
    person: str
    zone: Zone
    labels: Labels
    purpose: str
    justification: str
    roles: frozenset[str]
    own: bool
    verified: bool
    approved: bool


Request = RunRequest | MoveRequest | ActRequest


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as the engine takes it: JSON text, so that it is written once.

    Attributes:
        context: all but the labels.
    """

    action: str
    person: str
    zone: str
    zone_name: str
    labels: str
    context: str

    def text(self) -> str:
        """Return the attributes as they are recorded, as JSON text."""
        return (
            f'{{"action":{json.dumps(self.action)},"person":{json.dumps(self.person)},'
            f'"zone":{self.zone},"context":{{"labels":{self.labels},{self.context[1:]}}}'
        )

    def to_cedar(self, labels: int) -> dict[str, Any]:
        """Return the request as Cedar takes it; `labels` is the number under which its labels are an entity."""
        return {
            "principal": {"type": "Person", "id": self.person},
            "action": {"type": "Action", "id": self.action},
            "resource": {"type": "Zone", "id": self.zone_name},
            "context": f'{{"labels":{{"type":"Labels","id":"{labels}"}},{self.context[1:]}',
        }


def asked_of(request: Request) -> Asked | None:
    """Return the request as text; None if it has the wrong shape."""
    zone = request.zone
    try:
        if not isinstance(request.person, str):
            return None
        return Asked(
            action=action_of(request),
            person=request.person,
            zone=json.dumps({"name": zone.name, "kind": zone.kind.value, "jurisdiction": zone.jurisdiction}),
            zone_name=zone.name,
            labels=json.dumps(_labels(request.labels)),
            context=json.dumps(_context(request)),
        )
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None


def recorded_asked(attributes: Mapping[str, Any]) -> Asked | None:
    """Return recorded attributes as text; None if they have the wrong shape."""
    try:
        action, person, zone = attributes["action"], attributes["person"], attributes["zone"]
        if not all(isinstance(text, str) for text in (action, person, zone["name"])):
            return None
        context = dict(attributes["context"])
        if len(context) < 2:
            return None
        return Asked(
            action=action,
            person=person,
            zone=json.dumps(zone),
            zone_name=zone["name"],
            labels=json.dumps(context.pop("labels")),
            context=json.dumps(context),
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def action_of(request: Request) -> str:
    """Return the action that is asked about."""
    if isinstance(request, ActRequest):
        return str(request.action.value)
    return "run" if isinstance(request, RunRequest) else "move"


def well_typed(request: Request) -> bool:
    """Say whether the request can be remembered: its truth values and numbers are of those very types."""
    try:
        flags = {type(request.labels.burst_eligible)}
        if isinstance(request, RunRequest):
            return flags | {type(request.reads_records)} == {bool}
        flags.add(type(request.approved))
        if isinstance(request, ActRequest):
            return flags | {type(request.own), type(request.verified)} == {bool}
        risk = request.risk or _NO_RISK
        counts = {type(request.keyed_tokens), type(risk.k), type(risk.k_required), type(risk.l), type(risk.l_required)}
        counts |= {type(risk.t), type(risk.t_allowed)}
        return flags | {type(request.inspected), type(request.expired)} == {bool} and counts == {int}
    except AttributeError:
        return False


def is_hashable(request: Request) -> bool:
    """Say whether the request can be a key; one of the wrong shape may not be."""
    try:
        hash(request)
    except TypeError:
        return False
    return True


_NO_RISK = Risk()


def _labels(labels: Labels) -> dict[str, Any]:
    return {
        "data_classification": labels.data_classification.rank,
        "allowed_execution_zone": sorted(labels.allowed_execution_zone),
        "burst_eligible": labels.burst_eligible,
        "purpose": labels.purpose,
        "residency": sorted(labels.residency),
        "export_control": labels.export_control,
        "export_jurisdiction": ExportControl(labels.export_control).jurisdiction,
        "contract": labels.contract,
        "contract_limits": sorted(ContractLimit(limit) for limit in labels.limits),
        "retention_class": labels.retention_class or "job",
        "team": labels.team,
        "project": labels.project,
        "workload_class": labels.workload_class or "",
    }


def _context(request: Request) -> dict[str, Any]:
    context: dict[str, Any] = {
        "purpose": _word(request.purpose, "?"),
        # Only whether there is one: it is free text, and a plain digest of it could be guessed back.
        "justified": request.justification.strip() != "",
    }
    if isinstance(request, RunRequest):
        return {**context, "reads_records": request.reads_records}
    context["approved"] = request.approved
    if isinstance(request, ActRequest):
        roles = sorted(request.roles)
        return {**context, "roles": roles, "own": request.own, "verified": request.verified}
    risk = request.risk or _NO_RISK
    return {
        **context,
        "artifact": request.artifact,
        "inspected": request.inspected,
        "expired": request.expired,
        "statement_purpose": _word(request.statement_purpose, "!"),
        "text_columns": sorted(request.text_columns),
        "keyed_tokens": request.keyed_tokens,
        "risk_measured": request.risk is not None,
        "risk_k": risk.k,
        "risk_k_required": risk.k_required,
        "risk_l": risk.l,
        "risk_l_required": risk.l_required,
        "risk_t": risk.t,
        "risk_t_allowed": risk.t_allowed,
    }


def _word(text: str, instead: str) -> str:
    """Return a purpose that is a token; anything else matches no label and does not enter the evidence."""
    return instead if isinstance(text, str) and text and not is_token(text) else text
