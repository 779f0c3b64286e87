"""What policy says of a queued job in every zone, now: asked of the real policy, about the matrix as it was sealed.

Nothing is moved or recorded. What has no matrix whose statement verifies has no verdict, and no verdict is a no; where
something else cannot be judged (code that is gone or was changed, labels that conflict), each no names the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from fabric.artifacts import digest
from fabric.egress import capsule_request, matrix_request
from fabric.errors import FabricError, Reason
from fabric.fleet import Verdict
from fabric.job_store import Row
from fabric.labels import Labels
from fabric.matrix import MATRIX_TYPE, STATEMENT, SealedMatrix
from fabric.policy import Decision
from fabric.requests import MoveRequest, Risk, RunRequest
from fabric.session import Session
from fabric.statements import Signed, verify
from fabric.zones import Zone
from sanitize.spool import TRAIN

AUTO = "auto"
"""The zone of a job that may run wherever policy lets it."""
CODE = "code"
"""Where a job's row names the digest of the code that it brings along; others have no such entry."""
_SAID = "said"  # there is a justification; its text is not needed to decide, and is not read


@dataclass(slots=True)
class Judgement:
    """Policy's verdicts on queued jobs. Statements are read once; decisions are remembered by the policy itself."""

    session: Session
    _signed: dict[str, Signed | None] = field(default_factory=dict)
    _code: dict[str, Signed] = field(default_factory=dict)
    _sizes: dict[str, int] = field(default_factory=dict)

    def verdicts(self, row: Row, now_s: float) -> Mapping[str, Verdict]:
        """Return the verdict of every zone."""
        signed = self._statement(row.matrix)
        if signed is None:
            return {}
        at = datetime.fromtimestamp(now_s, UTC)
        zones = [zone for zone in self.session.config.zones.values() if row.body["zone"] in (AUTO, zone.name)]
        try:
            code = self._capsule(row.body.get(CODE, ""), at)
            asked = [self._requests(row, signed, code, zone, at) for zone in zones]
        except FabricError as error:
            # Where nothing can be asked, no rule says no: the reason stands in its place, where holds show rules.
            unasked = Verdict(permitted=False, code=error.reason.value, rules=(error.reason.value,))
            return dict.fromkeys(self.session.config.zones, unasked)
        decided = iter(self.session.policy.decide_all([request for each in asked for request in each]))
        # With code whose inspection ran out, policy was asked as such: only the matrix's statement is still to end.
        ends = [signed, *([code] if code is not None and at < code.statement.expires_at else [])]
        until = min(one.statement.expires_at for one in ends).timestamp()
        found = {}
        for zone, requests in zip(zones, asked, strict=True):
            decisions = tuple(next(decided) for _ in requests)
            found[zone.name] = _verdict(decisions, requests[1].risk, until)
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

    def _capsule(self, code: str, at: datetime) -> Signed | None:
        """Return the statement of the code that a job brings along, if any; one that ran out may have been renewed."""
        if not code:
            return None
        known = self._code.get(code)
        if known is None or at >= known.statement.expires_at:
            self._code[code] = self.session.kept_capsule(code).signed
        return self._code[code]

    def _requests(
        self, row: Row, signed: Signed, code: Signed | None, zone: Zone, at: datetime
    ) -> tuple[RunRequest, MoveRequest, *tuple[MoveRequest, ...]]:
        body = row.body
        labels, said = Labels.from_json(body["all_labels"]), _SAID if body["justification"] else ""
        shared = {"person": body["person"], "zone": zone, "labels": labels, "purpose": body["purpose"]}
        run = RunRequest(**shared, justification=said, reads_records=False)
        approvals = self.session.border.approvals
        named = body.get(CODE, "")
        move = matrix_request(signed, **shared, justification=said, now=at, approvals=approvals, code=named)
        return (run, move) if code is None else (run, move, capsule_request(code, beside=move, now=at))


def _verdict(decisions: tuple[Decision, ...], risk: Risk | None, until_s: float) -> Verdict:
    refused = next((decision for decision in decisions if not decision.permit), None)
    if refused is None:
        return Verdict(permitted=True, rules=tuple(rule.id for rule in decisions[-1].rules), until_s=until_s)
    facts = (("k", risk.k), ("k_required", risk.k_required)) if risk and risk.k < risk.k_required else ()
    rules = tuple(rule.id for rule in refused.rules)
    return Verdict(permitted=False, code=refused.code.value, rules=rules, facts=facts, until_s=until_s)


def matrix_name(sealed: SealedMatrix) -> str:
    """Return the name of the folder that a sealed matrix is kept in."""
    return digest(sealed.signed.envelope).removeprefix("sha256:")[:32]
