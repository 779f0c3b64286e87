"""Inspection by Presidio: what looks like an identifier, in a column of values or in a text.

Presidio fails open where it can; here each way is closed. No model pretends to find names (the `no_op` engine). The
recognizers are listed, not loaded from a file that might be missing. Addresses are judged by the public suffix list
that ships with tldextract, never fetched. A regex that times out is only logged by Presidio: any warning of its
logger is a failure here, and none reaches a handler, because some quote the text. An inspector that does not find
known identifiers is not built. What Presidio cannot see at all is names, streets, user names, passwords: an inspection
can make a column's fate stricter, never milder.
"""

from __future__ import annotations

import logging
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tldextract
from presidio_analyzer import AnalyzerEngine, EntityRecognizer, Pattern, PatternRecognizer, RecognizerRegistry
from presidio_analyzer import predefined_recognizers as known
from presidio_analyzer.nlp_engine import NoOpNlpEngine

from fabric.errors import Reason, Refused

STRONG = 0.6
"""From this score on a checksum or the column's name has confirmed the finding."""

WEAK = 0.05
"""Below this score a finding says nothing: any number of six digits is an American driving licence at 0.01."""

_IN_TEXT = 0.4
_IGNORED_IN_TEXT = frozenset({"DATE_TIME", "URL"})
_WINDOW = 4_000  # Presidio's phone matcher gives up silently after 65,535 attempts; a window never takes that many
_OVERLAP = 200
_VERSIONED = ("presidio-analyzer", "phonenumbers", "regex", "tldextract")

_RECOGNIZERS: tuple[type[EntityRecognizer], ...] = (
    known.AbaRoutingRecognizer,
    known.CreditCardRecognizer,
    known.CryptoRecognizer,
    known.DateRecognizer,
    known.IbanRecognizer,
    known.IpRecognizer,
    known.MacAddressRecognizer,
    known.MedicalLicenseRecognizer,
    known.NhsRecognizer,
    known.PhoneRecognizer,
    known.UkDrivingLicenceRecognizer,
    known.UkNinoRecognizer,
    known.UkPassportRecognizer,
    known.UrlRecognizer,
    known.UsBankRecognizer,
    known.UsClaimNumberRecognizer,
    known.UsHealthInsuranceMemberIdRecognizer,
    known.UsItinRecognizer,
    known.UsLicenseRecognizer,
    known.UsMbiRecognizer,
    known.UsNpiRecognizer,
    known.UsPassportRecognizer,
    known.UsPrescriptionNumberRecognizer,
    known.UsPriorAuthorizationNumberRecognizer,
    known.UsProviderTaxIdRecognizer,
    known.UsReferralNumberRecognizer,
    known.UsSsnRecognizer,
    known.UuidRecognizer,
)

_SELF_TEST: Mapping[str, str] = {
    "CREDIT_CARD": "4012888888881881",
    "EMAIL_ADDRESS": "someone@hospital.example.org",
    "IBAN_CODE": "DE89370400440532013000",
    "MEDICAL_RECORD_NUMBER": "MRN 00412345",
    "PHONE_NUMBER": "+1 425 882 9090",
    "US_NPI": "1245319599",
    "US_SSN": "078-05-1126",
}


class OfflineEmailRecognizer(known.EmailRecognizer):
    """Presidio's e-mail recognizer without the network; an unlisted domain (`ana@ward.intranet`) is a finding too."""

    def __init__(self) -> None:
        super().__init__()
        self.extract = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None, fallback_to_snapshot=True)

    def validate_result(self, pattern_text: str) -> bool | None:
        """Return True for a listed public suffix, None (the pattern's own score) for any other."""
        return True if self.extract(pattern_text).fqdn else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnFindings:
    """What was found in a column: for each entity, in how many distinct values, strong and weak."""

    entities: Mapping[str, tuple[int, int]]
    distinct: int
    cells: int

    def to_json(self) -> dict[str, dict[str, int]]:
        """Return the counts as JSON."""
        return {name: {"strong": strong, "weak": weak} for name, (strong, weak) in sorted(self.entities.items())}


