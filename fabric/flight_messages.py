"""Arrow Flight's messages as bytes (Flight.proto of Apache Arrow): what the border service sends, and reads of clients.

Everything that is fetched goes as record batches of one column of bytes, so that any Flight client can read it. Of what
clients send, two small messages are read, by hand and within bounds; no Arrow data from outside is ever parsed here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.ipc

SERVER_NAME = "border.fabric.internal"
"""What every client expects the server's certificate to say, whatever address it was reached under."""

SERVICE = "/arrow.flight.protocol.FlightService/"
PIECE_BYTES = 1024 * 1024
MAX_WORDS_BYTES = 128 * 1024
"""Of the JSON that comes with a request: a list of a thousand files fits."""

_MAX_DEPTH = 4
_SCHEMA = pa.schema([pa.field("bytes", pa.uint8(), nullable=False)])
_LENGTH_BYTES = 4


class MessageError(ValueError):
    """A message from outside is not one that this side takes. Holds no part of it."""


def batch(piece: memoryview) -> bytes:
    """Return FlightData of one record batch that holds `piece`."""
    header, padding = _batch_header(len(piece))
    return b"".join(
        (_key(2), _varint(len(header)), header, _key(1000), _varint(len(piece) + padding), piece, bytes(padding))
    )


@lru_cache(maxsize=1)
def schema() -> bytes:
    """Return FlightData of the schema, which goes first."""
    header: bytes = pa.ipc.read_message(_SCHEMA.serialize()).metadata.to_pybytes()
    return _key(2) + _varint(len(header)) + header


def result(body: bytes) -> bytes:
    """Return a Result with `body`."""
    return _key(1) + _varint(len(body)) + body


def read_ticket(message: bytes) -> Mapping[str, Any]:
    """Return the words of a Ticket.

    Raises:
        MessageError: it is none of ours.
    """
    if len(message) > MAX_WORDS_BYTES:
        raise MessageError("too long")
    return words(bytes(_fields(message, {1}).get(1, b"")))


def read_action(message: bytes) -> tuple[str, Mapping[str, Any], memoryview]:
    """Return an Action's type, the words at the head of its body, and the piece behind them.

    Raises:
        MessageError: it is none of ours.
    """
    found = _fields(message, {1, 2})
    kind, body = bytes(found.get(1, b"")), found.get(2, memoryview(b""))
    if not 0 < len(kind) <= 32 or not kind.isascii():
        raise MessageError("no type")
    length = int.from_bytes(body[:_LENGTH_BYTES], "big") if len(body) >= _LENGTH_BYTES else -1
    if not 0 <= length <= min(MAX_WORDS_BYTES, len(body) - _LENGTH_BYTES):
        raise MessageError("no words")
    end = _LENGTH_BYTES + length
    return kind.decode(), words(bytes(body[_LENGTH_BYTES:end])), body[end:]


def action_body(said: Mapping[str, Any], piece: bytes | memoryview = b"") -> bytes:
    """Return the body of an Action: the length of the words, the words, and a piece."""
    told = json.dumps(said).encode()
    return b"".join((len(told).to_bytes(_LENGTH_BYTES, "big"), told, piece))


def words(content: bytes) -> Mapping[str, Any]:
    """Return a small flat JSON object from anywhere.

    Raises:
        MessageError: it is too deep, too long, no object, has a name twice or a number that is no small integer.
    """
    # The depth is looked at before anything is parsed: a parser may recurse for each bracket.
    if len(content) > MAX_WORDS_BYTES or _depth(content) > _MAX_DEPTH:
        raise MessageError("too long or too deep")
    try:
        found = json.loads(
            content, object_pairs_hook=_once, parse_float=_never, parse_constant=_never, parse_int=_small
        )
    except (ValueError, RecursionError):
        raise MessageError("no JSON of ours") from None
    if not isinstance(found, dict):
        raise MessageError("no object")
    return found


def _fields(message: bytes, known: set[int]) -> dict[int, memoryview]:
    """Return the length-delimited fields of a protobuf message, each at most once, and none but those known."""
    view, at, found = memoryview(message), 0, {}
    while at < len(view):
        key, at = _read_varint(view, at)
        length, at = _read_varint(view, at)
        number = key >> 3
        if key & 7 != 2 or number not in known or number in found or length > len(view) - at:
            raise MessageError("a field of another kind")
        found[number] = view[at : at + length]
        at += length
    return found


def _read_varint(view: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for count, byte in enumerate(view[at : at + 5]):
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return value, at + count + 1
    raise MessageError("a number that does not end")


def _varint(number: int) -> bytes:
    written = bytearray()
    while number > 0x7F:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    written.append(number)
    return bytes(written)


def _key(number: int) -> bytes:
    return _varint(number << 3 | 2)


@lru_cache(maxsize=64)
def _batch_header(size: int) -> tuple[bytes, int]:
    """Return Arrow's own header of a batch of `size` bytes, and how much padding its body takes."""
    column = pa.Array.from_buffers(pa.uint8(), size, [None, pa.py_buffer(bytes(size))])
    message = pa.ipc.read_message(pa.record_batch([column], schema=_SCHEMA).serialize())
    return message.metadata.to_pybytes(), message.body.size - size


def _depth(content: bytes) -> int:
    # Brackets inside of texts count too: none of our words hold any, so nothing honest is refused.
    level = deepest = 0
    for byte in _brackets(content):
        level += 1 if byte in b"[{" else -1
        deepest = max(deepest, level)
    return deepest


def _brackets(content: bytes) -> Iterator[int]:
    return (byte for byte in content if byte in b"[]{}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name twice")
    return found


def _never(text: str) -> Any:
    raise ValueError("no number of ours")


def _small(text: str) -> int:
    if len(text) > 16:
        raise ValueError("a number too large")
    return int(text)
