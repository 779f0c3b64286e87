"""Presets: what a rule of law asks of a recipe, checked before a record is read. Pure.

Two are held: the Safe Harbor method of the HIPAA privacy rule, 45 CFR 164.514(b)(2)(i)(A)-(R), and a minimum for the
GDPR. A preset asks the owner to say, for each category it lists, which columns hold it, or that none does; a category
left unsaid is refused by name. A column so mapped is read only as the rule allows, and a column that is named after a
category but mapped to none does not leave. A preset only makes a recipe stricter. That a recipe passes is no claim of
conformity: what the owner knows beyond the columns, 164.514(b)(2)(ii), no program can check.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fabric.errors import InvalidInput, Reason, Refused, nearest
from sanitize.recipe import Bin, Clip, Column, Duration, Prefix, Pseudonymise, Recipe, Round, Year

_OLDEST = 90  # 164.514(b)(2)(i)(C): one category "of age 90 or older"
_ZIP_DIGITS = 3  # 164.514(b)(2)(i)(B): "the initial three digits of a zip code"
_WORD = re.compile(r"[a-z]+|[A-Z]+(?![a-z])|[A-Z][a-z]+")
_NUMBERED = re.compile(
    r"(patient|person|member|subject|customer|client|user|employee|account|encounter|visit|claim|record|order|case"
    r"|provider|household)(id|nr|num|number|key)\Z"
)
_BIRTH = frozenset({"birth", "birthdate", "birthday", "birthyear", "dob", "yob", "born", "geburtsdatum"})
PERSONS = frozenset(
    {"patient", "person", "member", "customer", "client", "user", "subject", "employee", "individual", "beneficiary"}
)
_NUMBERS = frozenset({"nr", "num", "number"})
_PARTS_OF_NAMES = frozenset({"first", "last", "middle", "given", "family", "prefix", "suffix"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Category:
    """One kind of identifier, or of special data, that a rule lists.

    Attributes:
        key: how a recipe's [identifiers] names it.
        allows: treatments under which a column of it may be read; None allows every one.
        words: a column with one of them in its name is of this category unless it is mapped to another.
    """

    key: str
    clause: str
    what: str
    allows: frozenset[str] | None
    words: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A rule of law as categories to map, treatments it forbids, and what it asks of each column.

    Attributes:
        forbids: treatments that no column may have, with the reason.
        needs_why: whether each outgoing column must say why the purpose needs it.
        note: what stays true of a matrix made under the preset.
    """

    name: str
    title: str
    source: str
    categories: tuple[Category, ...]
    forbids: Mapping[str, str]
    needs_why: bool
    note: str

    def named(self, column: str) -> Category | None:
        """Return the category that `column` is named after, if any."""
        words = words_of(column)
        return next((c for c in self.categories if _says(words, c)), None)


def words_of(column: str) -> frozenset[str]:
    """Return the words of a column's name, less the records it was joined from: `patients.firstName`, first and name.

    `patientid` and `patient_number` count as `id` too.
    """
    words = {word.lower() for word in _WORD.findall(column.rsplit(".", 1)[-1])}
    numbered = any(_NUMBERED.search(word) for word in words) or (words & PERSONS and words & _NUMBERS)
    return frozenset(words | ({"id"} if numbered else set()))


def is_birth(column: str) -> bool:
    """Say whether `column` is named after a birth date."""
    return bool(words_of(column) & _BIRTH)


def is_person(column: str) -> bool:
    """Say whether `column` is named after a person: `patient`, `member_id`, `customerid`."""
    return any(word.removesuffix("id") in PERSONS for word in words_of(column))


