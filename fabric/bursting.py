"""Bursts: one function over one matrix in another zone, and its result back.

The function crosses as a capsule that was read before it left. Its result comes back as JSON or Arrow IPC, bounded;
of an error only the class's name does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fabric.artifacts import digest
from fabric.border import Errand
from fabric.capsule import open_capsule, seal_capsule
from fabric.constants import InspectText
from fabric.crossing import Cargo, SealedCapsule
from fabric.errors import InvalidInput, Reason
from fabric.matrix import SealedMatrix
from fabric.parameters import seal_parameters
from fabric.reaching import site_of
from fabric.results import decode
from fabric.session import Session
from fabric.training import Code, recorded_job


def seal(session: Session, fn: Callable[..., Any], inspect_text: InspectText) -> SealedCapsule:
    """Read the bytes of `fn` before they cross and sign what was found; a refusal is recorded.

    Raises:
        CapsuleRefused: it carries data, an identifier, or more than a function should.
        InvalidInput: `CONFIG_INVALID`: it is no function.
    """
    if not callable(fn):
        raise InvalidInput(
            Reason.CONFIG_INVALID,
            f"what should run in the other zone is a {type(fn).__name__}, no function",
            "give the function or class itself, not its name",
        )
    with session.border.refusals("capsule", None, session.job):
        capsule = seal_capsule(fn, inspect_text=inspect_text)
    return session.border.state_capsule(capsule.payload, capsule.xray.to_json())


def kept_code(session: Session, name: str) -> Code:
    """Return the code that was kept under its digest for a job that waited, verified before it is opened.

    Raises:
        InvalidInput: `CAPSULE_UNREADABLE` if it is gone or was changed.
        Refused: its statement does not hold.
        CapsuleRefused: `CAPSULE_UNREADABLE` if it cannot be opened with this Python.
    """
    sealed = session.kept_capsule(name)
    return Code(sealed=sealed, network=open_capsule(sealed.payload, name))


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
    site = site_of(session, errand.zone)
    crossing = session.border.export(cargo, errand, site.carrier)
    with recorded_job(session, errand, placement, crossing, "burst", digest(sealed.payload)):
        answer = site.call(crossing, placement)
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
