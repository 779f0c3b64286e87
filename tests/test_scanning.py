"""Scanning: in every text the entities, spans and scores that Presidio itself finds, and never less where it fails."""

import copy
import logging
import random
import warnings
from collections import Counter

import phonenumbers
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from presidio_analyzer import AnalysisExplanation, EntityRecognizer, Pattern, PatternRecognizer, RecognizerResult
from presidio_analyzer import predefined_recognizers as known
from presidio_analyzer.predefined_recognizers import PhoneRecognizer

from sanitize.phones import LONGEST, PhoneReader, readable
from sanitize.recognizers import RecognizerSet, entities_of
from sanitize.scanning import PROVEN, Scanner, Unread
from sanitize.weakening import Untranslatable, example

WARD = """
recognizers:
  - {name: CreditCardRecognizer, type: predefined, supported_languages: [{language: en, context: [plastic]}]}
  - {name: IbanRecognizer, type: predefined}
  - {name: InPanRecognizer, type: predefined}
  - {name: SgUenRecognizer, type: predefined}
  - {name: UsSsnRecognizer, type: predefined}
  - {name: PhoneRecognizer, type: predefined}
  - {name: ZaTelephoneNumberRecognizer, type: predefined}
  - {name: ItDriverLicenseRecognizer, type: predefined, supported_languages: [{language: en}]}
  - name: WardRecognizer
    supported_entity: WARD_CODE
    supported_language: en
    patterns: [{name: ward, regex: '(?i:w)-\\d{4}(?!\\d)', score: 0.7}, {name: wide, regex: 'w-\\d+', score: 1}]
    context: [ward, station]
  - {name: Vip, supported_entity: VIP, supported_language: en, deny_list: [Ada Lovelace, "a.b"]}
"""
CONTEXTS = ((), ("ssn",), ("phone_number", "Card no"), ("ward plastic", "member policy email date"))


def scanner(recognizers, versions=PROVEN, timeout_s=10.0):
    return Scanner(recognizers, versions=versions, timeout_s=timeout_s)


def scanned(reader, texts, context=(), few=0):
    found = {}
    for start, these in reader.scan(pa.array(texts, pa.string()), context, few=few):
        found.update({start + place: what for place, what in these.items()})
    return [found.get(place, ()) for place in range(len(texts))]


def differing(reader, texts, context=(), few=0):
    """Return the texts in which something else is found than Presidio finds."""
    mine = scanned(reader, texts, context, few)
    return [text for text, what in zip(texts, mine, strict=True) if what != reader.presidio(text, context)]


@pytest.fixture(scope="module")
def standard():
    return scanner(RecognizerSet.standard().build())


@pytest.fixture(scope="module")
def ward():
    return scanner(RecognizerSet.from_yaml(WARD, source="ward.yaml").build())


# --- made-up texts

GLUE = [*" .,-/:xA0@#+(_'\n\t%$", "é", "٣", "İ", "K", "\u200b", " ssn ", " card no ", " 212-555-0187 ", "120/80 "]


def made_up(recognizers, many, seed):
    """Texts made along the patterns' syntax trees, joined and changed; about a quarter is not ASCII."""
    source = random.Random(seed)
    patterns = [(p.regex, int(r.global_regex_flags)) for r in recognizers for p in getattr(r, "patterns", ())]
    texts = set()
    while len(texts) < many:
        try:
            text = example(*source.choice(patterns), source)
            while source.random() < 0.3:
                text += source.choice(GLUE) + example(*source.choice(patterns), source)
        except Untranslatable:
            continue
        for _ in range(source.choice((0, 0, 1, 2))):
            place = source.randrange(len(text) + 1)
            text = text[:place] + source.choice(GLUE) + text[place + source.randint(0, 1) :]
        if source.random() < 0.12:
            text += source.choice("é٣İKſ\u3000")
        texts.add(text[:400])
    return sorted(texts)


