"""Time from submit to the first step in another zone's own cluster, beside a plain job there, in one run.

    python benchmarks/federated.py [--rounds 3] [--json]

A fabric of two clusters is started on this machine. Each round submits a plain job through the public cluster's jobs
API, whose driver runs one task there, and then a burst through the border; both functions return the time at which
they ran. `ray job submit` itself, whose command line imports Ray first, is timed too. Medians, and their ratios.
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
import urllib.request
import uuid
from pathlib import Path
from typing import Any

import fabric
from fabric.config import FILE_NAME, Environment, load_config
from fabric.local_cluster import running, stop
from fabric.local_fabric import start_local
from fabric.people import write_people
from fabric.starter import PEOPLE, write_starter
from fabric.zones import Topology

PLAIN = (
    "import ray, time; ray.init(log_to_driver=False, logging_level='ERROR'); "
    "print('at', ray.get(ray.remote(lambda: time.time()).options(num_cpus=0, resources={'zone_public': 1}).remote()))"
)


def first_step(table: Any) -> float:
    """Return when this runs."""
    import time  # noqa: PLC0415 - it crosses with what it imports itself

    return time.time()


def asked(url: str, token: str, body: dict[str, Any] | None = None) -> Any:
    """Ask the public cluster's jobs API."""
    request = urllib.request.Request(  # noqa: S310 - our own loopback address
        url,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
    )
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as response:
        return json.load(response)


def logged(url: str, token: str, job: str) -> float:
    """Wait for a plain job, and return the time that it printed."""
    while True:
        status = asked(f"{url}/api/jobs/{job}", token)["status"]
        if status in ("SUCCEEDED", "FAILED", "STOPPED"):
            lines = asked(f"{url}/api/jobs/{job}/logs", token)["logs"].splitlines()
            return next(float(line.split()[1]) for line in lines if line.startswith("at "))
        time.sleep(0.1)


def plain(url: str, token: str) -> float:
    """Return the seconds from the submission of a plain job to its first step."""
    began, job = time.time(), f"plain-{uuid.uuid4().hex[:8]}"
    asked(f"{url}/api/jobs/", token, {"entrypoint": f'{sys.executable} -c "{PLAIN}"', "submission_id": job})
    return logged(url, token, job) - began


def by_command(url: str, token: str) -> float:
    """Return the same for `ray job submit`."""
    began, job = time.time(), f"command-{uuid.uuid4().hex[:8]}"
    ours = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env = {**ours, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_API_SERVER_ADDRESS": url}
    command = [str(Path(sys.executable).with_name("ray")), "job", "submit", "--no-wait", "--submission-id", job]
    subprocess.run([*command, "--", sys.executable, "-c", PLAIN], env=env, check=True, capture_output=True)
    return logged(url, token, job) - began


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    """Start the fabric in `folder`, measure, and stop it."""
    write_starter(folder, topology=Topology.FEDERATED)
    write_people(folder / PEOPLE, rows=1_000, seed=7)
    config = load_config(folder / FILE_NAME)
    start_local(config, Environment.read(), progress=lambda _: None, tied_to_pid=os.getpid())
    try:
        cluster = running(config.state)
        assert cluster is not None  # noqa: S101 - it was started above
        url, token = cluster.nodes[1].jobs_url, cluster.outside_token_path("public").read_text()
        taken: dict[str, list[float]] = {"plain job": [], "ray job submit": [], "burst over the border": []}
        with fabric.connect(folder) as session:
            matrix = session.sanitize(session.records("people"), session.recipe("people.recipe.toml"))
            for _ in range(rounds):
                taken["plain job"].append(plain(url, token))
                taken["ray job submit"].append(by_command(url, token))
                began = time.time()
                taken["burst over the border"].append(session.burst(first_step, matrix, justification="test") - began)
    finally:
        stop(config.state)
    medians = {name: statistics.median(each) for name, each in taken.items()}
    return {
        "rounds": rounds,
        "seconds": medians,
        "each": taken,
        "ratio": medians["burst over the border"] / medians["plain job"],
        "ratio_to_command": medians["burst over the border"] / medians["ray job submit"],
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="submit to first step in another zone's own cluster")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="federated-") as folder:
        found = measure(Path(folder), chosen.rounds)
    if chosen.json:
        print(json.dumps(found, indent=2))
        return
    for name, seconds in found["seconds"].items():
        print(f"{name:<24} {seconds:6.2f} s from submit to first step")
    print(f"ratio to the plain job {found['ratio']:.2f}, to `ray job submit` {found['ratio_to_command']:.2f}")


if __name__ == "__main__":
    main()