def check_preset(recipe: Recipe, columns: Sequence[str]) -> None:
    """Check `recipe` against the preset that it names; one that names none passes.

    Args:
        columns: all columns of the records, those joined in prefixed.

    Raises:
        InvalidInput: `RECIPE_INVALID`, `UNKNOWN_KEY`, `COLUMN_MISSING`: no such preset, category or column.
        Refused: `RECIPE_INVALID` for what the preset asks and the recipe leaves unsaid; `COLUMN_REFUSED` for a column
            that the preset lets out under another treatment or under none.
    """
    if not recipe.preset:
        return
    preset = preset_of(recipe.preset)
    # 1. Every category is mapped to columns there are, or declared absent.
    _check_mapped(recipe, preset, columns)
    # 2. What leaves is treated as each of its categories allows.
    against = [f"column {c.name!r} (from {c.source!r}): {why}" for c in recipe.columns for why in objections(recipe, c)]
    if against:
        raise Refused(
            Reason.COLUMN_REFUSED,
            f"recipe {recipe.name!r} under preset {preset.name!r}: {'; '.join(against)}",
            "leave the column inside, map it to its category, or treat it as the category allows",
        )
    # 3. Each says why the purpose needs it.
    unsaid = [column.name for column in recipe.columns if not column.why.strip()]
    if preset.needs_why and unsaid:
        raise Refused(
            Reason.RECIPE_INVALID,
            f"recipe {recipe.name!r} under preset {preset.name!r} does not say why {recipe.purpose!r} needs "
            f"{', '.join(unsaid)}",
            'give each column a `why = "..."`, or leave it inside (GDPR Art. 5(1)(c))',
        )


def preset_of(name: str) -> Preset:
    """Return the preset called `name`.

    Raises:
        InvalidInput: `RECIPE_INVALID`, with the nearest there is.
    """
    if name not in PRESETS:
        raise InvalidInput(Reason.RECIPE_INVALID, f"unknown preset {name!r}", nearest(name, PRESETS))
    return PRESETS[name]


def objections(recipe: Recipe, column: Column) -> tuple[str, ...]:
    """Return what the recipe's preset holds against one of its columns; nothing if it may leave."""
    preset = preset_of(recipe.preset)
    against = [preset.forbids[column.action]] if column.action in preset.forbids else []
    against += _coded(preset, column)
    read = [(column.source, column), *((other, column) for other in column.also_reads)]
    for source, reader in read:
        mapped = [c for c in preset.categories if source in recipe.identifiers.get(c.key, ())]
        named = preset.named(source)
        if not mapped and named is not None:
            against.append(f"{source!r} is named after {_title(named)}, and is mapped to no category")
        against += [why for category in mapped for why in _treated(category, reader)]
    return tuple(dict.fromkeys(against))


def describe() -> list[dict[str, Any]]:
    """Return the presets as JSON values, for documents and listings."""
    return [
        {
            "name": preset.name,
            "title": preset.title,
            "source": preset.source,
            "note": preset.note,
            "needs_why": preset.needs_why,
            "forbids": dict(preset.forbids),
            "categories": [
                {
                    "key": category.key,
                    "clause": category.clause,
                    "what": category.what,
                    "allows": "any" if category.allows is None else sorted(category.allows),
                }
                for category in preset.categories
            ],
        }
        for preset in PRESETS.values()
    ]


def _check_mapped(recipe: Recipe, preset: Preset, columns: Iterable[str]) -> None:
    keys, there = [category.key for category in preset.categories], set(columns)
    for key, mapped in recipe.identifiers.items():
        if key not in keys:
            raise InvalidInput(
                Reason.UNKNOWN_KEY,
                f"recipe {recipe.name!r}: preset {preset.name!r} has no category {key!r}",
                nearest(key, keys),
            )
        for column in mapped:
            if column not in there:
                raise InvalidInput(
                    Reason.COLUMN_MISSING,
                    f"recipe {recipe.name!r}: [identifiers] {key} names {column!r}, which the records do not have",
                    nearest(column, there),
                )
    unsaid = [category for category in preset.categories if category.key not in recipe.identifiers]
    if unsaid:
        raise Refused(
            Reason.RECIPE_INVALID,
            f"recipe {recipe.name!r} under preset {preset.name!r} does not say which columns hold "
            + ", ".join(f"{category.key} ({category.clause})" for category in unsaid),
            "list the columns of each in [identifiers]; an empty list says that there are none",
        )


def _treated(category: Category, column: Column) -> list[str]:
    """Return what the category of a column that `column` reads holds against its treatment."""
    if category.allows is None:
        return []
    if column.action not in category.allows:
        allowed = ", ".join(sorted(category.allows)) or "none"
        return [f"{_title(category)} may not leave by {column.action}; allowed: {allowed}"]
    return [f"{_title(category)}: {why}" for why in _DETAILS.get(category.key, lambda _: [])(column)]


