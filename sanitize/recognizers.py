"""Which recognizers inspect: the project's own list, or a user's YAML registry and recognizer objects.

Presidio loads its defaults where a file is broken, drops a recognizer that is listed by its bare name, and passes over
names it does not know. Here a broken file is refused, a bare name is loaded, an unknown name is refused with the
nearest right one. A recognizer that asks a service is refused by its class: it would carry the records out. One that
needs a language model's entities is refused too, because no such model runs here. No address is looked up: Presidio's
e-mail recognizer is exchanged for `OfflineEmailRecognizer`, which keeps its patterns and its context.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import tldextract
import yaml
from presidio_analyzer import EntityRecognizer, Pattern, PatternRecognizer, RemoteRecognizer
from presidio_analyzer import predefined_recognizers as known
from presidio_analyzer.recognizer_registry import RecognizerRegistryProvider

from fabric.errors import InvalidInput, Reason, nearest

LANGUAGE = "en"
_KEYS = frozenset({"supported_languages", "global_regex_flags", "recognizers"})
_FLAGS = 26  # what Presidio's own file says: ignore case, dot matches all, multi-line

_LISTED: tuple[type[EntityRecognizer], ...] = (
    known.AbaRoutingRecognizer,
    known.CreditCardRecognizer,
    known.CryptoRecognizer,
    known.DateRecognizer,
    known.EmailRecognizer,
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


class OfflineEmailRecognizer(known.EmailRecognizer):
    """Presidio's e-mail recognizer without the network; an unlisted domain (`ana@ward.intranet`) is a finding too."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.extract = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None, fallback_to_snapshot=True)

    def validate_result(self, pattern_text: str) -> bool | None:
        """Return True for a listed public suffix, None (the pattern's own score) for any other."""
        return True if self.extract(pattern_text).fqdn else None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecognizerSet:
    """What to look for. Built anew wherever it is used, so it travels as words, not as compiled parts.

    Attributes:
        source: where the set comes from, for messages.
        registry: Presidio's registry configuration; None for the project's own list.
        added: recognizers given as objects; what is sent to another process must be picklable.
        entities: the only entities to look for; None for all that the recognizers know.
    """

    source: str
    registry: Mapping[str, Any] | None = field(default=None, repr=False)
    added: tuple[EntityRecognizer, ...] = ()
    entities: frozenset[str] | None = None

    @staticmethod
    def standard() -> RecognizerSet:
        """Return the project's own list."""
        return RecognizerSet(source="the standard set")

    @staticmethod
    def from_yaml(text: str, *, source: str) -> RecognizerSet:
        """Return the recognizers of one of Presidio's registry files.

        Args:
            source: the file's name, for messages.

        Raises:
            InvalidInput: `CONFIG_INVALID` or `UNKNOWN_KEY`; Presidio would have loaded its defaults.
        """
        made = RecognizerSet(source=source, registry=_checked(text, source))
        made.build()
        return made

    def with_recognizers(self, recognizers: Iterable[EntityRecognizer]) -> RecognizerSet:
        """Return this set and `recognizers`.

        Raises:
            InvalidInput: `CONFIG_INVALID`, for one that may not be used here.
        """
        made = replace(self, added=(*self.added, *recognizers))
        made.build()
        return made

    def limited_to(self, entities: Iterable[str]) -> RecognizerSet:
        """Return the part of this set that looks for `entities`.

        Raises:
            InvalidInput: `CONFIG_INVALID`, for an entity that no recognizer of the set knows; Presidio would ignore it.
        """
        wanted = frozenset(entities)
        there = {entity for recognizer in self.build() for entity in recognizer.supported_entities}
        for entity in sorted(wanted - there):
            raise InvalidInput(
                Reason.CONFIG_INVALID, f"{self.source}: no recognizer finds {entity!r}", nearest(entity, there)
            )
        if not wanted:
            raise InvalidInput(Reason.CONFIG_INVALID, f"{self.source}: no entity is named", "name at least one")
        return replace(self, entities=wanted)

    def build(self) -> list[EntityRecognizer]:
        """Return the recognizers, in a fixed order.

        Raises:
            InvalidInput: `CONFIG_INVALID`, with the recognizer that may not be used here.
        """
        made = [*_standard()] if self.registry is None else _registered(self.registry, self.source)
        usable = [_admitted(recognizer, self.source) for recognizer in (*made, *self.added)]
        if self.entities is not None:
            usable = [r for r in usable if self.entities & set(r.supported_entities)]
        return usable

    def left_out(self) -> tuple[str, ...]:
        """Return the recognizers of the file that are for other languages only; Presidio drops them with a log line."""
        if self.registry is None:
            return ()
        names = {_title(entry): _languages(entry) for entry in self.registry["recognizers"] if _enabled(entry)}
        return tuple(name for name, languages in names.items() if languages and LANGUAGE not in languages)


