"""Inspection: every way in which Presidio fails open is closed, and what it finds is counted, never quoted."""

import logging
import pickle
import socket
from collections import Counter
from datetime import UTC, date, datetime
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
import tldextract
from hypothesis import given, settings
from hypothesis import strategies as st
from presidio_analyzer import Pattern, PatternRecognizer, pattern_recognizer
from presidio_analyzer.predefined_recognizers import UsSsnRecognizer
from presidio_analyzer.predefined_recognizers.generic import iban_recognizer

from fabric.errors import Reason, Refused
from sanitize.inspection import Audit, ColumnFindings, Inspector
from sanitize.phones import LONGEST, PhoneReader
from sanitize.recognizers import OfflineEmailRecognizer, RecognizerSet
from sanitize.scanning import PROVEN

SSN = "078-05-1126"
DRIFTED = {**PROVEN, "phonenumbers": "9.0.1"}


@pytest.fixture(scope="module")
def inspector():
    return Inspector()


@pytest.fixture(scope="module")
def slow():
    """The inspector of another version of a part, which has Presidio read everything."""
    return Inspector(versions=DRIFTED)


def found(inspector, values, name="col"):
    return inspector.inspect_column(name, pa.array(values)).entities


def respelled(inspector, values, name="col"):
    return inspector.inspect_column(name, pa.array(values)).respelled


# --- refusals


@pytest.mark.parametrize("module", [pattern_recognizer, iban_recognizer])
def test_a_regex_that_times_out_in_presidio_fails_the_inspection(slow, monkeypatch, caplog, module):
    monkeypatch.setattr(module, "REGEX_TIMEOUT_SECONDS", 1e-9)
    text = "DE89 3704 0044 0532 0130 00 " + "a" * 5_000
    with pytest.raises(Refused) as caught:
        slow.inspect_text(text)
    assert caught.value.reason is Reason.INSPECTION_FAILED
    assert not caplog.records


def test_a_regex_that_times_out_fails_the_inspection_with_the_row():
    endless = PatternRecognizer(supported_entity="CODE", patterns=[Pattern("endless", r"(a|aa)+(?=c)c(?<=bc)", 0.5)])
    inspector = Inspector(RecognizerSet.standard().with_recognizers([endless]), timeout_s=0.05)
    with pytest.raises(Refused) as caught:
        inspector.inspect_column("code", pa.array(["x", "a" * 60 + "c"]))
    assert "row 1" in caught.value.message


class Breaking(PatternRecognizer):
    """Breaks on a value and quotes it."""

    def __init__(self):
        super().__init__(supported_entity="CODE", name="Breaking", patterns=[Pattern("any", r"code .*", 0.5)])

    def validate_result(self, pattern_text):
        if SSN in pattern_text:
            raise ValueError(pattern_text)


@pytest.fixture(scope="module")
def breaking():
    return Inspector(RecognizerSet.standard().with_recognizers([Breaking()]))


@pytest.mark.parametrize("value", [f"code {SSN}", f"codé code {SSN}", "x" * 9_000 + f" code {SSN}"])
def test_a_failed_inspection_names_column_and_row_and_not_the_value(breaking, value):
    with pytest.raises(Refused) as caught:
        breaking.inspect_column("code", pa.chunked_array([["a", "b", None], ["c", value, value]]))
    assert caught.value.reason is Reason.INSPECTION_FAILED
    assert "'code'" in caught.value.message
    assert "row 4" in caught.value.message
    assert SSN not in str(caught.value)
    assert caught.value.__suppress_context__


def test_the_row_is_the_callers_own(breaking):
    with pytest.raises(Refused) as caught:
        breaking.inspect_column("code", pa.array(["a", f"code {SSN}"]), row_of=lambda place: 1_000 + place)
    assert "row 1001" in caught.value.message


def test_another_spelling_that_breaks_a_recognizer_names_the_row_too(breaking):
    with pytest.raises(Refused) as caught:
        breaking.inspect_column("code", pa.array(["é", "ｃｏｄｅ ０７８-０５-１１２６"]))
    assert "row 1 " in caught.value.message


def test_a_failed_scan_and_a_failed_text_do_not_quote(breaking):
    for read in (lambda: breaking.scan(pa.array([f"code {SSN}"])), lambda: breaking.inspect_text(f"code {SSN}")):
        with pytest.raises(Refused) as caught:
            read()
        assert SSN not in str(caught.value)


