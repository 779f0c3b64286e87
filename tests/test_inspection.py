"""Inspection: every way in which Presidio fails open is closed, and what it finds is counted, never quoted."""

import logging
import socket
from datetime import date

import numpy as np
import pyarrow as pa
import pytest
import tldextract
from presidio_analyzer import pattern_recognizer
from presidio_analyzer.predefined_recognizers import UsSsnRecognizer
from presidio_analyzer.predefined_recognizers.generic import iban_recognizer

from fabric.errors import Reason, Refused
from sanitize.inspection import Inspector, OfflineEmailRecognizer

SSN = "078-05-1126"


@pytest.fixture(scope="module")
def inspector():
    return Inspector()


def found(inspector, values, name="col"):
    return inspector.inspect_column(name, pa.array(values)).entities


# --- refusals


@pytest.mark.parametrize("module", [pattern_recognizer, iban_recognizer])
def test_a_regex_that_times_out_fails_the_inspection(inspector, monkeypatch, caplog, module):
    monkeypatch.setattr(module, "REGEX_TIMEOUT_SECONDS", 1e-9)
    text = "DE89 3704 0044 0532 0130 00 " + "a" * 5_000
    with pytest.raises(Refused) as caught:
        inspector.inspect_text(text)
    assert caught.value.reason is Reason.INSPECTION_FAILED
    assert not caplog.records


def test_a_failed_inspection_names_column_and_row_and_not_the_value(inspector, monkeypatch):
    def breaks(self, text, *args, **kwargs):
        if SSN in text:
            raise ValueError(text)
        return []

    monkeypatch.setattr(UsSsnRecognizer, "analyze", breaks)
    with pytest.raises(Refused) as caught:
        inspector.inspect_column("code", pa.chunked_array([["a", "b"], ["c", SSN, SSN]]))
    assert caught.value.reason is Reason.INSPECTION_FAILED
    assert "'code'" in caught.value.message
    assert "row 3" in caught.value.message
    assert SSN not in str(caught.value)


def test_an_inspector_that_is_blind_is_not_built(monkeypatch):
    monkeypatch.setattr(UsSsnRecognizer, "analyze", lambda *args, **kwargs: [])
    with pytest.raises(Refused) as caught:
        Inspector()
    assert "US_SSN" in caught.value.message


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


# --- closed against the network and the log


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


def test_nothing_inspected_reaches_a_log(inspector, caplog):
    caplog.set_level(logging.DEBUG, logger="presidio-analyzer")
    caplog.set_level(logging.DEBUG)
    inspector.inspect_text(f"{SSN} DE89370400440532013000 ada@example.org")
    assert SSN not in caplog.text
    assert "DE89" not in caplog.text


def test_the_logger_is_left_as_it_was(inspector):
    logger = logging.getLogger("presidio-analyzer")
    before = (logger.level, list(logger.filters), list(logger.handlers))
    inspector.inspect_text(SSN)
    assert (logger.level, list(logger.filters), list(logger.handlers)) == before


# --- what is found


def test_each_distinct_value_counts_once(inspector):
    findings = inspector.inspect_column("x", pa.array([4012888888881881] * 5 + [7] * 5))
    assert findings.entities["CREDIT_CARD"] == (1, 0)
    assert (findings.distinct, findings.cells) == (2, 10)


@pytest.mark.parametrize(
    ("value", "entity"),
    [
        (219099999, "US_SSN"),
        (219099999.0, "US_SSN"),
        (4.012888888881881e15, "CREDIT_CARD"),
        (date(1970, 1, 2), "DATE_TIME"),
        ("1EG4-TE5-MK73", "US_MBI"),
    ],
)
def test_a_value_is_read_as_a_person_would_write_it(inspector, value, entity):
    assert entity in found(inspector, [value])


def test_the_columns_names_are_context(inspector):
    plain = found(inspector, [219099999])["US_SSN"]
    assert plain == (0, 1)
    named = inspector.inspect_column("x", pa.array(["219-09-9999"]), also_called=("social security",)).entities
    assert named["US_SSN"] == (1, 0)


def test_booleans_and_missing_values_are_not_read(inspector):
    assert found(inspector, [True, False]) == {}
    assert found(inspector, [None, float("nan")]) == {}


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


def test_the_versions_that_decide_are_named(inspector):
    assert inspector.engine_versions().keys() == {"presidio-analyzer", "phonenumbers", "regex", "tldextract"}
