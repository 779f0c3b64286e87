"""Data types: what holds data, told from names of types alone, so that no data library is imported to refuse it."""

from __future__ import annotations

import copyreg
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from fabric.approved import reference
from fabric.constants import NO_DATA, Problem
from fabric.errors import Reason
from fabric.xray import human_size

_Told = TypeVar("_Told")

SINGLETONS = (type(None), bool, type(Ellipsis), type(NotImplemented))
_ROW_COLUMNS = 4  # narrower tuples are shapes, ranges and layer sizes; wider ones of one length are records

INSIDE = "create it inside the function"
_REFERENCE = "pass the matrix itself; a reference into the private cluster must not leave it"
_OWN_PICKLING = "pass plain values: an object with its own way of pickling cannot be read before it crosses"

_DATA_PACKAGES = frozenset(
    {"cudf", "cupy", "dask", "datasets", "jax", "numpy", "pandas", "polars", "pyarrow", "scipy", "tensorflow", "xarray"}
)
_DATA_TYPES = frozenset(
    {
        "_io._IOBase",
        "_io._RawIOBase",
        "_io.BytesIO",
        "_io.StringIO",
        "_ctypes._SimpleCData",
        "_ctypes.Array",
        "array.array",
        "builtins.bytearray",
        "builtins.memoryview",
        "collections.deque",
        "mmap.mmap",
        "pickle.PickleBuffer",
        "torch._C.TensorBase",
        "torch.Tensor",
        "torch.nn.modules.module.Module",
        "torch.storage.TypedStorage",
        "torch.storage.UntypedStorage",
    }
)
_BUILTIN_VALUES = frozenset({str, bytes, int, float, complex, list, tuple, dict, set, frozenset})
_PICKLING_HOOKS = (
    "__reduce__",
    "__reduce_ex__",
    "__getstate__",
    "__getnewargs__",
    "__getnewargs_ex__",
    "__getattribute__",
)
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made by a class statement, so all its state lies in its attributes


def public_name(cls: type) -> str:
    """Return the name people know a class by: pyarrow.Table rather than pyarrow.lib.Table."""
    module = cls.__module__ if isinstance(cls.__module__, str) else ""
    package = module.partition(".")[0]
    if package in ("builtins", "__main__", ""):
        return cls.__qualname__
    if vars(sys.modules.get(package, sys)).get(cls.__name__) is cls:
        return f"{package}.{cls.__name__}"
    return f"{module}.{cls.__qualname__}"


def object_problem(value: object) -> Problem | None:
    """Say why an object must not cross; None if it is plain attributes, which the caller then reads."""
    kind = type(value)
    names = {f"{base.__module__}.{base.__qualname__}" for base in kind.__mro__}
    packages = {name.partition(".")[0] for name in names}
    if names & _DATA_TYPES or packages & _DATA_PACKAGES:
        return measured(value)
    if "ray" in packages:
        return Problem(reason=Reason.CAPSULE_CAPTURES_DATA, size_text="a handle of Ray", fix=_REFERENCE)
    if _BUILTIN_VALUES & set(kind.__mro__):
        return measured(value)
    if kind in copyreg.dispatch_table or any(_overrides(kind, hook) for hook in _PICKLING_HOOKS):
        return Problem(reason=Reason.CAPSULE_UNREADABLE, size_text="pickles itself", fix=_OWN_PICKLING)
    if not all(base.__flags__ & _HEAP_TYPE for base in kind.__mro__[:-1]):
        return Problem(reason=Reason.CAPSULE_UNREADABLE, size_text="cannot be read", fix=INSIDE)
    return None


def measured(value: object) -> Problem:
    """Return the refusal of something that holds data, with its shape and size as far as it tells them."""
    shape, size_bytes = _told(_shape, value), _told(_size_bytes, value)
    parts = [shape, human_size(size_bytes) if size_bytes is not None else None]
    size_text = ", ".join(part for part in parts if part)
    return Problem(
        reason=Reason.CAPSULE_CAPTURES_DATA,
        size_text=size_text,
        size_bytes=size_bytes,
        fix=NO_DATA if size_text else f"{NO_DATA}, or {INSIDE}",
    )


def _told(ask: Callable[[Any], _Told], value: object) -> _Told | None:
    try:
        return ask(value)
    except Exception:  # noqa: BLE001 - a subclass may answer with anything, its data too; a size is not worth an error
        return None


def _overrides(kind: type, hook: str) -> bool:
    """Say whether a class has a pickling hook of its own; what `dataclass(frozen=True, slots=True)` adds is known."""
    own = [vars(base)[hook] for base in kind.__mro__[:-1] if hook in vars(base)]
    return any((reference(hook_function) or ("",))[0] != "dataclasses" for hook_function in own)


def _shape(value: Any) -> str:
    rows, columns = getattr(value, "num_rows", None), getattr(value, "num_columns", None)
    shape = getattr(value, "shape", None)
    if not isinstance(rows, int) and shape and hasattr(value, "columns"):
        rows, columns = shape
    if isinstance(rows, int) and isinstance(columns, int):
        return f"{rows:,} rows x {columns:,} columns"
    if isinstance(shape, tuple):
        return " x ".join(f"{int(side):,}" for side in shape) + (" values" if shape else "one value")
    return f"{len(value):,} items" if hasattr(value, "__len__") else ""


def _size_bytes(value: Any) -> int | None:
    usage = getattr(value, "memory_usage", None)
    size = getattr(usage(index=True), "sum", lambda: None)() if usage else getattr(value, "nbytes", None)
    return int(size) if size is not None and not callable(size) else None


def is_rows(value: object) -> bool:
    """Say whether several items are records of one shape: dicts with the same keys, or long tuples of one length."""
    items = list(value) if isinstance(value, list | tuple | set | frozenset) else []
    if len(items) < 2 or len({type(item) for item in items}) > 1:
        return False
    if isinstance(items[0], dict):
        return len({frozenset(item) for item in items}) == 1
    return isinstance(items[0], list | tuple) and len(items[0]) >= _ROW_COLUMNS and len({len(i) for i in items}) == 1


def leaves(value: object) -> Iterator[object]:
    """Yield what containers hold at their ends, less None, booleans and the like; a container in itself only once."""
    pending, open_ids = [value], set()
    while pending:
        item = pending.pop()
        if isinstance(item, list | tuple | set | frozenset | dict | Mapping):
            if id(item) not in open_ids:
                open_ids.add(id(item))
                pending += [*item.keys(), *item.values()] if isinstance(item, Mapping) else [*item]
        elif type(item) not in SINGLETONS:
            yield item
