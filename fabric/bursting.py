"""Bursts: one function over one matrix in another zone, and its result back.

The function crosses as a capsule that was read before it left. Its result comes back as JSON or Arrow IPC, bounded;
of an error only the class's name does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import ray

from fabric.artifacts import digest
from fabric.border import Errand
from fabric.capsule import open_capsule, seal_capsule
from fabric.carriage import ObjectStoreCarrier, receive
from fabric.constants import InspectText
from fabric.crossing import Cargo, SealedCapsule, Ticket
from fabric.matrix import SealedMatrix
from fabric.parameters import seal_parameters
from fabric.results import decode, encode, encode_error
from fabric.session import Session
from fabric.training import recorded_job, reraise


def seal(session: Session, fn: Callable[..., Any], inspect_text: InspectText) -> SealedCapsule:
    """Read the bytes of `fn` before they cross and sign what was found; a refusal is recorded.

    Raises:
        CapsuleRefused: it carries data, an identifier, or more than a function should.
    """
    with session.border.refusals("capsule", None, session.job):
        capsule = seal_capsule(fn, inspect_text=inspect_text)
    return session.border.state_capsule(capsule.payload, capsule.xray.to_json())


def burst(
    session: Session,
    matrix: SealedMatrix,
    fn: Callable[..., Any],
    errand: Errand,
    *,
    inspect_text: InspectText,
    parameters: Mapping[str, Any] | None = None,
) -> Any:
    """Run `fn(table, **parameters)` in the errand's zone and return its result.

    Args:
        fn: gets the matrix as a pyarrow.Table; returns JSON values or a pyarrow.Table of numbers.
        inspect_text: names the identifiers that Presidio finds in a text.
        parameters: small JSON settings.

    Raises:
        CapsuleRefused: the function carries something that must not cross.
        Refused: by policy or the border; `PARAMETERS_REFUSED`.
        RemoteFailure: the function failed; only the name of its error's class came back.
        InvalidInput: `RESULT_REFUSED`.
    """
    sealed = seal(session, fn, inspect_text)
    with session.border.refusals("parameters", None, session.job):
        settings = seal_parameters(parameters or {}, inspect_text=inspect_text, columns=matrix.columns)
    placement = session.place(errand, workers=1)
    cargo = Cargo(matrix=matrix, capsule=sealed, parameters=settings)
    crossing = session.border.export(cargo, errand, ObjectStoreCarrier())
    with recorded_job(session, errand, placement, crossing, "burst", digest(sealed.payload)):
        resources = dict(placement.resources_per_worker)
        task = ray.remote(_work).options(
            name="fabric.burst",
            num_cpus=resources.pop("CPU", 0),
            num_gpus=resources.pop("GPU", 0),
            resources=resources,
            label_selector=placement.label_selector,
            max_retries=0,
        )
        try:
            answer = ray.get(task.remote(crossing.ticket))
        except ray.exceptions.RayError as error:
            reraise(error)
        with session.border.refusals("return", errand.zone, session.job):
            result = decode(answer)
        session.ledger.observe(
            "return",
            {
                "crossing": crossing.id,
                "job": session.job,
                "from_zone": errand.zone.name,
                "digest": digest(b"".join(answer[1:])),
            },
        )
        return result


def _work(ticket: Ticket) -> tuple[Any, ...]:
    """Run in the other zone: admit, open the capsule, run it, and return bytes."""
    try:
        admitted = receive(ticket)
        fn = open_capsule(admitted.capsule, digest(admitted.capsule))
        return encode(fn(admitted.table, **json.loads(admitted.parameters)))
    except BaseException as error:  # noqa: BLE001 - a message of any class may carry data, SystemExit's too
        return encode_error(error)