def test_an_inspector_that_is_blind_is_not_built(monkeypatch):
    monkeypatch.setattr(UsSsnRecognizer, "analyze", lambda *args, **kwargs: [])
    with pytest.raises(Refused) as caught:
        Inspector()
    assert "US_SSN" in caught.value.message


def test_an_inspector_that_reads_otherwise_than_presidio_is_not_built(monkeypatch):
    right = PhoneReader.spans
    monkeypatch.setattr(PhoneReader, "spans", lambda self, text: [] if "x12" in text else right(self, text))
    with pytest.raises(Refused) as caught:
        Inspector()
    assert "as Presidio reads them" in caught.value.message


def test_an_inspector_is_proven_on_every_pattern_of_a_users_set(monkeypatch):
    made = PatternRecognizer(supported_entity="CODE", patterns=[Pattern("code", r"W\d{3}", 0.5)])
    chosen = RecognizerSet.standard().with_recognizers([made])
    Inspector(chosen)
    monkeypatch.setattr("sanitize.scanning._pattern_read", lambda *args: lambda text: [])
    with pytest.raises(Refused):
        Inspector(RecognizerSet(source="x", registry=None, added=(made,)).limited_to(["CODE"]))


@pytest.mark.parametrize("passed", [True, False])
def test_a_difference_found_during_a_job_refuses(monkeypatch, passed):
    audited = Inspector(audit=Audit(seed=3, passed=1, found=1))
    values = pa.array(["212-555-0187", "555"])
    assert audited.inspect_column("x", values).audited == 2
    wrong = [] if passed else [(0, 3)]
    monkeypatch.setattr(PhoneReader, "spans", lambda self, text: wrong)
    with pytest.raises(Refused) as caught:
        audited.inspect_column("x", values)
    assert "Presidio finds something else" in caught.value.message
    assert "555" not in str(caught.value)


def test_silenced_logging_fails_the_inspection(inspector):
    logging.disable(logging.CRITICAL)
    try:
        with pytest.raises(Refused):
            inspector.inspect_text("any")
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.parametrize("values", [[[1, 2]], [b"\xff"], [{"a": 1}]])
def test_a_column_that_cannot_be_written_as_text_is_refused(inspector, values):
    with pytest.raises(Refused) as caught:
        inspector.inspect_column("x", pa.array(values))
    assert caught.value.reason is Reason.INSPECTION_FAILED


def test_a_text_longer_than_presidio_reads_whole_is_not_scanned_whole(inspector):
    with pytest.raises(Refused) as caught:
        inspector.scan(pa.array(["1." * LONGEST]))
    assert "cut it" in caught.value.hint


def test_half_a_character_fails_the_inspection(inspector):
    with pytest.raises(Refused):
        inspector.inspect_text("\ud800")


# --- closed against the network, the log and giving up


def test_no_inspection_reaches_for_the_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert Inspector().inspect_text("write to ada@example.org") == {"EMAIL_ADDRESS"}
    assert OfflineEmailRecognizer().extract.suffix_list_urls == ()


def test_an_address_at_an_unlisted_domain_is_still_an_address(inspector):
    assert tldextract.TLDExtract(suffix_list_urls=())("ana@ward.intranet").fqdn == ""
    assert inspector.inspect_text("ana@ward.intranet") == {"EMAIL_ADDRESS"}


def test_nothing_inspected_reaches_a_log(inspector, slow, caplog):
    caplog.set_level(logging.DEBUG, logger="presidio-analyzer")
    caplog.set_level(logging.DEBUG)
    for one in (inspector, slow):
        one.inspect_text(f"{SSN} DE89370400440532013000 ada@example.org é")
        one.inspect_column("x", pa.array([SSN, "DE89 3704 0044 0532 0130 0é"]))
    assert SSN not in caplog.text
    assert "DE89" not in caplog.text


def test_the_logger_is_left_as_it_was(inspector):
    logger = logging.getLogger("presidio-analyzer")
    before = (logger.level, list(logger.filters), list(logger.handlers))
    inspector.inspect_text(SSN)
    assert (logger.level, list(logger.filters), list(logger.handlers)) == before


def test_no_matcher_gives_up_on_a_long_value(inspector):
    value = "1.2/3 (4) " * 9_000 + "call 212-555-0187"
    assert "PHONE_NUMBER" in found(inspector, [value])
    assert "PHONE_NUMBER" in inspector.inspect_text(value)


