"""Results: what a function in another zone returns, as bytes that cannot execute, and how they are read back.

A result is JSON or a table of numbers; of an error only the class's name comes back. `decode` trusts nothing: not the
kinds, not the sizes, not the text of a refusal, which whoever holds the other zone may have written.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from fabric.errors import FabricError, InvalidInput, Reason, RemoteFailure, StatementInvalid
from sanitize.sealing import open_chunk, seal

MAX_RESULT_BYTES = 64 * 1024 * 1024
MAX_JSON_DEPTH = 32
MAX_JSON_VALUES = 4_000_000
"""Values in a result of JSON, at most, commas in texts counted: an empty list of two bytes takes fifty in memory."""
_INTEGER_DIGITS = 20
_SHOWN_CHARS = 400

Answer = tuple[Any, ...]


def encode(result: object) -> Answer:
    """Return a function's result as a kind and byte strings.

    Raises:
        InvalidInput: `RESULT_REFUSED`: neither JSON nor a table of numbers.
    """
    if isinstance(result, pa.Table):
        schema = [[field.name, str(field.type)] for field in result.schema]
        return "table", json.dumps(schema).encode(), *seal(result)
    try:
        return "json", json.dumps(result, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError):
        raise InvalidInput(
            Reason.RESULT_REFUSED,
            f"the function returned a {type(result).__name__}",
            "return finite numbers, texts, lists, mappings, or a pyarrow.Table of numbers",
        ) from None


def encode_error(error: BaseException) -> Answer:
    """Return what may be told of an error: our own refusals whole, of any other the class's name."""
    if isinstance(error, FabricError):
        return "refusal", json.dumps(error.to_json()).encode()
    return "error", type(error).__name__.encode()


def decode(answer: object) -> Any:
    """Return the result in what came back.

    Raises:
        InvalidInput: `RESULT_REFUSED`.
        RemoteFailure: the function failed; only the name of its error's class came back.
    """
    # 1. The shape and the size.
    if not isinstance(answer, tuple) or len(answer) < 2 or not all(type(part) is bytes for part in answer[1:]):
        raise _refused("the result is of no known kind", "run it again")
    kind, content, *chunks = answer
    if sum(map(len, answer[1:])) > MAX_RESULT_BYTES:
        raise _refused(f"the result is larger than {MAX_RESULT_BYTES} bytes", "return less")
    # 2. The content, by the rules of its kind.
    if kind == "table":
        return _table(content, chunks)
    if chunks or kind not in ("json", "refusal", "error"):
        raise _refused("the result is of no known kind", "run it again")
    if kind == "json":
        return read_json(content)
    raise told_failure(kind, content, what="the function", way_out="; try the function on matrix.table() inside")


def told_failure(kind: str, content: bytes, *, what: str, way_out: str = "") -> FabricError:
    """Return the failure that an answer of kind "refusal" or "error" tells of: a token of ours, or a class's name."""
    if kind == "refusal":
        return _told(content)
    return RemoteFailure(
        Reason.REMOTE_FAILED,
        f"{what} failed in the other zone with {_class_name(content)}",
        f"its message stays there, because messages carry data{way_out}",
    )


def read_json(content: bytes) -> Any:
    """Return the JSON in bytes from anywhere: UTF-8, no name twice, finite numbers, bounded depth, size and integers.

    Raises:
        InvalidInput: `RESULT_REFUSED`.
    """
    if sum(map(content.count, (b",", b"[", b"{"))) > MAX_JSON_VALUES:
        raise _refused(f"the result has more than {MAX_JSON_VALUES} values", "return a pyarrow.Table of numbers")
    try:
        value = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_once,
            parse_constant=_never,
            parse_float=_finite,
            parse_int=_bounded,
        )
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # half a surrogate pair is no text
        if _depth(value) > MAX_JSON_DEPTH:
            raise ValueError("too deep")
    except (ValueError, TypeError, RecursionError):
        raise _refused("the result is not plain JSON", "run it again") from None
    return value


def _table(content: bytes, chunks: Sequence[bytes]) -> pa.Table:
    try:
        stated = [(str(name), str(kind)) for name, kind in read_json(content)]
        if len(dict(stated)) != len(stated):
            raise ValueError("two columns of one name")
        # Sealed chunks hold plain numbers, uncompressed, to the byte: none can unfold into more than it weighs.
        return pa.Table.from_batches([open_chunk(chunk, dict(stated)) for chunk in chunks])
    except (ValueError, TypeError, pa.ArrowException, StatementInvalid):
        raise _refused("the result is no table of numbers", "run it again") from None


def _told(content: bytes) -> FabricError:
    try:
        raw = read_json(content)
        message, hint = _plain(raw["message"]), _plain(raw["hint"])
        return RemoteFailure(raw["code"], f"in the other zone: {message}", hint)
    except (ValueError, KeyError, TypeError):
        return _refused("the result is a refusal of no known kind", "run it again")


def _plain(text: object) -> str:
    """Return a text from another zone as it may be shown: no control characters, not long."""
    kept = "".join(char if char.isprintable() else " " for char in str(text)[: _SHOWN_CHARS + 1])
    return kept if len(kept) <= _SHOWN_CHARS else f"{kept[:_SHOWN_CHARS]}..."


def _class_name(content: bytes) -> str:
    name = content[:80].decode("ascii", "replace")
    return name if name.isidentifier() else "an error"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name twice")
    return found


def _never(text: str) -> Any:
    raise ValueError("not a finite number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("not a finite number")
    return number


def _bounded(text: str) -> int:
    if len(text) > _INTEGER_DIGITS:
        raise ValueError("an integer of too many digits")
    return int(text)


def _depth(value: object) -> int:
    deepest, waiting = 0, [(value, 1)]
    while waiting:
        item, level = waiting.pop()
        deepest = max(deepest, level)
        if isinstance(item, dict | list):
            waiting += ((each, level + 1) for each in (item.values() if isinstance(item, dict) else item))
    return deepest


def _refused(message: str, hint: str) -> InvalidInput:
    return InvalidInput(Reason.RESULT_REFUSED, message, hint)
