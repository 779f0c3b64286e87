"""Literals: what the files of a program say themselves, so that a value the program computed can be told from it.

A value that stands in the program's own text was written by somebody; one that does not came from somewhere else, and
the only other thing inside is data. Files are read when first asked for, and compiled, never run.
"""

from __future__ import annotations

import ast
import dataclasses
import linecache
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from fabric.constants import Constants, Problem, is_setting
from fabric.datatypes import leaves
from fabric.errors import Reason

_SCALARS = (str, bytes, int, float, complex)
_LARGEST_FILE_CHARS = 2_000_000
_INSTALLED = ("site-packages", "dist-packages")

Literal = tuple[type, object]
"""A value with its type, because 1, 1.0 and True are equal; of several values together, `tuple` and their texts."""


class Program:
    """The files that a function and what it uses were written in."""

    def __init__(self) -> None:
        self._files: dict[str, frozenset[Literal] | None] = {}

    def holds(self, file: str | None) -> None:
        """Count `file` to the program; a cell of a notebook brings the other cells with it."""
        if file and file not in self._files:
            self._files[file] = None
            if not Path(file).exists():
                self._files.update((name, None) for name in _cells() if name not in self._files)

    def says(self, value: object) -> bool:
        """Say whether `value` (a text, bytes or a number) is written in one of the program's files."""
        return any((type(value), value) in self._literals(file) for file in list(self._files))

    def says_together(self, values: Sequence[object]) -> bool:
        """Say whether these are the ends of one list, tuple, set or dict that is written in one of the files.

        Small numbers stand in every program, so that a column of them would be found there one by one.
        """
        return any(_together(values) in self._literals(file) for file in list(self._files))

    def imports(self, value: object) -> bool:
        """Say whether `value` is written in the module that holds it, and came from there by an import."""
        for module in list(sys.modules.values()):
            file = getattr(module, "__file__", None) if isinstance(module, ModuleType) else None
            if file and _is_own(file) and any(held is value for held in list(vars(module).values())):
                self.holds(file)
                return True
        return False

    def _literals(self, file: str) -> frozenset[Literal]:
        known = self._files[file]
        if known is None:
            known = self._files[file] = frozenset(_literals_of(file))
        return known


class Written:
    """Holds the captured values of one function against its program; those that it computed are counted."""

    def __init__(self, program: Program, constants: Constants) -> None:
        self._program = program
        self._constants = constants
        self._computed = 0
        self._texts: list[str] = []

    def problem(self, value: object) -> Problem | None:
        """Say whether a captured value holds more than a few settings that the program computed."""
        inside = list(leaves(_kept(value)))
        scalars = [leaf for leaf in inside if type(leaf) in _SCALARS]
        self._texts += [leaf for leaf in scalars if type(leaf) is str]
        if (problem := self._constants.spelled(inside)) is not None:
            return problem
        limit, computed = self._constants.limits.computed, self._computed_of(scalars)
        # What a module of the program's own holds was imported: then it must be written there.
        few = self._computed + len(computed) <= limit and all(map(is_setting, computed))
        if not few and self._program.imports(value):
            computed = self._computed_of(scalars)
        self._computed += len(computed)
        if not computed or (self._computed <= limit and all(map(is_setting, computed))):
            return None
        return unwritten(len(computed), limit)

    def joined(self) -> Problem | None:
        """Say whether all captured texts together make an identifier."""
        return self._constants.joined(self._texts)

    def _computed_of(self, scalars: list[Any]) -> list[Any]:
        """Return which of the scalars in a captured value are not written in the program.

        One alone is if it stands anywhere; several if they stand there together. Of words, also some of those may be
        taken, each once: a choice of columns.
        """
        if len(scalars) == 1:
            return [] if self._program.says(scalars[0]) else scalars
        if self._program.says_together(scalars):
            return []
        counts = Counter(leaf for leaf in scalars if type(leaf) is str)
        return [leaf for leaf in scalars if not (counts[leaf] == 1 and type(leaf) is str and self._program.says(leaf))]


def unwritten(count: int, limit: int) -> Problem:
    """Return the refusal of captured values that the program computed."""
    return Problem(
        reason=Reason.CAPSULE_CAPTURES_DATA,
        size_text="computed" if count == 1 else f"{count:,} computed values",
        fix=f"write it into the code or pass it as a parameter; what the program computed may be data, and {limit} "
        "short settings of it may cross",
    )


def _kept(value: object) -> object:
    """Return what a value of a known kind keeps, if it is no plain value itself."""
    if isinstance(value, re.Pattern):
        return value.pattern
    return (value.default, value.metadata) if isinstance(value, dataclasses.Field) else value


def _literals_of(file: str) -> Iterator[Literal]:
    source = "".join(linecache.getlines(file))
    if len(source) > _LARGEST_FILE_CHARS:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
            tree = compile(source, file, "exec", flags | ast.PyCF_ONLY_AST, dont_inherit=True)
            code = compile(tree, file, "exec", flags, dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    yield from _literals_in(code)
    yield from _collections_in(tree)


def _literals_in(code: CodeType) -> Iterator[Literal]:
    """Yield each constant and each name; the compiler has put together what was written in parts, as 64 * 1024."""
    yield from ((str, name) for name in (code.co_name, *code.co_names, *code.co_varnames, *code.co_cellvars))
    pending: list[object] = list(code.co_consts)
    while pending:
        constant = pending.pop()
        if isinstance(constant, CodeType):
            yield from _literals_in(constant)
        elif isinstance(constant, tuple | frozenset):
            pending += constant
        elif type(constant) in _SCALARS:
            yield type(constant), constant


def _collections_in(tree: ast.AST) -> Iterator[Literal]:
    """Yield the ends of each list, tuple, set and dict that is written out, all of them together."""
    for node in ast.walk(tree):
        if isinstance(node, ast.List | ast.Tuple | ast.Set | ast.Dict):
            try:
                yield _together([end for end in leaves(ast.literal_eval(node)) if type(end) in _SCALARS])
            except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
                continue


def _together(values: Sequence[object]) -> Literal:
    return tuple, tuple(sorted((type(value).__name__, repr(value)) for value in values))


def _cells() -> list[str]:
    """Return the names of the notebook cells that Python remembers the text of."""
    return [name for name in list(linecache.cache) if not Path(name).exists()]


def _is_own(file: str) -> bool:
    return not any(part in _INSTALLED for part in Path(file).parts) and not file.startswith(sys.base_prefix)
