"""Inspection: what looks like an identifier, in a column of values or in texts, by Presidio's recognizers.

Presidio fails open where it can; here each way is closed. No model pretends to find names. Recognizers are listed or
read from a file that is refused if it is broken. Nothing is looked up over the network, nothing is logged. What a
recognizer raises, warns of or times out on is a refusal that names the column and the row.

What is found is what Presidio would find, read fast (`sanitize.scanning`). An inspector proves that when it is built,
on known identifiers, near misses and texts made from the patterns themselves, and while it works on a random sample of
what it passed and of what it found. One difference refuses.

What Presidio cannot see at all is names, streets, user names, passwords: an inspection can make a column's fate
stricter, never milder.
"""

from __future__ import annotations

import random
import unicodedata
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from presidio_analyzer import PatternRecognizer

from fabric.errors import Reason, Refused
from sanitize.phones import LONGEST
from sanitize.recognizers import RecognizerSet, entities_of
from sanitize.scanning import CHUNK, PROVEN, Coverage, Findings, Found, Places, Scanner, Unread
from sanitize.weakening import Untranslatable, example

STRONG = 0.6
"""From this score on a checksum or the column's name has confirmed the finding."""

WEAK = 0.05
"""Below this score a finding says nothing: any number of six digits is an American driving licence at 0.01."""

STANDARD = RecognizerSet.standard()
TOLERATED: Mapping[str, float] = {"PHONE_NUMBER": 0.1}
"""Entities that plain amounts look like by chance, and the share of distinct values from which it is none."""

_TOLERATED_HITS = 3
_IN_TEXT = 0.4
_IGNORED_IN_TEXT = frozenset({"DATE_TIME", "URL"})
_WINDOW = 4_000  # Presidio's phone matcher gives up silently after 65,535 attempts; a window never takes that many
_OVERLAP = 200
_HEADS = (32, 512, 8_192)  # values read before the whole column, by who wants only the first objection
_TIMEOUT_S = 10.0

