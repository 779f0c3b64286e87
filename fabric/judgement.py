"""What policy says of a queued job in every zone, now: asked of the real policy, about the matrix as it was sealed.

Nothing is moved or recorded. Whatever cannot be judged (no matrix, a statement that does not verify, labels that
conflict) has no verdict, and no verdict is a no.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from fabric.artifacts import digest
from fabric.egress import matrix_request
from fabric.errors import FabricError, Reason
from fabric.fleet import Verdict
from fabric.job_store import Row
from fabric.labels import Labels
from fabric.matrix import MATRIX_TYPE, STATEMENT, SealedMatrix
from fabric.policy import Decision
from fabric.requests import MoveRequest, RunRequest
from fabric.session import Session
from fabric.statements import Signed, verify
from fabric.zones import Zone
from sanitize.spool import TRAIN

AUTO = "auto"
"""The zone of a job that may run wherever policy lets it."""
_SAID = "said"  # there is a justification; its text is not needed to decide, and is not read


@dataclass(slots=True)
class Judgement:
    """Policy's verdicts on queued jobs. Statements are read once; decisions are remembered by the policy itself."""

    session: Session
    _signed: dict[str, Signed | None] = field(default_factory=dict)
    _sizes: dict[str, int] = field(default_factory=dict)

    def verdicts(self, row: Row, now_s: float) -> Mapping[str, Verdict]:
        """Return the verdict of every zone."""
        signed = self._statement(row.matrix)
        if signed is None:
            return {}
        at = datetime.fromtimestamp(now_s, UTC)
        zones = [zone for zone in self.session.config.zones.values() if row.body["zone"] in (AUTO, zone.name)]
        try:
            asked = [self._requests(row, signed, zone, at) for zone in zones]
        except FabricError:
            return {}
        decided = iter(self.session.policy.decide_all([request for pair in asked for request in pair]))
        until = signed.statement.expires_at.timestamp()
        found = {}
        for zone, (_, move) in zip(zones, asked, strict=True):
            found[zone.name] = _verdict((next(decided), next(decided)), move, until)
        for zone in self.session.config.zones.values():
            found.setdefault(zone.name, Verdict(permitted=False, code=Reason.WRONG_ZONE.value))
        return found

    def egress_bytes(self, row: Row) -> int:
        """Return the size of the job's matrix."""
        if row.matrix and row.matrix not in self._sizes:
            folder = self.session.home.matrices / row.matrix / TRAIN
            chunks = [path for path in folder.glob("*") if path.name != STATEMENT]
            self._sizes[row.matrix] = sum(path.stat().st_size for path in chunks)
        return self._sizes.get(row.matrix, 0)

    def _statement(self, matrix: str) -> Signed | None:
        if matrix and matrix not in self._signed:
            folder = self.session.home.matrices / matrix / TRAIN
            try:
                envelope = (folder / STATEMENT).read_bytes()
                signed = verify(envelope, trusted=self.session.trusted, predicate_type=MATRIX_TYPE, now=None)
            except (OSError, FabricError):
                return None
            self._signed[matrix] = signed
        return self._signed.get(matrix)

    def _requests(self, row: Row, signed: Signed, zone: Zone, at: datetime) -> tuple[RunRequest, MoveRequest]:
        body = row.body
        labels, said = Labels.from_json(body["all_labels"]), _SAID if body["justification"] else ""
        shared = {"person": body["person"], "zone": zone, "labels": labels, "purpose": body["purpose"]}
        run = RunRequest(**shared, justification=said, reads_records=False)
        approvals = self.session.border.approvals
        move = matrix_request(signed, **shared, justification=said, now=at, approvals=approvals, code="")
        return run, move


def _verdict(decisions: tuple[Decision, ...], move: MoveRequest, until_s: float) -> Verdict:
    refused = next((decision for decision in decisions if not decision.permit), None)
    if refused is None:
        return Verdict(permitted=True, rules=tuple(rule.id for rule in decisions[-1].rules), until_s=until_s)
    risk = move.risk
    facts = (("k", risk.k), ("k_required", risk.k_required)) if risk and risk.k < risk.k_required else ()
    rules = tuple(rule.id for rule in refused.rules)
    return Verdict(permitted=False, code=refused.code.value, rules=rules, facts=facts, until_s=until_s)


def matrix_name(sealed: SealedMatrix) -> str:
    """Return the name of the folder that a sealed matrix is kept in."""
    return digest(sealed.signed.envelope).removeprefix("sha256:")[:32]
