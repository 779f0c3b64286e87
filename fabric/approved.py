"""Approved modules: what outbound code may name without carrying it. Everything else travels by value or not at all."""

from __future__ import annotations

import itertools
import sys
from operator import attrgetter
from types import FunctionType

APPROVED_MODULES = frozenset(
    {
        "abc",
        "builtins",
        "collections",
        "collections.abc",
        "contextlib",
        "copy",
        "dataclasses",
        "enum",
        "functools",
        "itertools",
        "json",
        "math",
        "operator",
        "random",
        "re",
        "reprlib",
        "statistics",
        "time",
        "typing",
    }
)
APPROVED_PACKAGES = ("numpy", "pyarrow", "torch")

# Where CPython keeps the C half of approved modules; generated code, such as a dataclass's, names them.
_C_HALVES = frozenset({"_functools", "_operator", "_thread"})

_CALLABLES = frozenset(
    {
        "_ArrayFunctionDispatcher",
        "builtin_function_or_method",
        "cython_function_or_method",
        "method",
        "ufunc",
    }
)


def is_approved(module: str) -> bool:
    """Say whether `module` is approved by name, or lies in an approved package."""
    return module in APPROVED_MODULES or module in _C_HALVES or module.partition(".")[0] in APPROVED_PACKAGES


def reference(value: object) -> tuple[str, str] | None:
    """Return the approved module and name under which `value` itself can be found, if there is one.

    A name alone proves nothing (`__module__` can be set by anyone): the object found there must be this very object.
    """
    names = _names(value)
    own = getattr(value, "__module__", None) if names else None
    candidates = [own] if isinstance(own, str) else []
    if not isinstance(value, type | FunctionType):
        candidates += [*sorted(APPROVED_MODULES), *APPROVED_PACKAGES]
    for module, name in itertools.product(candidates, names):
        if is_approved(module) and _found(module, name) is value:
            return module, name
    return None


def is_installed(value: type | FunctionType) -> bool:
    """Say whether a function or class is the standard library's own, which nobody has to send."""
    module = value.__module__
    known = isinstance(module, str) and module.partition(".")[0] in sys.stdlib_module_names
    return known and _found(module, value.__qualname__) is value


def _names(value: object) -> list[str]:
    kind = type(value)
    if kind.__module__ == "torch" and kind.__qualname__ == "dtype":
        return [str(value).rpartition(".")[2]]
    if kind.__module__ == "dataclasses" and kind.__qualname__ == "_MISSING_TYPE":
        return ["MISSING"]
    if not isinstance(value, type | FunctionType) and kind.__qualname__ not in _CALLABLES:
        return []
    names = [getattr(value, "__qualname__", None), getattr(value, "__name__", None)]
    return [name for name in names if isinstance(name, str)]


def _found(module: str, name: str) -> object:
    first, _, rest = name.partition(".")
    try:
        # Not getattr: a module's own __getattr__ may warn, import or compute.
        found = vars(sys.modules[module])[first]
        return attrgetter(rest)(found) if rest else found
    except (KeyError, AttributeError):
        return None
