"""Inspection: Presidio reads every distinct value of every outgoing column.

It runs without a language model, so it finds patterns and checksums, no names and no addresses: inspection can make a
column's fate stricter, never let one pass. Presidio's ways of failing open are closed: its recognizers are listed here
and not configured by a file that might not parse, the public suffix list is the one in the package and never fetched,
a pattern that is skipped on a time-out fails the inspection, and its log is cut off, because it quotes what it reads.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version

import pyarrow as pa
import pyarrow.compute as pc
import tldextract.tldextract
from presidio_analyzer import AnalyzerEngine, RecognizerRegistry, predefined_recognizers
from presidio_analyzer.nlp_engine import NoOpNlpEngine

from fabric.errors import Reason, Refused

RECOGNIZERS = (
    # Presidio's own defaults for English.
    "CreditCardRecognizer", "UsBankRecognizer", "UsLicenseRecognizer", "UsItinRecognizer", "UsPassportRecognizer",
    "UsSsnRecognizer", "NhsRecognizer", "CryptoRecognizer", "DateRecognizer", "EmailRecognizer", "IbanRecognizer",
    "IpRecognizer", "MedicalLicenseRecognizer", "MacAddressRecognizer", "UuidRecognizer", "PhoneRecognizer",
    "UrlRecognizer",
    # Off by default, on for health records.
    "UsMbiRecognizer", "UsNpiRecognizer", "UsHealthInsuranceMemberIdRecognizer", "UsClaimNumberRecognizer",
    "UsPrescriptionNumberRecognizer", "UkNinoRecognizer",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """When findings refuse a column of numbers.

    A number of nine digits looks like many things, so a single weak finding means little and a share of them much.
    Measured on 400 values each: amounts, ages, counts, durations and codes stay under 3.5 per cent of weak findings;
    social security, phone, card, provider and account numbers and dates written as numbers lie above 60.

    Attributes:
        strong: at or above this score (a checksum held, or the column's name confirmed it) one value is enough.
        weak: findings below this score are counted and mean nothing (any 4 to 9 digits are a driver's licence at 0.01).
        share: weak findings on this share of the distinct values refuse the column...
        least: ...if there are at least so many.
        unique: an integer column with more than this share of distinct values has the shape of an identifier...
        rows: ...if it has at least so many rows.
    """

    strong: float = 0.6
    weak: float = 0.05
    share: float = 0.05
    least: int = 3
    unique: float = 0.9
    rows: int = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnFindings:
    """What Presidio found in one column: by entity, how many distinct values, strongly and weakly."""

    distinct: int
    strong: Mapping[str, int]
    weak: Mapping[str, int]

    def to_json(self) -> dict[str, dict[str, int]]:
        """Return the counts by entity."""
        return {
            entity: {"strong": self.strong.get(entity, 0), "weak": self.weak.get(entity, 0)}
            for entity in sorted({*self.strong, *self.weak})
        }


class Inspector:
    """Presidio's analyzer, closed against failing open."""

    def __init__(self, thresholds: Thresholds | None = None) -> None:
        self.thresholds = thresholds or Thresholds()
        self._log = _Warnings()
        _cut_off(logging.getLogger("presidio-analyzer"), self._log)
        # The e-mail recognizer looks domains up in a list that it would fetch at first use.
        tldextract.tldextract.TLD_EXTRACTOR = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)
        engine = NoOpNlpEngine(models=[{"lang_code": "en", "model_name": "no_op"}])
        recognizers = [getattr(predefined_recognizers, name)() for name in RECOGNIZERS]
        self._analyzer = AnalyzerEngine(
            nlp_engine=engine,
            registry=RecognizerRegistry(recognizers=recognizers, supported_languages=["en"]),
            supported_languages=["en"],
            log_decision_process=False,
        )

    def versions(self) -> dict[str, str]:
        """Return the versions of everything that findings depend on."""
        return {name: version(name) for name in ("presidio-analyzer", "phonenumbers", "regex", "tldextract")}

    def inspect_column(self, name: str, values: pa.ChunkedArray) -> ColumnFindings:
        """Analyse each distinct value as a person would write it, with the column's name as context.

        Raises:
            Refused: `INSPECTION_FAILED`, naming the column and a row; never the value.
        """
        distinct = pc.unique(values.drop_null())
        strong: dict[str, int] = {}
        weak: dict[str, int] = {}
        for value in distinct.to_pylist():
            try:
                scores = self._scores(written(value), re.split(r"[._]", name))
            except Exception:  # noqa: BLE001 - any failure to look is a failure to pass
                row = pc.index(values, value).as_py()
                raise Refused(
                    Reason.INSPECTION_FAILED,
                    f"column {name!r}, row {row}: the value could not be inspected",
                    "drop the column, or round, bin or encode it",
                ) from None
            for entity, score in scores.items():
                counts = strong if score >= self.thresholds.strong else weak
                if score >= self.thresholds.weak:
                    counts[entity] = counts.get(entity, 0) + 1
        return ColumnFindings(distinct=len(distinct), strong=strong, weak=weak)

    def judge(self, name: str, values: pa.ChunkedArray, findings: ColumnFindings, *, coarse: bool) -> None:
        """Refuse a column that its findings, or its shape, show to be an identifier.

        Args:
            coarse: whether its treatment already made values coarser.

        Raises:
            Refused: `COLUMN_REFUSED`.
        """
        limits = self.thresholds
        if findings.strong:
            raise _refused(name, f"{_counts(findings.strong)}", findings.distinct)
        heavy = {
            entity: count
            for entity, count in findings.weak.items()
            if count >= limits.least and count >= limits.share * findings.distinct
        }
        if heavy:
            raise _refused(name, _counts(heavy), findings.distinct)
        known = len(values) - values.null_count
        whole = pa.types.is_integer(values.type) or (known and pc.all(pc.equal(pc.floor(values), values)).as_py())
        if not coarse and whole and known >= limits.rows and findings.distinct > limits.unique * known:
            raise Refused(
                Reason.COLUMN_REFUSED,
                f"column {name!r} has the shape of an identifier: {findings.distinct} distinct whole numbers "
                f"in {known} rows",
                "drop it, or round or bin it",
            )

    def inspect_text(self, text: str) -> Collection[str]:
        """Return the identifiers found in a text, such as a constant in code: entities of a score of 0.4 or more.

        Dates and web addresses are left out: code is full of them, and neither names a person alone.

        Raises:
            Refused: `INSPECTION_FAILED`.
        """
        try:
            scores = self._scores(text, [])
        except Exception:  # noqa: BLE001
            raise Refused(Reason.INSPECTION_FAILED, "a text could not be inspected", "shorten it") from None
        return sorted(e for e, score in scores.items() if score >= 0.4 and e not in ("DATE_TIME", "URL"))

    def _scores(self, text: str, context: list[str]) -> dict[str, float]:
        with self._log.watched():
            results = self._analyzer.analyze(text=text, language="en", context=[*context, " ".join(context)])
        scores: dict[str, float] = {}
        for result in results:
            scores[result.entity_type] = max(result.score, scores.get(result.entity_type, 0.0))
        return scores


def written(value: object) -> str:
    """Return a value as a person would write it: no exponent, no ".0"."""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else f"{value:.15f}".rstrip("0")
    return str(value)


class _Warnings(logging.Handler):
    """Turns a warning of Presidio, such as a skipped pattern, into an error; writes nothing."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._seen = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Count the record and drop it."""
        self._seen += 1

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Raise if Presidio warned inside the block.

        Raises:
            RuntimeError: it did.
        """
        before = self._seen
        yield
        if self._seen != before:
            raise RuntimeError("Presidio skipped something")


def _cut_off(logger: logging.Logger, handler: logging.Handler) -> None:
    for old in list(logger.handlers):
        if isinstance(old, logging.StreamHandler):
            logger.removeHandler(old)
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.WARNING)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} like {entity}" for entity, count in sorted(counts.items()))


def _refused(name: str, found: str, distinct: int) -> Refused:
    return Refused(
        Reason.COLUMN_REFUSED,
        f"column {name!r} holds what looks like identifiers: {found}, of {distinct} distinct values",
        "drop it, or round, bin or encode it",
    )
