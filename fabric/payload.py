"""Payloads: the pickled bytes of outbound code, read opcode by opcode and put together from stand-ins, never run.

Every constant in the bytes is read; every global must be approved; nothing may be called but what rebuilds functions,
classes and plain objects. So a table, whose pickle calls Arrow, cannot cross, however it got in. What is captured must
be written in the program, but for a few settings.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Iterator
from typing import Any, Never

from fabric.approved import APPROVED_PACKAGES, is_approved
from fabric.constants import NO_DATA, Constants, Problem, is_setting
from fabric.datatypes import is_rows, leaves
from fabric.errors import Reason
from fabric.literals import Program, unwritten
from fabric.xray import Capture, human_size, refused

CODE_FILE = "<capsule>"
KIND = "part of the bytes"

_CLOUDPICKLE = "cloudpickle.cloudpickle"
_REBUILDERS = frozenset(
    {
        "_builtin_type",
        "_class_setstate",
        "_empty_cell_value",
        "_function_setstate",
        "_get_dataclass_field_type_sentinel",
        "_make_cell",
        "_make_empty_cell",
        "_make_function",
        "_make_skeleton_class",
        "_make_skeleton_enum",
        "subimport",
    }
)
_CALLABLE = frozenset(
    {
        *(f"{_CLOUDPICKLE}.{name}" for name in _REBUILDERS),
        "builtins.classmethod",
        "builtins.complex",
        "builtins.property",
        "builtins.staticmethod",
        "builtins.type",
        "functools.partial",
        "re._compile",
        "types.CodeType",
        "types.MappingProxyType",
        "types.MethodType",
    }
)
_CONSTANTS = {
    *("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8"),
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
}
_STRUCTURE = {
    *("PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP", "MEMOIZE", "BINGET", "LONG_BINGET"),
    *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT"),
    *("SETITEM", "SETITEMS", "EMPTY_SET", "ADDITEMS", "FROZENSET", "NONE", "NEWTRUE", "NEWFALSE"),
    *("STACK_GLOBAL", "REDUCE", "NEWOBJ", "NEWOBJ_EX", "BUILD"),
}
_SCALARS = (str, bytes, int, float, complex)
_CAPTURING = ("__globals__", "__kwdefaults__", "__defaults__")
_NAMES = ("__module__", "__qualname__", "__doc__", "__slots__")
_FIX = "use plain functions, classes and values"
_PLACES_IN_CODE = {"co_code": 6, "co_consts": 7, "co_filename": 10, "co_linetable": 14, "co_exceptiontable": 15}


class _NotPlainError(Exception):
    """A global or a call that plain code does not need."""

    def __init__(self, path: str) -> None:
        self.path = path
        super().__init__(path)


def read_payload(payload: bytes, constants: Constants, program: Program) -> list[Capture]:
    """Return what must not cross in the pickled bytes of a function; nothing if they may.

    Args:
        payload: the bytes.
        constants: reads what is in them.
        program: the files that the function was written in.

    Raises:
        CapsuleRefused: `INSPECTION_FAILED` if a text could not be inspected.
    """
    limit = constants.limits.payload_bytes
    if len(payload) > limit:
        fix = f"split the function, or shorten it to {human_size(limit)}"
        return [_refusal("bytes", Reason.CAPSULE_TOO_LARGE, human_size(len(payload)), fix, len(payload))]
    # 1. Put it together from stand-ins: which globals, which calls, how many values.
    parts = _Parts(io.BytesIO(payload))
    try:
        parts.load()
    except _NotPlainError as unexpected:
        return [_not_plain(unexpected.path, constants)]
    except Exception as error:  # noqa: BLE001 - bytes that plain code does not make; the error may quote them
        return [_refusal(type(error).__name__, Reason.CAPSULE_UNREADABLE, "", _FIX)]
    # 2. Read every constant, wherever it is.
    return [*_sizes(parts, constants), *_computed(parts, constants, program), *_texts(payload, parts, constants)]


class _Parts(pickle.Unpickler):
    """Loads a pickle in which every global is a stand-in that remembers what it was called with."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.held: list[object] = []
        self.captured: list[object] = []
        self.literals: list[tuple[object, ...]] = []
        self.bytecode: set[bytes] = set()
        self.names: set[str] = set()

    def find_class(self, module: str, name: str) -> type:
        """Return a stand-in for an approved global."""
        self.names |= {module, name}
        if (module == _CLOUDPICKLE and name in _REBUILDERS) or is_approved(module):
            return self.stand_in(f"{module}.{name}")
        raise _NotPlainError(f"{module}.{name}")

    def persistent_load(self, _pid: object) -> Never:
        """Refuse what lies outside the bytes."""
        raise _NotPlainError("a persistent id")

    def stand_in(self, path: str) -> type:
        """Return an inert class that answers for the global at `path`."""
        return _StandIn("StandIn", (), {"path": path, "parts": self})

    def call(self, path: str, args: tuple[Any, ...]) -> type:
        """Remember one call, and return a stand-in for its result."""
        if path == f"{_CLOUDPICKLE}.subimport" and is_approved(args[0]):
            self.names.add(args[0])
            return self.stand_in(args[0])
        if path == f"{_CLOUDPICKLE}._builtin_type":
            return self.stand_in(f"types.{args[0]}")
        if path == "builtins.getattr":
            return self.stand_in(f"{args[0].path}.{args[1]}")
        if path not in _CALLABLE or path.endswith(".subimport"):
            raise _NotPlainError(path)
        if path == "types.CodeType":
            self._code(args)
        elif path == f"{_CLOUDPICKLE}._function_setstate":
            self.held += _function_values(*args[1])
            self.captured += _function_values(args[1][0], {n: v for n, v in args[1][1].items() if n in _CAPTURING})
        elif path == f"{_CLOUDPICKLE}._class_setstate":
            self.held += args[1][0].values()
            self.captured += (value for name, value in args[1][0].items() if name not in _NAMES)
        else:
            self.held += args
            self.captured += _captured(path, args)
        return self.stand_in(f"{path}()")

    def make(self, path: str, args: tuple[Any, ...]) -> _Made:
        """Remember one plain object, and return a stand-in for it."""
        if path.partition(".")[0] in ("numpy", "pyarrow"):
            raise _NotPlainError(path)
        self.held += args
        self.captured += args
        return _Made(self)

    def _code(self, args: tuple[Any, ...]) -> None:
        place = {name: args[index] for name, index in _PLACES_IN_CODE.items()}
        if place["co_filename"] != CODE_FILE or place["co_linetable"]:
            raise _NotPlainError("a file name or line table")
        self.bytecode |= {place["co_code"], place["co_exceptiontable"]}
        self.literals.append(place["co_consts"])


