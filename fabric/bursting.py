"""Bursts: one function over one matrix in another zone, and its result back.

The function crosses as a capsule that was read before it left. Its result comes back as JSON or Arrow IPC, bounded;
of an error only the class's name does.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

import pyarrow as pa
import ray

from fabric.artifacts import canonical, digest
from fabric.border import Errand
from fabric.capsule import open_capsule, seal_capsule
from fabric.carriage import ObjectStoreCarrier, receive
from fabric.crossing import Cargo, SealedCapsule, Ticket
from fabric.errors import FabricError, InvalidInput, Reason, RemoteFailure
from fabric.matrix import SealedMatrix
from fabric.session import Session
from fabric.training import recorded_job

MAX_RESULT_BYTES = 64 * 1024 * 1024

InspectText = Callable[[str], Collection[str]]


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
        fn: gets the matrix as a pyarrow.Table; returns JSON values or a pyarrow.Table.
        inspect_text: names the identifiers that Presidio finds in a text.
        parameters: small JSON settings.

    Raises:
        CapsuleRefused: the function carries something that must not cross.
        Refused: by policy or the border; `PARAMETERS_REFUSED`.
        RemoteFailure: the function failed; only the name of its error's class came back.
        InvalidInput: `RESULT_REFUSED`.
    """
    sealed = seal(session, fn, inspect_text)
    settings = _parameters(session, parameters or {}, inspect_text)
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
        kind, content = ray.get(task.remote(crossing.ticket))
        with session.border.refusals("return", errand.zone, session.job):
            result = _result(kind, content)
        session.ledger.observe(
            "return",
            {"crossing": crossing.id, "job": session.job, "from_zone": errand.zone.name, "digest": digest(content)},
        )
        return result


def _parameters(session: Session, parameters: Mapping[str, Any], inspect_text: InspectText) -> bytes:
    with session.border.refusals("parameters", None, session.job):
        try:
            content = canonical(dict(parameters))
        except Exception:  # noqa: BLE001 - the encoder's message quotes the value
            raise InvalidInput(
                Reason.PARAMETERS_REFUSED,
                "the parameters are not JSON",
                "pass numbers, short texts, lists and mappings",
            ) from None
        found = sorted({entity for text in _leaves(json.loads(content)) for entity in inspect_text(text)})
        if found:
            raise InvalidInput(
                Reason.PARAMETERS_REFUSED,
                f"the parameters hold what looks like {', '.join(found)}",
                "put data into records and sanitize them; parameters are for settings",
            )
    return content


def _leaves(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in (key, *_leaves(item))]
    if isinstance(value, list):
        return [leaf for item in value for leaf in _leaves(item)]
    return [] if value is None or isinstance(value, bool) else [str(value)]


def _work(ticket: Ticket) -> tuple[str, bytes]:
    """Run in the other zone: admit, open the capsule, run it, and return bytes."""
    try:
        admitted = receive(ticket)
        fn = open_capsule(admitted.capsule, digest(admitted.capsule))
        return _encode(fn(admitted.table, **json.loads(admitted.parameters)))
    except FabricError as error:
        return "refusal", json.dumps(error.to_json()).encode()
    except Exception as error:  # noqa: BLE001 - a message of any class may carry data
        return "error", type(error).__name__.encode()


def _encode(result: object) -> tuple[str, bytes]:
    if isinstance(result, pa.Table):
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, result.schema) as writer:
            writer.write_table(result)
        return "arrow", sink.getvalue()
    try:
        return "json", json.dumps(result, allow_nan=False).encode()
    except (TypeError, ValueError):
        raise InvalidInput(
            Reason.RESULT_REFUSED,
            f"the function returned a {type(result).__name__}",
            "return finite numbers, texts, lists, mappings, or a pyarrow.Table",
        ) from None


def _result(kind: object, content: object) -> Any:
    if not isinstance(kind, str) or not isinstance(content, bytes) or len(content) > MAX_RESULT_BYTES:
        raise InvalidInput(Reason.RESULT_REFUSED, f"the result is not up to {MAX_RESULT_BYTES} bytes", "return less")
    try:
        if kind == "json":
            return json.loads(content)
        if kind == "arrow":
            table = pa.ipc.open_stream(content).read_all()
            table.validate(full=True)
            return table
        if kind == "refusal":
            raw = json.loads(content)
            refusal = RemoteFailure(raw["code"], f"in the other zone: {raw['message']}", str(raw["hint"]))
    except (ValueError, KeyError, TypeError, RecursionError, pa.ArrowException):
        raise InvalidInput(Reason.RESULT_REFUSED, "the result is neither JSON nor Arrow", "run it again") from None
    if kind == "refusal":
        raise refusal
    raise RemoteFailure(
        Reason.REMOTE_FAILED,
        f"the function failed in the other zone with {content[:80].decode('ascii', 'replace')}",
        "its message stays there, because messages carry data; try the function on matrix.table() inside",
    )
