"""Bursts: one function over one matrix in another zone, and its result back.

The function crosses as a capsule that was read before it left. Its result comes back as JSON or Arrow IPC, bounded;
of an error only the class's name does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

import pyarrow as pa
import ray

from fabric.artifacts import canonical, digest
from fabric.border import Errand
from fabric.capsule import open_capsule, seal_capsule
from fabric.carriage import ObjectStoreCarrier, receive
from fabric.constants import CapsuleLimits, Constants
from fabric.crossing import Cargo, SealedCapsule, Ticket
from fabric.datatypes import is_rows
from fabric.errors import FabricError, InvalidInput, Reason, RemoteFailure, StatementInvalid
from fabric.matrix import SealedMatrix
from fabric.session import Session
from fabric.training import recorded_job, reraise
from sanitize.sealing import open_chunk
from sanitize.sealing import seal as seal_table

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
        try:
            answer = ray.get(task.remote(crossing.ticket))
        except ray.exceptions.RayError as error:
            reraise(error)
        with session.border.refusals("return", errand.zone, session.job):
            result = _result(answer)
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
        problem = _unfit(json.loads(content), Constants(inspect_text, CapsuleLimits()))
        if problem:
            raise InvalidInput(
                Reason.PARAMETERS_REFUSED,
                f"the parameters hold {problem}",
                "put data into records and sanitize them; parameters are for settings",
            )
    return content


def _unfit(parameters: Any, constants: Constants) -> str:
    """Say what in the parameters is no setting, by the rules for constants in code; empty if nothing is."""
    leaves = 0
    names: list[str] = []
    texts: list[str] = []
    waiting = [parameters]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict | list):
            if is_rows(value):
                return "rows of data"
            waiting += reversed(value.values() if isinstance(value, dict) else value)
            names += value if isinstance(value, dict) else []
            continue
        leaves += 1
        if isinstance(value, str):
            texts.append(value)
        problem = None if value is None or isinstance(value, bool) else constants.problem(value)
        if problem is not None:
            return f"{leaves} values, one of them refused ({problem.reason.value})"
    if leaves > constants.limits.items:
        return f"{leaves} values, more than {constants.limits.items}"
    for name in names:
        if constants.problem(name) is not None:
            return "a name that is refused"
    if any(constants.joined(parts) is not None for parts in (texts, texts[::-1], names)):
        return "an identifier in parts"
    return ""


def _work(ticket: Ticket) -> tuple[Any, ...]:
    """Run in the other zone: admit, open the capsule, run it, and return bytes."""
    try:
        admitted = receive(ticket)
        fn = open_capsule(admitted.capsule, digest(admitted.capsule))
        return _encode(fn(admitted.table, **json.loads(admitted.parameters)))
    except FabricError as error:
        return "refusal", json.dumps(error.to_json()).encode()
    except BaseException as error:  # noqa: BLE001 - a message of any class may carry data, SystemExit's too
        return "error", type(error).__name__.encode()


def _encode(result: object) -> tuple[Any, ...]:
    if isinstance(result, pa.Table):
        schema = [[field.name, str(field.type)] for field in result.schema]
        return "table", json.dumps(schema).encode(), *seal_table(result)
    try:
        return "json", json.dumps(result, allow_nan=False).encode()
    except (TypeError, ValueError):
        raise InvalidInput(
            Reason.RESULT_REFUSED,
            f"the function returned a {type(result).__name__}",
            "return finite numbers, texts, lists, mappings, or a pyarrow.Table of numbers",
        ) from None


def _result(answer: object) -> Any:
    """Open what came back, trusting nothing about it."""
    if not isinstance(answer, tuple) or len(answer) < 2 or not all(isinstance(part, bytes) for part in answer[1:]):
        raise InvalidInput(Reason.RESULT_REFUSED, "the result is of no known kind", "run it again")
    kind, content, *chunks = answer
    if sum(map(len, answer[1:])) > MAX_RESULT_BYTES:
        raise InvalidInput(Reason.RESULT_REFUSED, f"the result is larger than {MAX_RESULT_BYTES} bytes", "return less")
    try:
        if kind == "json":
            return json.loads(content)
        if kind == "table":
            # Sealed chunks hold plain numbers, uncompressed, to the byte: none can unfold into more than it weighs.
            schema = {str(name): str(type_) for name, type_ in json.loads(content)}
            return pa.Table.from_batches([open_chunk(chunk, schema) for chunk in chunks])
        if kind == "refusal":
            raw = json.loads(content)
            refusal = RemoteFailure(raw["code"], f"in the other zone: {raw['message']}", str(raw["hint"]))
    except (ValueError, KeyError, TypeError, RecursionError, pa.ArrowException, StatementInvalid):
        raise InvalidInput(Reason.RESULT_REFUSED, "the result is neither JSON nor a table", "run it again") from None
    if kind == "refusal":
        raise refusal
    raise RemoteFailure(
        Reason.REMOTE_FAILED,
        f"the function failed in the other zone with {content[:80].decode('ascii', 'replace')}",
        "its message stays there, because messages carry data; try the function on matrix.table() inside",
    )
