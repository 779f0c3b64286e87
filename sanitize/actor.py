"""A pool of sanitizers as Ray actors in the private zone.

Pieces of a stage go to whichever actor is idle. An actor that dies is replaced and its piece done again; a driver that
dies leaves the work folder, from which the same order goes on. More actors give the same bytes sooner.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from fabric.errors import ClusterUnavailable, FabricError, Reason
from sanitize.bench import Facts
from sanitize.pipeline import course
from sanitize.worker import Delivery, Order, Sanitizer

_TRIES = 4
_NO_PIECE = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far sanitizing is.

    Attributes:
        stage: what is being done: open, start, treat, settle, weigh, inspect, judge, cut or seal.
        done, total: pieces of the stage.
        seconds: since the stage began.
    """

    stage: str
    done: int
    total: int
    seconds: float

    @property
    def seconds_left(self) -> float | None:
        """Return how long the stage will still take at this rate; None before its first piece is done."""
        return self.seconds / self.done * (self.total - self.done) if self.done else None


@dataclass(slots=True)
class Pool:
    """Actors that work on one order.

    Attributes:
        zone_resource, label_selector: keep the actors in the private zone.
        size: how many actors there may be at once.
        progress: called as pieces get done.
    """

    order: Order
    zone_resource: str
    label_selector: Mapping[str, str]
    size: int
    progress: Callable[[Progress], None] = lambda progress: None
    _actors: list[Any] = field(default_factory=list)
    _starting: dict[Any, Any] = field(default_factory=dict)

    def run(self) -> Delivery:
        """Sanitize, seal and sign.

        Raises:
            FabricError: what stopped it; nothing was sealed.
            ClusterUnavailable: the actors died again and again; what was done is kept, the same order goes on from it.
        """
        try:
            self.call("open", ["all"])
            finished = course(self.call, chunk_rows=self.order.chunk_rows)
            return self._each([("finish", (finished,))], "finish")[0]  # type: ignore[no-any-return]
        finally:
            for actor in self._actors:
                ray.kill(actor)

    def call(self, stage: str, items: Sequence[str]) -> Sequence[Facts]:
        """Do the pieces of one stage and return what was found of each."""
        return self._each([("do", (stage, item)) for item in items], stage)

    def _each(self, calls: Sequence[tuple[str, tuple[Any, ...]]], stage: str) -> list[Any]:
        """Make every call on some actor, and return the results in order."""
        began = time.monotonic()
        waiting, results, tries = list(enumerate(calls)), {}, 0
        running: dict[Any, tuple[int, Any]] = {}
        idle = [actor for actor in self._actors if actor not in self._starting.values()]
        while waiting or running:
            while waiting and len(self._actors) < min(self.size, len(calls)):
                self._start()
            while idle and waiting:
                actor, (index, (method, arguments)) = idle.pop(), waiting.pop(0)
                running[getattr(actor, method).remote(*arguments)] = (index, actor)
            (ref,), _ = ray.wait([*running, *self._starting], num_returns=1)
            index, actor = running.pop(ref) if ref in running else (_NO_PIECE, self._starting.pop(ref))
            try:
                outcome = ray.get(ref)
            except ray.exceptions.RayActorError as error:
                tries += 1
                self._actors.remove(actor)
                waiting[:0] = [] if index == _NO_PIECE else [(index, calls[index])]
                if tries >= _TRIES:
                    raise _died(stage, error) from None
                continue
            idle.append(actor)
            if index == _NO_PIECE:
                continue
            results[index] = outcome
            if isinstance(outcome, FabricError):
                waiting.clear()
            self.progress(Progress(stage=stage, done=len(results), total=len(calls), seconds=time.monotonic() - began))
        for index in sorted(results):
            if isinstance(results[index], FabricError):
                raise results[index]
        return [results[index] for index in range(len(calls))]

    def _start(self) -> None:
        actor = (
            ray.remote(Sanitizer)
            .options(
                num_cpus=1,
                resources={self.zone_resource: 0.001},
                label_selector=dict(self.label_selector),
                max_restarts=0,
                name=None,
            )
            .remote(self.order)
        )
        self._actors.append(actor)
        self._starting[actor.ready.remote()] = actor


def _died(stage: str, error: Exception) -> ClusterUnavailable:
    return ClusterUnavailable(
        Reason.CLUSTER_FAILED,
        f"the sanitizers died {_TRIES} times in the stage {stage!r} ({type(error).__name__})",
        "give the private zone more memory and see `fabric status`; the same call goes on where this one stopped",
    )
