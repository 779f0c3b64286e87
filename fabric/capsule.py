"""Capsules: outbound code as the exact bytes that cross, inspected before they do.

Two checks, neither trusting the other: the function is walked, for messages a person can act on, and then the pickled
bytes are read opcode by opcode without running them. The second decides, whatever became of the function since.
Where code came from does not cross: file, module and qualified names, line tables, annotations; nor does what no run
reads: docstrings, constants and names that no instruction loads.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
import io
import pickle
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import CodeType, FunctionType, MethodType
from typing import Any, ClassVar

import cloudpickle
from cloudpickle.cloudpickle import _dynamic_class_reduce

from fabric.approved import reference
from fabric.artifacts import digest
from fabric.bytecode import without_unread
from fabric.captures import Use, Walk
from fabric.constants import CapsuleLimits, Constants, InspectText, Problem
from fabric.errors import CapsuleRefused, Reason
from fabric.payload import CODE_FILE, read_payload
from fabric.xray import Capture, XRay, refused

DEFAULT_LIMITS = CapsuleLimits()
_MODULE = "capsule"
_RUN_TIME_FLAGS = 0xFFFF  # those above are of the compiler, for `from __future__` imports
_MODULE_PLACES = ("__file__", "__path__", "__package__")
_CLASS_EXTRAS = ("__annotations__", "__doc__", "__firstlineno__", "__static_attributes__")
_BUILT_IN = frozenset({type(None), bool, int, float, str, bytes, bytearray, tuple, list, dict, set, frozenset})
_DYNAMIC = 6  # parts of cloudpickle's reduction of a class by value


@dataclass(frozen=True, slots=True, kw_only=True)
class Capsule:
    """A function that may cross: its bytes, their digest, and what was seen in them."""

    payload: bytes
    digest: str
    xray: XRay


def xray(fn: Callable[..., object], *, inspect_text: InspectText, limits: CapsuleLimits = DEFAULT_LIMITS) -> XRay:
    """Say what `fn` would carry over the border, and what of it must not cross.

    Args:
        fn: a function, method, partial or other callable.
        inspect_text: returns the names of the identifier entities in a text.
        limits: how much a capsule may hold.

    Raises:
        CapsuleRefused: `INSPECTION_FAILED` if a text could not be inspected.
    """
    return _examine(fn, Constants(inspect_text, limits))[0]


def seal_capsule(
    fn: Callable[..., object], *, inspect_text: InspectText, limits: CapsuleLimits = DEFAULT_LIMITS
) -> Capsule:
    """Return `fn` as the bytes that may cross.

    Raises:
        CapsuleRefused: `CAPSULE_CAPTURES_DATA`, `CAPSULE_IDENTIFIER`, `CAPSULE_TOO_LARGE`, `CAPSULE_UNREADABLE` or
            `INSPECTION_FAILED`; the message names each refused capture, the hint is the way out of the worst.
    """
    seen, payload = _examine(fn, Constants(inspect_text, limits))
    if seen.refused:
        raise seen.error()
    return Capsule(payload=payload, digest=digest(payload), xray=seen)


def open_capsule(payload: bytes, expected_digest: str) -> Callable[..., Any]:
    """Return the function in `payload`. Runs in the zone that the capsule was sent to.

    Raises:
        CapsuleRefused: `DIGEST_MISMATCH` if these are not the bytes that were inspected, `CAPSULE_UNREADABLE` if they
            cannot be opened here.
    """
    if digest(payload) != expected_digest:
        raise CapsuleRefused(Reason.DIGEST_MISMATCH, "the capsule is not the one that was inspected", "send it again")
    try:
        python, function = pickle.loads(payload)  # noqa: S301 - the digest is the one the sender signed
    except Exception as error:  # noqa: BLE001 - a foreign error may quote a constant
        kind = type(error).__name__
        raise CapsuleRefused(
            Reason.CAPSULE_UNREADABLE,
            f"the capsule cannot be opened here ({kind})",
            "install the same Python, numpy, pyarrow and torch in both zones",
        ) from None
    if python != _python():
        raise CapsuleRefused(
            Reason.CAPSULE_UNREADABLE,
            f"the capsule was sealed with Python {python}",
            "run the same Python in both zones",
        )
    return function  # type: ignore[no-any-return]


def _examine(fn: Callable[..., object], constants: Constants) -> tuple[XRay, bytes]:
    name = constants.shown(str(getattr(fn, "__qualname__", type(fn).__qualname__)))
    # 1. Walk the function.
    walk, payload = Walk(constants), b""
    captures = _walked(walk, fn, name, constants)
    # 2. Pickle it, and believe nothing but the bytes.
    if not any(capture.reason for capture in captures):
        try:
            payload = _pickled(fn)
        except Exception as error:  # noqa: BLE001 - an object's own error may quote its content
            captures += [_unreadable(name, constants.shown(type(error).__name__))]
        else:
            captures += read_payload(payload, constants, walk.program)
    found = XRay(
        function=name,
        size_bytes=len(payload) if payload else None,
        captures=tuple(captures),
        entities=dict(constants.entities),
    )
    return found, payload


def _walked(walk: Walk, fn: Callable[..., object], name: str, constants: Constants) -> list[Capture]:
    try:
        walk.value(name, "function", fn, Use(name))
        walk.finish(name)
    except CapsuleRefused:
        raise
    except Exception as error:  # noqa: BLE001 - attributes of user objects may raise anything
        return [*walk.captures, _unreadable(name, constants.shown(type(error).__name__))]
    return walk.captures


def _unreadable(name: str, error_name: str) -> Capture:
    problem = Problem(reason=Reason.CAPSULE_UNREADABLE, size_text=error_name, fix="use plain functions and values")
    return refused(name, "function", "function", problem)


def _pickled(fn: Callable[..., object]) -> bytes:
    buffer = io.BytesIO()
    _InOrder(buffer).dump((_python(), fn))
    return buffer.getvalue()


def _python() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


class _Pickler(cloudpickle.Pickler):
    """Pickles by value everything that is not approved, without the places it came from."""

    def reducer_override(self, obj: Any) -> Any:
        """Return how `obj` is pickled."""
        if isinstance(obj, FunctionType) and vars(cloudpickle.cloudpickle).get(obj.__name__) is obj:
            return super().reducer_override(obj)
        module, name = reference(obj) or ("", "")
        if module:
            own_name = getattr(obj, "__name__", "") and obj.__module__ == module and not isinstance(obj, MethodType)
            return NotImplemented if own_name or "." in name else (getattr, (sys.modules[module], name))
        if isinstance(obj, enum.Enum):
            return getattr, (type(obj), obj.name)
        if type(obj) is property:
            return property, (obj.fget, obj.fset, obj.fdel)
        if isinstance(obj, CodeType):
            return self.dispatch_table[CodeType](_without_places(obj))
        if isinstance(obj, FunctionType):
            return self._function_by_value(obj)
        if isinstance(obj, type):
            return self._class_by_value(obj)
        if isinstance(obj, dataclasses.Field):
            plain = copy.copy(obj)
            plain.type = None
            return plain.__reduce_ex__(self.proto)
        return super().reducer_override(obj)

    def _function_getnewargs(self, func: FunctionType) -> tuple[Any, ...]:
        code, base_globals, *rest = super()._function_getnewargs(func)
        for place in _MODULE_PLACES:
            base_globals.pop(place, None)
        base_globals["__name__"] = _MODULE
        return code, base_globals, *rest

    def _function_by_value(self, func: FunctionType) -> tuple[Any, ...]:
        rebuild, args, (attributes, slots), *rest = self._dynamic_function_reduce(func)
        clean: dict[str, Any] = {
            "__annotations__": {},
            "__module__": _MODULE,
            "__qualname__": func.__name__,
            "__doc__": None,
        }
        return rebuild, args, (attributes, slots | clean), *rest

    def _class_by_value(self, cls: type) -> Any:
        known = super().reducer_override(cls)
        if known is not NotImplemented and len(known) < _DYNAMIC:
            return known  # type(None), types.CodeType and their like
        rebuild, args, (attributes, slots), *rest = _dynamic_class_reduce(cls)
        attributes = {name: value for name, value in attributes.items() if name not in _CLASS_EXTRAS}
        attributes["__module__"] = _MODULE
        # The last two arguments are a random tracker id, which would change the digest, and a spare.
        if issubclass(cls, enum.Enum):
            bases, name, _, members, *_ = args
            args = (bases, name, name, members, _MODULE, None, None)
        else:
            metaclass, name, bases, kwargs, *_ = args
            args = (metaclass, name, bases, kwargs | {"__module__": _MODULE}, None, None)
        return rebuild, args, (attributes, slots), *rest


_InPython: Any = pickle._Pickler  # its C half lets nobody else pickle a set


class _InOrder(_InPython):
    """Pickles as `_Pickler` does, and sets in an order that is the same in every process, so that the digest is too."""

    dispatch: ClassVar = dict(_InPython.dispatch)

    def __init__(self, buffer: io.BytesIO) -> None:
        super().__init__(buffer, protocol=5)
        self._by_value = _Pickler(buffer, protocol=5)
        self.dispatch_table = self._by_value.dispatch_table

    def reducer_override(self, obj: Any) -> Any:
        """Return how `obj` is pickled; what the C half pickles without asking is not asked about here either."""
        return NotImplemented if type(obj) in _BUILT_IN else self._by_value.reducer_override(obj)

    def _save_set(self, obj: set[Any]) -> None:
        self.write(pickle.EMPTY_SET)
        self.memoize(obj)
        self._save_items(obj)
        self.write(pickle.ADDITEMS)

    def _save_frozenset(self, obj: frozenset[Any]) -> None:
        self._save_items(obj)
        self.write(pickle.FROZENSET)
        self.memoize(obj)

    def _save_items(self, items: Iterable[Any]) -> None:
        self.write(pickle.MARK)
        for item in sorted(items, key=_place):
            self.save(item)

    dispatch[set], dispatch[frozenset] = _save_set, _save_frozenset


def _place(item: Any) -> tuple[str, str]:
    """Return where in a set an element comes, the same in every process: by its type, and its value or its name."""
    if isinstance(item, tuple):
        return "tuple", str([_place(each) for each in item])
    if type(item) in _BUILT_IN:
        return type(item).__name__, "" if isinstance(item, frozenset) else repr(item)
    name: object = reference(item) or getattr(item, "__qualname__", "") or getattr(item, "_name_", "")
    return type(item).__name__, str(name)


def _without_places(code: CodeType) -> CodeType:
    return without_unread(code).replace(
        co_filename=CODE_FILE,
        co_qualname=code.co_name,
        co_firstlineno=1,
        co_linetable=b"",
        co_flags=code.co_flags & _RUN_TIME_FLAGS,
    )
