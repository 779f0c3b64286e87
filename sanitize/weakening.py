r"""Patterns of Python's `regex` weakened into patterns of RE2, for texts of ASCII characters only.

What always holds: a text of ASCII characters in which the pattern matches anything but the empty string also matches
each of the weakened ones. So a text that one of them passes over holds no match, and Arrow can say so of a whole
column in one pass. The proof goes by the pattern's syntax tree, node by node: each node is replaced by one that can
consume at least the same spans.

| node | becomes |
|---|---|
| a character, a class, a dot | the ASCII characters that `regex` itself accepts there, asked one by one |
| `\b`, `\B` | the same: on ASCII the two engines mean the same |
| a look-behind in front of all | what must come before |
| anchors, other look-around, atomic, possessive, lazy | dropped, or plain and greedy |
| a back-reference | the group it refers to |
| a count beyond `_COUNT` | no upper bound: counters cost an automaton states |
| a positive look-ahead | dropped here, and asked for by a pattern of its own |

Whatever else the parser knows, or only `regex` knows, raises `Untranslatable`: such a pattern goes the slow way.
"""

from __future__ import annotations

import random
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from re import _constants as op  # type: ignore[attr-defined]
from re import _parser as sre  # type: ignore[attr-defined]
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import regex

_COUNT = 24
_MANY = 40  # an alternation of more words than this is weakened to their letters and lengths
_ASCII = "".join(map(chr, range(128)))
_FLAGS = re.IGNORECASE | re.DOTALL | re.MULTILINE | re.UNICODE
_UNLIKE = re.compile(r"\[:\^?\w+:\]|(?<!\\)\{(?!\d*,?\d*\})(?![^\[]*\])")  # POSIX classes, fuzzy counts: not so in `re`
_CATEGORIES = {
    op.CATEGORY_DIGIT: r"\d",
    op.CATEGORY_NOT_DIGIT: r"\D",
    op.CATEGORY_WORD: r"\w",
    op.CATEGORY_NOT_WORD: r"\W",
    op.CATEGORY_SPACE: r"\s",
    op.CATEGORY_NOT_SPACE: r"\S",
}
_BOUNDARIES = {op.AT_BOUNDARY: r"\b", op.AT_NON_BOUNDARY: r"\B"}
_REPEATS = (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT)


