"""Phone numbers in ASCII texts: the spans that Presidio's `PhoneRecognizer` finds, without its eight readings of each.

Presidio runs phonenumbers' `PhoneNumberMatcher` once for each region. What it does splits into a search for
candidates, which knows no region, and `parse` and `is_valid_number` of each candidate for each region, which are slow.
Here the search is done once, and a candidate is parsed for a region only if some string of digits that `parse` can
arrive at fits a number pattern of a region with that calling code. The gate is a necessary condition, so the spans are
the same; where it is not known to be one (letters, a plus sign, an extension, a rule that adds digits), the candidate
is parsed.

What `parse` can arrive at, from digits alone and without an international prefix (`phonenumberutil`: `parse`,
`_maybe_extract_country_code`, `_maybe_strip_national_prefix_carrier_code`): the digits, less the region's calling code
where they begin with it, less a national prefix up to twice. A rule that rewrites the prefix as one of its groups
leaves a suffix of the digits.

This reads private parts of phonenumbers. It is used only with the version that it was proven on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import phonenumbers
from phonenumbers import phonenumbermatcher, phonenumberutil
from phonenumbers.phonemetadata import PhoneMetadata

LONGEST = 9_000
"""Characters. A longer text could use up the matcher's 65,535 attempts: at most seven for each character."""

