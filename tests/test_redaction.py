"""Redaction: a pipeline that finds no names is refused, what is found is replaced, what is left is refused."""

import logging
import random

import pyarrow as pa
import pytest
import spacy
from presidio_analyzer import Pattern, PatternRecognizer
from presidio_analyzer.predefined_recognizers import UsSsnRecognizer
from spacy.training import Example
from spacy.util import fix_random_seed

from fabric.errors import FabricError, InvalidInput, Reason, Refused
from sanitize.recipe import Column, Redact, Role
from sanitize.redaction import Redactor
from sanitize.treatment import Secrets, make, settle

NAME, NUMBER = "Marwa Ortengren", "078-05-1126"
RULES = [
    {"label": "PERSON", "pattern": NAME},
    {"label": "GPE", "pattern": "Uppsala"},
    {"label": "SHIP", "pattern": "Vasa"},
    {"label": "CARDINAL", "pattern": "eleven"},
    {"label": "PERSON", "pattern": "MARWA"},
]
SECRETS = Secrets(rows=b"r" * 32, purpose=b"p" * 32)
NOTE = Column(name="note", source="NOTE", treatment=Redact(), role=Role.FEATURE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return the folder of a pipeline that knows four names by rule."""
    nlp = spacy.blank("en")
    nlp.add_pipe("entity_ruler").add_patterns(RULES)
    path = tmp_path_factory.mktemp("models") / "ruled"
    nlp.to_disk(path)
    return path


@pytest.fixture(scope="module")
def redactor(folder):
    return Redactor.load(folder, recognizers=[UsSsnRecognizer()])


def refusal(path, kind=FabricError):
    with pytest.raises(kind) as caught:
        Redactor.load(path, recognizers=[])
    assert "vectorise" in caught.value.hint
    return caught.value


def test_a_folder_without_a_pipeline_is_refused_and_nothing_is_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(spacy.cli, "download", lambda *_, **__: pytest.fail("it went to the network"))
    monkeypatch.chdir(tmp_path)
    for missing in (tmp_path / "none", tmp_path, tmp_path / "en_core_web_lg"):
        assert refusal(missing, InvalidInput).reason is Reason.CONFIG_MISSING


def test_a_blank_pipeline_is_refused(tmp_path):
    spacy.blank("en").to_disk(tmp_path / "blank")
    assert refusal(tmp_path / "blank", Refused).reason is Reason.INSPECTION_FAILED


@pytest.mark.parametrize("label", [None, "GPE"])
def test_a_pipeline_that_finds_no_persons_is_refused(tmp_path, label):
    nlp = spacy.blank("en")
    ruler = nlp.add_pipe("entity_ruler")
    if label:
        ruler.add_patterns([{"label": label, "pattern": "Uppsala"}])
    nlp.to_disk(tmp_path / "places")
    assert refusal(tmp_path / "places", Refused).reason is Reason.INSPECTION_FAILED


def test_a_broken_pipeline_is_refused(folder, tmp_path):
    for name in ("config.cfg", "meta.json"):
        (tmp_path / name).write_text("no pipeline: " + NUMBER)
    error = refusal(tmp_path, InvalidInput)
    assert error.reason is Reason.CONFIG_INVALID
    assert NUMBER not in str(error)


def test_a_recognizer_that_fails_refuses_the_text_and_quotes_nothing(folder):
    class Failing(UsSsnRecognizer):
        def analyze(self, text, entities, nlp_artifacts=None, regex_flags=None):
            raise ValueError(text)

    with pytest.raises(Refused) as caught:
        Redactor.load(folder, recognizers=[Failing()]).redact([NUMBER])
    assert caught.value.reason is Reason.INSPECTION_FAILED
    assert NUMBER not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("deaf", [False, True])
def test_a_warning_refuses_the_text_and_reaches_no_handler(folder, caplog, deaf):
    class Warning(UsSsnRecognizer):
        def analyze(self, text, entities, nlp_artifacts=None, regex_flags=None):
            logging.getLogger("presidio-analyzer").warning("timed out on %s", text)
            return []

    lax = Redactor.load(folder, recognizers=[Warning()])
    caplog.clear()
    if deaf:
        logging.disable(logging.CRITICAL)
    try:
        with pytest.raises(Refused) as caught:
            lax.redact([NUMBER])
    finally:
        logging.disable(logging.NOTSET)
    assert caught.value.reason is Reason.INSPECTION_FAILED
    assert NUMBER not in caplog.text


def test_a_text_in_which_something_is_found_whatever_replaces_it_is_refused(folder):
    """Each mark makes the word after it a finding."""
    greedy = PatternRecognizer(
        supported_entity="NEXT", patterns=[Pattern("next", r"(?:(?<=^)|(?<=> ))[a-z]+", 0.9)], supported_language="en"
    )
    redactor = Redactor.load(folder, recognizers=[greedy])
    assert redactor.redact(["one two three"]) == ["<NEXT> <NEXT> <NEXT>"]
    with pytest.raises(Refused) as caught:
        redactor.redact(["one two three four five six seven"])
    assert "4 rounds" not in caught.value.message
    assert "3 rounds" in caught.value.message


# --- what comes out


def test_names_and_identifiers_become_their_kind(redactor):
    text = f"{NAME}, SSN {NUMBER}, moved to Uppsala with eleven others on the Vasa."
    assert redactor.redact([text, "", "no names"]) == [
        "<PERSON>, SSN <US_SSN>, moved to <LOCATION> with eleven others on the <SHIP>.",
        "",
        "no names",
    ]


def test_what_was_redacted_stays_as_it_is(redactor):
    (once,) = redactor.redact([f"{NAME} <PERSON> {NAME}"])
    assert once == "<PERSON> <PERSON> <PERSON>"
    assert redactor.redact([once]) == [once]


def test_the_word_in_a_mark_is_not_found_again(folder):
    shouted = PatternRecognizer(
        supported_entity="SHOUT", patterns=[Pattern("shout", r"\b[A-Z]{5,}\b", 0.9)], global_regex_flags=0
    )
    redactor = Redactor.load(folder, recognizers=[shouted])
    assert redactor.redact([f"{NAME} said AAAAAH"]) == ["<PERSON> said <SHOUT>"]


def test_a_finding_that_cuts_a_mark_takes_all_of_it(folder):
    cutting = PatternRecognizer(supported_entity="CUTTING", patterns=[Pattern("cutting", r"SON> was", 0.9)])
    assert Redactor.load(folder, recognizers=[cutting]).redact([f"{NAME} was seen"]) == ["<CUTTING> seen"]


def test_brackets_of_a_text_are_no_marks_of_ours(redactor):
    assert redactor.redact(["<MARWA> called"]) == ["<<PERSON>> called"]
    (text,) = redactor.redact([f"<{NUMBER}> <{NAME}>"])
    assert NUMBER not in text
    assert NAME not in text


def test_a_trained_model_is_used(tmp_path):
    fix_random_seed(1)  # the weights start from NumPy's global state, which other tests move
    nlp = spacy.blank("en")
    nlp.add_pipe("ner").add_label("PERSON")
    said = ["{} was seen", "seen by {} today", "{} called", "we asked {}"]
    people = [NAME, "Odo Fennimar", "Tilda Grusewitz"]
    nobody = [nlp.make_doc(text) for text in ("nothing was seen", "we asked today", "seen by others today")]
    made = [
        Example.from_dict(
            nlp.make_doc(text.format(who)),
            {"entities": [(text.index("{"), text.index("{") + len(who), "PERSON")]},
        )
        for text in said
        for who in people
    ]
    made += [Example.from_dict(doc, {"entities": []}) for doc in nobody]
    nlp.initialize(lambda: made)
    order = random.Random(1)
    for _ in range(30):
        order.shuffle(made)
        nlp.update(made)
    nlp.to_disk(tmp_path / "trained")
    redactor = Redactor.load(tmp_path / "trained", recognizers=[])
    assert redactor.redact([f"{NAME} was seen"]) == ["<PERSON> was seen"]


def test_the_vocabulary_keeps_no_word_of_a_text(redactor):
    redactor.redact(["zyxquorble"])
    assert "zyxquorble" not in redactor.analyzer.nlp_engine.get_nlp("en").vocab.strings


# --- as a treatment


def test_redacted_texts_are_levels_and_nothing_of_the_raw_ones_is_among_them(redactor):
    table = pa.table({"NOTE": [f"seen {NAME}", None, "seen Uppsala", f"seen {NAME}"]})
    made = make(NOTE, table, first_row=0, secrets=SECRETS, redactor=redactor)
    assert set(made.levels) == {"seen <PERSON>", "seen <LOCATION>", None}
    assert made.nulls == 1
    settled = settle(NOTE, made.levels, None, None)
    assert [settled.names[code] for code in settled.codes[made.values["note"]]] == [
        "seen <PERSON>",
        "(missing)",
        "seen <LOCATION>",
        "seen <PERSON>",
    ]


def test_without_a_model_no_text_is_redacted():
    with pytest.raises(Refused) as caught:
        make(NOTE, pa.table({"NOTE": ["x"]}), first_row=0, secrets=SECRETS)
    assert caught.value.reason is Reason.COLUMN_REFUSED
    assert "vectorise" in caught.value.hint


def test_a_refusal_names_the_column(folder):
    class Failing(UsSsnRecognizer):
        def analyze(self, text, entities, nlp_artifacts=None, regex_flags=None):
            raise ValueError(text)

    failing = Redactor.load(folder, recognizers=[Failing()])
    with pytest.raises(Refused) as caught:
        make(NOTE, pa.table({"NOTE": [NUMBER]}), first_row=0, secrets=SECRETS, redactor=failing)
    assert "'note'" in caught.value.message
    assert NUMBER not in str(caught.value)