class Untranslatable(Exception):
    """The pattern holds something that is not known to mean the same in RE2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weakened:
    """What every text with a match also matches, as RE2 patterns.

    Attributes:
        screen: the shortest of them, to be joined with others.
        masks: all of them; the more precise a text is sifted, the fewer are read by the slow engine.
    """

    screen: str
    masks: tuple[str, ...]


def weaken(pattern: str, flags: int) -> Weakened:
    """Return what RE2 can ask of a text before `regex` reads it.

    Raises:
        Untranslatable: nothing is known to be weaker than this pattern.
    """
    tree, at_start = _parsed(pattern, flags)
    coarse, fine = _Writer(coarse=True), _Writer(coarse=False)
    screens = [coarse.write_whole(tree, at_start), *coarse.conditions]
    masks = [fine.write_whole(tree, at_start), *fine.conditions]
    for made in {*screens, *masks}:
        try:
            pc.match_substring_regex(pa.array([""]), made)
        except pa.ArrowInvalid:
            raise Untranslatable("RE2 does not compile it") from None
    return Weakened(screen=min(screens, key=_hits), masks=tuple(dict.fromkeys(masks)))


def example(pattern: str, flags: int, source: random.Random) -> str:
    """Return a text made along the pattern's syntax tree; most match it, those that break a look-around do not.

    Raises:
        Untranslatable: the pattern cannot be read.
    """
    return _made(_parsed(pattern, flags)[0], source)


def _parsed(pattern: str, flags: int) -> tuple[Any, int]:
    if flags & ~int(_FLAGS):
        raise Untranslatable("flags")
    if _UNLIKE.search(pattern):
        raise Untranslatable("syntax that only regex knows")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tree = sre.parse(pattern, flags & int(_FLAGS))
    except (re.error, RecursionError, OverflowError, Warning):
        raise Untranslatable("syntax that only regex knows") from None
    if tree.state.flags & ~int(_FLAGS):
        raise Untranslatable("flags")
    return tree, tree.state.flags


_ORDINARY = (
    "active pending closed Springfield Northville weekly outpatient hypertension lisinopril unknown other male "
    "female married single emergency 12 250 1984 73000 12.5 0.25 B12 A10 2b grade3 week12 phase2 T4 E11.9 I10 "
    "ab cd insurance prescription follow-up in-patient semi-private high-risk well-known Smith O'Brien"
)


def _hits(weakened: str) -> tuple[int, int]:
    """Rank patterns by how many ordinary words each lets through, then by length."""
    through = pc.match_substring_regex(pa.array(_ORDINARY.split()), weakened)
    return (pc.sum(through).as_py(), len(weakened))


def _characters(node: tuple[Any, Any], flags: int) -> frozenset[str]:
    """Return the ASCII characters that `regex` accepts at a node of one character."""
    kind, value = node
    if kind is op.ANY:
        source = "."
    elif kind is op.LITERAL:
        source = _escaped(value)
    elif kind is op.NOT_LITERAL:
        source = f"[^{_escaped(value)}]"
    else:
        source = "[" + "".join(map(_member, value)) + "]"
    return _accepted(source, flags & int(re.IGNORECASE | re.DOTALL))


@lru_cache(maxsize=4_096)
def _accepted(source: str, flags: int) -> frozenset[str]:
    return frozenset(regex.findall(source, _ASCII, flags=flags))


def _escaped(code: int) -> str:
    return f"\\U{code:08x}"


def _member(item: tuple[Any, Any]) -> str:
    kind, value = item
    if kind is op.NEGATE:
        return "^"
    if kind is op.LITERAL:
        return _escaped(value)
    if kind is op.RANGE:
        return f"{_escaped(value[0])}-{_escaped(value[1])}"
    if kind is op.CATEGORY and value in _CATEGORIES:
        return _CATEGORIES[value]
    raise Untranslatable("a class that only re knows")


def _class(characters: frozenset[str]) -> str:
    """Write a set of ASCII characters for RE2."""
    if len(characters) == len(_ASCII):
        return "(?s:.)"
    if not characters:
        return r"[^\x00-\x{10FFFF}]"
    if len(characters) == 1:
        return _plain(next(iter(characters)))
    runs: list[list[str]] = []
    for character in sorted(characters):
        if runs and ord(character) == ord(runs[-1][1]) + 1:
            runs[-1][1] = character
        else:
            runs.append([character, character])
    return "[" + "".join(_plain(a) if a == b else f"{_plain(a)}-{_plain(b)}" for a, b in runs) + "]"


def _plain(character: str) -> str:
    return character if character.isalnum() else f"\\x{ord(character):02x}"


@dataclass(slots=True)
class _Writer:
    """Writes one syntax tree; remembers its groups and its look-aheads."""

    coarse: bool
    conditions: list[str] = field(default_factory=list)
    groups: dict[int, str] = field(default_factory=dict)

    def write_whole(self, nodes: Sequence[tuple[Any, Any]], flags: int) -> str:
        """Return RE2's pattern for a whole tree: a look-behind in front is what the text must hold before the rest."""
        items = list(nodes)
        before = ""
        if items and items[0][0] in (op.ASSERT, op.ASSERT_NOT) and items[0][1][0] < 0:
            kind, (_, inside) = items[0]
            single = len(inside) == 1 and inside[0][0] in (op.LITERAL, op.IN)
            if kind is op.ASSERT:
                before = "(?:" + self._perhaps(inside, flags) + ")"
            elif single:
                before = f"(?:^|{_class(frozenset(_ASCII) - _characters(inside[0], flags))})"
        return before + self.write(items, flags)

    def write(self, nodes: Sequence[tuple[Any, Any]], flags: int) -> str:
        """Return RE2's pattern for a sequence of nodes."""
        items = list(nodes)
        return "".join(self._node(node, flags, items[place + 1 :]) for place, node in enumerate(items))

    def _node(self, node: tuple[Any, Any], flags: int, rest: list[tuple[Any, Any]]) -> str:
        kind, value = node
        if kind in (op.LITERAL, op.NOT_LITERAL, op.ANY, op.IN):
            return _class(_characters(node, flags))
        if kind is op.AT:
            return _BOUNDARIES.get(value, "")
        if kind is op.BRANCH:
            return self._branches(value[1], flags)
        if kind is op.SUBPATTERN:
            group, added, removed, inside = value
            body = "(?:" + self.write(inside, (flags | added) & ~removed) + ")"
            if group is not None:
                self.groups[group] = body
            return body
        if kind in _REPEATS:
            low, high, inside = value
            return _repeated(self._perhaps(inside, flags), low, high)
        if kind is op.ATOMIC_GROUP:
            return "(?:" + self.write(value, flags) + ")"
        if kind in (op.ASSERT, op.ASSERT_NOT):
            self._look(kind is op.ASSERT and value[0] > 0, value[1], flags, rest)
            return ""
        return self._reference(kind, value, flags)

    def _branches(self, branches: Sequence[Any], flags: int) -> str:
        if self.coarse and len(branches) > _MANY:
            words = [_word(branch, flags) for branch in branches]
            if all(words):
                lengths = [len(word) for word in words]
                letters = frozenset().union(*(characters for word in words for characters in word))
                return _repeated(_class(letters), min(lengths), max(lengths))
        return "(?:" + "|".join(self._perhaps(branch, flags) for branch in branches) + ")"

    def _perhaps(self, nodes: Any, flags: int) -> str:
        """Write what not every match goes through: what is looked for there is not asked of every match."""
        certain = len(self.conditions)
        written = self.write(nodes, flags)
        del self.conditions[certain:]
        return written

    def _look(self, ahead: bool, inside: Any, flags: int, rest: list[tuple[Any, Any]]) -> None:
        """Keep what a positive look-ahead asks for; what one inside it asks for is dropped."""
        asked = _Writer(coarse=self.coarse, groups=self.groups)
        condition = asked.write(inside, flags)
        if ahead and rest:
            self.conditions.append(_from_first(inside, rest, flags) or condition)

    def _reference(self, kind: Any, value: Any, flags: int) -> str:
        if kind is op.GROUPREF and value in self.groups:
            return self.groups[value]
        if kind is op.GROUPREF_EXISTS:
            _, yes, no = value
            return "(?:" + self._perhaps(yes, flags) + "|" + (self._perhaps(no, flags) if no else "") + ")"
        raise Untranslatable("a node of another kind")


