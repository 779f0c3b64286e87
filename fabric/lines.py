"""Lines: the jobs that wait for one private pool, kept so that a decision looks at heads only.

Two sets of heaps over the same jobs: by rank within each group of jobs that wait for the same reasons (team, quota,
whether they may leave), and by duration within each size, for backfill. What has left a line is dropped when it
reaches a head, and a line that is mostly such is rebuilt: the cost of an operation does not grow with what waits, but
for a heap's logarithm. How much work stands ahead of a rank is kept in a Fenwick tree (Fenwick, 1994).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field

from fabric.errors import Reason
from fabric.fleet import Job

Group = tuple[str, bool, tuple[str, ...]]
"""Team, whether the work stays inside, and the quotas that it falls under."""
Size = tuple[bool, int, int]
_BIN_S = 120.0
_BINS = 1 << 15
_LOOKED_AT = 4


@dataclass(slots=True, eq=False)
class Waiting:
    """A job that waits, with what the decision works out of it once.

    Attributes:
        left_s: how long it still takes with all of its workers.
        since_s: when it began to wait.
        start_by_s: the latest start inside that meets the deadline, or patience's end where there is none.
        rank: who is lower goes first.
        turn: changes when the rank does; what a heap holds with another turn is stale.
        inside, outside: names of the pools where policy lets it run.
        blocked: by pool, why and until when it was refused there.
        late: whether its deadline can no longer be met.
        stuck: whether it is among those that wanted to leave and could not.
    """

    job: Job
    left_s: float
    since_s: float
    start_by_s: float
    rank: float
    turn: int
    group: Group
    inside: tuple[str, ...]
    outside: tuple[str, ...]
    gpus: int
    cpus: int
    blocked: dict[str, tuple[str, float]] = field(default_factory=dict)
    moves: int = 0
    late: bool = False
    stuck: bool = False
    waits: bool = True
    said: Reason | None = None

    @property
    def stays(self) -> bool:
        """Say whether it may not leave the private zone."""
        return not self.outside

    @property
    def size(self) -> Size:
        """Return the size class by which it is backfilled."""
        return (not self.outside, self.gpus, 0 if self.gpus else self.cpus.bit_length())


class Work:
    """How much work waits ahead of a rank, in steps of two minutes."""

    __slots__ = ("_tree", "origin_s", "total")

    def __init__(self, origin_s: float) -> None:
        """Start empty; ranks before `origin_s` count as the first step."""
        self.origin_s = origin_s
        self.total = 0.0
        self._tree = [0.0] * (_BINS + 1)

    def is_old(self, now_s: float) -> bool:
        """Say whether ranks come near the end of the tree."""
        return now_s - self.origin_s > _BINS * _BIN_S / 2

    def add(self, rank: float, amount: float) -> None:
        """Add work at a rank; negative to take it away."""
        self.total += amount
        at = self._step(rank) + 1
        tree = self._tree
        while at <= _BINS:
            tree[at] += amount
            at += at & -at

    def ahead(self, rank: float) -> float:
        """Return the work of the steps before that of `rank`."""
        at = self._step(rank)
        tree = self._tree
        found = 0.0
        while at:
            found += tree[at]
            at &= at - 1
        return max(0.0, found)

    def _step(self, rank: float) -> int:
        return min(_BINS - 1, max(0, int((rank - self.origin_s) // _BIN_S)))


_Ranked = tuple[float, int, Waiting]


class Line:
    """The jobs that wait for one private pool."""

    __slots__ = ("_in_gpus", "_items", "_jobs", "_ranked", "_short", "_sizes", "work")

    def __init__(self, *, in_gpus: bool, origin_s: float = 0.0) -> None:
        """Start empty; `in_gpus` says whether work is counted in GPU-seconds or CPU-seconds."""
        self._in_gpus = in_gpus
        self._ranked: dict[Group, list[_Ranked]] = {}
        self._short: dict[Size, list[_Ranked]] = {}
        self._sizes: list[Size] = []
        self._jobs: dict[str, Waiting] = {}
        self._items = 0
        self.work = Work(origin_s)

    def __len__(self) -> int:
        return len(self._jobs)

    def units(self, one: Waiting) -> int:
        """Return how much of the pool the job takes."""
        return one.gpus if self._in_gpus else one.cpus

    def add(self, one: Waiting, now_s: float) -> None:
        """Put a job in line."""
        if not self._jobs and self.work.is_old(now_s):
            self.work = Work(now_s)
        self._jobs[one.job.id] = one
        self._push(one)
        if self._items > 2 * len(self._jobs) + 64 or self.work.is_old(now_s):
            self._rebuild(now_s)

    def remove(self, one: Waiting) -> None:
        """Take a job out of line; it must still have the rank and size with which it came."""
        if self._jobs.pop(one.job.id, None) is not None:
            self.work.add(one.rank, -self.units(one) * one.left_s)

    def heads(self) -> Iterator[Waiting]:
        """Yield the first job of each group."""
        gone = []
        for group, heap in self._ranked.items():
            while heap and not self._holds(heap[0]):
                heapq.heappop(heap)
                self._items -= 1
            if heap:
                yield heap[0][2]
            else:
                gone.append(group)
        for group in gone:
            del self._ranked[group]

    def shortest(self, gpus: int, cpus: int) -> Iterator[Waiting]:
        """Yield the few shortest jobs of each size that can fit into so much, the largest size first."""
        if len(self._sizes) != len(self._short):
            self._sizes = sorted(self._short, key=lambda size: (-size[1], -size[2], size[0]))
        for size in self._sizes[:]:
            if size[1] > gpus or (1 << size[2]) >> 1 > cpus:
                continue
            heap = self._short[size]
            while heap and not self._holds(heap[0]):
                heapq.heappop(heap)
            if not heap:
                del self._short[size]
                self._sizes = []
                continue
            for _, turn, one in heap[:_LOOKED_AT]:
                if one.waits and one.turn == turn and one.cpus <= cpus:
                    yield one

    def jobs(self) -> Iterator[Waiting]:
        """Yield all that wait, in no order."""
        yield from self._jobs.values()

    def _holds(self, item: _Ranked) -> bool:
        one = item[2]
        return one.waits and one.turn == item[1] and one.job.id in self._jobs

    def _push(self, one: Waiting) -> None:
        heapq.heappush(self._ranked.setdefault(one.group, []), (one.rank, one.turn, one))
        heapq.heappush(self._short.setdefault(one.size, []), (one.left_s, one.turn, one))
        self._items += 1
        self.work.add(one.rank, self.units(one) * one.left_s)

    def _rebuild(self, now_s: float) -> None:
        self._ranked, self._short, self._sizes, self._items = {}, {}, [], 0
        self.work = Work(now_s - _BINS * _BIN_S / 8)
        for one in self._jobs.values():
            self._push(one)