def _safe_postcode(column: Column) -> list[str]:
    if not isinstance(column.treatment, Prefix):
        return []
    missing = len({*Prefix().restricted} - {*column.treatment.restricted})
    wrong = [f"at most {_ZIP_DIGITS} digits may leave"] if column.treatment.digits > _ZIP_DIGITS else []
    return wrong + ([f"{missing} areas of 20,000 people or fewer are not in `restricted`"] if missing else [])


def _safe_date(column: Column) -> list[str]:
    """164.514(b)(2)(i)(C): no element but the year, and nothing that tells an age over 89."""
    treatment = column.treatment
    if isinstance(treatment, Clip | Round) and (treatment.high is None or treatment.high > _OLDEST):
        return [f"an age needs `high` of at most {_OLDEST}"]
    if isinstance(treatment, Bin) and treatment.edges[-1] > _OLDEST:
        return [f"the last edge of an age is at most {_OLDEST}"]
    read = (column.source, *column.also_reads)
    if isinstance(treatment, Year | Duration) and any(is_birth(source) for source in read):
        return [f"the {column.action} of a birth tells ages over 89; use the treatment age"]
    return []


def _coded(preset: Preset, column: Column) -> list[str]:
    if preset.name == HIPAA and isinstance(column.treatment, Pseudonymise) and column.treatment.by != "random":
        return ["a code must not be derived from the person's data (164.514(c)(1)): pseudonymise by random"]
    return []


def _says(words: frozenset[str], category: Category) -> bool:
    if category.key == "names" and words and words <= _PARTS_OF_NAMES:
        return True
    return bool(words & category.words)


def _title(category: Category) -> str:
    return f"{category.what} ({category.clause})"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


HIPAA = "hipaa-safe-harbor"
GDPR = "gdpr-minimum"

_DETAILS = {"geographic": _safe_postcode, "dates": _safe_date}

_NAMES = _words(
    "name names surname forename firstname lastname fullname maiden maidenname middlename nickname initials vorname "
    "nachname familienname prenom apellido"
)
_PLACES = _words(
    "address addr street zip zipcode postcode postal plz city town village county parish municipality district "
    "precinct tract fips geohash gps geo lat latitude lon lng longitude birthplace birthcity"
)
_TELEPHONE = _words("phone telephone mobile tel telefon cellphone phonenumber msisdn")
_EMAIL = _words("email emails mail emailaddress")
_URL = _words("url uri website homepage")
_IP = _words("ip ipv ipaddress")
_SOCIAL = _words("ssn sin nino socialsecurity nationalid")
_RECORD = _words("mrn nhs medrec medicalrecord")
_PLAN = _words("mbi hicn subscriberid policynumber")
_ACCOUNT = _words("account iban bban accountnumber creditcard pan")
_LICENCE = _words("license licence drivers dl npi dea passport")
_VEHICLE = _words("vin plate licenseplate numberplate")
_DEVICE = _words("serial imei udi macaddress mac")
_BIOMETRIC = _words("biometric fingerprint voiceprint retina iris faceprint")
_PHOTO = _words("photo photograph portrait selfie")
_OTHER = _words("id ids uuid guid pid identifier username userid login pseudonym barcode")

_DATES = frozenset({"date", "datetime", "timestamp", "death", "deathdate", "dod", "age"}) | _BIRTH
_CODE = frozenset({"pseudonymise"})


def _hipaa(key: str, letter: str, what: str, words: frozenset[str], allows: frozenset[str] = _CODE) -> Category:
    return Category(key=key, clause=f"164.514(b)(2)(i)({letter})", what=what, allows=allows, words=words)


def _gdpr(key: str, clause: str, what: str, words: frozenset[str], allows: frozenset[str] | None = _CODE) -> Category:
    return Category(key=key, clause=f"GDPR {clause}", what=what, allows=allows, words=words)