def luhn(body):
    digits = [int(c) for c in reversed(body)]
    return f"{body}{-sum(d if i % 2 else sum(divmod(2 * d, 10)) for i, d in enumerate(digits)) % 10}"


def identifiers(many, seed):
    """Made-up identifiers of every kind, as people write them."""
    r = random.Random(seed)
    for _ in range(many):
        n = r.randrange(10**9)
        iban = f"{n:018d}"
        check = 98 - int(f"{iban}131400") % 97
        yield from (
            f"{r.randrange(1, 900):03d}-{r.randrange(1, 99):02d}-{r.randrange(1, 9999):04d}",
            luhn(f"4{n:014d}"),
            "-".join(luhn(f"53{n:013d}")[i : i + 4] for i in (0, 4, 8, 12)),
            f"DE{check:02d}{iban}",
            f"de{check:02d} {iban[:4]} {iban[4:8]} {iban[8:12]} {iban[12:16]} {iban[16:]}, then",
            f"({r.randrange(201, 989)}) 555-{n % 10000:04d}",
            f"0{r.randrange(20, 99)} {n % 10000:04d} {r.randrange(1000, 9999)}",
            f"+49 {n}",
            f"{n % 223 + 1}.{n % 256}.{n % 99}.7",
            f"ana.{n}@ward{n % 9}.example.org",
            f"{n:032x}"[-32:],
            f"{n % 28 + 1:02d}/{n % 12 + 1:02d}/19{n % 90 + 10}",
            f"MRN: {n}",
            f"AB{n % 10**6:06d}C",
            f"http://example.com/{n}",
            f"{n / 10**9}",
            str(n),
        )


@pytest.mark.parametrize("context", CONTEXTS)
def test_made_up_texts_hold_what_presidio_finds_by_the_standard_set(standard, context):
    texts = made_up(RecognizerSet.standard().build(), 500, len(context))
    assert sum(not text.isascii() for text in texts) > 80
    assert differing(standard, texts, context) == []


@pytest.mark.parametrize("context", CONTEXTS)
def test_made_up_texts_hold_what_presidio_finds_by_a_users_set(ward, context):
    assert differing(ward, made_up(RecognizerSet.from_yaml(WARD, source="w").build(), 300, 9), context) == []


def test_every_recognizer_of_presidio_for_english_patterns_is_read_as_it_reads():
    kinds = [getattr(known, name) for name in sorted(dir(known))]
    usable = [
        k for k in kinds if isinstance(k, type) and issubclass(k, PatternRecognizer) and k is not PatternRecognizer
    ]
    made = [r for r in (kind(supported_language="en") for kind in usable) if type(r) is not known.EmailRecognizer]
    reader = scanner(made)
    assert [line.split(":")[0] for line in reader.coverage.slow] == ["ItDriverLicenseRecognizer"]
    assert differing(reader, made_up(made, 250, 3), ("passport",)) == []


def test_identifiers_of_every_kind_are_found_as_presidio_finds_them(standard):
    texts = sorted(set(identifiers(14, 5)))
    assert differing(standard, texts, ("account",)) == []
    entities = Counter(entity for what in scanned(standard, texts) for entity, *_ in what)
    assert {"US_SSN", "CREDIT_CARD", "IBAN_CODE", "PHONE_NUMBER", "IP_ADDRESS", "EMAIL_ADDRESS", "DATE_TIME"} <= set(
        entities
    )


@pytest.mark.parametrize("few", [0, 40, 10**9])
def test_masks_unions_and_neither_give_the_same(standard, few):
    texts = made_up(RecognizerSet.standard().build(), 200, 21)
    assert scanned(standard, texts, ("card",), few) == scanned(standard, texts, ("card",), 160)


@settings(max_examples=80, deadline=None)
@given(text=st.text(st.one_of(st.sampled_from("0123456789-./ @:+xABab()_"), st.characters(codec="utf-8")), max_size=60))
def test_any_text_holds_what_presidio_finds(standard, text):
    assert differing(standard, [text]) == []