class Inspector:
    """Presidio with every recognizer we use; holds no value it has seen."""

    def __init__(self) -> None:
        email = OfflineEmailRecognizer()
        registry = RecognizerRegistry(
            recognizers=[*(kind() for kind in _RECOGNIZERS), email, *_own_recognizers()], supported_languages=["en"]
        )
        self._engine = AnalyzerEngine(
            registry=registry,
            nlp_engine=NoOpNlpEngine(models=[{"lang_code": "en", "model_name": "no_op"}]),
            supported_languages=["en"],
            log_decision_process=False,
        )
        blind = [entity for entity, text in _SELF_TEST.items() if entity not in self.inspect_text(text)]
        if email.extract.suffix_list_urls or blind:
            raise Refused(
                Reason.INSPECTION_FAILED,
                f"the inspector does not find {', '.join(blind) or 'its suffix list offline'}",
                "install the versions of presidio-analyzer and phonenumbers that this project names",
            )

    def engine_versions(self) -> dict[str, str]:
        """Return the version of everything that decides what is found."""
        return {name: metadata.version(name) for name in _VERSIONED}

    def inspect_column(
        self, name: str, values: pa.Array | pa.ChunkedArray, *, also_called: Sequence[str] = ()
    ) -> ColumnFindings:
        """Inspect each distinct value, with the column's names as context.

        Args:
            name: the column, for messages and as context.
            values: numbers, dates or text; booleans say nothing and are not read.
            also_called: other names of the column, as further context.

        Raises:
            Refused: `INSPECTION_FAILED`, with the first row of the value that could not be inspected.
        """
        try:
            distinct = pc.drop_null(pc.unique(values))
        except pa.ArrowException:
            raise _unreadable(name, values.type) from None
        strong: Counter[str] = Counter()
        weak: Counter[str] = Counter()
        for value, text in zip(distinct, _written(name, distinct), strict=False):
            try:
                found = self._analyze(text, [name, *also_called])
            except Exception:  # noqa: BLE001 - whatever a recognizer raises may quote the value
                row = pc.index(values, value).as_py()
                raise Refused(
                    Reason.INSPECTION_FAILED,
                    f"column {name!r}: the value in row {row} could not be inspected",
                    "nothing crosses uninspected; mend the value or drop the column",
                ) from None
            strong.update(entity for entity, score in found.items() if score >= STRONG)
            weak.update(entity for entity, score in found.items() if WEAK <= score < STRONG)
        return ColumnFindings(
            entities={entity: (strong[entity], weak[entity]) for entity in sorted({*strong, *weak})},
            distinct=len(distinct),
            cells=len(values),
        )

    def inspect_text(self, text: str) -> frozenset[str]:
        """Return the entities found in `text`, a constant of outbound code or a name.

        Dates and URLs are not named: code is full of both, and neither identifies a person by itself.

        Raises:
            Refused: `INSPECTION_FAILED`.
        """
        plain = "".join(c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) != "Cf")
        found: set[str] = set()
        try:
            for reading in {text, plain}:
                for start in range(0, max(len(reading), 1), _WINDOW - _OVERLAP):
                    scores = self._analyze(reading[start : start + _WINDOW], ())
                    found.update(entity for entity, score in scores.items() if score >= _IN_TEXT)
        except Exception:  # noqa: BLE001 - whatever a recognizer raises may quote the text
            raise Refused(
                Reason.INSPECTION_FAILED, f"a text of {len(text):,} characters could not be inspected"
            ) from None
        return frozenset(found - _IGNORED_IN_TEXT)

    def _analyze(self, text: str, context: Sequence[str]) -> dict[str, float]:
        """Return the highest score of each entity."""
        best: dict[str, float] = {}
        with _warnings_are_errors():
            for result in self._engine.analyze(text, language="en", score_threshold=0, context=list(context)):
                best[result.entity_type] = max(best.get(result.entity_type, 0.0), result.score)
        return best


class _Unheard(Exception):
    """Presidio logged a warning where it should have failed."""


@contextmanager
def _warnings_are_errors() -> Iterator[None]:
    """Turn what Presidio only logs into an error, and keep its words from every handler."""
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
            raise _Unheard
        yield
    finally:
        logger.removeFilter(listen)
        logger.setLevel(level)
    if heard:
        raise _Unheard


def _own_recognizers() -> list[PatternRecognizer]:
    """Return recognizers for what Presidio has none for: record numbers and keys, as people write them."""
    record_number = r"\b(?:MRN|medical record(?: number| no\.?)?)[\s:#=-]{0,3}[A-Z]{0,3}\d{5,12}\b"
    return [
        PatternRecognizer(
            supported_entity="MEDICAL_RECORD_NUMBER", patterns=[Pattern("record number", record_number, 0.8)]
        ),
        PatternRecognizer(
            supported_entity="SECRET_KEY",
            patterns=[
                Pattern("private key", r"-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----", 1.0),
                Pattern("access key", r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36}\b", 1.0),
            ],
        ),
    ]


def _written(name: str, values: pa.Array) -> Iterator[str]:
    """Yield each value as a person would write it: no exponent, no `.0`, dates in ISO 8601."""
    kind = values.type
    if pa.types.is_boolean(kind) or pa.types.is_null(kind):
        return
    if pa.types.is_floating(kind):
        for number in values.to_numpy(zero_copy_only=False).astype(np.float64):
            yield "" if np.isnan(number) else np.format_float_positional(number, trim="-")
    elif pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind):
        yield from map(str, values.to_pylist())
    elif pa.types.is_temporal(kind) or pa.types.is_decimal(kind):
        yield from (str(value).removesuffix("+00:00") for value in values.to_pylist())
    else:
        raise _unreadable(name, kind)


def _unreadable(name: str, kind: pa.DataType) -> Refused:
    return Refused(Reason.INSPECTION_FAILED, f"column {name!r} of type {kind} cannot be inspected", "drop it")
