"""The whole way of a matrix: read Parquet, treat, inspect, weigh, seal; beside merely reading and writing it.

    python benchmarks/sanitizing.py [--rows 10000000] [--workers 1,2]

Prints cells per second (outgoing cells), the peak memory of any process, the ratio to copying the same Parquet with
pyarrow, and what a second worker gains. The matrix is the same whatever the number of workers; this is checked.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sanitize import risk
from sanitize.pipeline import Finished, course
from sanitize.recipe import parse_recipe
from sanitize.worker import Order, Sanitizer

GROUP = 500_000
RECIPE = """
name = "benchmark"
purpose = "benchmark"
records = "visits"
subject = "patient"

[columns]
age = {from = "birth", treatment = "age", at = "seen", band = 10, role = "quasi-identifier"}
sex = {from = "sex", treatment = "encode", role = "quasi-identifier"}
area = {from = "postcode", treatment = "prefix", digits = 1, restricted = [], role = "quasi-identifier"}
ward = {from = "ward", treatment = "encode", role = "feature"}
diagnosis = {from = "diagnosis", treatment = "encode", role = "feature"}
stay = {from = "seen", treatment = "duration", until = "left", to = 30, role = "feature"}
pulse = {from = "pulse", treatment = "keep", role = "feature"}
sodium = {from = "sodium", treatment = "round", to = 1, role = "feature"}
weight = {from = "weight", treatment = "round", to = 1, low = 30, high = 200, role = "feature"}
glucose = {from = "glucose", treatment = "bin", edges = [70, 100, 126, 200], role = "feature"}
readmitted = {from = "readmitted", treatment = "keep", role = "feature"}
cost = {from = "cost", treatment = "round", to = 10, high = 100000, role = "target"}
"""


def visits(rows: int, seed: int) -> pa.Table:
    """Return made-up visits; every identifier is drawn, none is anybody's."""
    random = np.random.default_rng(seed)
    seen = np.datetime64("2024-01-01T00:00", "m") + random.integers(0, 525_600, rows).astype("timedelta64[m]")
    stay = random.gamma(2, 600, rows).astype(np.int64).astype("timedelta64[m]")
    birth = np.datetime64("1934-01-01", "D") + random.integers(0, 32_000, rows).astype("timedelta64[D]")
    patient = random.integers(0, max(rows // 5, 100), rows)
    return pa.table(
        {
            "patient": pa.array(patient),
            "name": pa.array(np.char.add("Person ", patient.astype(str))),
            "birth": pa.array(birth).cast(pa.date32()),
            "sex": pa.array(random.choice(["female", "male"], rows)),
            "postcode": pa.array(random.choice([f"{n:05d}" for n in range(10_000, 99_999, 7)], rows)),
            "ward": pa.array(random.choice([f"ward {n}" for n in range(40)], rows)),
            "diagnosis": pa.array(random.choice([f"{c}{n:02d}" for c in "ABCDE" for n in range(60)], rows)),
            "seen": pa.array(seen.astype("datetime64[us]")),
            "left": pa.array((seen + stay).astype("datetime64[us]")),
            "pulse": pa.array(random.integers(40, 180, rows)),
            "sodium": pa.array(np.round(random.normal(140, 4, rows), 1)),
            "weight": pa.array(np.round(random.normal(78, 15, rows), 1)),
            "glucose": pa.array(random.normal(110, 35, rows)),
            "readmitted": pa.array(random.random(rows) < 0.1),
            "cost": pa.array(np.round(random.lognormal(8, 1, rows), 2)),
        }
    )


def write(path: Path, rows: int) -> None:
    """Write `rows` visits in row groups."""
    with pq.ParquetWriter(path, visits(10, 0).schema) as writer:
        for number, first in enumerate(range(0, rows, GROUP)):
            writer.write_table(visits(min(GROUP, rows - first), number))


def order_of(records: Path, home: Path) -> Order:
    """Return the order of sanitizing `records`."""
    (home / "secret").write_bytes(bytes(range(32)))
    now = datetime.now(UTC)
    return Order(
        records={"visits": records},
        recipe=parse_recipe(RECIPE, source="benchmark.toml"),
        hold_back=0.1,
        seed=0,
        chunk_rows=65_536,
        work=home / "work",
        surrogates=home / "surrogates.sqlite",
        labels={"data_classification": "restricted"},
        limits=risk.LIMITS[risk.Classification.RESTRICTED],
        releases=home / "releases",
        earlier=(),
        sequence=0,
        key_path=home / "secret",
        secret_path=home / "secret",
        predicate_type="urn:zonefabric:benchmark:v1",
        issued_at=now,
        expires_at=now + timedelta(days=1),
    )


def _labour(order: Order, pipe: Any) -> None:
    sanitizer = Sanitizer(order)
    while (call := pipe.recv()) is not None:
        pipe.send(sanitizer.do(*call))
    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


class Workers:
    """Processes that do pieces of one order, as the pool of Ray actors does; Ray itself is not measured."""

    def __init__(self, order: Order, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipes, self.stages = [], {}
        for _ in range(count):
            ours, theirs = context.Pipe()
            context.Process(target=_labour, args=(order, theirs), daemon=True).start()
            self.pipes.append(ours)

    def call(self, stage: str, items: Sequence[str]) -> list[Any]:
        """Do the pieces of a stage, each where a worker is idle."""
        began, results, waiting = time.perf_counter(), {}, list(enumerate(items))
        idle, busy = list(self.pipes), {}
        while waiting or busy:
            while waiting and idle:
                pipe, (index, item) = idle.pop(), waiting.pop(0)
                pipe.send((stage, item))
                busy[pipe] = index
            for pipe in multiprocessing.connection.wait(list(busy)):
                results[busy.pop(pipe)] = pipe.recv()
                idle.append(pipe)
        for outcome in results.values():
            if isinstance(outcome, Exception):
                raise outcome
        self.stages[stage] = self.stages.get(stage, 0.0) + time.perf_counter() - began
        return [results[index] for index in range(len(items))]

    def close(self) -> list[int]:
        """Stop the workers and return the peak memory of each in KiB."""
        for pipe in self.pipes:
            pipe.send(None)
        return [pipe.recv() for pipe in self.pipes]


def sanitized(records: Path, count: int) -> tuple[float, int, Finished, dict[str, float]]:
    """Return seconds, the highest peak memory of a worker in KiB, what was sealed, and seconds by stage."""
    with tempfile.TemporaryDirectory() as home:
        order = order_of(records, Path(home))
        workers = Workers(order, count)
        began = time.perf_counter()
        workers.call("open", ["all"])
        finished = course(workers.call, chunk_rows=order.chunk_rows)
        seconds = time.perf_counter() - began
        return seconds, max(workers.close()), finished, workers.stages


def copied(records: Path, target: Path) -> float:
    """Return the seconds of reading every row group with one thread and writing it again."""
    began = time.perf_counter()
    with pq.ParquetFile(records) as source, pq.ParquetWriter(target, source.schema_arrow) as writer:
        for batch in source.iter_batches(batch_size=131_072, use_threads=False):
            writer.write_batch(batch)
    return time.perf_counter() - began


def _lines(rows: int, counts: Sequence[int], say: Callable[[str], None]) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        records = Path(folder) / "visits.parquet"
        say(f"writing {rows:,} rows")
        write(records, rows)
        columns = RECIPE.count("treatment =")
        say("copying them")
        base = copied(records, Path(folder) / "copy.parquet")
        yield f"{rows:,} rows, {records.stat().st_size:,} bytes of Parquet, {columns} outgoing columns"
        yield f"read and written again, one thread    {base:8.1f} s"
        first: tuple[float, Finished] | None = None
        for count in counts:
            say(f"sanitizing them with {count} workers")
            seconds, peak, finished, stages = sanitized(records, count)
            cells = rows * columns / seconds
            first = first or (seconds, finished)
            if finished.digests != first[1].digests:
                raise SystemExit("the matrix depends on the number of workers")
            yield (
                f"sanitized by {count} workers              {seconds:8.1f} s  {seconds / base:5.1f} times the copying  "
                f"{cells:12,.0f} cells/s  peak {peak / 1024:,.0f} MiB a worker  gain {first[0] / seconds:.2f}"
            )
            yield "  " + "  ".join(f"{stage} {spent:.1f} s" for stage, spent in stages.items())


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--workers", default="1,2")
    given = parser.parse_args()
    counts = [int(count) for count in given.workers.split(",")]
    for line in _lines(given.rows, counts, lambda text: print(f"# {text}", file=sys.stderr, flush=True)):
        print(line, flush=True)


if __name__ == "__main__":
    main()