def _standard() -> list[EntityRecognizer]:
    """Return Presidio's recognizers that we list, and ours for record numbers and keys as people write them."""
    record_number = r"\b(?:MRN|medical record(?: number| no\.?)?)[\s:#=-]{0,3}[A-Z]{0,3}\d{5,12}\b"
    return [
        *(kind() for kind in _LISTED),
        PatternRecognizer(
            supported_entity="MEDICAL_RECORD_NUMBER",
            name="RecordNumberRecognizer",
            patterns=[Pattern("record number", record_number, 0.8)],
        ),
        PatternRecognizer(
            supported_entity="SECRET_KEY",
            name="SecretKeyRecognizer",
            patterns=[
                Pattern("private key", r"-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----", 1.0),
                Pattern("access key", r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36}\b", 1.0),
            ],
        ),
    ]


def _checked(text: str, source: str) -> dict[str, Any]:
    """Return the registry configuration, or refuse what Presidio would replace or pass over."""
    try:
        read = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise InvalidInput(Reason.CONFIG_INVALID, f"{source} is not valid YAML{where}", "mend the file") from None
    if not isinstance(read, dict) or not isinstance(read.get("recognizers"), list) or not read["recognizers"]:
        raise InvalidInput(
            Reason.CONFIG_INVALID, f"{source} lists no recognizers", "give `recognizers:` with at least one entry"
        )
    for key in read.keys() - _KEYS:
        raise InvalidInput(Reason.UNKNOWN_KEY, f"{source} has the unknown key {str(key)!r}", nearest(str(key), _KEYS))
    entries = [
        {"name": entry, "type": "predefined"} if isinstance(entry, str) else entry for entry in read["recognizers"]
    ]
    for entry in entries:
        _check_name(entry, source)
    if LANGUAGE not in (read.get("supported_languages") or [LANGUAGE]):
        raise InvalidInput(
            Reason.CONFIG_INVALID, f"{source} does not support the language {LANGUAGE!r}", f"add {LANGUAGE!r}"
        )
    flags = read.get("global_regex_flags", _FLAGS)
    return {"supported_languages": [LANGUAGE], "global_regex_flags": flags, "recognizers": entries}


def _check_name(entry: Any, source: str) -> None:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise InvalidInput(Reason.CONFIG_INVALID, f"{source} lists a recognizer without a name", "name each one")
    custom = entry.get("type") == "custom" or "patterns" in entry or "deny_list" in entry
    wanted = entry.get("class_name") or entry["name"]
    there = {kind.__name__ for kind in _kinds(EntityRecognizer)}
    if not custom and wanted not in there:
        raise InvalidInput(
            Reason.CONFIG_INVALID, f"{source} lists the unknown recognizer {wanted!r}", nearest(wanted, there)
        )


def _kinds(kind: type[EntityRecognizer]) -> set[type[EntityRecognizer]]:
    below = set(kind.__subclasses__())
    return below.union(*(_kinds(other) for other in below))


def _title(entry: Mapping[str, Any]) -> str:
    return str(entry["name"])


def _enabled(entry: Mapping[str, Any]) -> bool:
    return bool(entry.get("enabled", True))


def _languages(entry: Mapping[str, Any]) -> set[str]:
    listed = entry.get("supported_languages") or [entry.get("supported_language")]
    return {item["language"] if isinstance(item, dict) else item for item in listed} - {None}