def test_no_inspection_claims_names(inspector):
    made = inspector.coverage()
    assert inspector.inspect_text("Ada Lovelace lives in London") == frozenset()
    assert not any("Spacy" in name for name in (*made.fast, *made.slow))


# --- versions


def test_with_another_version_presidio_reads_everything_and_it_is_said(inspector, slow):
    assert slow.coverage().fast == ()
    assert all("phonenumbers 9.0.1" in line for line in slow.coverage().slow)
    values = pa.array([SSN, "x", "4012888888881881", "é 212-555-0187"])
    assert slow.inspect_column("x", values).to_json() == inspector.inspect_column("x", values).to_json()
    assert inspector.coverage().slow == ()


def test_the_versions_that_decide_are_named(inspector, slow):
    assert inspector.engine_versions().keys() == PROVEN.keys()
    assert slow.engine_versions()["phonenumbers"] == "9.0.1"


def test_an_inspector_travels_as_its_recipe():
    own = PatternRecognizer(supported_entity="BED", patterns=[Pattern("bed", r"bed \d+", 0.5)])
    sent = Inspector(RecognizerSet.standard().with_recognizers([own]), audit=Audit(seed=5), versions=DRIFTED)
    there = pickle.loads(pickle.dumps(sent))
    assert there.coverage() == sent.coverage()
    assert there.inspect_text("bed 7") == {"BED"}


# --- what is found


def test_each_distinct_value_counts_once(inspector):
    findings = inspector.inspect_column("x", pa.array([4012888888881881] * 5 + [7] * 5))
    assert findings.entities["CREDIT_CARD"] == (1, 0)
    assert (findings.distinct, findings.cells) == (2, 10)


@pytest.mark.parametrize(
    ("values", "entity"),
    [
        (pa.array([219099999]), "US_SSN"),
        (pa.array([219099999.0]), "US_SSN"),
        (pa.array([4.012888888881881e15]), "CREDIT_CARD"),
        (pa.array([Decimal("219099999.00")]), "US_SSN"),
        (pa.array([date(1970, 1, 2)]), "DATE_TIME"),
        (pa.array([datetime(1970, 1, 2, 3, 4)]), "DATE_TIME"),
        (pa.array([datetime(1970, 1, 2, tzinfo=UTC)]), "DATE_TIME"),
        (pa.array(["1EG4-TE5-MK73"]), "US_MBI"),
        (pa.array([SSN, SSN]).dictionary_encode(), "US_SSN"),
        (pa.chunked_array([pa.array([SSN]).dictionary_encode()]), "US_SSN"),
        (pa.array([SSN], pa.large_string()), "US_SSN"),
        (pa.array([SSN], pa.string_view()), "US_SSN"),
        (pa.array([219099999], pa.duration("s")), "US_SSN"),
    ],
)
def test_a_value_is_read_as_a_person_would_write_it(inspector, values, entity):
    assert entity in inspector.inspect_column("x", values).entities


@pytest.mark.parametrize(
    ("values", "written"),
    [
        ([1e22, 1e-7, -0.5, 2.0], ["10000000000000000000000", "0.0000001", "-0.5", "2"]),
        (np.array([0.1, 16.5], np.float32), ["0.1", "16.5"]),
        ([datetime(2020, 1, 2, 3, 4, 5, 600_000)], ["2020-01-02 03:04:05.6"]),
        ([datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC)], ["2020-01-02 03:04:05"]),
        ([Decimal("12.50"), Decimal("100.00"), Decimal("0.07")], ["12.5", "100", "0.07"]),
        ([None, float("nan"), 7.25], ["7.25"]),
        ([True, False], []),
    ],
)
def test_values_are_written_without_exponents_and_empty_decimals(values, written):
    seen = PatternRecognizer(supported_entity="ANY", patterns=[Pattern("any", r"\A.+\Z", 0.5)])
    read = []
    seen.validate_result = read.append
    inspector = Inspector(RecognizerSet.standard().with_recognizers([seen]))
    read.clear()  # of the texts that it was proven on
    inspector.inspect_column("x", pa.array(values))
    assert set(read) == set(written)


def test_the_columns_names_are_context(inspector):
    plain = found(inspector, [219099999])["US_SSN"]
    assert plain == (0, 1)
    named = inspector.inspect_column("x", pa.array(["219-09-9999"]), also_called=("social security",)).entities
    assert named["US_SSN"] == (1, 0)


