"""Captures: everything that would cross with a function, found by walking it before it is pickled.

Closed by default: what is not known to be plain is refused. A function or class of an approved module crosses as its
name; every other one is walked, because it crosses as its bytes. A captured value must be written in the program that
captures it: one that the program computed may be data, and only a few short ones may cross.
"""

from __future__ import annotations

import dataclasses
import dis
import enum
import functools
import re
import sys
from collections.abc import Callable
from types import (
    BuiltinFunctionType,
    CellType,
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MappingProxyType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
)
from typing import Any, NamedTuple

from fabric.approved import is_approved, is_installed, reference
from fabric.bytecode import MAX_UNREACHED_BYTES, globals_of, line_of, unreached, unreached_bytes
from fabric.constants import NO_DATA, Constants, Problem
from fabric.datatypes import INSIDE, SINGLETONS, is_rows, leaves, object_problem, public_name
from fabric.errors import Reason
from fabric.literals import Program, Written
from fabric.xray import Capture

_SCALARS = (str, bytes, int, float, complex)
_CONTAINERS = (list, tuple, set, frozenset, dict, MappingProxyType)
_CLASS_PLUMBING = {
    "__abstractmethods__",
    "__annotations__",
    "__dict__",
    "__doc__",
    "__firstlineno__",
    "__module__",
    "__weakref__",
    "_abc_impl",
    "_member_map_",
    "_value2member_map_",
}
_DESCRIPTORS = (MemberDescriptorType, GetSetDescriptorType)
_NAME_LISTS = {"__dataclass_fields__", "__slots__", "__match_args__", "__static_attributes__", "_member_names_"}
_METHODS = (FunctionType, staticmethod, classmethod, property)
_CAPTURED = {
    *("closure variable", "global", "default", "keyword default", "class attribute", "instance attribute"),
    *("function attribute", "partial argument", "enum member"),
}
_INSTEAD = {
    "closure variable": " instead of closing over it",
    "global": " instead of reading a global",
    "default": " instead of giving it a default",
    "keyword default": " instead of giving it a default",
    "class attribute": " instead of keeping it in the class",
    "instance attribute": " instead of keeping it in the object",
}


class Use(NamedTuple):
    """Where a captured thing is used, and whether people wrote that place or a library generated it."""

    function: str
    line: int | None = None
    generated: bool = False


