"""Bytecode: what a code object names and where, and its parts that nothing reads when it runs.

What no instruction loads does not cross, docstrings among them. Bytes that no run can reach are refused: in 47,000
code objects of torch, pandas and Ray the compilers of Python 3.11 to 3.13 left at most 8.
"""

from __future__ import annotations

import dis
from collections.abc import Iterator
from types import CodeType
from typing import Any

from fabric.constants import Problem
from fabric.errors import Reason

MAX_UNREACHED_BYTES = 64
_READS_GLOBAL = {"LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"}
_READS_CELL = {"LOAD_DEREF", "LOAD_CLOSURE", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF", "LOAD_FAST"}
_UNIT = 2  # bytes of an instruction, or of one word of its cache

_ENDS = frozenset(
    {
        *("RETURN_VALUE", "RETURN_CONST", "RAISE_VARARGS", "RERAISE", "INTERPRETER_EXIT"),
        *("JUMP_FORWARD", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT"),
    }
)


def without_unread(code: CodeType) -> CodeType:
    """Return `code` with None for each constant that no instruction loads, and `_` for each name that none uses."""
    instructions = list(dis.get_instructions(code))
    loaded = {i.arg for i in instructions if i.opcode in dis.hasconst}
    used = {i.argval for i in instructions if i.opcode in dis.hasname}
    return code.replace(
        co_consts=tuple(constant if place in loaded else None for place, constant in enumerate(code.co_consts)),
        co_names=tuple(name if name in used else "_" for name in code.co_names),
    )


def _handlers(code: CodeType) -> list[int]:
    entries: list[Any] = dis.Bytecode(code).exception_entries  # type: ignore[attr-defined]
    return [entry.target for entry in entries]


def unreached_bytes(code: CodeType) -> int:
    """Return how many bytes of instructions no run of `code` can reach; all of them if it cannot be read."""
    try:
        instructions = list(dis.get_instructions(code))
        places = {instruction.offset: place for place, instruction in enumerate(instructions)}
        pending = [0, *(places[target] for target in _handlers(code))]
        seen: set[int] = set()
        while pending:
            place = pending.pop()
            if place in seen or place >= len(instructions):
                continue
            seen.add(place)
            here = instructions[place]
            if here.opcode in dis.hasjrel or here.opcode in dis.hasjabs:
                pending.append(places[here.argval])
            if here.opname not in _ENDS:
                pending.append(place + 1)
    except (KeyError, IndexError, ValueError, StopIteration):
        return len(code.co_code)
    return _UNIT * (len(instructions) - len(seen))


def unreached(size_bytes: int) -> Problem:
    """Return the refusal of bytecode that never runs."""
    return Problem(
        reason=Reason.CAPSULE_UNREADABLE,
        size_text=f"{size_bytes:,} bytes that never run",
        size_bytes=size_bytes,
        fix="use code as the compiler made it",
    )


def globals_of(code: CodeType) -> Iterator[str]:
    """Yield the global names that `code` and the code inside it read or write, each once."""
    seen = set()
    for part in _codes(code):
        for instruction in dis.get_instructions(part):
            if instruction.opname in _READS_GLOBAL and instruction.argval not in seen:
                seen.add(instruction.argval)
                yield instruction.argval


def line_of(code: CodeType, name: str) -> int | None:
    """Return the line of the file where `code`, or code inside it, first loads the variable `name`."""
    for part in _codes(code):
        for instruction in dis.get_instructions(part):
            loads = instruction.opname in _READS_GLOBAL or instruction.opname in _READS_CELL
            if loads and instruction.argval == name and instruction.positions and instruction.positions.lineno:
                return instruction.positions.lineno
    return None


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)
