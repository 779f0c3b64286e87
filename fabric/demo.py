"""The demo: the main job from raw records to evidence, on one machine that plays both zones.

1. Start a two-zone Ray cluster.
2. Make records of people who do not exist.
3. Sanitize inside, and print the egress plan before anything moves.
4. Train in the public zone, and inside on the same features, and compare.
5. Try a leak.
6. Verify the evidence.

Everything lies in a temporary folder that goes with the cluster, also after Ctrl-C; only the evidence is kept.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from fabric import connect
from fabric.config import FILE_NAME, Environment, load_config
from fabric.errors import CapsuleRefused
from fabric.evidence import verify_file
from fabric.local_cluster import stop
from fabric.local_fabric import start_local
from fabric.people import write_people
from fabric.starter import write_starter
from fabric.statements import PublicKey

if TYPE_CHECKING:
    from fabric.sdk import Fabric, Matrix

JUSTIFICATION = "demo: no free GPU inside"


def run_demo(*, rows: int, environment: Environment) -> None:
    """Run the demo on `rows` made-up people.

    Raises:
        FabricError: whatever stopped it; nothing is left running.
    """
    console = Console(highlight=False)
    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="fabric-demo-"))
    try:
        heed = _interrupts()
        write_starter(folder)
        config = load_config(folder / FILE_NAME)
        _say(console, 1, "Start a two-zone Ray cluster on this machine")
        start_local(config, environment, progress=lambda line: console.print(f"  {line}"), tied_to_pid=os.getpid())
        _say(console, 2, f"Make {rows:,} records of people who do not exist")
        write_people(folder / "people.csv", rows=rows, seed=7)
        with connect(folder) as session:
            matrix = _sanitize(console, session)
            heed()
            _train(console, session, matrix)
            heed()
            _leak(console, session, matrix, folder / "people.csv")
            kept = _keep(session, environment)
    finally:
        with console.status("stopping the cluster"):
            stop(folder / ".fabric")
        shutil.rmtree(folder, ignore_errors=True)
    _verify(console, *kept)
    console.print(f"\nDone in {time.monotonic() - started:.0f} s; nothing is left running.")
    _next_steps(console, kept[0])


def _interrupts() -> Callable[[], None]:
    """Return what raises the interrupt that was lost where it came: in a callback, or in an import that is tried."""
    came = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        signal.default_int_handler(number, frame)

    def heed() -> None:
        if came:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, handle)
    return heed


def _sanitize(console: Console, session: Fabric) -> Matrix:
    _say(console, 3, "Sanitize in zone private, and plan what would move")
    with console.status("Presidio reads every distinct value of the outgoing columns") as status:
        matrix = session.sanitize(
            session.records("people"),
            session.recipe("people.recipe.toml"),
            hold_back=0.2,
            progress=lambda p: status.update(f"sanitizing: {p.stage} {p.done}/{p.total}"),
        )
    plan = session.plan(matrix, zone="public", justification=JUSTIFICATION)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("column", "from", "fate", "why"):
        table.add_column(title, style="bold" if title == "column" else "")
    for column in plan.columns:
        fate = "[green]crosses[/]" if column.fate == "crosses" else "[yellow]stays[/]"
        table.add_row(column.name, column.source, fate, column.why)
    console.print(table)
    console.print(f"  {plan.rows:,} rows, {plan.size_bytes:,} bytes, {plan.digest}")
    weighed = matrix.sealed.predicate["risk"]
    console.print(
        f"  at least {weighed['k']} people share every combination of {', '.join(weighed['quasi'])}; "
        f"{matrix.sealed.predicate['suppressed']} rows in smaller groups were left out"
    )
    console.print(f"  to {plan.destination}")
    for decision in plan.decisions:
        for rule in decision.rules:
            console.print(f"  {'permit' if decision.permit else 'deny'}: {rule.reason} [dim]({rule.id})[/]")
    return matrix


def _train(console: Console, session: Fabric, matrix: Matrix) -> None:
    from fabric.specs import JobSpec, parse  # noqa: PLC0415

    text = (session.session.config.path.parent / "train.toml").read_text(encoding="utf-8")
    spec = parse(JobSpec, text, source="train.toml").training
    _say(console, 4, "Train with Ray Train in zone public; the workers receive the matrix and nothing else")
    with console.status("starting the workers") as status:
        outside = session.train(
            matrix,
            spec,
            zone="public",
            justification=JUSTIFICATION,
            progress=lambda e: status.update(
                f"epoch {e.epoch}: training {e.training:.4f}, validation {e.validation:.4f}"
            ),
        )
    console.print(str(outside).split("\nmodel ")[0])
    with console.status("training the same model inside, to compare"):
        inside = session.train(matrix, spec, zone="private")
    here, there = inside.evaluate(matrix.held_back), outside.evaluate(matrix.held_back)
    console.print(
        f"  on {there.rows:,} rows that never left: {there.metric} {there.value:.4f} trained in public, "
        f"{here.value:.4f} trained inside on the same features"
    )


def _leak(console: Console, session: Fabric, matrix: Matrix, people: Path) -> None:
    from pyarrow import compute, csv  # noqa: PLC0415

    _say(console, 5, "Try a leak: burst a function that has closed over the raw table")
    raw = csv.read_csv(people)

    def mean_cost(features):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - as a user would write it
        return compute.sum(raw.column("cost")).as_py() / features.num_rows

    try:
        session.burst(mean_cost, matrix, zone="public", justification=JUSTIFICATION)
    except CapsuleRefused as refusal:
        console.print(f"[red]refused[/] {refusal}", markup=True)
    else:
        raise AssertionError("the leak was not refused")

    def mean_visits(features):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        return compute.mean(features.column("visits")).as_py()

    answer = session.burst(mean_visits, matrix, zone="public", justification=JUSTIFICATION)
    console.print(f"  and one that takes the matrix as its argument runs: mean visits {answer:.2f}")


def _keep(session: Fabric, environment: Environment) -> tuple[Path, PublicKey]:
    home = environment.variables.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    folder = Path(home) / "zonefabric"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    evidence = session.evidence()
    return evidence.save(folder / "demo-evidence.json"), evidence.key


def _verify(console: Console, bundle: Path, key: PublicKey) -> None:
    _say(console, 6, "Verify the evidence, offline: the cluster is gone")
    found = verify_file(bundle, [key])
    console.print(
        f"  {found.records} records, {found.crossings} crossings resting on {found.statements} statements, "
        f"{found.refusals} refusal, all verified"
    )
    console.print(f"  {bundle}", soft_wrap=True)


def _next_steps(console: Console, bundle: Path) -> None:
    console.print("Next:")
    console.print(f"  fabric verify {bundle}", soft_wrap=True)
    console.print("  fabric init my-fabric && cd my-fabric && fabric up")
    console.print("  python -c \"import fabric; print(fabric.connect().records('people'))\"")


def _say(console: Console, number: int, text: str) -> None:
    console.print(f"\n[bold]{number}. {text}[/]")