def test_booleans_and_missing_values_are_not_read(inspector):
    assert found(inspector, [True, False]) == {}
    assert found(inspector, [None, float("nan")]) == {}
    assert inspector.inspect_column("x", pa.array([], pa.string())).distinct == 0


def test_a_scan_gives_what_presidio_finds_for_each_distinct_text(inspector, slow):
    values = pa.chunked_array([[SSN, "x", None], ["x", "ana@example.org é", SSN]])
    fast, theirs = inspector.scan(values, ["ssn"]), slow.scan(values, ["ssn"])
    assert fast.values.to_pylist() == [SSN, "x", "ana@example.org é"]
    assert dict(fast.found) == dict(theirs.found)
    assert ("US_SSN", 0, 11, 0.85) in fast.found[0]


RANDOM = np.random.default_rng(3)
CLEAN = {
    "age": np.arange(91),
    "year": np.arange(1920, 2027),
    "count": np.arange(300),
    "minutes": RANDOM.integers(0, 40_000, 150),
    "amount": RANDOM.integers(0, 200_000, 150),
    "cents": np.round(RANDOM.lognormal(6, 1.2, 150), 2),
    "tens": RANDOM.integers(0, 20_000, 150) * 10,
}


@pytest.mark.parametrize("name", CLEAN)
def test_plain_numbers_hold_nothing_but_the_odd_phone_number(inspector, name):
    entities = found(inspector, CLEAN[name], name)
    assert set(entities) <= {"PHONE_NUMBER"}
    assert sum(entities.get("PHONE_NUMBER", (0, 0))) < 0.1 * len(np.unique(CLEAN[name]))
    assert respelled(inspector, CLEAN[name], name) == {}


# --- other spellings


@pytest.mark.parametrize(
    ("values", "entity"),
    [
        ([8051126], "US_SSN"),
        ([78051126.0], "US_SSN"),
        ([19800102, 20231231], "DATE_TIME"),
        ([1_700_000_000], "DATE_TIME"),
        ([1_700_000_000_123], "DATE_TIME"),
        ([1_700_000_000_123_456], "DATE_TIME"),
        ([19800102.0], "DATE_TIME"),
        (["０７８-０５-１１２６"], "US_SSN"),
        (["078-\u200b05-1126"], "US_SSN"),
        (["4 012 888 888 881 881"], "CREDIT_CARD"),
        (["4,012,888,888,881,881"], "CREDIT_CARD"),
        (["4\u00a0012\u202f888 888 881 881"], "CREDIT_CARD"),
    ],
)
def test_what_another_spelling_would_show_is_counted_apart(inspector, values, entity):
    findings = inspector.inspect_column("x", pa.array(values))
    assert entity not in findings.entities
    assert findings.respelled[entity] == len(values)
    assert findings.to_json()[entity] == {"strong": 0, "weak": 0, "respelled": len(values)}


@pytest.mark.parametrize("values", [[20231341], [99990101], [12.5], ["2020-01-02 03:04"], [SSN]])
def test_what_is_no_other_spelling_is_not_counted(inspector, values):
    assert "DATE_TIME" not in respelled(inspector, values)


def test_what_says_nothing_in_another_spelling_is_not_counted(inspector):
    assert found(inspector, ["123456"], "n") == {}
    assert respelled(inspector, ["1 234 56"], "n") == {}


def test_a_value_that_shows_it_plainly_is_not_counted_again(inspector):
    assert "US_SSN" not in respelled(inspector, [219099999])


# --- parts


def test_findings_of_parts_merge_to_those_of_the_whole(inspector):
    values = [SSN, "x", "19800102", "4012888888881881", "8051126", "212-555-0187", "y"]
    whole = inspector.inspect_column("ssn", pa.array(values))
    parts = [inspector.inspect_column("ssn", pa.array(part)) for part in (values[:3], values[3:4], values[4:])]
    merged = ColumnFindings.merge(*parts)
    assert merged.to_json() == whole.to_json()
    assert (merged.distinct, merged.cells) == (whole.distinct, whole.cells)
    assert merged.audited == sum(part.audited for part in parts)
    assert ColumnFindings.merge() == ColumnFindings(entities={}, distinct=0, cells=0)


def test_a_long_column_is_read_in_chunks_to_the_same_end(inspector, monkeypatch):
    values = pa.array([f"{n:03d}-05-1126" if n % 3 else str(n) for n in range(200)])
    whole = inspector.inspect_column("x", values)
    monkeypatch.setattr("sanitize.inspection.CHUNK", 7)
    assert inspector.inspect_column("x", values).to_json() == whole.to_json()


