"""Judging: what the real policy says of a trace's jobs, once for each distinct set of facts and zone."""

from __future__ import annotations

from collections.abc import Mapping

from fabric.fleet import Verdict
from fabric.policy import Decision, Policy
from fabric.requests import MILLION, MoveRequest, Risk, RunRequest
from fabric.traces import Facts
from fabric.zones import Zone, ZoneKind

_PERSON = "simulator"


class Judge:
    """The policy, asked about every zone for facts that it has not seen."""

    def __init__(self, policy: Policy, zones: Mapping[str, Zone]) -> None:
        """Take the policy and the zones of the simulated fabric."""
        self._policy = policy
        self._zones = zones
        self._known: dict[int, tuple[Facts, Mapping[str, Verdict]]] = {}

    def verdicts(self, facts: Facts) -> Mapping[str, Verdict]:
        """Return the verdict of every zone."""
        known = self._known.get(id(facts))
        if known is None:
            known = self._known[id(facts)] = (
                facts,
                {name: self._asked(facts, zone) for name, zone in self._zones.items()},
            )
        return known[1]

    def _asked(self, facts: Facts, zone: Zone) -> Verdict:
        labels, why = facts.labels, "simulated" if facts.justified else ""
        run = RunRequest(
            person=_PERSON, zone=zone, labels=labels, purpose=labels.purpose, justification=why, reads_records=False
        )
        decisions = [self._policy.decide(run)]
        if zone.kind is not ZoneKind.PRIVATE:
            # What leaves is a matrix and the code: the matrix is what policy has most to say about.
            risk = Risk(k=facts.k, k_required=facts.k_required, l=1, l_required=1, t=0, t_allowed=MILLION)
            move = MoveRequest(
                person=_PERSON, zone=zone, labels=labels, purpose=labels.purpose, justification=why, artifact="matrix",
                inspected=True, expired=False, statement_purpose=labels.purpose, risk=risk,
            )  # fmt: skip
            decisions.append(self._policy.decide(move))
        return _verdict(decisions, facts)


def _verdict(decisions: list[Decision], facts: Facts) -> Verdict:
    denied = [decision for decision in decisions if not decision.permit]
    if not denied:
        return Verdict(permitted=True)
    rules = tuple(dict.fromkeys(rule.id for decision in denied for rule in decision.rules))
    numbers = (("k", facts.k), ("k_required", facts.k_required)) if "move.k" in rules else ()
    return Verdict(permitted=False, code=denied[0].code.value, rules=rules, facts=numbers)