def test_a_text_is_read_the_same_beside_any_others(standard):
    texts = sorted(set(identifiers(3, 1)))
    assert scanned(standard, texts) == [scanned(standard, [text])[0] for text in texts]


# --- phone numbers


def phone_texts(many, seed):
    r = random.Random(seed)
    numbers = [
        phonenumbers.example_number_for_type(region, kind)
        for region in ("US", "GB", "GG", "DE", "FR", "IL", "IN", "CA", "BR", "AR", "MX", "IT", "BS")
        for kind in (0, 1, 3, 4, 6)
    ]
    numbers = [number for number in numbers if number]
    heads = ["", "", "", "00", "011", "0", "1", "+", "49", "a", "$", "call ", "1 ext ", "(", "2012-01-02 ", "+498", "x"]
    tails = ["", "", "", " x123", " ext. 55", "#", "-123#", " ;ext=33", "~12", " anexo 5", "/x9", "b", ")", ":30", "%"]
    for _ in range(many):
        text = phonenumbers.format_number(r.choice(numbers), r.choice((0, 1, 2, 3)))
        if r.random() < 0.4:
            text = "".join(r.choices("0123456789", k=r.randint(2, 17)))
        for _ in range(r.choice((0, 0, 1, 2, 3))):
            place = r.randrange(len(text) + 1)
            text = text[:place] + r.choice(" -./()x~+,#0123456789[]") + text[place + r.randint(0, 1) :]
        yield r.choice(heads) + text + r.choice(tails) + (r.choice(heads) + text[:9] if r.random() < 0.2 else "")


def test_phone_numbers_lie_where_presidio_finds_them():
    theirs = PhoneRecognizer()
    mine = PhoneReader(tuple(theirs.supported_regions))
    texts = [
        *phone_texts(2_500, 8),
        "+498+0012345678980:30",
        "1 ext 2345678",
        "0 ext 123",
        "1     23#",
        "+001234567890",
    ]
    hits = pc.match_substring_regex(pa.array(texts), mine.screen).to_pylist()
    found = 0
    for text, screened in zip(texts, hits, strict=True):
        spans = sorted((r.start, r.end) for r in theirs.analyze(text, ["PHONE_NUMBER"]))
        assert mine.spans(text) == spans, text
        assert screened or not spans, text
        found += bool(spans)
    assert found > 500


@pytest.mark.parametrize("regions", [("GG", "AR", "MX"), ("IT", "SG", "AU"), ("KZ", "US"), ("BR",)])
def test_regions_with_rules_of_their_own_are_read_as_presidio_reads_them(regions):
    theirs, mine = PhoneRecognizer(supported_regions=regions), PhoneReader(regions)
    for text in phone_texts(250, 3):
        spans = sorted((r.start, r.end) for r in theirs.analyze(text, ["PHONE_NUMBER"]))
        assert mine.spans(text) == spans, text