class Walk:
    """One walk over a function. `captures` grows, `program` learns its files; nothing that was walked is changed."""

    def __init__(self, constants: Constants) -> None:
        self.captures: list[Capture] = []
        self.program = Program()
        self._constants = constants
        self._written = Written(self.program, constants)
        self._seen: dict[int, object] = {}
        self._open: set[int] = set()
        self._items = 0
        self._literals = 0
        self._visitors: tuple[tuple[type, Callable[[Any, str, Use], Problem | None]], ...] = (
            (ModuleType, self._module),
            (FunctionType, self._function),
            (enum.Enum, self._enum_member),
            (type, self._class),
            (staticmethod, self._wrapper),
            (classmethod, self._wrapper),
            (property, self._property),
            (functools.partial, self._partial),
            (MethodType, self._method),
            (BuiltinFunctionType, self._builtin),
            (re.Pattern, self._pattern),
            (dataclasses.Field, self._field),
        )

    def value(self, name: str, kind: str, value: Any, use: Use, *, only_refused: bool = False) -> None:
        """Read one captured value, and what it captures in turn."""
        problem = self._constants.name_problem(value) if kind == "name" else self._problem(value, name, use)
        if problem is None and kind in _CAPTURED:
            problem = self._written.problem(value)
        if problem or not (only_refused or use.generated):
            self._add(name, kind, type(value), problem, use, _told(value))

    def finish(self, function: str) -> None:
        """Read what only shows when everything was seen: an identifier in parts over several captured texts."""
        if not any(c.reason for c in self.captures) and (problem := self._written.joined()):
            self._add("captured texts, joined", "constant", str, problem, Use(function))

    def _problem(self, value: Any, name: str, use: Use) -> Problem | None:
        kind = type(value)
        if kind in SINGLETONS:
            return None
        if kind in _SCALARS:
            return self._constants.problem(value)
        if kind in _CONTAINERS:
            return self._container(value, name, use)
        if reference(value) or self._walked(value):
            return None
        for known, visit in self._visitors:
            if kind is known or (known in (type, enum.Enum, ModuleType) and issubclass(kind, known)):
                return visit(value, name, use)
        return object_problem(value) or self._instance(value, name, use)

    def _walked(self, value: object) -> bool:
        walked = id(value) in self._seen
        return walked and isinstance(value, FunctionType | type)

    def _container(self, value: Any, name: str, use: Use) -> Problem | None:
        if id(value) in self._open:
            return None
        inside = [*value.keys(), *value.values()] if isinstance(value, dict | MappingProxyType) else list(value)
        size_text = f"{len(value):,} {'item' if len(value) == 1 else 'items'}"
        self._open.add(id(value))
        try:
            if len(value) > self._constants.limits.items or is_rows(value):
                return self._too_many(size_text)
            for item in inside:
                self._items += type(item) in _SCALARS
                if self._items > self._constants.limits.items:
                    return self._too_many(size_text)
                if problem := self._problem(item, f"{name}[...]", use):
                    held = "" if type(item) in _SCALARS else f"{self._constants.shown(public_name(type(item)))}, "
                    return dataclasses.replace(problem, size_text=f"{size_text}, with {held}{problem.size_text}")
        finally:
            self._open.discard(id(value))
        return None

    def _too_many(self, size_text: str) -> Problem:
        limit = self._constants.limits.items
        return Problem(
            reason=Reason.CAPSULE_CAPTURES_DATA,
            size_text=size_text,
            fix=f"{NO_DATA}; captured lists and dicts may hold {limit} values together, and no rows",
        )

    def _module(self, module: ModuleType, _name: str, _use: Use) -> Problem | None:
        if is_approved(module.__name__) and sys.modules.get(module.__name__) is module:
            return None
        return self._not_approved(module.__name__)

    def _not_approved(self, module: str) -> Problem:
        if module.partition(".")[0] in sys.stdlib_module_names:
            fix = "import it inside the function"
        else:
            fix = "import the functions it needs by name, `from module import function`: they then travel with it"
        return Problem(
            reason=Reason.CAPSULE_UNREADABLE,
            size_text=f"of module {self._constants.shown(module)}, which is not approved",
            fix=fix,
        )

    def _function(self, function: FunctionType, _name: str, _use: Use) -> Problem | None:
        self._seen[id(function)] = function
        if is_installed(function):
            return self._not_approved(function.__module__)
        code, shown = function.__code__, self._constants.shown(function.__qualname__)
        self.program.holds(code.co_filename)
        generated = code.co_filename == "<string>" or is_approved(str(function.__globals__.get("__name__")))
        self._code(code, shown, function.__doc__)
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            for content in _content(cell):
                self.value(name, "closure variable", content, Use(shown, line_of(code, name), generated))
        for name in globals_of(code):
            if name in function.__globals__:
                self.value(name, "global", function.__globals__[name], Use(shown, line_of(code, name), generated))
        self._signature(function, Use(shown, code.co_firstlineno, generated))
        return None

    def _signature(self, function: FunctionType, here: Use) -> None:
        code, shown = function.__code__, here.function
        defaults = function.__defaults__ or ()
        for name, default in zip(code.co_varnames[: code.co_argcount][-len(defaults) :], defaults, strict=False):
            self.value(name, "default", default, here)
        for name, default in (function.__kwdefaults__ or {}).items():
            self.value(name, "keyword default", default, here)
        for name, attribute in vars(function).items():
            self.value(f"{shown}.{name}", "function attribute", attribute, here)
        self._annotations(function.__annotations__, here)
        self.value("name", "name", function.__name__, here, only_refused=True)
        if function.__doc__ not in code.co_consts:
            self.value("docstring", "docstring", function.__doc__, here, only_refused=True)

    def _code(self, code: CodeType, function: str, doc: str | None) -> None:
        lines = {id(i.argval): i.positions.lineno for i in dis.get_instructions(code) if i.positions}
        here = Use(function, code.co_firstlineno)
        texts, before = [], len(self.captures)
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                self._code(constant, function, None)
                continue
            texts += [constant] if isinstance(constant, str) else []
            place = Use(function, lines.get(id(constant)) or code.co_firstlineno)
            if doc is not None and constant is doc:
                self.value("docstring", "docstring", doc, place, only_refused=True)
            else:
                self._literal("constant", constant, place)
        for name in (code.co_name, *code.co_names, *code.co_varnames, *code.co_freevars, *code.co_cellvars):
            self.value("name", "name", name, here, only_refused=True)
        if problem := self._constants.machine_code(code.co_code):
            self._add("bytecode", "constant", bytes, problem, here)
        if (stray := unreached_bytes(code)) > MAX_UNREACHED_BYTES:
            self._add("bytecode", "constant", bytes, unreached(stray), here)
        if len(self.captures) == before and (problem := self._constants.joined(texts)):
            self._add("constants, joined", "constant", str, problem, here)

    def _literal(self, kind: str, constant: object, use: Use) -> None:
        """Read a constant of the code. These have a limit of their own: code has many, and none of them is captured."""
        inside, limits = list(leaves(constant)), self._constants.limits
        before, self._literals = self._literals, self._literals + len(inside)
        problem = None
        if len(inside) > limits.items or is_rows(constant):
            problem = self._too_many(f"{len(inside):,} items")
        elif before <= limits.constants < self._literals:
            problem = self._too_many(f"more than {limits.constants:,} constants")
        problem = problem or self._constants.spelled(inside)
        for leaf in inside:
            problem = problem or self._problem(leaf, kind, use)
        if problem:
            self._add(kind, kind, type(constant), problem, use)

    def _annotations(self, annotations: object, use: Use) -> None:
        """Read the annotations that are text. None crosses; an identifier in one is still a mistake to tell."""
        for name, annotation in annotations.items() if isinstance(annotations, dict) else ():
            if isinstance(annotation, str):
                self.value(name, "annotation", annotation, use, only_refused=True)

    def _class(self, cls: type, _name: str, use: Use) -> Problem | None:
        self._seen[id(cls)] = cls
        if is_installed(cls):
            return self._not_approved(cls.__module__)
        shown = self._constants.shown(cls.__qualname__)
        self.program.holds(getattr(sys.modules.get(str(cls.__module__)), "__file__", None))
        for base in (type(cls), *getattr(cls, "__orig_bases__", ()), *cls.__bases__):
            self.value(f"{shown}.__bases__", "base class", base, use, only_refused=True)
        self.value("name", "name", cls.__name__, use, only_refused=True)
        if not (dataclasses.is_dataclass(cls) and str(cls.__doc__).startswith(f"{cls.__name__}(")):  # generated
            self.value(f"{shown}.__doc__", "docstring", cls.__doc__, use, only_refused=True)
        self._annotations(vars(cls).get("__annotations__"), use)
        members = cls.__members__ if issubclass(cls, enum.Enum) else {}
        for attribute, value in vars(cls).items():
            self.value("name", "name", attribute, use, only_refused=True)
            where = f"{shown}.{attribute}"
            if attribute in members:
                self.value(where, "enum member", members[attribute].value, use)
            elif attribute in _NAME_LISTS and type(value) in (list, tuple, dict):
                for item in value.values() if isinstance(value, dict) else value:
                    self.value(where, "class attribute", item, use, only_refused=True)
            elif attribute not in _CLASS_PLUMBING and type(value) not in _DESCRIPTORS:
                plumbing = attribute.startswith("_") and attribute.endswith("_")
                self.value(where, "class attribute", value, use, only_refused=plumbing or type(value) in _METHODS)
        return None

    def _instance(self, value: object, _name: str, use: Use) -> Problem | None:
        if id(value) in self._seen:
            return None
        self._seen[id(value)] = value
        cls = type(value)
        if is_installed(cls) and reference(cls) is None:
            return dataclasses.replace(self._not_approved(cls.__module__), fix=INSIDE)
        shown = self._constants.shown(cls.__qualname__)
        self.value(shown, "class", cls, use, only_refused=True)
        use = use._replace(generated=use.generated or reference(cls) is not None)
        slots = {name for base in cls.__mro__ for name, v in vars(base).items() if type(v) is MemberDescriptorType}
        held = {name: getattr(value, name) for name in sorted(slots) if hasattr(value, name)}
        for name, attribute in {**getattr(value, "__dict__", {}), **held}.items():
            self.value("name", "name", name, use, only_refused=True)
            self.value(f"{shown}.{name}", "instance attribute", attribute, use)
        return None

    def _enum_member(self, member: enum.Enum, name: str, use: Use) -> Problem | None:
        if type(member).__members__.get(str(member.name)) is not member:
            return Problem(reason=Reason.CAPSULE_UNREADABLE, size_text="not a named member", fix=INSIDE)
        return self._problem(type(member), name, use)

    def _property(self, value: property, name: str, use: Use) -> Problem | None:
        parts = (value.fget, value.fset, value.fdel, value.__doc__)
        return next((p for part in parts if (p := self._problem(part, name, use))), None)

    def _wrapper(self, value: Any, name: str, use: Use) -> Problem | None:
        return self._problem(value.__func__, name, use)

    def _partial(self, value: functools.partial[object], name: str, use: Use) -> Problem | None:
        for index, argument in enumerate(value.args):
            self.value(f"{name} argument {index + 1}", "partial argument", argument, use)
        for keyword, argument in value.keywords.items():
            self.value("name", "name", keyword, use, only_refused=True)
            self.value(str(keyword), "partial argument", argument, use)
        for attribute, held in vars(value).items():
            self.value(f"{name}.{attribute}", "instance attribute", held, use)
        return self._problem(value.func, name, use)

    def _method(self, value: MethodType, name: str, use: Use) -> Problem | None:
        return self._problem(value.__func__, name, use) or self._problem(value.__self__, name, use)

    def _builtin(self, value: BuiltinFunctionType, name: str, use: Use) -> Problem | None:
        return self._problem(value.__self__, name, use) or self._not_approved(str(value.__module__))

    def _pattern(self, value: re.Pattern[Any], _name: str, _use: Use) -> Problem | None:
        return self._constants.problem(value.pattern)

    def _field(self, value: dataclasses.Field[Any], name: str, use: Use) -> Problem | None:
        parts = (value.name, value.default, value.default_factory, value.metadata)
        return next((p for part in parts if (p := self._problem(part, name, use))), None)

    def _add(
        self,
        name: str,
        kind: str,
        cls: type,
        problem: Problem | None,
        use: Use,
        told: tuple[int | None, str] = (None, ""),
    ) -> None:
        size_bytes, size_text = (problem.size_bytes, problem.size_text) if problem else told
        fix = problem.fix.replace(NO_DATA, NO_DATA + _INSTEAD.get(kind, ""), 1) if problem else ""
        self.captures.append(
            Capture(
                name=self._constants.shown(name),
                kind=kind,
                type_name=self._constants.shown(public_name(cls)),
                size_bytes=size_bytes,
                size_text=size_text,
                reason=problem.reason if problem else None,
                findings=problem.findings if problem else (),
                function=use.function,
                line=use.line,
                fix=fix,
            )
        )


def _told(value: object) -> tuple[int | None, str]:
    """Return the size of a value that may cross, in bytes and in words."""
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogatepass")), f"{len(value):,} characters"
    if isinstance(value, bytes):
        return len(value), f"{len(value):,} bytes"
    if isinstance(value, list | tuple | set | frozenset | dict | MappingProxyType):
        return None, f"{len(value):,} items"
    if isinstance(value, FunctionType):
        return len(value.__code__.co_code), f"{len(value.__code__.co_code):,} bytes of code"
    return None, "one value" if isinstance(value, int | float | complex) else ""


def _content(cell: CellType) -> tuple[object, ...]:
    try:
        return (cell.cell_contents,)
    except ValueError:  # an empty cell: the variable has no value yet
        return ()
