"""Redaction: free text with each name and identifier that is found replaced by its kind, `<PERSON>`.

Names are found by a spaCy pipeline that lies in a folder; none is ever downloaded. Presidio takes a pipeline without
named entities for one that has them: a blank one claims PERSON and finds none. Such a pipeline is refused here, before
any text is read. What was redacted is inspected again, and refused if anything is left. No message holds a text.

A redacted text is no matrix: nobody can show that nothing was missed, so it crosses only where policy names it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from presidio_analyzer import AnalyzerEngine, EntityRecognizer, RecognizerRegistry, RecognizerResult
from presidio_analyzer.nlp_engine import NerModelConfiguration, SpacyNlpEngine

from fabric.errors import InvalidInput, Reason, Refused

LANGUAGE = "en"
WEAK = 0.05
"""Below this score a finding says nothing: any number of six digits is an American driving licence at 0.01."""

_PERSON = "PERSON"
_ROUNDS = 4  # the last must find nothing
_MARK = re.compile(r"<([A-Z_]+)>")
_NUMBERS = frozenset({"CARDINAL", "MONEY", "ORDINAL", "PERCENT", "QUANTITY"})  # OntoNotes 5's labels of plain numbers
_WAY_OUT = (
    "install a pipeline with NER, such as en_core_web_lg, into a folder of the private zone and name that folder, "
    "or use the treatment vectorise"
)


@dataclass(frozen=True, slots=True)
class Redactor:
    """Presidio with a language model that finds names; holds no text it has seen."""

    analyzer: AnalyzerEngine = field(repr=False)

    @classmethod
    def load(cls, model_path: Path, *, recognizers: Sequence[EntityRecognizer]) -> Redactor:
        """Load the spaCy pipeline in the folder `model_path`.

        Args:
            recognizers: what finds identifiers beside the model, as `sanitize.recognizers` lists it.

        Raises:
            InvalidInput: `CONFIG_MISSING` or `CONFIG_INVALID`: there is no pipeline there, or it cannot be loaded.
            Refused: `INSPECTION_FAILED`: the pipeline finds no names.
        """
        # 1. The folder. Presidio would download a model whose name is no path.
        folder = model_path.resolve()
        if not (folder / "config.cfg").is_file() or not (folder / "meta.json").is_file():
            raise InvalidInput(Reason.CONFIG_MISSING, f"there is no spaCy pipeline in {model_path}", _WAY_OUT)
        engine = SpacyNlpEngine(models=[{"lang_code": LANGUAGE, "model_name": str(folder)}])
        try:
            engine.load()
        except Exception as error:  # noqa: BLE001 - spaCy, its plug-ins and its file formats raise whatever they like
            message = f"the spaCy pipeline in {model_path} cannot be loaded ({type(error).__name__})"
            raise InvalidInput(Reason.CONFIG_INVALID, message, _WAY_OUT) from None
        # 2. It finds names. A label that Presidio does not know is redacted as itself, unless it is a number's.
        labels = _labels(engine)
        known = engine.ner_model_configuration.model_to_presidio_entity_mapping
        if _PERSON not in {known.get(label) for label in labels}:
            message = f"the spaCy pipeline in {model_path} has no component that finds persons"
            raise Refused(Reason.INSPECTION_FAILED, message, _WAY_OUT)
        engine.ner_model_configuration = NerModelConfiguration(
            model_to_presidio_entity_mapping={**{label: label for label in labels - _NUMBERS}, **known},
            labels_to_ignore=_NUMBERS,
        )
        # 3. The analyzer, with the model as one more recognizer.
        registry = RecognizerRegistry(recognizers=list(recognizers), supported_languages=[LANGUAGE])
        registry.add_nlp_recognizer(engine)
        return cls(
            AnalyzerEngine(
                registry=registry, nlp_engine=engine, supported_languages=[LANGUAGE], log_decision_process=False
            )
        )

    def redact(self, texts: Sequence[str]) -> list[str]:
        """Return each text with what was found replaced; each by itself, so that no text depends on the others.

        Raises:
            Refused: `INSPECTION_FAILED`: something could not be inspected, or is found again whatever replaces it.
        """
        return [self._redacted(text) for text in texts]

    def _redacted(self, text: str) -> str:
        kinds = frozenset(self.analyzer.get_supported_entities(LANGUAGE))
        for _ in range(_ROUNDS):
            spans = _outside_marks(text, self._found(text), kinds)
            if not spans:
                return text
            text = _replaced(text, spans)
        raise _failed(text, f"still holds identifiers after {_ROUNDS - 1} rounds")

    def _found(self, text: str) -> list[RecognizerResult]:
        language: Any = self.analyzer.nlp_engine.get_nlp(LANGUAGE)
        try:
            with _warnings_are_errors(), language.memory_zone():  # else the vocabulary keeps the words
                return list(self.analyzer.analyze(text, language=LANGUAGE, score_threshold=WEAK))
        except Exception:  # noqa: BLE001 - whatever a recognizer or the model raises may quote the text
            raise _failed(text, "could not be inspected") from None


def _labels(engine: SpacyNlpEngine) -> frozenset[str]:
    """Return the labels of the entities that the pipeline's components can set."""
    nlp = engine.get_nlp(LANGUAGE)
    finding = [name for name in nlp.pipe_names if "doc.ents" in nlp.get_pipe_meta(name).assigns]
    return frozenset(label for name in finding for label in getattr(nlp.get_pipe(name), "labels", ()))