def _registered(registry: Mapping[str, Any], source: str) -> list[EntityRecognizer]:
    """Return what Presidio makes of the entries that are enabled and for our language."""
    usable = [e for e in registry["recognizers"] if _enabled(e) and (not _languages(e) or LANGUAGE in _languages(e))]
    for entry in usable:
        _refuse_kind(entry, source)
    if not usable:
        raise InvalidInput(Reason.CONFIG_INVALID, f"{source} enables no recognizer", "enable at least one")
    logger = logging.getLogger("presidio-analyzer")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # a recognizer's line for another language is left out, and said by `left_out`
    try:
        provider = RecognizerRegistryProvider(registry_configuration={**registry, "recognizers": usable})
        made = list(provider.create_recognizer_registry().recognizers)
    except Exception as error:  # noqa: BLE001 - whatever Presidio and the recognizers' own code raise
        raise InvalidInput(
            Reason.CONFIG_INVALID,
            f"{source}: Presidio cannot make its recognizers ({type(error).__name__})",
            "check each entry's keys, patterns and scores; Presidio itself would name the entry",
        ) from None
    finally:
        logger.setLevel(level)
    for recognizer in made:
        _check_thresholds(recognizer, source)
    return made


def _refuse_kind(entry: Mapping[str, Any], source: str) -> None:
    """Refuse an entry by its class before it is made: making one may already load a model or open a connection."""
    wanted = entry.get("class_name") or entry["name"]
    for kind in _kinds(EntityRecognizer):
        if kind.__name__ == wanted:
            _refuse(kind, str(entry["name"]), source)


def _refuse(kind: type[EntityRecognizer], name: str, source: str) -> None:
    if issubclass(kind, RemoteRecognizer) or "third_party" in kind.__module__:
        why = "asks a service or a language model, and would carry the records out"
    elif issubclass(kind, known.SpacyRecognizer):
        why = "needs a model of the language, which no inspection runs; it would claim entities and find none"
    elif issubclass(kind, known.EmailRecognizer) and kind not in (known.EmailRecognizer, OfflineEmailRecognizer):
        why = "may look up domains over the network; derive it from OfflineEmailRecognizer's patterns instead"
    else:
        return
    raise InvalidInput(Reason.CONFIG_INVALID, f"{source}: {name} {why}", "leave it out, or set `enabled: false`")


def _check_thresholds(recognizer: EntityRecognizer, source: str) -> None:
    allowed = {"default", *recognizer.supported_entities}
    for entity in sorted(set(recognizer.score_thresholds) - allowed):
        raise InvalidInput(
            Reason.CONFIG_INVALID,
            f"{source}: {recognizer.name} has a threshold for {entity!r}, which it does not find",
            nearest(entity, allowed),
        )


def _admitted(recognizer: EntityRecognizer, source: str) -> EntityRecognizer:
    """Return the recognizer, or the offline one in its place."""
    if not isinstance(recognizer, EntityRecognizer):
        raise InvalidInput(
            Reason.CONFIG_INVALID,
            f"{source}: a {type(recognizer).__name__} is no recognizer",
            "derive EntityRecognizer",
        )
    _refuse(type(recognizer), recognizer.name, source)
    if recognizer.supported_language != LANGUAGE:
        raise InvalidInput(
            Reason.CONFIG_INVALID,
            f"{source}: {recognizer.name} is for the language {recognizer.supported_language!r} and would never run",
            f"make it for {LANGUAGE!r}",
        )
    if type(recognizer) is not known.EmailRecognizer:
        return recognizer
    offline = OfflineEmailRecognizer(
        patterns=recognizer.patterns,
        context=recognizer.context,
        supported_entity=recognizer.supported_entities[0],
        name=recognizer.name,
    )
    offline.global_regex_flags = recognizer.global_regex_flags
    offline.score_thresholds = recognizer.score_thresholds
    return offline


def entities_of(recognizers: Sequence[EntityRecognizer]) -> frozenset[str]:
    """Return every entity that the recognizers look for."""
    return frozenset(entity for recognizer in recognizers for entity in recognizer.supported_entities)
