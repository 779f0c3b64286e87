"""`fabric submit`, `fabric queue`, `fabric top`, `fabric cancel`: the queue from the command line.

They read and write the queue itself, so they need no Ray; the dispatcher sees what they wrote within a second.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from fabric.config import Config, Environment, find_config, load_config
from fabric.errors import ClusterUnavailable, InvalidInput, Reason
from fabric.job_store import SIGN, JobStore, Row, State, open_queue
from fabric.labels import Labels
from fabric.local_cluster import client_env, running, status
from fabric.money import shown
from fabric.recording import now, open_budgets
from fabric.standing import ended, waiting_line
from fabric.stores import Home

ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="fabric.toml, or the folder it is in.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]

ALIVE_S = 30.0
"""How long after its last turn a dispatcher still counts as one that is there."""
LOOK_EVERY_S = 0.5
NEWEST = 20


def submit_command(
    file: Annotated[Path, typer.Argument(help="The job's file, such as train.toml.")],
    token: Annotated[str, typer.Option(help="Names the submission: the same token again is the same job.")] = "",
    priority: Annotated[int | None, typer.Option(min=-100, max=100, help="Higher goes first.")] = None,
    deadline: Annotated[str | None, typer.Option(help="2026-12-01T12:00Z, or a span such as +2h.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="A label of the job, as name=value.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for its end, and say why it waits.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put a job into the queue; the dispatcher decides where and when it runs."""
    from fabric.session import Session  # noqa: PLC0415 - reads the border's modules, which the others do without
    from fabric.submission import read_job, submit, wish_of_file  # noqa: PLC0415

    environment = Environment.read()
    session = Session.open(environment, config_path=config)
    try:
        _require_dispatch(session.config)
        store = open_queue(session.config, session.home)
        queue = read_job(file).queue
        changed = {"priority": priority, "deadline": deadline}
        queue = queue.model_copy(update={name: value for name, value in changed.items() if value is not None})
        wish = wish_of_file(session, file.resolve(), _labels(label or []), queue=queue)
        row, made = submit(session, store, wish, token=token)
    finally:
        session.ledger.close()
    start_dispatcher(session.config, environment, store)
    if wait:
        row = _wait(store, row, quiet=as_json)
    if as_json:
        typer.echo(json.dumps({"new": made, **shown_row(row)}, indent=2))
    elif not wait:
        typer.echo(
            f"{'Queued as' if made else 'Already queued as'} job {row.id}: `fabric queue`, `fabric cancel {row.id}`"
        )
    if wait and row.state is not State.DONE:
        raise ended(row)


