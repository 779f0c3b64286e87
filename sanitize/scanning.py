"""What Presidio finds in many texts, at the speed of Arrow: the same entities, spans and scores, in the same order.

1. Findings are a function of the text and the context, so each distinct text is read once.
2. Texts of ASCII characters are sifted by RE2: one pass with a union of patterns that are weaker than every enabled
   one, then a pass per pattern over what is left. What no pattern lets through holds nothing.
3. What is left is read by the recognizer's own regex, and judged by its own validators.
4. Scores are raised by the context's words as Presidio raises them, and findings inside better ones are dropped: a
   finding goes if another of its entity covers its span with at least its score, in whatever order they are compared.

Presidio itself reads what this is not known to hold for: texts with other characters, recognizers that read or enhance
in their own way, patterns that do not translate, and everything where a part has another version than the proven one.
A recognizer that raises, warns or times out stops the scan at that text; nothing it said is kept.
"""

from __future__ import annotations

import logging
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import regex
from presidio_analyzer import AnalyzerEngine, EntityRecognizer, PatternRecognizer, RecognizerRegistry
from presidio_analyzer.nlp_engine import NoOpNlpEngine
from presidio_analyzer.predefined_recognizers import IbanRecognizer, PhoneRecognizer

from sanitize.phones import LONGEST, PhoneReader, readable
from sanitize.recognizers import LANGUAGE
from sanitize.weakening import Untranslatable, Weakened, weaken

CHUNK = 65_536
"""Texts read at a time: memory stays bounded, and compiling the patterns is little beside matching them."""

PROVEN: Mapping[str, str] = {
    "phonenumbers": "9.0.43",
    "presidio-analyzer": "2.2.366",
    "pyarrow": "26",
    "regex": "2026.11.15",
    "tldextract": "5.4.0",
}
"""The versions that this reading was proven on, of pyarrow the major one. With any other Presidio reads everything."""

FEW = 160
"""Fewer texts than this are read without a mask for each pattern, an eighth of it without a union: RE2 compiles them at
each call."""

_UNION = 6_000  # characters; larger unions outgrow RE2's automaton, and each text then costs forty times as much
_SHORT = 512  # characters; up to here Presidio's own patterns need no watch on the time

Found = tuple[str, int, int, float]
"""Entity, start, end, score."""

Span = tuple[int, int, float]
Places = npt.NDArray[np.int64]


