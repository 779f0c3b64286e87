"""Parameters: the settings that cross beside a matrix, as canonical JSON. Bounded, read, and no place for data.

A parameter is a number of five significant digits or a single word, a list or mapping of these, or the name of a
column. What is more precise or longer belongs into records, which are sanitized, or into the code, which is read.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from fabric.artifacts import canonical
from fabric.constants import CapsuleLimits, Constants, InspectText, is_setting
from fabric.datatypes import is_rows
from fabric.errors import InvalidInput, Reason

MAX_PARAMETER_BYTES = 16 * 1024
MAX_DEPTH = 8
DEFAULT_LIMITS = CapsuleLimits()
_SETTINGS = "put data into records and sanitize them; parameters are for settings"


def seal_parameters(
    parameters: Mapping[str, Any],
    *,
    inspect_text: InspectText,
    columns: Collection[str] = (),
    limits: CapsuleLimits = DEFAULT_LIMITS,
) -> bytes:
    """Return the parameters as the canonical JSON that crosses.

    Args:
        parameters: JSON values by name.
        inspect_text: returns the names of the identifier entities in a text.
        columns: of the matrix; their names may be longer than a word.
        limits: how many values, and how much of each.

    Raises:
        InvalidInput: `PARAMETERS_REFUSED`.
        CapsuleRefused: `INSPECTION_FAILED`.
    """
    try:
        content = canonical(dict(parameters))
    except Exception:  # noqa: BLE001 - the encoder's message quotes the value
        raise _refused("the parameters are not JSON", "pass numbers, short texts, lists and mappings") from None
    # What is read are the very bytes that cross, not the objects they were made from.
    check_parameters(content, inspect_text=inspect_text, columns=columns, limits=limits)
    return content


def check_parameters(
    content: bytes,
    *,
    inspect_text: InspectText = lambda text: (),
    columns: Collection[str] = (),
    limits: CapsuleLimits = DEFAULT_LIMITS,
) -> None:
    """Refuse bytes that are not the canonical JSON of settings. The border asks this again, of the bytes that move.

    Raises:
        InvalidInput: `PARAMETERS_REFUSED`.
    """
    if len(content) > MAX_PARAMETER_BYTES:
        raise _refused(f"the parameters take {len(content):,} bytes, {MAX_PARAMETER_BYTES:,} may cross", _SETTINGS)
    try:
        parameters = json.loads(content)
        plain = isinstance(parameters, dict) and canonical(parameters) == content
    except Exception:  # noqa: BLE001 - whatever foreign bytes make the parser or the encoder raise
        plain = False
    if not plain:
        raise _refused("the parameters are not canonical JSON", "give them to burst(), which writes it")
    if problem := unfit(parameters, Constants(inspect_text, limits), columns):
        raise _refused(f"the parameters hold {problem}", _SETTINGS)


def unfit(parameters: Any, constants: Constants, columns: Collection[str] = ()) -> str:
    """Say what in the parameters is no setting; empty if nothing is."""
    values: list[Any] = []
    names: list[str] = []
    depth = 0
    waiting = [(parameters, 1)]
    while waiting:
        value, level = waiting.pop()
        depth = max(depth, level)
        if isinstance(value, dict | list):
            if is_rows(value):
                return "rows of data"
            waiting += ((each, level + 1) for each in reversed(value.values() if isinstance(value, dict) else value))
            names += value if isinstance(value, dict) else []
            continue
        values.append(value)
    if depth > MAX_DEPTH:
        return f"{depth} levels, more than {MAX_DEPTH}"
    if len(values) > constants.limits.items or len(names) > constants.limits.items:
        return f"{len(values)} values and {len(names)} names, more than {constants.limits.items}"
    return _unfit_names(names, columns, constants) or _unfit_values(values, columns, constants)


def _unfit_names(names: Iterable[str], columns: Collection[str], constants: Constants) -> str:
    for name in names:
        if constants.problem(name) is not None or not (name in columns or is_setting(name)):
            return "a name that is refused"
    return "an identifier in the names" if constants.joined(list(names)) is not None else ""


def _unfit_values(values: list[Any], columns: Collection[str], constants: Constants) -> str:
    for value in values:
        if value is None or isinstance(value, bool):
            continue
        if (problem := constants.problem(value)) is not None:
            return f"{len(values)} values, one of them refused ({problem.reason.value})"
        if value not in columns and not is_setting(value):
            what = "a text that is no single short word" if isinstance(value, str) else "a number of many digits"
            return f"{len(values)} values, one of them {what}"
    texts = [value for value in values if isinstance(value, str)]
    if constants.joined(texts) is not None or constants.spelled(values) is not None:
        return "an identifier in parts"
    return ""


def _refused(message: str, hint: str) -> InvalidInput:
    return InvalidInput(Reason.PARAMETERS_REFUSED, message, hint)
