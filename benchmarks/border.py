"""What the border costs beside bare Ray, in one run, on one cluster of two zones.

    python benchmarks/border.py [--size MIB] [--epochs N] [--rounds N] [--warm N] [--fabric FOLDER] [--json]

A burst: a matrix of `--size` MiB is sealed, shipped, verified and used by one task of the public zone. Bare Ray does
`ray.put` and the same task on the same table. Each phase has its own line, and beside them one pass of hashing over the
same bytes: they are hashed three times (sealed, checked at the border, checked on arrival).
A training: the same job of Ray Train on the same rows, with the border and without it.
An x-ray: milliseconds for a typical training function; `python benchmarks/xray.py` has more of them.

Bare and bordered rounds take turns, after `--warm` that are not counted; medians are printed. Bare work runs in the
same driver and workers, under the guard's passage. Without `--fabric` a cluster is started and stopped, whose object
stores hold four such matrices each: by default a node's store has 1 GiB, and Ray spills to disk what does not fit.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fabric.joining import prepare  # before Ray is imported: it sets what Ray reads then

COLUMNS = 16
LABELS = {"data_classification": "restricted", "allowed_execution_zone": ["private", "public"], "burst_eligible": True,
          "purpose": "test", "residency": ["EU"], "export_control": "none"}  # fmt: skip


def made(rows: int) -> pa.Table:
    """Return a made-up table of 16 columns of doubles, the last one depending on the others."""
    random = np.random.default_rng(7)
    columns = {f"c{index:02d}": random.random(rows) for index in range(COLUMNS - 1)}
    return pa.table({**columns, "target": columns["c00"] * 3 + columns["c01"] + random.random(rows) / 10})


def use(table: pa.Table) -> float:
    """Read every value: the sum of the columns' means."""
    return float(sum(table.column(name).to_numpy().mean() for name in table.column_names))


@dataclass
class Clock:
    """Seconds of named phases, each measured several times."""

    taken: dict[str, list[float]] = field(default_factory=dict)

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Measure the block under `name`."""
        before = time.perf_counter()
        yield
        self.add(name, time.perf_counter() - before)

    def add(self, name: str, seconds: float) -> None:
        """Keep one measurement."""
        self.taken.setdefault(name, []).append(seconds)

    def medians(self) -> dict[str, float]:
        """Return the median of each phase."""
        return {name: statistics.median(each) for name, each in self.taken.items()}


@dataclass
class TimedCarrier:
    """A carrier that says how long it took."""

    inner: Any
    clock: Clock

    def carry(self, cargo: Any, grant: Any, receipt: Any) -> Any:
        """Carry, and keep the time."""
        with self.clock.time("put"):
            return self.inner.carry(cargo, grant, receipt)


START = """
import sys
import fabric._ray_node as node
node.OBJECT_STORE_BYTES = max(node.OBJECT_STORE_BYTES, int(sys.argv.pop(1)))
from fabric.cli import main
main()
"""


@contextmanager
def cluster(folder: str, store_bytes: int) -> Iterator[Path]:
    """Yield the folder of a fabric that is up: the one given, or one of its own."""
    if folder:
        yield Path(folder)
        return
    command = str(Path(sys.executable).parent / "fabric")
    with tempfile.TemporaryDirectory() as made_here:
        subprocess.run([command, "init", "bench"], cwd=made_here, check=True, stdout=subprocess.DEVNULL)
        place = Path(made_here) / "bench"
        start = [sys.executable, "-c", START, str(store_bytes), "up"]
        subprocess.run(start, cwd=place, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            yield place
        finally:
            subprocess.run([command, "down"], cwd=place, check=True, stdout=subprocess.DEVNULL)


def sealed(session: Any, table: pa.Table, clock: Clock | None = None) -> Any:
    """Seal and sign the table as the sanitizer does at its end."""
    from fabric.artifacts import chunk_name, digest
    from fabric.matrix import MATRIX_TYPE, SealedMatrix
    from fabric.statements import Statement, sign, timestamp
    from fabric.testing import LOW_RISK, RISK_LIMITS
    from sanitize.sealing import seal

    clock = clock or Clock()
    with clock.time("seal"):
        chunks = seal(table)
    with clock.time("hash and sign"):
        subjects = {chunk_name(index): digest(chunk) for index, chunk in enumerate(chunks)}
        notes = [
            {"name": name, "from": name, "why": "a benchmark", "type": "double", "levels": 0,
             "role": "target" if name == "target" else "feature"}
            for name in table.column_names
        ]  # fmt: skip
        predicate = {
            "columns": notes, "dropped": 0, "rows": table.num_rows, "purpose": "test", "part": "matrix",
            "labels": LABELS, "recipe": digest(b"a recipe"), "risk": dict(LOW_RISK), "risk_limits": dict(RISK_LIMITS),
            "expires_at": timestamp(session.border.clock() + timedelta(days=1)),
        }  # fmt: skip
        signed = sign(Statement(subjects=subjects, predicate_type=MATRIX_TYPE, predicate=predicate), session.key)
    return SealedMatrix(chunks, signed)


def errand(session: Any) -> Any:
    """Return the errand of moving to the public zone."""
    from fabric.labels import Labels

    return session.errand(zone="public", labels=Labels.from_json(LABELS), purpose="test", justification="benchmark")


def task(session: Any, work: Callable[..., Any]) -> Any:
    """Return a Ray task in the public zone, placed as a burst's is."""
    import ray

    placement = session.place(errand(session), workers=1)
    resources = dict(placement.resources_per_worker)
    return ray.remote(work).options(
        num_cpus=resources.pop("CPU", 0), num_gpus=resources.pop("GPU", 0), resources=resources,
        label_selector=placement.label_selector, max_retries=0,
    )  # fmt: skip


