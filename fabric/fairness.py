"""Fairness between teams: weighted dominant shares of the private zone.

A team's share is its greatest part of any one resource (dominant resource fairness, Ghodsi et al., NSDI 2011), over
what it is entitled to by weight among the teams that have work. A team above its entitlement is set back by a bounded
time, so that it gives way and never starves.
"""

from __future__ import annotations

from collections.abc import Mapping

MAX_SETBACK = 4.0


class Shares:
    """What each team holds inside, and what it is entitled to."""

    __slots__ = ("_active", "_cpus", "_fair_s", "_gpus", "_held", "_setbacks", "_total", "_weights")

    def __init__(self, weights: Mapping[str, float], fair_s: float) -> None:
        """Start with no team; `fair_s` is what a team at twice its entitlement is set back."""
        self._weights = weights
        self._fair_s = fair_s
        self._held: dict[str, list[int]] = {}
        self._active: dict[str, int] = {}
        self._total = 0.0
        self._gpus = 0
        self._cpus = 0
        self._setbacks: dict[str, float] = {}

    def size(self, gpus: int, cpus: int) -> None:
        """Say how large the private zone is."""
        self._gpus, self._cpus = gpus, cpus
        self._setbacks.clear()

    def joins(self, team: str) -> None:
        """Count a job of `team`, waiting or running."""
        count = self._active.get(team, 0)
        self._active[team] = count + 1
        if not count:
            self._weigh()

    def leaves(self, team: str) -> None:
        """Count one job less."""
        self._active[team] -= 1
        if not self._active[team]:
            del self._active[team]
            self._weigh()

    def _weigh(self) -> None:
        self._setbacks.clear()
        self._total = sum(self._weights.get(name, 1.0) for name in sorted(self._active))

    def takes(self, team: str, gpus: int, cpus: int) -> None:
        """Count what a job holds inside; negative when it gives it back."""
        held = self._held.setdefault(team, [0, 0])
        held[0] += gpus
        held[1] += cpus
        self._setbacks.pop(team, None)

    def share(self, team: str) -> float:
        """Return the team's dominant share of the private zone, 0 to 1."""
        gpus, cpus = self._held.get(team, (0, 0))
        of_gpus = gpus / self._gpus if self._gpus else 0.0
        return max(of_gpus, cpus / self._cpus if self._cpus else 0.0)

    def entitled(self, team: str) -> float:
        """Return the share that the team's weight gives it among the teams that have work."""
        weight = self._weights.get(team, 1.0)
        return weight / max(self._total, weight)

    def setback_s(self, team: str) -> float:
        """Return by how many seconds the team's work goes behind that of others now."""
        known = self._setbacks.get(team)
        if known is None:
            over = self.share(team) / self.entitled(team) - 1.0
            known = self._setbacks[team] = min(MAX_SETBACK, max(0.0, over)) * self._fair_s
        return known