class _StandIn(type):
    """The class of stand-ins: calling one calls nothing, giving one a state sets nothing."""

    path: str
    parts: _Parts

    def __call__(cls, *args: Any) -> Any:
        return cls.parts.call(cls.path, args)

    def __new__(mcs, name: str, bases: tuple[type, ...], attributes: dict[str, Any]) -> _StandIn:
        def new(cls: _StandIn, *args: Any, **named: Any) -> _Made:
            return cls.parts.make(cls.path, (*args, *named.values()))

        return super().__new__(mcs, name, bases, {**attributes, "__new__": new})

    def __setstate__(cls, state: object) -> None:
        cls.parts.held += _state_values(state)
        cls.parts.captured += _state_values(state)


class _Made:
    """A stand-in for a plain object."""

    def __init__(self, parts: _Parts) -> None:
        self._parts = parts

    def __setstate__(self, state: object) -> None:
        self._parts.held += _state_values(state)
        self._parts.captured += _state_values(state)


def _function_values(attributes: dict[str, object], slots: dict[str, Any]) -> Iterator[object]:
    """Yield each value that a function captures; the dicts and tuples around them are the pickle's own."""
    yield from attributes.values()
    for name, value in slots.items():
        if name in ("__globals__", "__kwdefaults__"):
            yield from (value or {}).values()
        elif name == "__defaults__":
            yield from value or ()
        else:
            yield value