_PARSED = 250  # characters; `parse` takes no more
_VALID = phonenumbers.Leniency.VALID
_TYPES = (
    *("premium_rate", "toll_free", "shared_cost", "voip", "personal_number", "pager"),
    *("uan", "voicemail", "fixed_line", "mobile"),
)
_PLAIN = re.compile(r"[0-9 ()\[\]./-]+")
_AMOUNT = re.compile(r"([0-9]{1,20})(?:\.([0-9]{1,20}))?")
_MARKS = str.maketrans("", "", " ()[]./-")
_LETTER_LIKE = frozenset("%$ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
_NOT_TAKEN = (
    phonenumbers.ValidationResult.TOO_SHORT,
    phonenumbers.ValidationResult.IS_POSSIBLE_LOCAL_ONLY,
    phonenumbers.ValidationResult.INVALID_LENGTH,
)  # then `parse` keeps the digits as they were
_BETWEEN = r"[-xX ()\[\]./~]{0,4}"
_EXTENSION = r"(?i:[0-9][ \t,]*(?:;ext=|e?xt(?:ensi)?o?n?|anexo|int|[x#~])[:.]?[ \t,-]*[0-9]|[0-9][- ]+[0-9]{1,6}#)"

_Attempts = tuple[tuple[str, int, str], ...]
_Candidate = tuple[int, int, _Attempts]


_Region = tuple[re.Pattern[str] | None, re.Pattern[str], Mapping[int, re.Pattern[str]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """What is known of the numbers of a region and of those that share its calling code.

    Attributes:
        fits: matches what can be a valid number.
        prefix: matches where a national prefix may be taken off, by either metadata.
        abroad: matches where an international prefix is taken off.
        regions: of each region with the code its leading digits, if they tell it apart, its general pattern, and by
            length what its kinds of numbers look like.
        own: the region's metadata; `main`: those of the code's main region.
    """

    fits: re.Pattern[str]
    prefix: re.Pattern[str] | None
    abroad: re.Pattern[str] | None
    regions: tuple[_Region, ...]
    own: Any
    main: Any

    def allows(self, number: str) -> bool:
        """Say whether a national significant number is valid: `is_valid_number`."""
        for leading, general, kinds in self.regions:
            if leading is not None and not leading.match(number):
                continue
            kind = kinds.get(len(number))
            good = kind is not None and bool(kind.fullmatch(number)) and bool(general.fullmatch(number))
            if leading is not None or good:
                return good
        return False

    def needs_prefix(self, number: str) -> bool:
        """Say whether a number has to be written with a national prefix: `_is_national_prefix_present_if_required`."""
        rule = phonenumberutil._choose_formatting_pattern_for_number(self.main.number_format, number)
        if rule is None or not rule.national_prefix_formatting_rule or rule.national_prefix_optional_when_formatting:
            return False
        return not phonenumberutil._formatting_rule_has_first_group_only(rule.national_prefix_formatting_rule)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Gate:
    """A region as it is asked for; nothing known where a rule for its prefixes is not a plain one."""

    region: str
    code: int
    known: _Known | None


@dataclass(slots=True)
class PhoneReader:
    """Finds phone numbers of some regions, leniency VALID.

    Attributes:
        screen: an RE2 pattern that every ASCII text with a phone number matches.
    """

    regions: tuple[str, ...]
    screen: str = field(init=False)
    _gates: tuple[_Gate, ...] = field(init=False, repr=False)
    _fewest: int = field(init=False, repr=False)
    _short: Mapping[int, re.Pattern[str]] = field(init=False, repr=False)
    _any: re.Pattern[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._gates = tuple(_gate(region) for region in self.regions)
        abroad = _fewest_abroad()
        home = {region: _fewest_digits(region) for region in self.regions}
        self._fewest = max(2, min(abroad, *home.values()))
        self.screen = f"[0-9](?:{_BETWEEN}[0-9]){{{self._fewest - 1}}}|{_EXTENSION}"
        # An international prefix and a number are more digits than `abroad`; with fewer only short home numbers fit.
        lengths = range(self._fewest, abroad + 1)
        self._short = {n: _either([g for g in self._gates if home[g.region] <= n]) for n in lengths}
        self._any = _either(self._gates)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Return where numbers lie in an ASCII text of at most `LONGEST` characters, none inside another."""
        seen: dict[int, _Candidate | None] = {}
        if not self._promising(text, seen):
            return []
        found: set[tuple[int, int]] = set()
        verified: dict[tuple[str, int], bool] = {}
        for gate in self._gates:
            place = 0
            while True:
                if place not in seen:
                    seen[place] = self._candidate(text, place)
                candidate = seen[place]
                if candidate is None:
                    break
                place = candidate[1]
                for written, offset, digits in candidate[2]:
                    if _verified(written, digits, gate, verified):
                        place = offset + len(written)
                        found.add((offset, place))
                        break
            if len(found) == 1 and _covers(text, found, seen[0]):
                break
        return _outermost(found)

    def _promising(self, text: str, seen: dict[int, _Candidate | None]) -> bool:
        """Say whether any candidate may be a number of any region; where none is, each region sees the same ones."""
        if amount := _AMOUNT.fullmatch(text):  # one candidate, and its parts on both sides of the point
            whole, part = amount.groups(default="")
            return self._fits(whole + part) or (bool(part) and (self._fits(whole) or self._fits(part)))
        place = 0
        while (candidate := self._candidate(text, place)) is not None:
            seen[place] = candidate
            place = candidate[1]
            if candidate[2]:
                return True
        return False

    def _candidate(self, text: str, place: int) -> _Candidate | None:
        """Return start and end of the next candidate, and what of it may be a number of any region, in order.

        Each part comes with its digits, where it is nothing but digits and plain marks.
        """
        match = phonenumbermatcher._PATTERN.search(text, place)
        if match is None:
            return None
        start = match.start()
        written = _before(phonenumberutil._SECOND_NUMBER_START_PATTERN, match.group())
        end = start + len(written)
        if phonenumbermatcher._SLASH_SEPARATED_DATES.search(written):
            return start, end, ()
        if phonenumbermatcher._TIME_STAMPS.search(written) and phonenumbermatcher._TIME_STAMPS_SUFFIX.match(text[end:]):
            return start, end, ()
        tries = {(written, start): None}
        if not written.isdigit():
            tries.update(dict.fromkeys(_inside(written, start)))
        attempts = []
        for part, offset in tries:
            digits = part.translate(_MARKS) if len(part) <= _PARSED and _PLAIN.fullmatch(part) else ""
            if (not digits or self._fits(digits)) and _stands_alone(text, part, offset):
                attempts.append((part, offset, digits))
        return start, end, tuple(attempts)

    def _fits(self, digits: str) -> bool:
        """Say whether a string of digits may be a number of any region."""
        many = len(digits)
        return many >= self._fewest and bool(self._short.get(many, self._any).fullmatch(digits))


def _covers(text: str, found: set[tuple[int, int]], first: _Candidate | None) -> bool:
    """Say whether the one number found reaches from the first candidate to the end: the others lie inside it."""
    ((start, end),) = found
    return end == len(text) and first is not None and first[0] == start


def _inside(written: str, start: int) -> list[tuple[str, int]]:
    """Return the parts of a candidate that the matcher tries after the whole."""
    parts = []
    for pattern in phonenumbermatcher._INNER_MATCHES:
        match = pattern.search(written)
        if match:
            parts.append((_before(phonenumberutil._UNWANTED_END_CHAR_PATTERN, written[: match.start()]), start))
        while match:
            part = _before(phonenumberutil._UNWANTED_END_CHAR_PATTERN, match.group(1))
            parts.append((part, start + match.start(1)))
            match = pattern.search(written, match.start() + 1)
    return parts


def _before(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.search(text)
    return text[: match.start()] if match else text


def _stands_alone(text: str, written: str, offset: int) -> bool:
    """Apply the matcher's checks that know no region; fewer than two digits are never a number."""
    if len(written) < 2:
        return False
    end = offset + len(written)
    if end < len(text) and text[end] in _LETTER_LIKE:
        return False
    if offset > 0 and text[offset - 1] in _LETTER_LIKE and written[0] not in "([+":
        return False
    if written.isdigit():
        return True
    if not phonenumbermatcher._MATCHING_BRACKETS.fullmatch(written):
        return False
    return not phonenumbermatcher._PUB_PAGES.search(written)


def _verified(written: str, digits: str, gate: _Gate, verified: dict[tuple[str, int], bool]) -> bool:
    """Say whether the matcher accepts a candidate for the gate's region."""
    known = gate.known
    if known is None or not digits:
        return verified[written, 0] if (written, 0) in verified else _parsed(written, gate, verified)
    if not known.fits.fullmatch(digits):
        return False
    abroad = known.abroad.match(digits) if known.abroad is not None else None
    if abroad is not None and not digits.startswith("0", abroad.end()):
        key = (digits[abroad.end() :], -1)  # the number names its country, so the region says nothing more
        if key not in verified:
            verified[key] = _parsed(written, gate, verified)
        return verified[key]
    if digits.startswith(str(gate.code)):
        return _parsed(written, gate, verified)
    key = (digits, gate.code)  # where nothing is taken off, regions with one calling code agree
    if known.prefix is None or not known.prefix.match(digits):
        if key not in verified:
            verified[key] = known.allows(digits) and not known.needs_prefix(digits)
        return verified[key]
    return _national(digits, known)


def _national(digits: str, known: _Known) -> bool:
    """Say whether digits with a national prefix are a number: what `parse` and `_verify` do then, without the rest."""
    strip, length = phonenumberutil._maybe_strip_national_prefix_carrier_code, phonenumberutil._test_number_length
    _, shorter, _ = strip(digits, known.own)
    number = digits if length(shorter, known.own) in _NOT_TAKEN else shorter
    if len(number) < 2 or not known.allows(number):
        return False
    return not known.needs_prefix(number) or bool(strip(digits, known.main)[2])


def _parsed(written: str, gate: _Gate, verified: dict[tuple[str, int], bool]) -> bool:
    try:
        number = phonenumbers.parse(written, gate.region, keep_raw_input=True)
    except phonenumbers.NumberParseException:
        return False
    good = bool(phonenumbermatcher._verify(_VALID, number, written, cast(Any, None)))
    if number.country_code_source == phonenumbers.CountryCodeSource.FROM_NUMBER_WITH_PLUS_SIGN:
        verified[written, 0] = good  # the number names its country, so the region says nothing
    return good


def _outermost(spans: set[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the spans that lie in no other."""
    kept: list[tuple[int, int]] = []
    for start, end in sorted(spans, key=lambda span: (span[0], -span[1])):
        if not kept or end > kept[-1][1]:
            kept.append((start, end))
    return kept


def _metadata(region: str, otherwise: Any = None) -> Any:
    return PhoneMetadata.metadata_for_region(region, otherwise)


def _gate(region: str) -> _Gate:
    """Return the gate of a region, from the metadata that phonenumbers ships."""
    own = _metadata(region)
    code = own.country_code
    main = _metadata(phonenumbers.region_code_for_country_code(code), None)
    shared = [_metadata(r, None) for r in phonenumbers.region_codes_for_country_code(code)]
    rules = {rule for m in (own, main) if m is not None and (rule := m.national_prefix_transform_rule)}
    if main is None or not all(shared) or not all(re.fullmatch(r"\\\d", rule) for rule in rules):
        return _Gate(region=region, code=code, known=None)
    numbers = "|".join(f"(?:{pattern})" for pattern in dict.fromkeys(p for m in shared for p, _ in _kinds(m)))
    prefix = "|".join(dict.fromkeys(f"(?:{p})" for m in (own, main) if (p := m.national_prefix_for_parsing)))
    before = "[0-9]*" if rules else f"(?:{code})?(?:{prefix}){{0,2}}" if prefix else f"(?:{code})?"
    ways = [f"{before}(?:{numbers})", *([f"(?:{own.international_prefix})[0-9]*"] if own.international_prefix else [])]
    known = _Known(
        fits=re.compile("|".join(ways)),
        prefix=re.compile(prefix) if prefix else None,
        abroad=re.compile(own.international_prefix) if own.international_prefix else None,
        regions=tuple(_region(m) for m in shared),
        own=own,
        main=main,
    )
    return _Gate(region=region, code=code, known=known)


def _either(gates: Sequence[_Gate]) -> re.Pattern[str]:
    """Return a pattern for what fits any of the gates; where nothing is known of one, everything does."""
    known = dict.fromkeys(gate.known.fits.pattern if gate.known is not None else "[0-9]+" for gate in gates)
    return re.compile("|".join(known) or "(?!)")


def _region(metadata: Any) -> _Region:
    leading = re.compile(metadata.leading_digits) if metadata.leading_digits is not None else None
    general = metadata.general_desc
    by_length: dict[int, list[str]] = {}
    for pattern, lengths in _kinds(metadata):
        for length in lengths or range(1, 18):
            by_length.setdefault(length, []).append(f"(?:{pattern})")
    kinds = {
        length: re.compile("|".join(dict.fromkeys(patterns)))
        for length, patterns in by_length.items()
        if not general.possible_length or length in general.possible_length
    }
    return leading, re.compile(general.national_number_pattern), kinds


def _kinds(metadata: Any) -> list[tuple[str, tuple[int, ...]]]:
    """Return the pattern and the lengths of each kind of number that a region has."""
    kinds = [getattr(metadata, name) for name in _TYPES]
    return [(k.national_number_pattern, k.possible_length) for k in kinds if k and k.national_number_pattern]


def _fewest_digits(region: str) -> int:
    """Return the fewest digits that can be written for a number of the region's calling code, in national form."""
    own = _metadata(region)
    shared = phonenumbers.region_codes_for_country_code(own.country_code)
    known = [_metadata(other, None) for other in shared]
    main = _metadata(phonenumbers.region_code_for_country_code(own.country_code), own)
    rules = [m.national_prefix_transform_rule or "" for m in (own, main)]
    added = max((sum(map(str.isdigit, re.sub(r"\\\d", "", rule))) for rule in rules), default=0)
    lengths = [min(m.general_desc.possible_length) for m in known if m is not None]
    return max(1, min(lengths, default=1) - added)


def _fewest_abroad() -> int:
    """Return the fewest digits of any number with its calling code."""
    lengths: list[int] = []
    for region in phonenumbers.SUPPORTED_REGIONS:
        metadata = _metadata(region)
        lengths.append(len(str(metadata.country_code)) + min(metadata.general_desc.possible_length))
    for code in phonenumbers.COUNTRY_CODES_FOR_NON_GEO_REGIONS:
        metadata = cast(Any, PhoneMetadata.metadata_for_nongeo_region(code))
        lengths.append(len(str(code)) + min(metadata.general_desc.possible_length))
    return min(lengths)


def readable(regions: Sequence[str], leniency: int) -> bool:
    """Say whether numbers of these regions can be read here."""
    return leniency == _VALID and bool(regions) and all(region in phonenumbers.SUPPORTED_REGIONS for region in regions)