class Unread(Exception):
    """A text could not be read. Holds its place among the texts, never the text."""

    def __init__(self, place: int) -> None:
        super().__init__(place)
        self.place = place


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What was found in distinct texts.

    Attributes:
        values: the distinct texts, none missing.
        found: by place among them; a place that is not there holds nothing.
    """

    values: pa.Array = field(repr=False)
    found: Mapping[int, tuple[Found, ...]] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """Which recognizers are read fast, which by Presidio itself and why, and which of a file are not used at all."""

    fast: tuple[str, ...]
    slow: tuple[str, ...]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Reader:
    """One pattern of a recognizer, or a recognizer of which we know how it reads."""

    recognizer: EntityRecognizer
    weakened: Weakened
    read: Callable[[str], Sequence[Span]]


class Scanner:
    """Reads texts as Presidio would; holds no text it has read."""

    def __init__(
        self, recognizers: Sequence[EntityRecognizer], *, versions: Mapping[str, str], timeout_s: float
    ) -> None:
        self._engine = _engine(recognizers)
        self._enhancer = self._engine.context_aware_enhancer
        self._readers: list[_Reader] = []
        self._slow: list[EntityRecognizer] = []
        self._why: dict[str, str] = {}
        drift = _drift(versions) or _enhanced(recognizers)
        for recognizer in recognizers:
            try:
                if drift:
                    raise Untranslatable(drift)
                self._readers += _readers(recognizer, timeout_s)
            except Untranslatable as reason:
                self._slow.append(recognizer)
                self._why[recognizer.name] = str(reason)
        self._fast = tuple(r.name for r in recognizers if r not in self._slow)
        self._slow_engine = _engine(self._slow) if self._slow else None
        self._unions = _unions(self._readers)

    @property
    def coverage(self) -> Coverage:
        """Return what is read fast, and what not and why."""
        return Coverage(fast=self._fast, slow=tuple(f"{name}: {why}" for name, why in self._why.items()))

    def presidio(self, text: str, context: Sequence[str]) -> tuple[Found, ...]:
        """Return what Presidio finds in a text.

        Raises:
            Unread: a recognizer raised, warned or timed out; the place is 0.
        """
        return self._asked(self._engine, [text], [0], context).get(0, ())

    def scan(
        self, values: pa.Array, context: Sequence[str], *, few: int = FEW
    ) -> Iterator[tuple[int, dict[int, tuple[Found, ...]]]]:
        """Yield what is found in distinct texts, none missing, chunk by chunk: the chunk's start, findings by place.

        Args:
            few: how many texts are read without masks; 0 to have every mask asked.

        Raises:
            Unread: with the place among `values`.
        """
        for start in range(0, len(values), CHUNK):
            chunk = values.slice(start, CHUNK)
            try:
                yield start, self._chunk(chunk.cast(pa.string()), context, few)
            except Unread as unread:
                raise Unread(start + unread.place) from None

    def _chunk(self, chunk: pa.Array, context: Sequence[str], few: int) -> dict[int, tuple[Found, ...]]:
        # 1. Presidio reads what has other characters.
        plain = pc.string_is_ascii(chunk).to_numpy(zero_copy_only=False)
        strange = np.flatnonzero(~plain)
        found: dict[int, tuple[Found, ...]] = {}
        if len(strange):
            texts = chunk.take(pa.array(strange)).to_pylist()
            asked = self._asked(self._engine, texts, strange.tolist(), context)
            found.update(asked)
            chunk, places = chunk.filter(pa.array(plain)), np.flatnonzero(plain)
        else:
            places = np.arange(len(chunk))
        # 2. Sift, and read what is left.
        merged: dict[int, list[Found]] = defaultdict(list)
        with self._heard_is_raised() as heard:
            for union, readers in self._unions:
                self._sift(chunk, places, union, readers, context, few, merged, heard)
        # 3. Presidio reads all of it for the recognizers that are not known.
        if self._slow_engine is not None:
            asked = self._asked(self._slow_engine, chunk.to_pylist(), places.tolist(), context)
            for place, these in asked.items():
                merged[place].extend(these)
        found.update((place, _best(these)) for place, these in merged.items())
        return found

    def _sift(
        self,
        chunk: pa.Array,
        places: Places,
        union: str,
        readers: Sequence[_Reader],
        context: Sequence[str],
        few: int,
        merged: dict[int, list[Found]],
        heard: list[int],
    ) -> None:
        kept = _matching(chunk, union) if len(chunk) > few // 8 else np.arange(len(chunk))
        if not len(kept):
            return
        chunk, places = _taken(chunk, kept), places[kept]
        texts = chunk.to_pylist()
        for reader in readers:
            hits = _hits(chunk, reader, few)
            if len(hits):
                self._read(reader, texts, hits, places, context, merged, heard)

    def _read(
        self,
        reader: _Reader,
        texts: list[str],
        hits: Places,
        places: Places,
        context: Sequence[str],
        merged: dict[int, list[Found]],
        heard: list[int],
    ) -> None:
        entity, read = reader.recognizer.supported_entities[0], reader.read
        raised = self._raised(reader.recognizer, context)
        place = 0
        try:
            for hit, place in zip(hits.tolist(), places[hits].tolist(), strict=True):
                if spans := read(texts[hit]):
                    these = merged[place]
                    for start, end, score in spans:
                        these.append((entity, start, end, raised(score) if raised else score))
                if heard:
                    raise Unread(place)
        except Exception:  # noqa: BLE001 - whatever a recognizer raises may quote the text
            raise Unread(place) from None

    def _raised(self, recognizer: EntityRecognizer, context: Sequence[str]) -> Callable[[float], float] | None:
        """Return how the context raises the recognizer's scores, by Presidio's own reading of its words."""
        enhancer = self._enhancer
        words = ["", *(word.lower() for word in context)]
        if not recognizer.context or not enhancer._find_supportive_word_in_context(
            words, recognizer.context, enhancer.context_matching_mode
        ):
            return None
        more, least = enhancer.context_similarity_factor, enhancer.min_score_with_context_similarity
        return lambda score: min(max(score + more, least), 1.0)

    def _asked(
        self, engine: AnalyzerEngine, texts: list[str], places: list[int], context: Sequence[str]
    ) -> dict[int, tuple[Found, ...]]:
        """Return what an engine of Presidio finds in each text."""
        found = {}
        words = list(context)
        with self._heard_is_raised() as heard:
            for text, place in zip(texts, places, strict=True):
                try:
                    results = engine.analyze(text, language=LANGUAGE, score_threshold=0, context=words)
                except Exception:  # noqa: BLE001 - whatever a recognizer raises may quote the text
                    raise Unread(place) from None
                if heard:
                    raise Unread(place)
                if results:
                    found[place] = tuple((r.entity_type, r.start, r.end, r.score) for r in results)
        return found

    @contextmanager
    def _heard_is_raised(self) -> Iterator[list[int]]:
        """Turn what Presidio only logs or warns into an error, and keep its words from every handler."""
        logger = logging.getLogger("presidio-analyzer")
        heard: list[int] = []

        def listen(record: logging.LogRecord) -> bool:
            heard.append(record.levelno)
            return False

        level = logger.level
        logger.setLevel(logging.WARNING)
        logger.addFilter(listen)
        try:
            if not logger.isEnabledFor(logging.WARNING):
                raise Unread(0)
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)
                warnings.simplefilter("error", RuntimeWarning)
                yield heard
        finally:
            logger.removeFilter(listen)
            logger.setLevel(level)


def _engine(recognizers: Sequence[EntityRecognizer]) -> AnalyzerEngine:
    """Return Presidio without a model: a blank one would claim names and find none."""
    return AnalyzerEngine(
        registry=RecognizerRegistry(recognizers=list(recognizers), supported_languages=[LANGUAGE]),
        nlp_engine=NoOpNlpEngine(models=[{"lang_code": LANGUAGE, "model_name": "no_op"}]),
        supported_languages=[LANGUAGE],
        log_decision_process=False,
    )


def _drift(versions: Mapping[str, str]) -> str:
    for name, proven in PROVEN.items():
        there = versions.get(name, "missing")
        if there != proven and not (name == "pyarrow" and there.partition(".")[0] == proven):
            return f"{name} {there} is not the version {proven} that the fast reading was proven on"
    return "" if regex.DEFAULT_VERSION == regex.VERSION0 else "regex was told to read patterns in another way"


def _enhanced(recognizers: Sequence[EntityRecognizer]) -> str:
    own = [r.name for r in recognizers if not _same(r, "enhance_using_context", EntityRecognizer)]
    return f"{own[0]} changes scores by what the other recognizers found" if own else ""


def _same(recognizer: EntityRecognizer, method: str, kind: type) -> bool:
    return method not in vars(recognizer) and getattr(type(recognizer), method) is getattr(kind, method)


def _inherits(recognizer: EntityRecognizer, method: str) -> bool:
    return _same(recognizer, method, PatternRecognizer)


def _readers(recognizer: EntityRecognizer, timeout_s: float) -> list[_Reader]:
    """Return how to read as the recognizer reads.

    Raises:
        Untranslatable: with the reason why Presidio has to.
    """
    if type(recognizer) is PhoneRecognizer and _same(recognizer, "analyze", PhoneRecognizer):
        return [_phone_reader(recognizer)]
    known = isinstance(recognizer, PatternRecognizer) and _inherits(recognizer, "analyze")
    iban = type(recognizer) is IbanRecognizer and _same(recognizer, "analyze", IbanRecognizer)
    if not known and not iban:
        raise Untranslatable("it reads in its own way")
    flags = int(recognizer.global_regex_flags)
    weakened = [weaken(pattern.regex, flags) for pattern in recognizer.patterns]
    if iban:
        screens = tuple(f"(?:{one.screen})" for one in weakened)
        joined = Weakened(screen="|".join(screens), masks=("|".join(screens),))
        return [_Reader(recognizer, joined, _iban_read(recognizer, timeout_s))]
    own = type(recognizer).__module__.startswith(("presidio_analyzer.predefined_recognizers.", "sanitize."))
    listed = getattr(type(recognizer), "PATTERNS", ())
    made = []
    for pattern, one in zip(recognizer.patterns, weakened, strict=True):
        tried = own and any(pattern is each for each in listed)
        finditer = regex.compile(pattern.regex, flags=flags).finditer
        shortest = _SHORT if tried else -1
        made.append(_Reader(recognizer, one, _pattern_read(recognizer, finditer, pattern.score, shortest, timeout_s)))
    return made


def _pattern_read(
    recognizer: PatternRecognizer, finditer: Callable[..., Any], own_score: float, unwatched: int, timeout_s: float
) -> Callable[[str], list[Span]]:
    """Return what reads one pattern as `PatternRecognizer.analyze` does.

    Args:
        unwatched: length of the texts up to which the pattern needs no watch on the time, which triples its cost.
    """
    validate = None if _inherits(recognizer, "validate_result") else recognizer.validate_result
    invalidate = None if _inherits(recognizer, "invalidate_result") else recognizer.invalidate_result

    def spans(text: str) -> list[tuple[int, int]]:
        matches = finditer(text) if len(text) <= unwatched else finditer(text, timeout=timeout_s)
        return [match.span() for match in matches]

    def read(text: str) -> list[Span]:
        return [(start, end, own_score) for start, end in spans(text) if start < end]

    def read_and_judge(text: str) -> list[Span]:
        kept = []
        for start, end in spans(text):
            if start == end:
                continue
            score = own_score
            if validate is not None and (valid := validate(text[start:end])) is not None:
                score = 1.0 if valid else 0.0
            if invalidate is not None and invalidate(text[start:end]):
                score = 0.0
            if score > 0:
                kept.append((start, end, score))
        return kept

    if not own_score > 0 and validate is None:
        return lambda text: []
    return read if validate is None and invalidate is None else read_and_judge


def _analyzed(recognizer: EntityRecognizer) -> Callable[[str], list[Span]]:
    entities = recognizer.supported_entities

    def read(text: str) -> list[Span]:
        return [(r.start, r.end, r.score) for r in recognizer.analyze(text, entities, None)]

    return read


def _iban_read(recognizer: Any, timeout_s: float) -> Callable[[str], list[Span]]:
    """Return what reads as `IbanRecognizer.analyze` does: the longest of a match's groups that its checks allow."""
    flags = int(recognizer.global_regex_flags)
    patterns = [(regex.compile(p.regex, flags=flags), p.score) for p in recognizer.patterns]

    def read(text: str) -> list[Span]:
        spans: list[Span] = []
        for pattern, own_score in patterns:
            for match in pattern.finditer(text, timeout=timeout_s):
                start, whole = match.span()
                for group in range(pattern.groups, 0, -1):
                    end = match.end(group) if match.end(group) > 0 else whole
                    if end == start:
                        continue
                    valid = recognizer.validate_result(text[start:end])
                    score = own_score if valid is None else 1.0 if valid else 0.0
                    if score > 0:
                        spans.append((start, end, score))
                        break
        return spans

    return read