_SAFE_HARBOR = Preset(
    name=HIPAA,
    title="HIPAA Safe Harbor",
    source="45 CFR 164.514(b)(2)(i)(A)-(R) and 164.514(c)",
    categories=(
        _hipaa("names", "A", "names", _NAMES),
        _hipaa("geographic", "B", "geographic subdivisions smaller than a State", _PLACES, _words("prefix")),
        _hipaa(
            "dates", "C", "dates, and ages over 89", _DATES, _words("year age duration bin clip round")
        ),  # the last three for ages; a duration is no element of a date
        _hipaa("telephone", "D", "telephone numbers", _TELEPHONE),
        _hipaa("fax", "E", "fax numbers", _words("fax faxnumber")),
        _hipaa("email", "F", "electronic mail addresses", _EMAIL),
        _hipaa("social_security", "G", "social security numbers", _SOCIAL),
        _hipaa("medical_record", "H", "medical record numbers", _RECORD),
        _hipaa("health_plan", "I", "health plan beneficiary numbers", _PLAN),
        _hipaa("account", "J", "account numbers", _ACCOUNT),
        _hipaa("certificate_or_licence", "K", "certificate and licence numbers", _LICENCE),
        _hipaa("vehicle", "L", "vehicle identifiers and licence plates", _VEHICLE),
        _hipaa("device", "M", "device identifiers and serial numbers", _DEVICE),
        _hipaa("url", "N", "web addresses (URLs)", _URL),
        _hipaa("ip_address", "O", "internet protocol addresses", _IP),
        _hipaa("biometric", "P", "biometric identifiers", _BIOMETRIC),
        _hipaa("photograph", "Q", "full-face photographs", _PHOTO),
        _hipaa("other_unique", "R", "any other unique number, characteristic or code", _OTHER),
    ),
    forbids={
        "vectorise": "numbers made from a text are derived from every identifier in it",
        "redact": "nobody can show that a redacted text holds none of the 18 identifiers",
    },
    needs_why=False,
    note="Safe Harbor asks, too, that its owner knows of no way to identify a person from what is left, "
    "164.514(b)(2)(ii). Random codes stand under 164.514(c): their map stays inside.",
)

_MINIMUM = Preset(
    name=GDPR,
    title="GDPR minimum",
    source="Regulation (EU) 2016/679, Art. 4(1), 4(5), 5(1)(c), 9(1), 10 and Recital 26",
    categories=(
        _gdpr("names", "Art. 4(1)", "names", _NAMES),
        _gdpr(
            "identification_numbers",
            "Art. 4(1) and 87",
            "identification numbers",
            _SOCIAL | _RECORD | _PLAN | _ACCOUNT | _LICENCE | _VEHICLE | _OTHER,
        ),
        _gdpr("location_data", "Art. 4(1)", "location data", _PLACES, _words("prefix grid encode pseudonymise")),
        _gdpr("online_identifiers", "Art. 4(1), Recital 30", "online identifiers", _URL | _IP | _DEVICE),
        _gdpr("contact_details", "Art. 4(1)", "contact details", _TELEPHONE | _EMAIL | _words("fax faxnumber")),
        _gdpr("photographs", "Art. 4(1)", "photographs of persons", _PHOTO),
        _gdpr("racial_or_ethnic_origin", "Art. 9(1)", "racial or ethnic origin", _words("race ethnic ethnicity"), None),
        _gdpr("political_opinions", "Art. 9(1)", "political opinions", _words("political politics"), None),
        _gdpr("religious_or_philosophical_beliefs", "Art. 9(1)", "beliefs", _words("religion religious belief"), None),
        _gdpr("trade_union_membership", "Art. 9(1)", "trade union membership", _words("tradeunion"), None),
        _gdpr("genetic_data", "Art. 9(1)", "genetic data", _words("genetic genotype genome gene snp"), None),
        _gdpr("biometric_data", "Art. 9(1)", "biometric data", _BIOMETRIC, frozenset()),
        _gdpr(
            "health_data",
            "Art. 9(1)",
            "data concerning health",
            _words("diagnosis diagnoses condition disease icd symptom medication drug allergy disability"),
            None,
        ),
        _gdpr("sex_life_or_orientation", "Art. 9(1)", "sex life or sexual orientation", _words("orientation"), None),
        _gdpr("criminal_convictions", "Art. 10", "criminal convictions and offences", _words("conviction crime"), None),
    ),
    forbids={},
    needs_why=True,
    note="Pseudonymised data remain personal data (Art. 4(5), Recital 26): whoever can reach the map or the key can "
    "name the persons. What is special under Art. 9(1) needs a condition of Art. 9(2); no program can supply one.",
)

PRESETS: Mapping[str, Preset] = {preset.name: preset for preset in (_SAFE_HARBOR, _MINIMUM)}
