"""One function over one matrix in this process's Ray cluster: a task that admits, opens the capsule and runs it."""

from __future__ import annotations

import json
from typing import Any

import ray

from fabric.artifacts import digest
from fabric.attempts import Room, reraise
from fabric.capsule import open_capsule
from fabric.carriage import receive
from fabric.crossing import Ticket
from fabric.results import encode, encode_error


def call(ticket: Ticket, room: Room) -> Any:
    """Run the function of a crossing on one worker and return its answer: a kind and byte strings, not yet believed.

    Raises:
        RemoteFailure: `REMOTE_FAILED`: the worker died.
    """
    resources = dict(room.resources)
    task = ray.remote(_work).options(
        name="fabric.burst",
        num_cpus=resources.pop("CPU", 0),
        num_gpus=resources.pop("GPU", 0),
        resources=resources,
        label_selector=dict(room.selector),
        max_retries=0,
    )
    try:
        return ray.get(task.remote(ticket))
    except ray.exceptions.RayError as error:
        reraise(error)


def _work(ticket: Ticket) -> tuple[Any, ...]:
    """Run in the zone: admit, open the capsule, run it, and return bytes."""
    try:
        admitted = receive(ticket)
        fn = open_capsule(admitted.capsule, digest(admitted.capsule))
        return encode(fn(admitted.table, **json.loads(admitted.parameters)))
    except BaseException as error:  # noqa: BLE001 - a message of any class may carry data, SystemExit's too
        return encode_error(error)
