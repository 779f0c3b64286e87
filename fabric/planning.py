"""Planning: what work on records would need and move, before anything does, and what a second person would approve.

A plan rests on the newest statement in the evidence about a matrix that the very recipe made; where there is none, it
says so and what sanitizing would change. Nothing moves.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from fabric.approvals import Approver, Question, find_approver, keep, state_lowering
from fabric.artifacts import digest_of
from fabric.config import Config
from fabric.egress import ColumnPlan, matrix_request, question_of
from fabric.errors import FabricError, InvalidInput, Reason
from fabric.explain import Case, Explanation, Moving, explain
from fabric.labels import Classification, Labels
from fabric.matrix import MATRIX_TYPE, columns_of
from fabric.policy import Policy
from fabric.recording import now, open_ledger
from fabric.requests import MoveRequest, RunRequest
from fabric.session import Session, approvals_folder
from fabric.statements import Signed, SigningKey, verify
from fabric.stores import Home
from fabric.zones import Zone, find_zone
from sanitize.recipe import Recipe


def plan_work(
    session: Session,
    recipe: Recipe,
    *,
    records: str,
    signed: Signed | None,
    zone: str = "",
    purpose: str = "",
    justification: str = "",
    code: str = "",
) -> Explanation:
    """Say for every zone whether work on what `recipe` makes of `records` may go there, and what would change that.

    Args:
        session: whose configuration, policy and approvals count.
        recipe: what makes the matrix.
        records: name of the records.
        signed: the statement about the matrix; None where nothing is sanitized yet.
        zone: answer for this zone only.
        purpose: by default the recipe's own.
        justification: why the work leaves the private zone.
        code: digest of the capsule that goes with it; empty if none does.

    Raises:
        InvalidInput: `UNKNOWN_RECORDS`, `UNKNOWN_ZONE`, `LABELS_CONFLICT`.
    """
    zones = [find_zone(session.config.zones, zone)] if zone else list(session.config.zones.values())
    labels = session.labels(*sorted({records, *recipe.sources}))
    case = _case(session, recipe, signed, labels, purpose or recipe.purpose, justification, code)
    return explain(session.policy, case, zones, records=records, moving=_moving(recipe, signed))


def last_statement(session: Session, recipe: Recipe) -> Signed | None:
    """Return the newest statement in the evidence about a matrix that this very recipe made."""
    found = [one for one in _statements(session) if one.statement.predicate.get("recipe") == recipe.digest]
    return max(found, key=lambda one: str(one.statement.predicate.get("issued_at", "")), default=None)


def _statements(session: Session) -> list[Signed]:
    """Return every statement about a matrix that the evidence holds."""
    found = []
    for content in session.ledger.bundle()["documents"].values():
        # A grant, an approval, or what another key signed.
        with suppress(FabricError):
            envelope = base64.b64decode(content)
            found.append(verify(envelope, trusted=session.trusted, predicate_type=MATRIX_TYPE, now=None))
    return [one for one in found if one.statement.predicate.get("part") == "matrix"]


def question_about(session: Session, signed: Signed | None, zone: str, purpose: str, code: str) -> Question:
    """Return what a second person would have to approve, for a matrix that exists and for one zone.

    Raises:
        InvalidInput: `STATEMENT_MISSING`, `UNKNOWN_ZONE`.
    """
    if signed is None or not zone:
        raise InvalidInput(
            Reason.STATEMENT_MISSING,
            "an approval is bound to one zone and to a matrix that exists",
            "sanitize the records by this recipe first, and name the zone with --zone",
        )
    find_zone(session.config.zones, zone)
    return question_of(signed, zone=zone, purpose=purpose, requester=session.person, code=code)


def lower(session: Session, subject: str, to: Classification, key: SigningKey) -> Path:
    """Sign, record and keep that the matrix of digest `subject` is less sensitive than what it was made from.

    Raises:
        InvalidInput: `STATEMENT_MISSING` if the evidence holds no statement about it; `LABEL_INVALID` if `to` is not
            lower.
        Refused: `KEY_UNKNOWN` unless the key is a declared data steward's.
    """
    made = [one for one in _statements(session) if digest_of(dict(one.statement.subjects)) == subject]
    if not made:
        raise InvalidInput(
            Reason.STATEMENT_MISSING,
            "the evidence holds no statement about that matrix",
            "fabric plan names its digest",
        )
    steward = find_approver(session.border.approvals.approvers, key.public)
    labels = Labels.from_json(made[0].statement.predicate["labels"])
    signed = state_lowering(subject, labels, to, steward, key, now=now())
    body = {"actor": steward.person, "request": subject, "role": "steward"}
    body["until"] = str(signed.statement.predicate["expires_at"])
    session.ledger.observe("approval", {**body, "statements": [session.ledger.attach(signed.envelope)]})
    return keep(approvals_folder(session.home), signed)


def keep_approval(session: Session, question: Question, approver: Approver, signed: Signed) -> Path:
    """Record the approval, then keep it where policy looks for it."""
    statement = session.ledger.attach(signed.envelope)
    session.ledger.observe(
        "approval",
        {
            "actor": approver.person,
            "on_behalf_of": question.requester,
            "to_zone": question.zone,
            "purpose": question.purpose,
            "request": question.digest,
            "role": "approver",
            "until": str(signed.statement.predicate["expires_at"]),
            "statements": [statement],
        },
    )
    return keep(approvals_folder(session.home), signed)


def record_change(config: Config, policy: Policy, signed: Signed, key: SigningKey) -> None:
    """Record the change before it is in force; without a record there is no change."""
    home = Home.open(config.state)
    ledger = open_ledger(config, home, home.signing_key())
    try:
        statement = ledger.attach(signed.envelope)
        body = {"new": policy.digest, "key": key.public.keyid, "statements": [statement]}
        ledger.observe("policy-change", body)
    finally:
        ledger.close()


def _case(
    session: Session,
    recipe: Recipe,
    signed: Signed | None,
    labels: Labels,
    purpose: str,
    justification: str,
    code: str,
) -> Callable[[Zone], Case]:
    moment = now()

    def case(zone: Zone) -> Case:
        shared: dict[str, Any] = {"person": session.person, "zone": zone, "labels": labels}
        shared |= {"purpose": purpose, "justification": justification}
        run = RunRequest(**shared, reads_records=False)
        if signed is None:
            # What nobody has sanitized nobody has inspected: the plan says so, and what sanitizing would change.
            move = MoveRequest(
                **shared, artifact="matrix", inspected=False, expired=False, statement_purpose=recipe.purpose
            )
        else:
            move = matrix_request(signed, **shared, now=moment, approvals=session.border.approvals, code=code)
        return Case(run=run, moves=(move,))

    return case


def _moving(recipe: Recipe, signed: Signed | None) -> Moving:
    if signed is None:
        columns = (ColumnPlan(name=c.name, source=c.source, fate="crosses", why=c.action) for c in recipe.columns)
        return Moving(columns=tuple(columns))
    predicate = signed.statement.predicate
    notes = columns_of(signed)
    return Moving(
        columns=tuple(
            ColumnPlan(name=name, source=str(note["from"]), fate="crosses", why=str(note["why"]))
            for name, note in notes.items()
        ),
        rows=int(predicate["rows"]),
        size_bytes=int(predicate["rows"]) * sum(_width(str(note["type"])) for note in notes.values()),
        digest=digest_of(dict(signed.statement.subjects)),
        statement=signed.digest,
    )


def _width(kind: str) -> int:
    """Return how many bytes a cell of an outgoing column takes; what has no fixed width counts as none."""
    bits = {"bool": 8, "double": 64, "float": 32}.get(kind) or int(re.sub(r"\D", "", kind) or 0)
    return bits // 8