def _outside_marks(text: str, found: Sequence[RecognizerResult], kinds: frozenset[str]) -> list[tuple[int, int, str]]:
    """Return what was found as spans that do not overlap and cut no mark of ours; the best kind names each."""
    marks = [mark.span() for mark in _MARK.finditer(text) if mark[1] in kinds]
    marked = bytearray(len(text))
    for start, end in marks:
        marked[start:end] = b"\1" * (end - start)
    real = [
        (*_whole(result.start, result.end, marks), result)
        for result in found
        if any(text[i].isalnum() and not marked[i] for i in range(result.start, result.end))
    ]
    spans: list[tuple[int, int, str]] = []
    best = 0.0
    for start, end, result in sorted(real, key=lambda each: (each[0], -each[1], each[2].entity_type)):
        if spans and start < spans[-1][1]:
            first, last, kind = spans[-1]
            spans[-1] = (first, max(last, end), result.entity_type if result.score > best else kind)
            best = max(best, result.score)
        else:
            spans.append((start, end, result.entity_type))
            best = result.score
    return spans


def _whole(start: int, end: int, marks: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return a span grown to the whole of each mark that it cuts."""
    cut = [mark for mark in marks if mark[0] < end and start < mark[1]]
    return min([start, *(mark[0] for mark in cut)]), max([end, *(mark[1] for mark in cut)])


def _replaced(text: str, spans: Sequence[tuple[int, int, str]]) -> str:
    parts, done = [], 0
    for start, end, kind in spans:
        parts += [text[done:start], f"<{kind}>"]
        done = end
    return "".join((*parts, text[done:]))


@contextmanager
def _warnings_are_errors() -> Iterator[None]:
    """Fail where Presidio only warns, such as of a pattern that timed out; no warning reaches a handler.

    Raises:
        RuntimeError: something was warned of, or nothing could be.
    """
    logger, seen = logging.getLogger("presidio-analyzer"), _Seen()
    level, disabled = logger.level, logger.disabled
    logger.setLevel(logging.WARNING)
    logger.disabled = False
    logger.addFilter(seen)
    try:
        deaf = not logger.isEnabledFor(logging.WARNING)
        yield
    finally:
        logger.removeFilter(seen)
        logger.setLevel(level)
        logger.disabled = disabled
    if seen.count or deaf:
        raise RuntimeError


class _Seen(logging.Filter):
    """Counts records and keeps them from every handler."""

    count = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Count a record."""
        self.count += 1
        return False


def _failed(text: str, what: str) -> Refused:
    return Refused(
        Reason.INSPECTION_FAILED, f"a text of {len(text):,} characters {what}", "use the treatment vectorise"
    )