def _captured(path: str, args: tuple[Any, ...]) -> Iterator[object]:
    """Yield what a call was given to keep; names, flags and bases that rebuild a class or a function are not."""
    if path.removeprefix(f"{_CLOUDPICKLE}.") in ("_make_cell", "functools.partial", "re._compile", "builtins.property"):
        yield from args
    elif path == f"{_CLOUDPICKLE}._make_skeleton_enum":
        yield args[3]


def _state_values(state: Any) -> Iterator[object]:
    """Yield each attribute of an object: its state is a dict, a list, or a pair of a dict and one of slots."""
    for part in state if isinstance(state, tuple) else (state,):
        yield from part.values() if isinstance(part, dict) else part if isinstance(part, list) else (part,)


def _sizes(parts: _Parts, constants: Constants) -> Iterator[Capture]:
    limits = constants.limits
    for value in parts.held:
        count = sum(1 for _ in leaves(value))
        if is_rows(value) or (isinstance(value, list | tuple | set | frozenset | dict) and count > limits.items):
            yield _too_many(type(value).__name__, count)
    literals = sum(1 for consts in parts.literals for _ in leaves(consts))
    if literals > limits.constants or any(is_rows(item) for consts in parts.literals for item in consts):
        yield _too_many("constants", literals)


def _computed(parts: _Parts, constants: Constants, program: Program) -> Iterator[Capture]:
    """Yield a refusal where captured values are not written in the program; each distinct value counts once here."""
    held = {(type(leaf), leaf) for value in parts.captured for leaf in leaves(value) if type(leaf) in _SCALARS}
    computed = [value for _, value in held if not program.says(value)]
    limit = constants.limits.computed
    if len(computed) > limit or not all(map(is_setting, computed)):
        yield refused("capsule", KIND, "captured", unwritten(len(computed), limit))


def _texts(payload: bytes, parts: _Parts, constants: Constants) -> Iterator[Capture]:
    for opcode, value, _ in pickletools.genops(payload):
        if opcode.name in _CONSTANTS and value is not None:
            problem = _constant(value, parts, constants)
            if problem:
                yield refused("capsule", KIND, f"{type(value).__name__} constant", problem)
        elif opcode.name not in _STRUCTURE:
            yield _refusal(f"opcode {opcode.name}", Reason.CAPSULE_UNREADABLE, "", _FIX)


def _constant(value: Any, parts: _Parts, constants: Constants) -> Problem | None:
    if isinstance(value, bytes) and value in parts.bytecode:
        return constants.machine_code(value)
    if isinstance(value, str) and value in parts.names:
        return constants.problem(value.replace(".", " "))  # a dotted name is no web address
    return constants.problem(value)


def _not_plain(path: str, constants: Constants) -> Capture:
    package = path.partition(".")[0]
    is_data = package in APPROVED_PACKAGES or package == "pandas"
    reason = Reason.CAPSULE_CAPTURES_DATA if is_data else Reason.CAPSULE_UNREADABLE
    return _refusal(constants.shown(path), reason, "", NO_DATA if is_data else _FIX)


def _too_many(type_name: str, count: int) -> Capture:
    return _refusal(type_name, Reason.CAPSULE_CAPTURES_DATA, f"{count:,} values", NO_DATA)


def _refusal(type_name: str, reason: Reason, size_text: str, fix: str, size_bytes: int | None = None) -> Capture:
    problem = Problem(reason=reason, size_text=size_text, fix=fix, size_bytes=size_bytes)
    return refused("capsule", KIND, type_name, problem)
