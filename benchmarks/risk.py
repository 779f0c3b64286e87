"""Risk of the whole beside a plain Arrow `group_by` that counts rows, in one run, on the same columns.

    python benchmarks/risk.py [millions of rows ...]

Columns: age in steps of 5, sex, region of 100, an encoded diagnosis of 20 and a real cost; five rows to a subject.
Each measurement runs three times and the best wall time counts; the columns are mapped from files, as the sanitizer
has them. Arrow holds the whole table at once and gives k alone; we hold about 4 million rows at once.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sanitize.risk import Limits, measure, small
from sanitize.ways_out import ways_out

ROUNDS = 3


def best_s(work: Callable[[], object]) -> float:
    """Return the best wall seconds of `ROUNDS` runs."""
    taken = []
    for _ in range(ROUNDS):
        before = time.perf_counter()
        work()
        taken.append(time.perf_counter() - before)
    return min(taken)


def columns(rows: int, folder: Path) -> dict[str, np.ndarray]:
    """Return the columns of a made-up table, mapped from files."""
    random = np.random.default_rng(7)
    made = {
        "age": np.floor(random.random(rows) * 18) * 5,
        "sex": random.integers(0, 2, rows, dtype=np.int32),
        "region": random.integers(0, 100, rows, dtype=np.int32),
        "diagnosis": random.integers(0, 20, rows, dtype=np.int32),
        "cost": random.lognormal(7, 1, rows),
        "subject": random.integers(0, max(rows // 5, 1), rows, dtype=np.uint64),
    }
    for name, values in made.items():
        np.save(folder / f"{name}.npy", values)
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in made}


def plain_k(quasi: dict[str, np.ndarray]) -> int:
    """Return the rows of the smallest cell, as Arrow counts them."""
    counted = pa.table({name: np.asarray(values) for name, values in quasi.items()}).group_by(list(quasi))
    return int(pc.min(counted.aggregate([([], "count_all")])["count_all"]).as_py())


def subjects_k(quasi: dict[str, np.ndarray], who: np.ndarray) -> int:
    """Return the subjects of the smallest cell, as Arrow counts them."""
    table = pa.table({name: np.asarray(values) for name, values in {**quasi, "who": who}.items()})
    counted = table.group_by(list(quasi)).aggregate([("who", "count_distinct")])
    return int(pc.min(counted["who_count_distinct"]).as_py())


def compare(rows: int, folder: Path) -> None:
    """Measure one size and print its lines."""
    held = columns(rows, folder)
    quasi = {name: held[name] for name in ("age", "sex", "region")}
    sensitive = {name: held[name] for name in ("diagnosis", "cost")}
    who = held["subject"]
    if plain_k(quasi) != measure(quasi, sensitive={}, subjects=None).k:
        raise SystemExit("Arrow and we disagree")
    if subjects_k(quasi, who) != measure(quasi, sensitive={}, subjects=who).k:
        raise SystemExit("Arrow and we disagree")
    work: dict[str, Callable[[], object]] = {
        "Arrow group_by, k over rows": lambda: plain_k(quasi),
        "Arrow group_by, k over subjects": lambda: subjects_k(quasi, who),
        "k over rows": lambda: measure(quasi, sensitive={}, subjects=None),
        "k over subjects": lambda: measure(quasi, sensitive={}, subjects=who),
        "rows in small cells": lambda: small(quasi, who, 11),
        "k, l, t over subjects": lambda: measure(quasi, sensitive=sensitive, subjects=who),
    }
    measured = {name: best_s(each) for name, each in work.items()}
    needed = Limits(k=measure(quasi, sensitive={}, subjects=who).k + 50)
    before = time.perf_counter()
    ways_out(quasi, who, needed)
    measured["ways out (once)"] = time.perf_counter() - before
    base = next(iter(measured.values()))
    for name, seconds in measured.items():
        print(f"{rows / 1e6:5.1f} M rows  {name:<32} {seconds:7.3f} s  {seconds / base:6.1f} x")
    print(f"{'':14}peak memory so far {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:,.0f} MiB")


def main() -> None:
    """Measure every size asked for."""
    for millions in map(float, sys.argv[1:] or ("1", "10")):
        with tempfile.TemporaryDirectory() as folder:
            compare(round(millions * 1e6), Path(folder))


if __name__ == "__main__":
    main()