def test_a_text_long_enough_to_tire_the_matcher_is_left_to_presidio(standard):
    text = "1.2/3 (4) " * (LONGEST // 10) + "call 212-555-0187"
    assert differing(standard, [text]) == []


def test_an_unknown_region_or_leniency_is_not_read_here():
    assert readable(("US", "DE"), 1)
    assert not readable(("US", "XX"), 1)
    assert not readable(("US",), 0)
    assert not readable((), 1)
    slow = scanner([PhoneRecognizer(leniency=0)]).coverage.slow
    assert len(slow) == 1
    assert "leniency" in slow[0]


# --- what goes the slow way, and is seen to


class Reading(EntityRecognizer):
    """Reads in its own way."""

    def __init__(self):
        super().__init__(supported_entities=["BED"], name="Reading", context=["bed"])

    def load(self):
        pass

    def analyze(self, text, entities, nlp_artifacts):
        at = text.find("bed")
        said = AnalysisExplanation("Reading", 0.3)
        return [RecognizerResult("BED", at, at + 3, 0.3, said)] if at >= 0 else []


class Enhancing(PatternRecognizer):
    """Raises its scores where another recognizer found something."""

    def __init__(self):
        super().__init__(supported_entity="ROOM", name="Enhancing", patterns=[Pattern("room", r"room \d", 0.2)])

    def enhance_using_context(self, text, raw_recognizer_results, other_raw_recognizer_results, nlp_artifacts, context):
        for result in raw_recognizer_results:
            result.score = 0.9 if other_raw_recognizer_results else result.score
        return raw_recognizer_results


TEXTS = ["bed 4", "room 2 at 10.0.0.1", "room 2", "078-05-1126 bed", "nothing", "béd room 3"]


def test_a_recognizer_that_reads_in_its_own_way_is_asked_about_every_text():
    reader = scanner([*RecognizerSet.standard().build(), Reading()])
    assert reader.coverage.slow == ("Reading: it reads in its own way",)
    assert "UsSsnRecognizer" in reader.coverage.fast
    assert differing(reader, TEXTS, ("bed",)) == []
    assert scanned(reader, ["bed 4"], ("bed",)) == [(("BED", 0, 3, 0.3 + 0.35),)]


def test_a_recognizer_that_reads_the_others_findings_sends_everything_to_presidio():
    reader = scanner([known.IpRecognizer(), Enhancing()])
    assert reader.coverage.fast == ()
    assert all("Enhancing changes scores" in line for line in reader.coverage.slow)
    assert differing(reader, TEXTS) == []
    assert ("ROOM", 0, 6, 0.9) in scanned(reader, ["room 2 at 10.0.0.1"])[0]


def test_a_method_exchanged_on_one_object_is_seen():
    one = known.UsSsnRecognizer()
    one.analyze = lambda text, entities, nlp_artifacts=None: []
    assert scanner([one]).coverage.fast == ()


@pytest.mark.parametrize("name", [*PROVEN])
def test_with_any_other_version_presidio_reads_everything_and_it_is_said(name):
    made = RecognizerSet.standard().build()
    reader = scanner(made, versions={**PROVEN, name: "0.1"})
    assert reader.coverage.fast == ()
    assert len(reader.coverage.slow) == len(made)
    assert all(name in line for line in reader.coverage.slow)
    assert differing(reader, TEXTS) == []
    assert not scanner(made, versions={k: v for k, v in PROVEN.items() if k != name}).coverage.fast


def test_a_minor_version_of_pyarrow_changes_nothing():
    assert scanner([known.IpRecognizer()], versions={**PROVEN, "pyarrow": "26.9.9"}).coverage.fast == ("IpRecognizer",)


# --- what Presidio passes over in silence is an error here


def failing(**methods):
    kind = type("Failing", (PatternRecognizer,), methods)
    return kind(supported_entity="CODE", name="Failing", patterns=[Pattern("code", r"code \d+", 0.5)])


def complain(self, pattern_text):
    raise ValueError(pattern_text)


def mutter(self, pattern_text):
    logging.getLogger("presidio-analyzer").error("cannot read %s", pattern_text)
    return False


def warn(self, pattern_text):
    warnings.warn(pattern_text, stacklevel=1)


def swallow(self, pattern_text):
    try:
        logging.getLogger("presidio-analyzer").warning("odd: %s", pattern_text)
    except Exception:
        return


@pytest.mark.parametrize("few", [0, 10**9])
@pytest.mark.parametrize("method", ["validate_result", "invalidate_result"])
@pytest.mark.parametrize("how", [complain, mutter, warn, swallow])
def test_a_recognizer_that_raises_or_warns_stops_the_scan_at_the_text(caplog, how, method, few):
    reader = scanner([failing(**{method: how})])
    with pytest.raises(Unread) as caught:
        scanned(reader, ["a", "b", "code 7", "code"], few=few)
    assert caught.value.place == 2
    assert "code 7" not in repr(caught.value)
    assert caught.value.__cause__ is None
    assert not caplog.records


def test_a_pattern_that_takes_too_long_stops_the_scan_at_the_text():
    slow = PatternRecognizer(supported_entity="CODE", patterns=[Pattern("slow", r"(a|aa)+(?=c)c(?<=bc)", 0.5)])
    reader = scanner([slow], timeout_s=0.05)
    with pytest.raises(Unread) as caught:
        scanned(reader, ["aac", "a" * 60 + "c"])
    assert caught.value.place == 1


def test_a_text_with_other_characters_stops_the_scan_at_its_own_place():
    with pytest.raises(Unread) as caught:
        scanned(scanner([failing(validate_result=complain)]), ["a", "é", "bé code 7"])
    assert caught.value.place == 2


def test_a_slow_recognizer_that_raises_stops_the_scan_at_the_text():
    one = Reading()
    one.analyze = lambda text, entities, nlp_artifacts: 1 / 0 if text == "x" else []
    with pytest.raises(Unread) as caught:
        scanned(scanner([one]), ["é", "a", "x"])
    assert caught.value.place == 2


def test_an_error_deep_in_a_long_column_names_its_place(monkeypatch):
    monkeypatch.setattr("sanitize.scanning.CHUNK", 10)
    with pytest.raises(Unread) as caught:
        scanned(scanner([failing(validate_result=complain)]), [*map(str, range(33)), "code 7"])
    assert caught.value.place == 33


def test_silenced_logging_stops_the_scan(standard):
    logging.disable(logging.CRITICAL)
    try:
        with pytest.raises(Unread):
            scanned(standard, ["any"])
    finally:
        logging.disable(logging.NOTSET)


# --- small rules of Presidio's that are easy to get wrong


def pattern(entity, *scored, **settings):
    patterns = [Pattern(f"p{at}", regex, score) for at, (regex, score) in enumerate(scored)]
    return PatternRecognizer(supported_entity=entity, name=f"{entity}{scored}", patterns=patterns, **settings)


@pytest.mark.parametrize(
    ("made", "text"),
    [
        ([pattern("A", (r"\d+", 0.3), (r"\d\d", 0.3), (r"\d", 0.9))], "1234"),
        ([pattern("A", (r"\d+", 0.7), (r"\d\d", 0.9), context=["col"])], "1234"),
        ([pattern("A", (r"ab", 0.5)), pattern("A", (r"abc", 0.5))], "abc ab"),
        ([pattern("B", (r"ab", 0.5)), pattern("A", (r"ab", 0.5)), pattern("A", (r"b", 0.6))], "abab"),
        ([pattern("A", (r"x*", 0.5))], "yxxy"),
        ([pattern("A", (r"ab", 0))], "ab"),
        ([pattern("A", (r"ab", 1))], "ab"),
        ([pattern("A", (r"^b$", 0.5))], "a\nb\n"),
        ([pattern("A", (r"é|e", 0.5))], "e E é"),
        ([pattern("A", (r"k", 0.5), global_regex_flags=0)], "K k \u212a"),
        ([pattern("A", (r"ab", 0.5), context=[""])], "ab"),
        ([pattern("A", (r"ab", 0.5), context=["COL"])], "ab"),
        ([copy.copy(one) for one in [pattern("A", (r"ab", 0.5))] * 2], "ab"),
    ],
)
@pytest.mark.parametrize("few", [0, 10**9])
def test_spans_scores_and_order_are_presidios(made, text, few):
    assert differing(scanner(made), [text, "none"], ("My Col",), few) == []


def test_a_threshold_of_a_recognizer_is_passed_over_as_presidio_does_when_asked_for_everything():
    one = known.UsSsnRecognizer()
    one.score_thresholds = {"default": 0.9}
    assert differing(scanner([one]), ["078-05-1126"]) == []
    assert scanned(scanner([one]), ["078-05-1126"])[0]


def test_the_standard_set_is_read_fast_whole(standard):
    assert standard.coverage.slow == ()
    assert len(standard.coverage.fast) == len(RecognizerSet.standard().build())
    assert "SECRET_KEY" in entities_of(RecognizerSet.standard().build())
