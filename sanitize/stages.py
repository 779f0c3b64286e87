"""The stages of sanitizing, each cut into pieces that any worker can do, in any order, more than once.

A piece leaves its numbers in the spool and returns counts. Raw cells and levels are seen by the workers alone. What a
piece writes depends on the records, the recipe and the keys, never on which worker did it or what it did before.

1. treat: each unit of rows becomes columns of numbers; text becomes places in a list of levels.
2. settle: each column with levels gets its codes, when the levels of all units are known.
3. weigh: the risk of the whole; rows in small cells are left out where the recipe says so, and codes settled again.
4. inspect: each outgoing column, by its distinct values.
5. judge: whether all of it may cross.
6. cut and seal: rows in their new order, chunk by chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sanitize.bench import Bench, Facts
from sanitize.cutting import cut, seal_chunk
from sanitize.judging import inspect, judge
from sanitize.settling import settle_again, settle_first
from sanitize.treating import start, treat
from sanitize.weighing import weigh

STAGES: Mapping[str, Callable[[Bench, str], Facts]] = {
    "start": start,
    "treat": treat,
    "settle": settle_first,
    "resettle": settle_again,
    "weigh": weigh,
    "inspect": inspect,
    "judge": judge,
    "cut": cut,
    "seal": seal_chunk,
}


def do(bench: Bench, stage: str, item: str) -> Facts:
    """Do one piece, or return what was found when it was done before.

    Raises:
        FabricError: what is wrong with the records or the recipe; nothing is sealed.
    """
    found = bench.spool.facts(stage, item)
    if found is None:
        found = STAGES[stage](bench, item)
        bench.spool.mark(stage, item, found)
    return found
