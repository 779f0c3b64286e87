"""Recognizer sets: a broken file, an unknown name, a service, a model are refused; Presidio would have gone on."""

import pickle
from pathlib import Path

import presidio_analyzer
import pytest
from presidio_analyzer import EntityRecognizer, Pattern, PatternRecognizer, RemoteRecognizer
from presidio_analyzer import predefined_recognizers as known

from fabric.errors import InvalidInput, Reason
from sanitize.recognizers import OfflineEmailRecognizer, RecognizerSet, entities_of

WARD = """
supported_languages: [en]
global_regex_flags: 26
recognizers:
  - name: CreditCardRecognizer
    supported_languages: [{language: en, context: [plastic]}]
    type: predefined
  - EmailRecognizer
  - name: WardRecognizer
    supported_entity: WARD_CODE
    supported_language: en
    patterns: [{name: ward, regex: 'W-\\d{4}', score: 0.7}]
    context: [ward]
  - name: VipRecognizer
    supported_entity: VIP
    supported_language: en
    deny_list: [Ada Lovelace, Grace Hopper]
"""


def refused(text):
    with pytest.raises(InvalidInput) as caught:
        RecognizerSet.from_yaml(text, source="ward.yaml")
    assert "ward.yaml" in caught.value.message
    return caught.value


# --- refusals


@pytest.mark.parametrize(
    "text",
    ["a: [", "", "recognizers: []", "recognisers: [CreditCardRecognizer]", "- CreditCardRecognizer", "recognizers: 3"],
)
def test_a_broken_file_is_refused_where_presidio_loads_its_defaults(text):
    assert refused(text).reason is Reason.CONFIG_INVALID


def test_what_is_wrong_with_a_file_is_said_by_line_and_not_by_its_words():
    error = refused("recognizers:\n  - name: [secret-regex\n")
    assert "line" in error.message
    assert "secret" not in str(error)


def test_an_unknown_recognizer_is_refused_with_the_nearest_right_one():
    assert "'CreditCardRecognizer'" in refused("recognizers: [CreditCardRecogniser]").hint


def test_an_unknown_key_is_refused_with_the_nearest_right_one():
    error = refused("recognizers: [CreditCardRecognizer]\nglobal_regex_flag: 2")
    assert error.reason is Reason.UNKNOWN_KEY
    assert "'global_regex_flags'" in error.hint


def test_a_threshold_for_an_entity_that_is_not_found_is_refused_with_the_nearest_right_one():
    entry = "recognizers:\n - {name: CreditCardRecognizer, type: predefined, score_thresholds: {CREDIT_CRAD: 0.5}}"
    assert "'CREDIT_CARD'" in refused(entry).hint


def test_an_unknown_entity_is_refused_where_presidio_ignores_it():
    with pytest.raises(InvalidInput) as caught:
        RecognizerSet.standard().limited_to(["US_SNN"])
    assert "'US_SSN'" in caught.value.hint
    with pytest.raises(InvalidInput):
        RecognizerSet.standard().limited_to([])


@pytest.mark.parametrize(
    "name", ["AzureAILanguageRecognizer", "BasicLangExtractRecognizer", "SpacyRecognizer", "StanzaRecognizer"]
)
def test_a_recognizer_that_asks_a_service_or_needs_a_model_is_refused_before_it_is_made(name):
    assert name in refused(f"recognizers: [{{name: {name}, type: predefined}}]").message


class Remote(RemoteRecognizer):
    def load(self):
        raise NotImplementedError

    def analyze(self, text, entities, nlp_artifacts):
        return []

    def get_supported_entities(self):
        return ["X"]


class LookingUp(known.EmailRecognizer):
    pass


class Loaded(EntityRecognizer):
    def load(self):
        pass

    def analyze(self, text, entities, nlp_artifacts):
        return []


@pytest.mark.parametrize(
    "made",
    [
        lambda: object.__new__(Remote),
        LookingUp,
        lambda: Loaded(supported_entities=["X"], supported_language="de"),
        lambda: "CreditCardRecognizer",
        lambda: known.CreditCardRecognizer,
    ],
)
def test_an_object_that_may_not_be_used_is_refused(made):
    one = made()
    if isinstance(one, Remote):
        one.name, one.supported_language = "Remote", "en"
    with pytest.raises(InvalidInput) as caught:
        RecognizerSet.standard().with_recognizers([one])
    assert caught.value.reason is Reason.CONFIG_INVALID


def test_an_entry_that_presidio_cannot_make_is_refused_without_its_words():
    entry = "{name: X, supported_entity: Y, supported_language: en, patterns: [{name: a, regex: '(secret', score: 1}]}"
    assert "secret" not in str(refused(f"recognizers: [{entry}]"))


def test_a_file_that_enables_nothing_is_refused():
    refused("recognizers: [{name: CreditCardRecognizer, type: predefined, enabled: false}]")


def test_a_file_for_another_language_is_refused():
    assert "'en'" in refused("supported_languages: [de]\nrecognizers: [CreditCardRecognizer]").message


# --- what is used


def test_a_file_gives_what_presidio_makes_of_it_and_the_names_it_would_drop():
    made = {r.name: r for r in RecognizerSet.from_yaml(WARD, source="ward.yaml").build()}
    assert set(made) == {"CreditCardRecognizer", "EmailRecognizer", "WardRecognizer", "VipRecognizer"}
    assert made["CreditCardRecognizer"].context == ["plastic"]
    assert made["WardRecognizer"].patterns[0].score == 0.7


def test_presidios_own_file_is_read_unchanged_and_what_is_for_other_languages_is_said():
    text = (Path(presidio_analyzer.__file__).parent / "conf/default_recognizers.yaml").read_text()
    chosen = RecognizerSet.from_yaml(text, source="default_recognizers.yaml")
    assert {"CREDIT_CARD", "US_SSN", "EMAIL_ADDRESS", "PHONE_NUMBER"} <= entities_of(chosen.build())
    assert "EsNifRecognizer" in chosen.left_out()
    assert "CreditCardRecognizer" not in chosen.left_out()


def test_no_set_looks_addresses_up():
    email = known.EmailRecognizer(context=["post"], supported_entity="MAIL")
    sets = [
        RecognizerSet.standard(),
        RecognizerSet.from_yaml(WARD, source="ward.yaml"),
        RecognizerSet.standard().with_recognizers([email]),
    ]
    for chosen in sets:
        readers = [r for r in chosen.build() if isinstance(r, known.EmailRecognizer)]
        assert readers
        assert all(type(r) is OfflineEmailRecognizer and r.extract.suffix_list_urls == () for r in readers)
    assert (readers[-1].context, readers[-1].supported_entities) == (["post"], ["MAIL"])


def test_recognizers_given_as_objects_are_used_as_they_are():
    own = PatternRecognizer(supported_entity="BED", patterns=[Pattern("bed", r"bed \d+", 0.5)])
    assert RecognizerSet.standard().with_recognizers([own]).build()[-1] is own


def test_a_limited_set_keeps_what_finds_the_named_entities():
    assert entities_of(RecognizerSet.standard().limited_to(["US_SSN", "IP_ADDRESS"]).build()) == {
        "US_SSN",
        "IP_ADDRESS",
    }


def test_a_set_travels():
    own = PatternRecognizer(supported_entity="BED", patterns=[Pattern("bed", r"bed \d+", 0.5)])
    chosen = RecognizerSet.from_yaml(WARD, source="ward.yaml").with_recognizers([own])
    there = pickle.loads(pickle.dumps(chosen))
    assert [r.name for r in there.build()] == [r.name for r in chosen.build()]
