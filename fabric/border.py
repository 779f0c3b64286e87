"""The border: the one way out of the private zone, and the one way back.

Export, numbered once and followed below:

1. Check: the very bytes that will move are held against their signed statements; only what those say counts below.
2. Decide: policy says whether this matrix, and this code, may move to that zone.
3. Record: the intent, with decision, statements, digests and destination, is in the ledger.
4. Move: only now does the carrier see a byte.
5. Record the outcome.

A refusal at any step is recorded and leaves nothing behind in the other zone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from fabric.approvals import Approvals, Question
from fabric.artifacts import digest
from fabric.crossing import (
    CAPSULE,
    CAPSULE_TYPE,
    CHECKPOINT_TYPE,
    GRANT_TYPE,
    Cargo,
    Carrier,
    Crossing,
    SealedCapsule,
    SealedCheckpoint,
)
from fabric.egress import capsule_request, matrix_request, question_of
from fabric.errors import FabricError, Reason, Refused
from fabric.labels import Labels
from fabric.ledger import Ledger
from fabric.matrix import SealedMatrix
from fabric.parameters import check_parameters
from fabric.policy import Decision, Policy
from fabric.records import is_token
from fabric.requests import MoveRequest
from fabric.statements import PublicKey, Signed, SigningKey, Statement, is_bare, sign, timestamp, verify
from fabric.verification import Receipt
from fabric.zones import Zone, ZoneKind

_MADE_JOB = re.compile(r"(?:raysubmit_|session-|job-)[A-Za-z0-9]{1,64}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Errand:
    """Why something moves: whose job, to which zone, for what.

    Attributes:
        labels: of the matrix and the job together.
        justification_key: keyed digest under which the justification is kept inside; empty if there is none.
    """

    zone: Zone
    labels: Labels
    purpose: str
    justification: str
    justification_key: str
    job: str
    person: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Border:
    """Enforces policy on what moves between zones, and records it.

    Attributes:
        releasing: told of a matrix before it leaves the private zone; refuses one that was checked before another
            release of the same records crossed.
        approvals: by second persons, for rules that ask for one.
    """

    home_zone: Zone
    policy: Policy
    ledger: Ledger
    key: SigningKey
    trusted: Sequence[PublicKey]
    grant_lasts: timedelta
    clock: Callable[[], datetime]
    new_id: Callable[[], str]
    releasing: Callable[[SealedMatrix, Zone], None] = lambda matrix, zone: None
    approvals: Approvals = field(default_factory=Approvals)

    def decide(self, cargo: Cargo, errand: Errand) -> tuple[Decision, ...]:
        """Return policy's answer for each artifact of the cargo, without moving or recording anything."""
        return self.policy.decide_all(self._requests(cargo, errand))

    def question(self, cargo: Cargo, errand: Errand) -> Question:
        """Return what a second person would have to approve."""
        return question_of(
            cargo.matrix.signed,
            zone=errand.zone.name,
            purpose=errand.purpose,
            requester=errand.person,
            code=_code(cargo),
        )

    def export(self, cargo: Cargo, errand: Errand, carrier: Carrier) -> Crossing:
        """Move a cargo to the errand's zone: decide, check, record, then move.

        Raises:
            Refused: `POLICY_DENIED`, or what a check found; recorded, and nothing has moved.
            FabricError: `EVIDENCE_UNWRITABLE`: without a record nothing moves.
        """
        with self.refusals("export", errand.zone, errand.job) as decided:
            # 1. Check.
            cargo = self._verified(cargo)
            # 2. Decide.
            decisions = self.decide(cargo, errand)
            decided += decisions
            for decision in decisions:
                decision.enforce()
            if errand.zone.kind is not ZoneKind.PRIVATE:
                self.releasing(cargo.matrix, errand.zone)
        # 3. Record.
        crossing_id = self.new_id()
        grant = self._grant(crossing_id, cargo, errand)
        receipt = self._record(crossing_id, cargo, errand, decisions, grant)
        # 4. Move.
        try:
            ticket = carrier.carry(cargo, grant, receipt)
        except BaseException as error:
            self.ledger.conclude(receipt, "failed", {"error": type(error).__name__})
            raise
        # 5. Record the outcome.
        self.ledger.conclude(receipt, "done", {"crossing": crossing_id, "bytes": _size(cargo)})
        return Crossing(id=crossing_id, grant=grant, cargo=cargo, ticket=ticket)

    def state_capsule(self, payload: bytes, inspection: Mapping[str, Any]) -> SealedCapsule:
        """Sign a statement about outbound code that was inspected.

        Args:
            payload: the bytes that will cross.
            inspection: the x-ray, as JSON without floats.
        """
        now = self.clock()
        statement = Statement(
            subjects={CAPSULE: digest(payload)},
            predicate_type=CAPSULE_TYPE,
            predicate={
                "inspection": inspection,
                "issued_at": timestamp(now),
                "expires_at": timestamp(now + self.grant_lasts),
            },
        )
        return SealedCapsule(payload=payload, signed=sign(statement, self.key))

    def read_capsule(self, payload: bytes, envelope: bytes) -> SealedCapsule:
        """Return outbound code if the statement about it verifies and says that these very bytes were inspected.

        Raises:
            Refused: `STATEMENT_INVALID`, `DIGEST_MISMATCH`, `CAPSULE_UNREADABLE` if it was not inspected or refused.
        """
        signed = verify(envelope, trusted=self.trusted, predicate_type=CAPSULE_TYPE, now=None)
        capsule = SealedCapsule(payload=_plain("capsule", payload), signed=signed)
        if signed.statement.predicate["inspection"].get("refused") is not False:
            raise Refused(Reason.CAPSULE_UNREADABLE, "the capsule was not inspected, or was refused", "seal it again")
        if signed.statement.subjects.get(CAPSULE) != digest(capsule.payload):
            raise Refused(Reason.DIGEST_MISMATCH, "the capsule is not the code that was inspected", "seal it again")
        return capsule

    @contextmanager
    def refusals(self, what: str, zone: Zone | None, job: str) -> Iterator[list[Decision]]:
        """Record a refusal that happens inside the block, and let it go on.

        Yields a list for the decisions that were taken: they are recorded with it, so that they can be replayed.
        """
        decided: list[Decision] = []
        try:
            yield decided
        except FabricError as error:
            body: dict[str, Any] = {
                "what": what,
                "zone": zone.name if zone else "",
                "job": _recorded_name(job),
                "code": error.reason.value,
            }
            if decided:
                body["decisions"] = [decision.to_json() for decision in decided]
            self.ledger.observe("refusal", body)
            raise

    def _requests(self, cargo: Cargo, errand: Errand) -> list[MoveRequest]:
        now = self.clock()
        matrix = matrix_request(
            cargo.matrix.signed,
            zone=errand.zone,
            labels=errand.labels,
            purpose=errand.purpose,
            justification=errand.justification,
            person=errand.person,
            now=now,
            approvals=self.approvals,
            code=_code(cargo),
        )
        capsules = [] if cargo.capsule is None else [cargo.capsule.signed]
        return [matrix, *(capsule_request(signed, beside=matrix, now=now) for signed in capsules)]

    def _verified(self, cargo: Cargo) -> Cargo:
        """Return the cargo with every statement read again from its envelope, so that no other can stand in for it."""
        # Everything is asked for once: an object may answer otherwise the second time.
        given, capsule, parameters, checkpoint = cargo.matrix, cargo.capsule, cargo.parameters, cargo.checkpoint
        if not isinstance(given, SealedMatrix):
            raise Refused(Reason.STATEMENT_MISSING, f"a {type(given).__name__} is no sealed matrix", "sanitize records")
        matrix = SealedMatrix.open(given.chunks, given.signed.envelope, trusted=self.trusted, now=None)
        if not is_bare(matrix.signed.envelope, self.trusted):
            raise Refused(Reason.STATEMENT_INVALID, "the statement's envelope carries more than it", "sanitize again")
        if capsule is not None:
            capsule = self.read_capsule(capsule.payload, capsule.signed.envelope)
        check_parameters(_plain("parameters", parameters), columns=matrix.columns)
        if checkpoint is not None:
            checkpoint = self._verified_checkpoint(checkpoint, matrix)
        return Cargo(matrix=matrix, capsule=capsule, parameters=parameters, checkpoint=checkpoint)

    def _verified_checkpoint(self, given: SealedCheckpoint, matrix: SealedMatrix) -> SealedCheckpoint:
        """Return the checkpoint if it is what quarantine signed, of a training on this very matrix."""
        envelope, now = given.signed.envelope, self.clock()
        signed = verify(envelope, trusted=self.trusted, predicate_type=CHECKPOINT_TYPE, now=now)
        files = {name: _plain(name, content) for name, content in given.files.items()}
        if not is_bare(signed.envelope, self.trusted):
            raise Refused(Reason.STATEMENT_INVALID, "the checkpoint's envelope carries more than it", "train again")
        if {name: digest(content) for name, content in files.items()} != dict(signed.statement.subjects):
            raise Refused(Reason.DIGEST_MISMATCH, "the checkpoint is not what quarantine checked", "train again")
        if signed.statement.predicate["matrix_statement"] != matrix.signed.digest:
            raise Refused(Reason.STATEMENT_INVALID, "the checkpoint is of a training on another matrix", "train again")
        return SealedCheckpoint(files=files, signed=signed)

    def _grant(self, crossing_id: str, cargo: Cargo, errand: Errand) -> Signed:
        now = self.clock()
        predicate = {
            "crossing": crossing_id,
            "from_zone": self.home_zone.name,
            "to_zone": errand.zone.name,
            "purpose": errand.purpose,
            # A job may be named by whoever submits it; what crosses is a name that we or Ray made, or a digest.
            "job": _job_name(errand.job),
            "matrix_statement": cargo.matrix.signed.digest,
            "issued_at": timestamp(now),
            "expires_at": timestamp(min(now + self.grant_lasts, cargo.matrix.signed.statement.expires_at)),
        }
        return sign(Statement(subjects=cargo.subjects(), predicate_type=GRANT_TYPE, predicate=predicate), self.key)

    def _record(
        self, crossing_id: str, cargo: Cargo, errand: Errand, decisions: Sequence[Decision], grant: Signed
    ) -> Receipt:
        beside = [one.signed for one in (cargo.capsule, cargo.checkpoint) if one is not None]
        signed = [cargo.matrix.signed, grant, *beside]
        return self.ledger.intend(
            "delivery" if errand.zone.kind is ZoneKind.PRIVATE else "crossing",
            {
                "crossing": crossing_id,
                "job": _recorded_name(errand.job),
                "actor": errand.person,
                "from_zone": self.home_zone.name,
                "to_zone": errand.zone.name,
                "jurisdiction": errand.zone.jurisdiction,
                "provider": errand.zone.provider,
                "purpose": errand.purpose,
                "justification": errand.justification_key,
                "labels": errand.labels.to_json(),
                "decision": decisions[0].brief(),
                "decisions": [decision.to_json() for decision in decisions],
                "statements": [self.ledger.attach(one.envelope) for one in signed],
                "subjects": cargo.subjects(),
                "columns": list(cargo.matrix.columns),
                "rows": cargo.matrix.rows,
                "bytes": _size(cargo),
            },
        )


def _job_name(job: str) -> str:
    """Return a job's name where we or Ray made it, else its digest: a person may have written anything into it."""
    return job if _MADE_JOB.match(job) else digest(job.encode())


def _recorded_name(job: str) -> str:
    """Return what our own ledger calls a job: the name, if it is a token, else its digest."""
    return job if is_token(job) else digest(job.encode())


def _code(cargo: Cargo) -> str:
    return digest(cargo.capsule.payload) if cargo.capsule else ""


def _plain(name: str, content: bytes) -> bytes:
    if type(content) is not bytes:
        raise Refused(
            Reason.DIGEST_MISMATCH, f"the {name} are not plain bytes, which nobody can change", "seal them again"
        )
    return content


def _size(cargo: Cargo) -> int:
    capsule = len(cargo.capsule.payload) if cargo.capsule else 0
    checkpoint = sum(map(len, cargo.checkpoint.files.values())) if cargo.checkpoint else 0
    return cargo.matrix.size_bytes + len(cargo.parameters) + capsule + checkpoint