def _phone_reader(recognizer: Any) -> _Reader:
    if not readable(recognizer.supported_regions, recognizer.leniency):
        raise Untranslatable("its regions or its leniency are not known here")
    phones = PhoneReader(tuple(recognizer.supported_regions))
    whole = _analyzed(recognizer)
    score = recognizer.SCORE

    def read(text: str) -> list[Span]:
        if len(text) > LONGEST:
            return whole(text)
        return [(start, end, score) for start, end in phones.spans(text)]

    return _Reader(recognizer, Weakened(screen=phones.screen, masks=(phones.screen,)), read)


def _unions(readers: Sequence[_Reader]) -> list[tuple[str, list[_Reader]]]:
    """Join the screens into as few patterns as RE2's automaton bears."""
    groups: list[tuple[list[str], list[_Reader]]] = []
    for reader in readers:
        screen = f"(?:{reader.weakened.screen})"
        if not groups or sum(map(len, groups[-1][0])) + len(screen) > _UNION:
            groups.append(([], []))
        groups[-1][0].append(screen)
        groups[-1][1].append(reader)
    return [("|".join(dict.fromkeys(screens)), members) for screens, members in groups]


def _hits(chunk: pa.Array, reader: _Reader, few: int) -> Places:
    """Return the places in the chunk that the reader has to read."""
    if len(chunk) <= few:
        return np.arange(len(chunk))
    hits = _matching(chunk, reader.weakened.screen)
    for mask in reader.weakened.masks:
        if len(hits) > few and mask != reader.weakened.screen:
            hits = hits[_matching(_taken(chunk, hits), mask)]
    return hits


def _matching(texts: pa.Array, pattern: str) -> Places:
    return np.flatnonzero(pc.match_substring_regex(texts, pattern).to_numpy(zero_copy_only=False))


def _taken(texts: pa.Array, places: Places) -> pa.Array:
    return texts if len(places) == len(texts) else texts.take(pa.array(places))


def _order(found: Found) -> tuple[float, int, int, str]:
    return (-found[3], found[1], found[1] - found[2], found[0])


def _best(found: list[Found]) -> tuple[Found, ...]:
    """Drop what another finding of its entity covers with at least its score, and order as Presidio does."""
    if len(found) == 1:
        return tuple(found)
    if len({one[0] for one in found}) == len(found):
        return tuple(sorted(found, key=_order))
    kept: list[Found] = []
    for one in sorted(set(found), key=lambda f: (f[0], f[1], f[1] - f[2], -f[3])):
        entity, start, end, score = one
        for other in kept:
            if other[0] == entity and other[1] <= start and end <= other[2] and score <= other[3]:
                break
        else:
            kept.append(one)
    kept.sort(key=_order)
    return tuple(kept)