def arrive(ticket: Any) -> dict[str, float]:
    """Run in the public zone: what `fabric.bursting` does with a ticket, with the time of each step."""
    from datetime import UTC, datetime

    from fabric.config import Environment
    from fabric.crossing import admit

    clock, node = Clock(), Environment.read()
    with clock.time("fetch"):
        parcel = ticket.collect(list(range(ticket.chunk_count)))
    with clock.time("verify and open"):
        admitted = admit(parcel, zone=node.zone, trusted=node.trusted, now=datetime.now(UTC))
    with clock.time("use"):
        use(admitted.table)
    return {name: seconds[0] for name, seconds in clock.taken.items()}


def bare(session: Any, table: pa.Table, clock: Clock) -> None:
    """Do what the burst does without the border."""
    import ray

    with clock.time("bare Ray: put, task"):
        ref = ray.put(table)
        ray.get(task(session, use).remote(ref))
    with clock.time("bare Ray: task"):
        ray.get(task(session, use).remote(ref))


def phases(session: Any, table: pa.Table, clock: Clock) -> None:
    """Measure each step of a burst."""
    import ray

    from fabric.carriage import ObjectStoreCarrier
    from fabric.crossing import Cargo

    matrix = sealed(session, table, clock)
    before = time.perf_counter()
    crossing = session.border.export(Cargo(matrix=matrix), errand(session), TimedCarrier(ObjectStoreCarrier(), clock))
    clock.add("check, decide, record", time.perf_counter() - before - clock.taken["put"][-1])
    for name, seconds in ray.get(task(session, arrive).remote(crossing.ticket)).items():
        clock.add(name, seconds)


def bursts(session: Any, table: pa.Table, inspect_text: Any, rounds: int, warm: int) -> dict[str, Any]:
    """Measure a burst beside bare Ray."""
    from fabric.artifacts import digest
    from fabric.bursting import burst
    from fabric.guard import passage

    total, parts = Clock(), Clock()
    mean = means()
    for turn in range(-warm, rounds):
        clocks = (total, parts) if turn >= 0 else (Clock(), Clock())
        with passage("public", "benchmark"):
            bare(session, table, clocks[0])
            phases(session, table, clocks[1])
        with clocks[0].time("border: seal, ship, verify, use"):
            matrix = sealed(session, table)
            burst(session, matrix, mean, errand(session), inspect_text=inspect_text)
        with clocks[0].time("hashing alone, one pass"):
            for chunk in matrix.chunks:
                digest(chunk)
        del matrix
    taken = total.medians()
    border, plain = taken["border: seal, ship, verify, use"], taken["bare Ray: put, task"]
    hashing = 3 * taken["hashing alone, one pass"]
    return {
        "mib": table.nbytes / 2**20,
        "seconds": taken,
        "phases": parts.medians(),
        "ratio": border / plain,
        "ratio_without_hashing": (border - hashing) / plain,
    }


def means() -> Callable[[pa.Table], float]:
    """Return `use` as a user would write it in a file of one's own: it crosses as a capsule."""
    return use


