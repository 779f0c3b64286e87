"""Traces: recorded or made-up jobs for the simulator.

Three sources: our own columns (`COLUMNS`, CSV or Parquet), the task file of Alibaba's cluster-trace-gpu-v2023 (Weng et
al., USENIX ATC 2023), and a generator. What Alibaba's trace does not hold (labels, deadlines, estimates, teams) is
drawn per task by `Assigning`, from the seed and the task's name alone: the same task always gets the same.
"""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fabric.errors import InvalidInput, Reason, nearest
from fabric.fleet import Need
from fabric.labels import Labels, WorkloadClass

K_REQUIRED = 11
REQUIRED = ("job_id", "submitted_s", "duration_s", "gpus")
OPTIONAL = (
    "estimate_s", "deadline_s", "workers", "min_workers", "gpu_model", "cpus", "spot", "priority", "checkpointed",
    "egress_bytes", "justified", "k", "k_required",
)  # fmt: skip
LABELS = (
    "data_classification", "allowed_execution_zone", "burst_eligible", "purpose", "residency", "export_control",
    "team", "project", "workload_class",
)  # fmt: skip
COLUMNS = (*REQUIRED, *OPTIONAL, *LABELS)
_PURPOSE = "research"
MOST_S = 1e12
"""Times and durations beyond are no seconds; a float still tells them apart to a millisecond there."""
MOST_BYTES = 10**18
MOST_PRIORITY = 100
_ALIBABA = ("name", "num_gpu", "qos", "creation_time", "deletion_time", "scheduled_time")


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What policy would read of a job besides the zone; jobs with the same facts share one object.

    Attributes:
        k, k_required: of the matrix that would leave with it.
        justified: whether there is a justification.
    """

    labels: Labels
    k: int = K_REQUIRED
    k_required: int = K_REQUIRED
    justified: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceJob:
    """One job of a trace.

    Attributes:
        duration_s: how long it really takes; nobody who decides sees it.
        estimate_s: how long its submitter says it takes.
    """

    id: str
    submitted_s: float
    duration_s: float
    estimate_s: float
    deadline_s: float | None
    need: Need
    facts: Facts
    priority: int = 0
    checkpointed: bool = False
    egress_bytes: int = 0

    @property
    def workload(self) -> WorkloadClass:
        """Return the workload class; training where the labels say nothing."""
        return self.facts.labels.workload_class or WorkloadClass.TRAINING


@dataclass(frozen=True, slots=True, kw_only=True)
class Assigning:
    """The seeded rule that gives a bare task its labels, deadline, estimate, team and data.

    - `stay_share` of the tasks may not leave: half of them are restricted data that are allowed the private zone only,
      a quarter may not leave their jurisdiction, a quarter have a matrix with k = 3 where policy wants 11. The policy
      itself refuses each of them. The others are internal or confidential data that may leave.
    - The estimate is the true duration times a factor drawn evenly from `estimates`: most submitters ask for too much,
      some for too little.
    - The deadline is submission + the longer of true duration and estimate + slack. The slack is one of `slacks`, drawn
      per task, times the true duration, and at least `least_slack_s`.
    - Ten teams, the largest about a quarter of all tasks; six in ten tasks can stop at a checkpoint; data of 0.2 to
      20 GB.
    """

    seed: int
    stay_share: float = 0.4
    slacks: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    least_slack_s: float = 900.0
    estimates: tuple[float, float] = (0.9, 1.5)

    def job(self, name: str, *, submitted_s: float, duration_s: float, gpus: int, workload: WorkloadClass) -> TraceJob:
        """Return the task with all that is drawn for it."""
        draw = random.Random(f"{self.seed}:{name}")  # noqa: S311 - a simulation, not a secret
        facts = _facts(draw.random() < self.stay_share, draw, f"team-{min(9, int(draw.expovariate(0.3)))}", workload)
        estimate_s = duration_s * draw.uniform(*self.estimates)
        slack_s = max(self.least_slack_s, draw.choice(self.slacks) * duration_s)
        return TraceJob(
            id=name,
            submitted_s=submitted_s,
            duration_s=duration_s,
            estimate_s=estimate_s,
            deadline_s=submitted_s + max(duration_s, estimate_s) + slack_s,
            need=_need(gpus),
            facts=facts,
            checkpointed=draw.random() < 0.6,
            egress_bytes=int(10 ** draw.uniform(8.3, 10.3)),
        )


_NEEDS: dict[int, Need] = {}
_SHARED: dict[tuple[str, str, WorkloadClass], Facts] = {}


def _need(gpus: int) -> Need:
    return _NEEDS.setdefault(gpus, Need(workers=gpus, gpus=1))


def _facts(stays: bool, draw: random.Random, team: str, workload: WorkloadClass) -> Facts:
    kind = (
        draw.choice(("restricted", "restricted", "residency", "k"))
        if stays
        else draw.choice(("internal", "confidential"))
    )
    key = (kind, team, workload)
    if key not in _SHARED:
        raw: dict[str, object] = {
            "data_classification": kind if kind in ("restricted", "internal") else "confidential",
            "allowed_execution_zone": "private" if kind == "restricted" else "private,public",
            "burst_eligible": kind != "restricted",
            "purpose": _PURPOSE,
            "residency": "CH" if kind == "residency" else "EU",
            "export_control": "none",
            "team": team,
            "workload_class": workload.value,
        }
        _SHARED[key] = Facts(labels=Labels.parse(raw), k=3 if kind == "k" else K_REQUIRED)
    return _SHARED[key]


def read_trace(source: str, *, seed: int) -> Iterator[TraceJob]:
    """Return the jobs of a trace in the order of their submission.

    Args:
        source: a CSV or Parquet file of ours, Alibaba's task file, or `synthetic:COUNT`.
        seed: of what is drawn.

    Raises:
        InvalidInput: `TRACE_INVALID`, naming the row and column, never the cell.
    """
    if source.startswith("synthetic:"):
        count = source.partition(":")[2]
        if not (count.isascii() and count.isdigit() and 0 < int(count) <= 100_000_000):
            raise _invalid(source, "synthetic:COUNT, such as synthetic:1000000")
        return synthetic(int(count), seed=seed)
    path = Path(source)
    if not path.is_file():
        what = f"{path.name} is a folder" if path.is_dir() else f"there is no {path.name}"
        raise _invalid(what, "name a CSV or Parquet file, or synthetic:COUNT")
    rows = _rows(path)
    first = next(rows, None)
    if first is None:
        raise _invalid(f"{path.name} has no row", "a trace holds a job in each row")
    rows = _again(first, rows)
    if set(_ALIBABA) <= set(first):
        assigning = Assigning(seed=seed)
        read = (
            _read(row, number, path.name, lambda cells: _alibaba(cells, assigning))
            for number, row in enumerate(rows, start=1)
        )
    else:
        _check_columns(first, path.name)
        read = (_read(row, number, path.name, _own) for number, row in enumerate(rows, start=1))
    found = [job for job in read if job is not None]
    if not found:
        raise _invalid(f"{path.name} has no row of a job that ran on GPUs", "a trace holds a job in each row")
    if len({job.id for job in found}) != len(found):
        raise _invalid(f"{path.name} names a job twice", "give every job an id of its own")
    return iter(sorted(found, key=lambda job: (job.submitted_s, job.id)))


def synthetic(count: int, *, seed: int, gpus: int = 1_024, load: float = 1.2) -> Iterator[TraceJob]:
    """Yield made-up jobs: Poisson arrivals whose rate swings by the hour of the day, log-normal durations, few large.

    The load is that of `gpus` private GPUs, on average.
    """
    draw = random.Random(seed)  # noqa: S311 - a simulation
    assigning = Assigning(seed=seed)
    sizes, weights = (1, 2, 4, 8, 16), (70, 12, 9, 7, 2)
    mean_gpus = sum(s * w for s, w in zip(sizes, weights, strict=True)) / sum(weights)
    mean_s = math.exp(7.0 + 1.3**2 / 2)
    rate = gpus * load / (mean_gpus * mean_s)
    kinds = (WorkloadClass.TRAINING, WorkloadClass.FINE_TUNING, WorkloadClass.SWEEP, WorkloadClass.BATCH_INFERENCE)
    at_s = 0.0
    for number in range(count):
        swing = 1.0 + 0.6 * math.sin(at_s / 86_400 * 2 * math.pi)
        at_s += draw.expovariate(rate * swing)
        yield assigning.job(
            f"s{number}",
            submitted_s=at_s,
            duration_s=min(5e5, max(30.0, draw.lognormvariate(7.0, 1.3))),
            gpus=draw.choices(sizes, weights)[0],
            workload=draw.choice(kinds),
        )


def peak_gpus(jobs: Iterable[TraceJob]) -> int:
    """Return the most GPUs that would be held at once if every job started when it was submitted."""
    changes: list[tuple[float, int]] = []
    for job in jobs:
        changes += [(job.submitted_s, job.need.total_gpus), (job.submitted_s + job.duration_s, -job.need.total_gpus)]
    held = most = 0
    for _, change in sorted(changes):
        held += change
        most = max(most, held)
    return most


_QOS = {
    "LS": WorkloadClass.ONLINE_INFERENCE,
    "BE": WorkloadClass.BATCH_INFERENCE,
    "Burstable": WorkloadClass.FINE_TUNING,
    "Guaranteed": WorkloadClass.TRAINING,
}


def _alibaba(row: Mapping[str, Any], assigning: Assigning) -> TraceJob | None:
    """Return a task that ran on GPUs, a share of one counted as a whole; None for any other."""
    gpus = int(row["num_gpu"])
    if not gpus or not row["scheduled_time"]:
        return None
    duration_s = float(row["deletion_time"]) - float(row["scheduled_time"])
    if -MOST_S <= duration_s <= 0:
        return None
    workload = _QOS.get(str(row["qos"]), WorkloadClass.BATCH_INFERENCE)
    submitted_s = float(row["creation_time"])
    return assigning.job(str(row["name"]), submitted_s=submitted_s, duration_s=duration_s, gpus=gpus, workload=workload)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq  # noqa: PLC0415 - only for this format

        try:
            batches = pq.ParquetFile(path).iter_batches()
            for batch in batches:
                for row in batch.to_pylist():
                    yield {name: "" if value is None else value for name, value in row.items()}
        except (OSError, ValueError):
            raise _invalid(f"{path.name} is not Parquet", "write it again") from None
        return
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            yield from csv.DictReader(file, strict=True)
        except (csv.Error, UnicodeDecodeError):
            raise _invalid(f"{path.name} is not CSV in UTF-8", "check its quotes") from None


def _again(first: dict[str, Any], rest: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    yield first
    yield from rest


def _check_columns(row: Mapping[str, Any], name: str) -> None:
    for column in row:
        if column not in COLUMNS:
            raise _invalid(f"{name} has an unknown column {column!r}", nearest(str(column), COLUMNS))
    for column in REQUIRED:
        if column not in row:
            raise _invalid(f"{name} lacks the column {column!r}", f"needed: {', '.join(REQUIRED)}")


def _read(
    row: Mapping[Any, Any], number: int, name: str, job_of: Callable[[Mapping[str, Any]], TraceJob | None]
) -> TraceJob | None:
    """Return the job of a row, held to what a decision can be asked about; None for one that is left out."""
    hint = "numbers, true or false"
    try:
        if None in row:
            raise ValueError  # more cells than columns
        job = job_of(row)
        if job is None or _is_possible(job):
            return job
    except (ValueError, TypeError, KeyError, OverflowError):
        pass
    except InvalidInput as error:
        hint = error.hint
    raise _invalid(
        f"{name}, row {number}: a cell is not of its column's kind, or beyond what it can be", hint
    ) from None


def _is_possible(job: TraceJob) -> bool:
    due = job.submitted_s + 1.0 if job.deadline_s is None else job.deadline_s
    return (
        bool(job.id)
        and all(abs(at_s) <= MOST_S for at_s in (job.submitted_s, due))
        and all(0 < lasts_s <= MOST_S for lasts_s in (job.duration_s, job.estimate_s))
        and due > job.submitted_s
        and abs(job.priority) <= MOST_PRIORITY
        and 0 <= job.egress_bytes <= MOST_BYTES
    )


def _own(row: Mapping[str, Any]) -> TraceJob:
    duration_s = float(row["duration_s"])
    estimate_s = float(row.get("estimate_s") or duration_s)
    submitted_s = float(row["submitted_s"])
    deadline = row.get("deadline_s")
    need = Need(
        workers=int(row.get("workers") or 1),
        gpus=int(row["gpus"]),
        gpu_model=str(row.get("gpu_model") or ""),
        cpus=int(row.get("cpus") or 1),
        min_workers=int(row.get("min_workers") or 0),
        spot=_flag(row.get("spot")),
    )
    given = {label: row[label] for label in LABELS if row.get(label) not in (None, "")}
    facts = Facts(
        labels=Labels.parse(given),
        k=int(row.get("k") or 0),
        k_required=int(row.get("k_required") or 0),
        justified=_flag(row.get("justified")),
    )
    return TraceJob(
        id=str(row["job_id"]),
        submitted_s=submitted_s,
        duration_s=duration_s,
        estimate_s=estimate_s,
        deadline_s=None if deadline in (None, "") else float(deadline),
        need=need,
        facts=facts,
        priority=int(row.get("priority") or 0),
        checkpointed=_flag(row.get("checkpointed")),
        egress_bytes=int(row.get("egress_bytes") or 0),
    )


def _flag(cell: Any) -> bool:
    if cell in (None, "", "false", False):
        return False
    if cell in ("true", True):
        return True
    raise ValueError


def _invalid(message: str, hint: str) -> InvalidInput:
    return InvalidInput(Reason.TRACE_INVALID, message, hint)