_KNOWN: Mapping[str, str] = {
    "CREDIT_CARD": "4012888888881881",
    "EMAIL_ADDRESS": "someone@hospital.example.org",
    "IBAN_CODE": "DE89370400440532013000",
    "MEDICAL_RECORD_NUMBER": "MRN 00412345",
    "PHONE_NUMBER": "+1 425 882 9090",
    "US_NPI": "1245319599",
    "US_SSN": "078-05-1126",
}
_NEAR = (
    *("4012888888881882", "40128888 88881881", "someone@hospital", "a@b.c", "DE89370400440532013001", "MRN 12"),
    *("DE89 3704 0044 0532 0130 00 2", "(212) 555-0187 x12", "212.555.0187/2125550188", "+49 (0)89 1234567"),
    *("2012-01-02 08:00", "211-227 (2003)", "3/10/2011", "000-12-3456", "078-05-1126a", "$2125550187", "1 ext 2345678"),
    *(
        "192.168.1.300",
        "::1",
        "fe80::1%eth0",
        "http://example.org/x?y=1",
        "1Boat5LPHr7iATboHzmC63jPLKs",
        "0.8439483920",
    ),
    *("1EG4-TE5-MK73", "12:34:56:78:9a:bc", "943 476 5919", "AB123456C", "", " ", "x", "1984", "12.50", "-17"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """How many values Presidio reads again during a job: one in so many, at least one, at most `most` of each kind.

    With 3,000 values passed and no difference, fewer than one in a thousand differ, at 95 per cent.
    """

    seed: int = 0
    passed: int = 4_096
    found: int = 256
    most: int = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnFindings:
    """What was found in a column.

    Attributes:
        entities: for each entity, in how many distinct values, strong and weak.
        respelled: for each entity, in how many distinct values it shows only where they are spelled another way: zeros
            lost in front, dates and times as numbers, other characters for the same. It misfires on plain amounts; it
            speaks against a column only where it covers most of its distinct values.
        audited: values that Presidio read again.
    """

    entities: Mapping[str, tuple[int, int]]
    distinct: int
    cells: int
    respelled: Mapping[str, int] = field(default_factory=dict)
    audited: int = 0

    def to_json(self) -> dict[str, dict[str, int]]:
        """Return the counts as JSON; not how many were audited, which depends on how the column was cut."""
        noted: dict[str, dict[str, int]] = {}
        for name in sorted({*self.entities, *self.respelled}):
            strong, weak = self.entities.get(name, (0, 0))
            noted[name] = {"strong": strong, "weak": weak}
            if again := self.respelled.get(name):
                noted[name]["respelled"] = again
        return noted

    @staticmethod
    def merge(*parts: ColumnFindings) -> ColumnFindings:
        """Return the findings of a column from those of parts that share no distinct value."""
        strong: Counter[str] = Counter()
        weak: Counter[str] = Counter()
        respelled: Counter[str] = Counter()
        for part in parts:
            strong.update({name: counts[0] for name, counts in part.entities.items()})
            weak.update({name: counts[1] for name, counts in part.entities.items()})
            respelled.update(part.respelled)
        return ColumnFindings(
            entities={name: (strong[name], weak[name]) for name in sorted({*strong, *weak})},
            respelled=dict(sorted(respelled.items())),
            distinct=sum(part.distinct for part in parts),
            cells=sum(part.cells for part in parts),
            audited=sum(part.audited for part in parts),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Objection:
    """Proof that a column cannot cross: an entity, and how many of the values read so far look like it."""

    entity: str
    hits: int
    read: int


class Inspector:
    """Presidio's recognizers, read fast; holds no value it has seen. Travels to another process as its recipe."""

    def __init__(
        self,
        recognizers: RecognizerSet = STANDARD,
        *,
        audit: Audit = Audit(),
        versions: Mapping[str, str] | None = None,
        timeout_s: float = _TIMEOUT_S,
    ) -> None:
        """Build the recognizers and prove that they are read as Presidio reads them.

        Args:
            audit: what Presidio reads again during a job.
            versions: of the parts that decide; None for those that are installed.
            timeout_s: how long one pattern may take with one value.

        Raises:
            InvalidInput: a recognizer may not be used here.
            Refused: `INSPECTION_FAILED`, where Presidio would find something else, or does not find what it should.
        """
        self._recipe = (recognizers, audit, versions, timeout_s)
        self._audit = audit
        self._versions = dict(versions if versions is not None else _installed())
        self._left_out = recognizers.left_out()
        made = recognizers.build()
        self._scanner = Scanner(made, versions=self._versions, timeout_s=timeout_s)
        if recognizers.registry is None:
            _check_sight(self, entities_of(made))
        self._prove([r for r in made if isinstance(r, PatternRecognizer)])

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuilt, self._recipe)

    def engine_versions(self) -> dict[str, str]:
        """Return the version of everything that decides what is found."""
        return dict(self._versions)

    def coverage(self) -> Coverage:
        """Return which recognizers are read fast, and which by Presidio and why."""
        return replace(self._scanner.coverage, left_out=self._left_out)

    def scan(self, values: pa.Array | pa.ChunkedArray, context: Sequence[str] = ()) -> Findings:
        """Return what Presidio finds in each distinct text: entities, spans and scores, in its order.

        Raises:
            Refused: `INSPECTION_FAILED`.
        """
        distinct = _distinct("texts", values)
        longest = pc.max(pc.utf8_length(distinct)).as_py() or 0
        if longest > LONGEST:
            message = f"a text of {longest:,} characters is longer than Presidio reads whole"
            raise Refused(Reason.INSPECTION_FAILED, message, f"cut it into parts of at most {LONGEST:,} characters")
        try:
            found = self._found(distinct, np.arange(len(distinct)), context)
        except Unread:
            raise Refused(Reason.INSPECTION_FAILED, f"one of {len(distinct):,} texts could not be inspected") from None
        return Findings(values=distinct, found=found)

    def inspect_column(
        self,
        name: str,
        values: pa.Array | pa.ChunkedArray,
        *,
        also_called: Sequence[str] = (),
        row_of: Callable[[int], int] | None = None,
    ) -> ColumnFindings:
        """Inspect each distinct value, with the column's names as context.

        Args:
            name: the column, for messages and as context.
            values: numbers, dates or text; booleans say nothing and are not read.
            also_called: other names of the column, as further context.
            row_of: the row of a place among `values`, for messages; None where they are the same.

        Raises:
            Refused: `INSPECTION_FAILED`, with the first row of the value that could not be inspected.
        """
        return self._column(name, values, also_called, row_of, respelled=True)

    def _column(
        self,
        name: str,
        values: pa.Array | pa.ChunkedArray,
        also_called: Sequence[str],
        row_of: Callable[[int], int] | None,
        *,
        thorough: bool = True,
        respelled: bool = False,
    ) -> ColumnFindings:
        """Return the findings in a column; `thorough` has some audited, `respelled` has other spellings read too."""
        distinct = _distinct(name, values)
        context = [name, *also_called]
        parts = [ColumnFindings(entities={}, distinct=0, cells=len(values))]
        for start in range(0, len(distinct), CHUNK):
            part = distinct.slice(start, CHUNK)
            try:
                parts.append(self._inspected(name, part, context, thorough, respelled))
            except Unread as unread:
                raise _failed(name, _plain(values), part[unread.place], row_of) from None
        return ColumnFindings.merge(*parts)

    def first_objection(
        self,
        name: str,
        values: pa.Array | pa.ChunkedArray,
        *,
        also_called: Sequence[str] = (),
        tolerated: Mapping[str, float] = TOLERATED,
        row_of: Callable[[int], int] | None = None,
    ) -> Objection | None:
        """Return the first proof that the column cannot cross, or None after all of its distinct values were read.

        It reads the head of the column first: where every value is an identifier, that is enough.

        Args:
            tolerated: entities that object only from a share of the distinct values on.

        Raises:
            Refused: `INSPECTION_FAILED`, as `inspect_column`.
        """
        for head in (*(head for head in _HEADS if head < len(values)), len(values)):
            part = values.slice(0, head)
            whole = head == len(values)
            found = self._column(name, part, also_called, row_of, thorough=whole)
            for entity, (strong, weak) in found.entities.items():
                hits = strong + weak
                enough = max(_TOLERATED_HITS, tolerated.get(entity, 0.0) * found.distinct)
                if entity not in tolerated or (whole and hits >= enough):
                    return Objection(entity=entity, hits=hits, read=found.distinct)
        return None

    def inspect_text(self, text: str) -> frozenset[str]:
        """Return the entities found in `text`, a constant of outbound code or a name.

        Dates and URLs are not named: code is full of both, and neither identifies a person by itself.

        Raises:
            Refused: `INSPECTION_FAILED`.
        """
        return frozenset(self.inspect_texts([text]))

    def inspect_texts(self, texts: Sequence[str]) -> Counter[str]:
        """Return in how many of `texts` each entity is found, dates and URLs aside.

        Raises:
            Refused: `INSPECTION_FAILED`.
        """
        owners: dict[str, set[int]] = defaultdict(set)
        for place, text in enumerate(texts):
            for piece in _pieces(text):
                owners[piece].add(place)
        named: dict[int, set[str]] = defaultdict(set)
        pieces = list(owners)
        try:
            for start, found in self._scanner.scan(pa.array(pieces, pa.string()), ()):
                for at, these in found.items():
                    entities = {entity for entity, _, _, score in these if score >= _IN_TEXT} - _IGNORED_IN_TEXT
                    for place in owners[pieces[start + at]]:
                        named[place] |= entities
        except (Unread, UnicodeEncodeError):
            length = sum(map(len, texts))
            raise Refused(Reason.INSPECTION_FAILED, f"a text of {length:,} characters could not be inspected") from None
        return Counter(entity for entities in named.values() for entity in entities)

    def _inspected(
        self, name: str, distinct: pa.Array, context: Sequence[str], thorough: bool, respelled: bool
    ) -> ColumnFindings:
        """Return the findings in at most `CHUNK` distinct values.

        Raises:
            Unread: with the value's place.
        """
        texts, places = _written(name, distinct)
        found = self._found(texts, places, context)
        audited = self._audited(name, texts, found, context) if thorough else 0
        best = _highest(found, places)
        again: set[tuple[int, str]] = set()
        spellings = _respellings(texts, places, is_text=_is_text(distinct.type)) if respelled else ()
        for spelled, where in spellings:
            for place, scores in _highest(self._found(spelled, where, context), where).items():
                fresh = scores.keys() - best.get(place, {}).keys()
                again.update((place, entity) for entity in fresh if scores[entity] >= WEAK)
        scored = [(entity, score) for scores in best.values() for entity, score in scores.items()]
        strong = Counter(entity for entity, score in scored if score >= STRONG)
        weak = Counter(entity for entity, score in scored if WEAK <= score < STRONG)
        return ColumnFindings(
            entities={entity: (strong[entity], weak[entity]) for entity in {*strong, *weak}},
            respelled=dict(Counter(entity for _, entity in again)),
            distinct=len(distinct),
            cells=0,
            audited=audited,
        )

    def _found(self, texts: pa.Array, places: Places, context: Sequence[str]) -> dict[int, tuple[Found, ...]]:
        found: dict[int, tuple[Found, ...]] = {}
        try:
            for start, these in self._scanner.scan(texts, context):
                found.update((start + at, what) for at, what in these.items())
        except Unread as unread:
            raise Unread(int(places[unread.place])) from None
        return found

    def _audited(
        self, name: str, texts: pa.Array, found: Mapping[int, tuple[Found, ...]], context: Sequence[str]
    ) -> int:
        """Have Presidio read a random sample of both kinds again, and return how many; refuse one difference."""
        audit = self._audit
        source = np.random.default_rng([audit.seed, zlib.crc32(name.encode(errors="replace")), len(texts)])
        passed = np.ones(len(texts), dtype=bool)
        passed[list(found)] = False
        drawn: list[int] = []
        for kind, one_in in ((np.flatnonzero(passed), audit.passed), (np.flatnonzero(~passed), audit.found)):
            many = min(-(-len(kind) // one_in), audit.most)
            drawn += source.choice(kind, many, replace=False).tolist() if many else []
        for place in drawn:
            if self._scanner.presidio(texts[place].as_py(), context) != found.get(place, ()):
                raise Refused(
                    Reason.INSPECTION_FAILED,
                    f"column {name!r}: Presidio finds something else in a value than was found fast",
                    "install the versions of presidio-analyzer, phonenumbers and regex that this project names",
                )
        return len(drawn)

    def _prove(self, recognizers: Sequence[PatternRecognizer]) -> None:
        """Refuse to exist where one text of the built-in ones is read otherwise than Presidio reads it."""
        texts = list(dict.fromkeys([*_KNOWN.values(), *_NEAR, *_exemplary(recognizers)]))
        words = sorted({word for r in recognizers for word in (r.context or ())[:1]})
        try:
            for context, these in (((), texts), (words, texts[::3])):
                values = pa.array(these, pa.string())
                ((_, found),) = self._scanner.scan(values, context, few=0)
                wrong = sum(found.get(at, ()) != self._scanner.presidio(text, context) for at, text in enumerate(these))
                if wrong:
                    raise Refused(
                        Reason.INSPECTION_FAILED,
                        f"{wrong} of {len(these)} known texts are not read as Presidio reads them",
                        "install the versions of presidio-analyzer, phonenumbers and regex that this project names",
                    )
        except Unread:
            raise Refused(Reason.INSPECTION_FAILED, "a recognizer fails on a text of the built-in proof") from None


def _rebuilt(
    recognizers: RecognizerSet, audit: Audit, versions: Mapping[str, str] | None, timeout_s: float
) -> Inspector:
    return Inspector(recognizers, audit=audit, versions=versions, timeout_s=timeout_s)


def _installed() -> dict[str, str]:
    return {name: metadata.version(name) for name in PROVEN}


def _check_sight(inspector: Inspector, entities: frozenset[str]) -> None:
    blind = [e for e, text in _KNOWN.items() if e in entities and e not in inspector.inspect_text(text)]
    if blind:
        raise Refused(
            Reason.INSPECTION_FAILED,
            f"the inspector does not find {', '.join(blind)}",
            "install the versions of presidio-analyzer and phonenumbers that this project names",
        )


def _exemplary(recognizers: Sequence[PatternRecognizer]) -> Iterator[str]:
    """Yield texts made from each pattern, and the same with one character changed; always the same ones."""
    source = random.Random(0)  # noqa: S311 - no secret
    for recognizer in recognizers:
        for pattern in recognizer.patterns:
            try:
                text = example(pattern.regex, int(recognizer.global_regex_flags), source)
            except Untranslatable:
                continue
            place = source.randrange(len(text)) if text else 0
            yield from (text, text[:place] + source.choice("0Z- ") + text[place + 1 :])


def _highest(found: Mapping[int, tuple[Found, ...]], places: Places) -> dict[int, dict[str, float]]:
    """Return the highest score of each entity, by the place of the value that the texts spell."""
    best: dict[int, dict[str, float]] = {}
    for at, these in found.items():
        scores = best.setdefault(int(places[at]), {})
        for entity, _, _, score in these:
            if score > scores.get(entity, 0.0):
                scores[entity] = score
    return best


def _pieces(text: str) -> set[str]:
    """Return what is read of a text: as it is and as it looks, in windows that no matcher gives up on."""
    ends = range(0, max(len(text), 1), _WINDOW - _OVERLAP)
    windows = {text[start : start + _WINDOW] for start in ends}
    return windows if text.isascii() else windows | _pieces_of_plain(text)


def _pieces_of_plain(text: str) -> set[str]:
    plain = _as_it_looks(text)
    return {plain[start : start + _WINDOW] for start in range(0, max(len(plain), 1), _WINDOW - _OVERLAP)}


def _as_it_looks(text: str) -> str:
    """Return a text with look-alike characters made plain (digits of any script, dashes), and unseen ones dropped."""
    return "".join(map(_plain_character, unicodedata.normalize("NFKC", text)))


def _plain_character(character: str) -> str:
    match unicodedata.category(character):
        case "Nd":
            return str(unicodedata.decimal(character))
        case "Pd":
            return "-"
        case "Cf" | "Mn" | "Me":
            return ""
        case _:
            return character


def _whole(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values


def _plain(values: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    return values.cast(values.type.value_type) if pa.types.is_dictionary(values.type) else values


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _distinct(name: str, values: pa.Array | pa.ChunkedArray) -> pa.Array:
    try:
        plain = _plain(values)
        if pa.types.is_string_view(plain.type):
            plain = plain.cast(pa.string())
        return _whole(pc.drop_null(pc.unique(plain)))
    except pa.ArrowException:
        raise _unreadable(name, values.type) from None


def _written(name: str, values: pa.Array) -> tuple[pa.Array, Places]:
    """Return each value as a person would write it, no exponent, no `.0`, dates in ISO 8601, and its place.

    Missing numbers and booleans are not written; a long text is written in windows.
    """
    kind = values.type
    places: Places = np.arange(len(values))
    if pa.types.is_boolean(kind) or pa.types.is_null(kind):
        return pa.array([], pa.string()), places[:0]
    if _is_text(kind):
        return _windows(values.cast(pa.string()), places)
    if pa.types.is_floating(kind):
        numbers = values.to_numpy(zero_copy_only=False)
        known = ~np.isnan(numbers)
        written = [np.format_float_positional(number, trim="-") for number in numbers[known]]
        return pa.array(written, pa.string()), places[known]
    if pa.types.is_duration(kind):
        return values.cast(pa.int64()).cast(pa.string()), places
    if pa.types.is_integer(kind):
        return values.cast(pa.string()), places
    if pa.types.is_temporal(kind) or pa.types.is_decimal(kind):
        bare = pc.replace_substring_regex(values.cast(pa.string()), r"(\.[0-9]*[1-9])0+$", r"\1")
        return pc.replace_substring_regex(bare, r"(?:\.0+)?Z?$", ""), places
    raise _unreadable(name, kind)


def _windows(texts: pa.Array, places: Places) -> tuple[pa.Array, Places]:
    long = pc.greater(pc.utf8_length(texts), _WINDOW).to_numpy(zero_copy_only=False)
    if not long.any():
        return texts, places
    cut = [(window, place) for place in np.flatnonzero(long) for window in sorted(_raw_windows(texts[place].as_py()))]
    whole = texts.filter(pa.array(~long))
    joined = pa.concat_arrays([whole, pa.array([window for window, _ in cut], pa.string())])
    return joined, np.concatenate([places[~long], np.array([place for _, place in cut], dtype=np.int64)])


def _raw_windows(text: str) -> set[str]:
    return {text[start : start + _WINDOW] for start in range(0, len(text), _WINDOW - _OVERLAP)}


def _respellings(texts: pa.Array, places: Places, *, is_text: bool) -> Iterator[tuple[pa.Array, Places]]:
    """Yield other ways in which the same values may be meant, each with the values' places."""
    digits = _where(texts, r"^[0-9]{7,16}$")
    if len(digits):
        numbers, where = texts.take(pa.array(digits)), places[digits]
        length = pc.utf8_length(numbers).to_numpy(zero_copy_only=False)
        for width in (9, 10):  # social security and record numbers, whose leading zeros a spreadsheet drops
            lost = (length < width) & (length >= width - 2)
            yield pc.utf8_lpad(numbers.filter(pa.array(lost)), width, "0"), where[lost]
        yield from _dates(numbers, where, length)
    if is_text:
        yield from _looks(texts, places)


def _dates(numbers: pa.Array, where: Places, length: Places) -> Iterator[tuple[pa.Array, Places]]:
    """Yield numbers that may be dates (yyyymmdd) or times (seconds and their fractions since 1970)."""
    day = length == 8
    days = pc.strptime(numbers.filter(pa.array(day)), format="%Y%m%d", unit="s", error_is_null=True)
    year = pc.fill_null(pc.year(days), 0).to_numpy(zero_copy_only=False)
    likely = (year >= 1900) & (year < 2100)
    yield pc.strftime(days.filter(pa.array(likely)), format="%Y-%m-%d"), where[day][likely]
    ticks = numbers.cast(pa.int64()).to_numpy()
    for unit, per_second in (("s", 1), ("ms", 1_000), ("us", 1_000_000)):
        timely = (ticks >= 631_152_000 * per_second) & (ticks < 4_102_444_800 * per_second)  # 1990 to 2100
        yield pa.array(ticks[timely]).cast(pa.timestamp(unit)).cast(pa.string()), where[timely]


def _looks(texts: pa.Array, places: Places) -> Iterator[tuple[pa.Array, Places]]:
    """Yield texts as they look, and numbers in them without what separates their digits."""
    strange = np.flatnonzero(~pc.string_is_ascii(texts).to_numpy(zero_copy_only=False))
    if len(strange):
        looks = pa.array([_as_it_looks(text) for text in texts.take(pa.array(strange)).to_pylist()], pa.string())
        yield looks, places[strange]
        yield from _joined(looks, places[strange])
    yield from _joined(texts, places)


def _joined(texts: pa.Array, places: Places) -> Iterator[tuple[pa.Array, Places]]:
    apart = r"([0-9])[ ,_']([0-9])"
    parted = _where(texts, apart)
    if len(parted):
        once = pc.replace_substring_regex(texts.take(pa.array(parted)), apart, r"\1\2")
        yield pc.replace_substring_regex(once, apart, r"\1\2"), places[parted]


def _where(texts: pa.Array, pattern: str) -> Places:
    return np.flatnonzero(pc.match_substring_regex(texts, pattern).to_numpy(zero_copy_only=False))


def _failed(
    name: str, values: pa.Array | pa.ChunkedArray, value: pa.Scalar, row_of: Callable[[int], int] | None
) -> Refused:
    place = pc.index(values, value).as_py()
    return Refused(
        Reason.INSPECTION_FAILED,
        f"column {name!r}: the value in row {row_of(place) if row_of else place} could not be inspected",
        "nothing crosses uninspected; mend the value or drop the column",
    )


def _unreadable(name: str, kind: pa.DataType) -> Refused:
    return Refused(Reason.INSPECTION_FAILED, f"column {name!r} of type {kind} cannot be inspected", "drop it")