def fit_bare(session: Any, table: pa.Table, spec: Any) -> None:
    """Train as `fabric.training` does, without a crossing, a grant, a record or a quarantine."""
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    placement = session.place(errand(session), workers=spec.workers)
    name = f"bare-{time.time_ns()}"
    trainer = TorchTrainer(
        learn,
        train_loop_config={"table": ray.put(table), "spec": spec.model_dump(mode="json")},
        scaling_config=ScalingConfig(
            num_workers=placement.workers,
            use_gpu=placement.use_gpu,
            resources_per_worker=placement.resources_per_worker,
            label_selector=placement.label_selector,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(session.home.outbox("public")),
            failure_config=FailureConfig(max_failures=spec.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    trainer.fit()


def learn(config: dict[str, Any]) -> None:
    """Run on the worker: the loop of `fabric.training` on a table that nothing has checked."""
    import ray
    import ray.train.torch
    from ray.train import Checkpoint

    from fabric.learning import Arrays, Layout, Trainer
    from fabric.specs import TrainingSpec

    spec = TrainingSpec.model_validate(config["spec"])
    table = ray.get(config["table"])
    features = tuple(name for name in table.column_names if name != "target")
    layout = Layout(numeric=features, encoded=(), target="target", classes=0)
    trainer = Trainer(
        spec,
        layout,
        Arrays.of(table, layout),
        device=ray.train.torch.get_device(),
        prepare=ray.train.torch.prepare_model,
    )
    for epoch in trainer.epochs():
        if epoch.epoch % spec.checkpoint_every == 0 or epoch.epoch == spec.epochs:
            metrics = {"epoch": epoch.epoch, "training": epoch.training, "validation": epoch.validation}
            with tempfile.TemporaryDirectory() as folder:
                trainer.save(Path(folder))
                ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder))


def trainings(session: Any, table: pa.Table, epochs: int, rounds: int, warm: int) -> dict[str, Any]:
    """Measure a training beside the same one without the border."""
    from fabric.guard import passage
    from fabric.specs import ModelSpec, TrainingSpec
    from fabric.training import train

    spec = TrainingSpec(
        epochs=epochs, batch_size=256, learning_rate=0.001, workers=1, checkpoint_every=max(1, epochs // 4),
        model=ModelSpec(hidden=[64, 32]),
    )  # fmt: skip
    clock = Clock()
    matrix = sealed(session, table)
    for turn in range(-warm, rounds):
        each = clock if turn >= 0 else Clock()
        used = spec if turn >= 0 else spec.model_copy(update={"epochs": 1})
        with passage("public", "benchmark"), each.time("bare Ray Train"):
            fit_bare(session, table, used)
        started = session.border.clock()
        with each.time("border"):
            train(session, matrix, used, errand(session))
        for name, seconds in steps(session, started).items():
            each.add(name, seconds)
    taken = clock.medians()
    return {
        "rows": table.num_rows,
        "epochs": epochs,
        "seconds": taken,
        "each": clock.taken,
        "ratio": taken["border"] / taken["bare Ray Train"],
    }


def steps(session: Any, started: datetime) -> dict[str, float]:
    """Return the seconds between the records of the job that has just ended, from its start on."""
    named = {("crossing", "intent"): "  check, decide, record", ("crossing", "outcome"): "  put",
             ("job", "intent"): "  record the job", ("return", "intent"): "  Ray Train, quarantine",
             ("job", "outcome"): "  sign and keep the model"}  # fmt: skip
    taken, before = {}, started
    for entry in [*session.ledger.entries()][-2 * 3 :]:
        name = named.get((entry.record["action"], entry.record["phase"]))
        if name is not None:
            at = datetime.fromisoformat(entry.record["at"])
            taken[name] = (at - before).total_seconds()
            before = at
    return taken


def xrayed(inspect_text: Any) -> float:
    """Return the milliseconds of the x-ray of a typical training function."""
    from fabric.capsule import seal_capsule

    sys.path.insert(0, str(Path(__file__).parent))
    import xray

    return xray.median_ms(lambda: seal_capsule(xray.training, inspect_text=inspect_text))


def show(found: Mapping[str, Any]) -> None:
    """Print what was measured as a page of text."""
    burst, training = found["burst"], found["training"]
    print(f"a burst of {burst['mib']:,.0f} MiB")
    for name, seconds in burst["seconds"].items():
        print(f"  {name:<36} {seconds:8.2f} s  {seconds / burst['seconds']['bare Ray: put, task']:6.2f} x")
    print("  of which, step by step")
    for name, seconds in burst["phases"].items():
        print(f"    {name:<34} {seconds:8.2f} s")
    print(f"  border / bare Ray {burst['ratio']:.2f} x, without three passes of hashing "
          f"{burst['ratio_without_hashing']:.2f} x")  # fmt: skip
    print(f"a training of {training['rows']:,} rows x {training['epochs']} epochs")
    for name, seconds in training["seconds"].items():
        print(f"  {name:<36} {seconds:8.2f} s")
    print(f"  border / bare Ray Train {training['ratio']:.3f} x")
    print(f"an x-ray of a training function {found['xray_ms']:.1f} ms")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=float, default=1024, help="MiB of the burst's matrix")
    parser.add_argument("--rows", type=int, default=200_000, help="of the training")
    parser.add_argument("--epochs", type=int, default=20, help="of the training")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm", type=int, default=1, help="rounds that are not counted")
    parser.add_argument("--fabric", default="", help="folder of a fabric that is up")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with cluster(asked.fabric, round(asked.size * 2**22)) as folder:
        os.chdir(folder)
        joined = prepare(folder / "fabric.toml")
        from fabric.sdk import Fabric
        from sanitize.inspection import Inspector

        with Fabric.join(joined) as connection:
            # The matrix is made of no records, so no release of theirs is asked for.
            border = replace(connection.session.border, releasing=lambda matrix, zone: None)
            session = replace(connection.session, border=border)
            inspect_text = Inspector().inspect_text
            found = {
                "burst": bursts(
                    session,
                    made(max(1, round(asked.size * 2**20 / COLUMNS / 8))),
                    inspect_text,
                    asked.rounds,
                    asked.warm,
                ),
                "training": trainings(session, made(asked.rows), asked.epochs, asked.rounds, asked.warm),
                "xray_ms": xrayed(inspect_text),
            }
    print(json.dumps(found, indent=2)) if asked.json else show(found)


if __name__ == "__main__":
    main()
