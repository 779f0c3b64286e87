"""The last stages: say which rows are in which part, and seal them in their new order, chunk by chunk."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from fabric.artifacts import digest
from fabric.errors import InvalidInput, Reason
from sanitize.bench import SUBJECT, Bench, Facts, Values
from sanitize.ordering import buckets, derived, lot, no_buckets, permuted
from sanitize.sealing import seal
from sanitize.spool import HELD_BACK, TRAIN


def cut(bench: Bench, _: str) -> Facts:
    """Say which rows are in which part."""
    # The same subjects are held back under every recipe: what measures one model was never shown to another.
    who_key = derived(bench.main.order_key, f"{bench.task.seed} held back")
    rows_by_bucket = no_buckets()
    for words in bench.words(SUBJECT):
        rows_by_bucket += np.bincount(buckets(words, who_key), minlength=len(rows_by_bucket))
    first_kept = lot(rows_by_bucket, bench.task.hold_back) if bench.task.hold_back else 0
    ends = {TRAIN: 0, HELD_BACK: 0}
    for first, words in bench.spool.strides(SUBJECT, np.uint64):
        rows = np.arange(first, first + len(words), dtype=np.uint64)
        kept = bench.kept(slice(first, first + len(words)))
        held = buckets(words[kept], who_key) < first_kept
        for part, mine in ((TRAIN, rows[kept][~held]), (HELD_BACK, rows[kept][held])):
            bench.spool.put(f"@{part}", ends[part], mine)
            ends[part] += len(mine)
    if not ends[TRAIN] or (bench.task.hold_back and not ends[HELD_BACK]):
        raise InvalidInput(
            Reason.CONFIG_INVALID, "hold_back leaves one part without rows", "hold back a larger or smaller share"
        )
    bench.spool.sync()
    return {part: count for part, count in ends.items() if count}


def seal_chunk(bench: Bench, item: str) -> Facts:
    """Seal one chunk of a part: its rows in their new order."""
    part, _, index = item.rpartition(".")
    count = bench.facts("cut", "all")[part]
    first = int(index) * bench.task.chunk_rows
    places = np.arange(first, min(first + bench.task.chunk_rows, count), dtype=np.uint64)
    order = permuted(places, count, derived(bench.key, f"order of {part}"))
    rows = bench.spool.column(f"@{part}", np.uint64)[order.astype(np.int64)].astype(np.int64)
    columns = {name: bench.values(name)[rows] for name in bench.task.recipe.outgoing}
    (chunk,) = seal(pa.table(columns), chunk_rows=bench.task.chunk_rows)
    bench.spool.write(bench.spool.sealed(part, int(index)), chunk)
    return {"digest": digest(chunk), "bytes": len(chunk)}


def subjects_of(bench: Bench) -> Values:
    """Return the keyed words of the subjects whose rows would leave, sorted, each once."""
    who = bench.spool.column(SUBJECT, np.uint64)
    pieces = ((who[rows.astype(np.int64)]) for _, rows in bench.spool.strides(f"@{TRAIN}", np.uint64))
    found = [np.unique(words) for words in pieces]
    return np.unique(np.concatenate(found))