def _word(branch: Any, flags: int) -> list[frozenset[str]]:
    """Return the characters of a plain word, place by place; nothing if it is none."""
    places = list(branch)
    plain = all(kind in (op.LITERAL, op.IN) for kind, _ in places)
    return [_characters(place, flags) for place in places] if plain else []


def _from_first(inside: Any, rest: list[tuple[Any, Any]], flags: int) -> str:
    """Join a look-ahead `x*t` with the first character that follows it, where that character cannot be the `t`."""
    after = [node for node in rest if node[0] not in (op.AT, op.ASSERT, op.ASSERT_NOT)]
    while after and after[0][0] in _REPEATS and after[0][1][0] > 0:
        after = list(after[0][1][2])
    looked = list(inside)
    if not after or after[0][0] not in (op.LITERAL, op.IN) or len(looked) != 2:
        return ""
    (repeat, counted), last = looked
    if repeat not in _REPEATS or counted[:2] != (0, op.MAXREPEAT) or len(counted[2]) != 1:
        return ""
    if any(kind not in (op.LITERAL, op.IN) for kind, _ in (counted[2][0], last)):
        return ""
    first, many, end = (_characters(node, flags) for node in (after[0], counted[2][0], last))
    return "" if first & end else _class(first & many) + _class(many) + "*" + _class(end)


def _repeated(body: str, low: int, high: Any) -> str:
    low = min(low, _COUNT)
    if high is op.MAXREPEAT or high > _COUNT:
        return f"(?:{body})" + {0: "*", 1: "+"}.get(low, f"{{{low},}}")
    return f"(?:{body})" + ("?" if (low, high) == (0, 1) else f"{{{low},{high}}}")


def _made(nodes: Any, source: random.Random) -> str:
    return "".join(_made_of(kind, value, source) for kind, value in nodes)


def _made_of(kind: Any, value: Any, source: random.Random) -> str:
    if kind in (op.LITERAL, op.ANY, op.NOT_LITERAL, op.IN):
        if kind is op.LITERAL:
            return chr(value)
        choices = sorted(_characters((kind, value), int(re.DOTALL)))
        return source.choice(choices) if choices else ""
    if kind is op.BRANCH:
        return _made(source.choice(value[1]), source)
    if kind is op.SUBPATTERN:
        return _made(value[3], source)
    if kind is op.ATOMIC_GROUP:
        return _made(value, source)
    if kind in _REPEATS:
        low, high, inside = value
        most = low + 4 if high is op.MAXREPEAT else min(high, low + 12)
        return "".join(_made(inside, source) for _ in range(source.randint(low, most)))
    return source.choice("- :") if kind is op.GROUPREF else ""
