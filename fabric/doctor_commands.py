"""`fabric doctor`: what is open in the running cluster, with the fix of each. Looks, and changes nothing."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from fabric.config import Environment, find_config, load_config
from fabric.doctor import Finding, Severity, judge
from fabric.errors import ClusterUnavailable, Reason, Refused
from fabric.local_cluster import running
from fabric.observing import observe

_OPEN_STATUS = Refused.exit_status


def doctor(
    config: Annotated[Path | None, typer.Option("--config", "-c", help="fabric.toml, or the folder it is in.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Look at the running cluster and name what is open, with the fix; exit status 3 if anything is."""
    loaded = load_config(find_config(Environment.read(), config, Path.cwd()))
    cluster = running(loaded.state)
    if cluster is None:
        raise ClusterUnavailable(
            Reason.FABRIC_DOWN, f"no fabric is up for {loaded.path}", "`fabric up` starts one on this machine"
        )
    observed = observe(cluster, list(loaded.zones.values()), ray_version=version("ray"))
    findings = judge(observed)
    seen = {
        "nodes": len(observed.nodes) + len(observed.apart),
        "jobs": len(observed.jobs),
        "work": len(observed.work),
    }
    if as_json:
        typer.echo(json.dumps({"looked_at": seen, "findings": [each.to_json() for each in findings]}, indent=2))
    else:
        typer.echo(f"Looked at {seen['nodes']} nodes, {seen['jobs']} jobs, {seen['work']} pieces of work.")
        typer.echo("\n".join(map(_told, findings)) if findings else "Nothing is open.")
    if any(finding.severity is Severity.OPEN for finding in findings):
        raise typer.Exit(_OPEN_STATUS)


def _told(finding: Finding) -> str:
    return f"{finding.severity.value:<8} {finding.code.value}: {finding.what}\n         Fix: {finding.fix}"