NUMBERS = st.one_of(st.integers(-(10**17), 10**17), st.integers(10**6, 10**10))


@settings(max_examples=25, deadline=None)
@given(st.lists(NUMBERS, min_size=1, max_size=6, unique=True))
def test_counts_are_those_that_presidio_gives(inspector, slow, values):
    column = pa.array(values)
    assert inspector.inspect_column("id", column).to_json() == slow.inspect_column("id", column).to_json()


def test_what_is_audited_follows_the_seed_and_is_bounded():
    values = pa.array([f"{n}" for n in range(100)])
    inspector = Inspector(audit=Audit(seed=1, passed=10, found=1, most=5))
    assert inspector.inspect_column("x", values).audited == 5
    assert "audited" not in str(inspector.inspect_column("x", values).to_json())


# --- the first objection


def test_the_first_objection_stops_at_the_head_of_a_column(inspector):
    objection = inspector.first_objection("x", pa.array([SSN] * 40 + [f"{n}" for n in range(60_000)]))
    assert objection is not None
    assert objection.read < 100


def test_an_objection_is_found_wherever_it_lies(inspector):
    for place in (0, 40, 700, 9_999):
        values = [f"v{n}" for n in range(10_000)]
        values[place] = "4012888888881881"
        objection = inspector.first_objection("x", pa.array(values))
        assert objection is not None
        assert objection.entity in {"CREDIT_CARD", "US_BANK_NUMBER", "US_DRIVER_LICENSE"}


def test_a_clean_column_has_no_objection_and_odd_phone_numbers_are_none(inspector):
    assert inspector.first_objection("x", pa.array(["active", "closed"] * 400)) is None
    amounts = pa.array(np.arange(1_000, 3_000))
    assert sum(found(inspector, amounts)["PHONE_NUMBER"]) > 0
    assert inspector.first_objection("x", amounts) is None


def test_a_head_of_odd_phone_numbers_is_no_objection_to_the_whole(inspector):
    head = [f"(425) 882-{n}" for n in range(9_000, 9_020)]
    column = pa.array([*head, *(f"ward {n}" for n in range(600))])
    assert inspector.first_objection("x", column.slice(0, 30)) is not None
    assert inspector.first_objection("x", column) is None


def test_a_column_of_phone_numbers_is_objected_to(inspector):
    objection = inspector.first_objection("x", pa.array(["+1 425 882 9090", "+1 425 882 9091", "+1 425 882 9092"]))
    assert objection is not None
    assert (objection.entity, objection.hits) == ("PHONE_NUMBER", 3)


def test_a_value_that_breaks_a_recognizer_is_no_objection_but_a_refusal(breaking):
    with pytest.raises(Refused):
        breaking.first_objection("x", pa.array(["a", f"code {SSN}"]))


# --- texts


@pytest.mark.parametrize(
    ("text", "entity"),
    [
        (SSN, "US_SSN"),
        ("０７８-０５-１１２６", "US_SSN"),
        ("078-\u200b05-1126", "US_SSN"),
        ("x" * 9_990 + " " + SSN, "US_SSN"),
        ("y " * 1_995 + "4012888888881881", "CREDIT_CARD"),
        ("MRN: 00412345", "MEDICAL_RECORD_NUMBER"),
        ("-----BEGIN PRIVATE KEY-----", "SECRET_KEY"),
        ("call 212-555-0187", "PHONE_NUMBER"),
    ],
)
def test_an_identifier_in_a_text_is_named(inspector, text, entity):
    assert entity in inspector.inspect_text(text)


@pytest.mark.parametrize(
    "text", ["", "learning_rate", "2026-01-01", "https://ray.io/docs", "float32", "the loss did not fall", "0.001"]
)
def test_ordinary_constants_are_clean(inspector, text):
    assert inspector.inspect_text(text) == frozenset()


def test_many_texts_are_counted_as_one_by_one(inspector):
    texts = [SSN, SSN, "x", "ana@example.org", "０７８-０５-１１２６", "y " * 3_000 + SSN, "", *map(str, range(400))]
    counted = Counter(entity for text in texts for entity in inspector.inspect_text(text))
    assert inspector.inspect_texts(texts) == counted
    assert counted["US_SSN"] == 4
    assert inspector.inspect_texts([]) == Counter()