def queue_command(
    everything: Annotated[bool, typer.Option("--all", help=f"Also the newest {NEWEST} that have ended.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the jobs: where each stands, and why it waits, with numbers and until when."""
    with _opened(config) as (loaded, store):
        rows = store.jobs()
        if everything:
            rows = sorted(
                {row.id: row for row in [*rows, *store.jobs(open_only=False, newest=NEWEST)]}.values(), key=_when
            )
        alive, problems = _is_alive(store), store.problems(now().timestamp() - ALIVE_S)
    if as_json:
        typer.echo(
            json.dumps({"dispatcher": alive, "problems": problems, "jobs": [shown_row(row) for row in rows]}, indent=2)
        )
        return
    if problems:
        typer.echo(f"The dispatcher cannot take its turns ({', '.join(problems)}); nothing starts.", err=True)
    elif not alive:
        typer.echo("No dispatcher takes turns: `fabric up`, or `fabric submit`, starts it.", err=True)
    typer.echo(f"{len(rows)} jobs in the queue of {loaded.name}")
    for row in rows:
        typer.echo(f"  {row.id}  {row.state.value:<9} {row.zone or '-':<10} {row.body['workload']:<10} {_said(row)}")


def cancel_command(
    job: Annotated[str, typer.Argument(help="The job's id, or its submit token.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take a job back: at once if it waits; if it runs, the dispatcher stops it."""
    with _opened(config) as (loaded, store):
        row = store.find(job)
        home = Home.open(loaded.state)
        _record_cancel(loaded, home, row)
        row = store.cancel(row.id, now().timestamp())
    if as_json:
        typer.echo(json.dumps(shown_row(row), indent=2))
    elif row.state is State.CANCELLED or row.cancel:
        typer.echo(f"Job {row.id} is {'taken back' if row.state is State.CANCELLED else 'being stopped'}.")
    else:
        typer.echo(f"Job {row.id} had ended: {row.state.value}.")


def top_command(
    once: Annotated[bool, typer.Option("--once", help="Print it once and go.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show zones, the queue and budgets, live."""
    with _opened(config) as (loaded, store):
        if as_json:
            typer.echo(json.dumps(snapshot(loaded, store), indent=2))
            return
        from rich.console import Console  # noqa: PLC0415 - only this draws
        from rich.live import Live  # noqa: PLC0415

        if once:
            Console().print(_drawn(snapshot(loaded, store)))
            return
        with suppress(KeyboardInterrupt), Live(refresh_per_second=2) as live:
            while True:
                live.update(_drawn(snapshot(loaded, store)))
                time.sleep(1.0)


def snapshot(config: Config, store: JobStore) -> dict[str, Any]:
    """Return zones, jobs and budgets as plain JSON values."""
    rows, cluster = store.jobs(), running(config.state)
    alive = {node.zone: node.alive for node in status(cluster)} if cluster else {}
    held: dict[str, int] = {}
    for row in rows:
        if row.state.holds:
            held[row.zone] = held.get(row.zone, 0) + row.workers
    budgets = open_budgets(config, Home.open(config.state))
    try:
        balances = budgets.balances(now().timestamp())
    finally:
        budgets.close()
    return {
        "dispatcher": _is_alive(store),
        "zones": [
            {
                "zone": zone.name,
                "kind": zone.kind.value,
                "alive": alive.get(zone.name, False),
                "held": held.get(zone.name, 0),
                "total": zone.gpus or zone.cpus or zone.slots,
                "unit": "GPUs" if zone.gpus else "CPUs" if zone.cpus else "slots",
            }
            for zone in config.zones.values()
        ],
        "spilling": sum(row.state.holds and row.zone != config.private.name for row in rows),
        "jobs": [shown_row(row) for row in rows],
        "limits": [
            {"name": b.limit.name, "unit": b.limit.unit.value, "limit": b.limit.amount, "reserved": b.reserved}
            | {"spent": b.spent, "left": b.left}
            for b in balances
        ],
    }


def shown_row(row: Row) -> dict[str, Any]:
    """Return a job as plain JSON values."""
    return {
        "job": row.id,
        "state": row.state.value,
        "zone": row.zone,
        "attempt": row.attempt,
        "workload": row.body["workload"],
        "kind": row.body["kind"],
        "priority": row.priority,
        "submitted_at": _time(row.submitted_s),
        "deadline": _time(row.deadline_s),
        "started_at": _time(row.started_s),
        "ended_at": _time(row.ended_s),
        "hold": row.hold or None,
        "leave": row.leave or None,
        "says": _said(row),
        "code": row.code,
        "model": row.result,
        "reserved_micros": row.reserved_micros if row.state.holds else 0,
    }


def start_dispatcher(config: Config, environment: Environment, store: JobStore, *, anew: bool = False) -> None:
    """Start the dispatcher in the fabric's cluster, in a process of its own, unless one takes turns.

    Args:
        anew: the cluster has just been started, so the last sign of life is that of another one's.
    """
    cluster = running(config.state)
    if cluster is None or (_is_alive(store) and not anew):
        return
    command = [sys.executable, "-m", "jobs.dispatcher"]
    env = {**environment.variables, **client_env(cluster, environment.variables), "FABRIC_CONFIG": str(config.path)}
    done = subprocess.run(command, env=env, cwd=config.path.parent, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    if done.returncode:
        raise ClusterUnavailable(
            Reason.CLUSTER_FAILED,
            "the dispatcher did not start; what was queued stays",
            "`fabric doctor`, then try again",
        )


def _wait(store: JobStore, row: Row, *, quiet: bool) -> Row:
    said = ""
    while not (row := store.find(row.id)).state.ended:
        if not quiet and said != (said := _said(row)):
            typer.echo(said)
        time.sleep(LOOK_EVERY_S)
    if not quiet:
        typer.echo(_said(row))
    return row


def _said(row: Row) -> str:
    if row.state is State.QUEUED:
        return waiting_line(row)
    if row.state.ended:
        return " ".join(
            part for part in (row.state.value, row.code, f"model {row.result}" if row.result else "") if part
        )
    return f"attempt {row.attempt}, {row.workers} workers{f', asked to leave: {row.leave}' if row.leave else ''}"


def _record_cancel(config: Config, home: Home, row: Row) -> None:
    from fabric.recording import open_ledger  # noqa: PLC0415 - the other commands write no evidence

    ledger = open_ledger(config, home, home.signing_key(), person=Environment.read().person)
    try:
        ledger.observe("dispatch", {"what": "cancel", "job": row.id, "attempt": row.attempt})
    finally:
        ledger.close()


def _require_dispatch(config: Config) -> None:
    if not config.dispatches:
        raise InvalidInput(
            Reason.CONFIG_INVALID, f"{config.path.name} has no [dispatch]", "add an empty one: every key has a default"
        )


def _labels(given: list[str]) -> dict[str, str]:
    found = dict(part.split("=", 1) for part in given if "=" in part)
    if len(found) != len(given):
        raise InvalidInput(Reason.LABEL_INVALID, "a label is not name=value, or is given twice", "--label team=blue")
    Labels.parse(found)
    return found


@contextmanager
def _opened(config: Path | None) -> Iterator[tuple[Config, JobStore]]:
    loaded = load_config(find_config(Environment.read(), config, Path.cwd()))
    _require_dispatch(loaded)
    store = open_queue(loaded, Home.open(loaded.state))
    try:
        yield loaded, store
    finally:
        store.close()


def _is_alive(store: JobStore) -> bool:
    last = store.last_sign(SIGN)
    return last is not None and -ALIVE_S < now().timestamp() - last < ALIVE_S


def _when(row: Row) -> tuple[float, str]:
    return row.submitted_s, row.id


def _time(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def _drawn(found: dict[str, Any]) -> Any:
    from rich.console import Group  # noqa: PLC0415 - only `top` draws
    from rich.table import Table  # noqa: PLC0415

    zones = Table("zone", "kind", "free", "total", title="Zones", title_justify="left")
    for zone in found["zones"]:
        free = str(zone["total"] - zone["held"]) if zone["alive"] else "down"
        zones.add_row(zone["zone"], zone["kind"], free, f"{zone['total']} {zone['unit']}")
    jobs = Table("job", "state", "zone", "says", title="Jobs", title_justify="left")
    for job in found["jobs"]:
        jobs.add_row(job["job"], job["state"], job["zone"], job["says"])
    money = Table("limit", "left", "reserved", "spent", title="Budgets and quotas", title_justify="left")
    for limit in found["limits"]:
        figure = shown if limit["unit"] == "micros" else str
        money.add_row(limit["name"], *(figure(limit[name]) for name in ("left", "reserved", "spent")))
    state = "takes turns" if found["dispatcher"] else "IS NOT THERE"
    return Group(f"dispatcher {state}; {found['spilling']} jobs outside", zones, jobs, money)
