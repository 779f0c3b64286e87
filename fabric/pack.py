"""The evidence pack of one model: every record that made it, each with its proof, signed, and a page to read.

It holds the records, the signed statements they rest on, and one checkpoint with an inclusion proof for each record,
so it verifies without the log. It says to which named controls its records speak, and claims conformity to none.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from fabric import merkle
from fabric.artifacts import digest, digest_of
from fabric.errors import EvidenceInvalid, FabricError, InvalidInput, Reason, nearest
from fabric.notes import WitnessKey, key_id, last_signer, stated_checkpoint
from fabric.records import ROTATION, digests_in
from fabric.statements import PublicKey, SigningKey, Statement, sign, timestamp, verify
from fabric.verification import RECEIPT_VERSION, verify_receipt_file

PACK_VERSION = 1
PACK_TYPE = "urn:zonefabric:statement:evidence-pack:v1"
PACK_SUFFIX = ".pack.json"
_BODY_KEYS = frozenset(
    {
        "model",
        "digest",
        "origin",
        "made_at",
        "public_key",
        "checkpoint",
        "rotations",
        "records",
        "documents",
        "lineage",
        "controls",
    }
)

# Control, what it asks, and the actions whose records speak to it. NIST SP 800-53 rev. 5; 45 CFR 164.312; SOC 2 TSC
# 2017 (2022); Regulation (EU) 2024/1689.
_CONTROLS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("NIST 800-53 AU-2", "events that are logged", ()),
    ("NIST 800-53 AU-3", "what, when, where, source, outcome and identity of each event", ()),
    ("NIST 800-53 AU-9", "audit information is protected from change", (ROTATION,)),
    ("NIST 800-53 AU-10", "an act cannot be disowned", ()),
    ("NIST 800-53 AC-4", "information flows only as policy allows", ("crossing", "delivery", "refusal", "return")),
    ("NIST 800-53 SI-7", "integrity of software and information is verified", ("crossing", "return", "gate")),
    ("HIPAA 164.312(b)", "audit controls: activity is recorded and examined", ()),
    ("HIPAA 164.312(c)", "integrity: improper alteration is noticed", ("crossing", "return")),
    (
        "SOC 2 CC6",
        "access and movement are restricted and approved",
        ("crossing", "approval", "refusal", "break-glass"),
    ),
    ("SOC 2 CC7", "operations are monitored, and incidents can be traced", ("job", "refusal", "recall", "rollback")),
    ("EU AI Act Art. 12", "events are recorded over the system's lifetime", ()),
    ("EU AI Act Annex IV", "how the system was made: data, design, tests", ("sanitize", "job", "return", "gate")),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedPack:
    """What a pack was found to hold."""

    model: str
    records: int
    documents: int
    size: int
    keyid: str
    trusted: bool
    witnessed_at: str


def pack_model(bundle: Mapping[str, Any], model: str, *, key: SigningKey, now: datetime) -> dict[str, Any]:
    """Return the signed pack of a model, from a bundle of the log that admitted it.

    Raises:
        InvalidInput: `EVIDENCE_INVALID`: the log admitted no such model.
    """
    records = [json.loads(text) for text in bundle["records"]]
    chosen = _chosen(records, model)
    names = {name for index in chosen for name in digests_in(records[index]["body"])}
    documents = {name: text for name, text in bundle["documents"].items() if name in names}
    read = _tree(bundle["records"])
    note = _newest_note(bundle, max(chosen), key.public)
    size = stated_checkpoint(note).size
    body = {
        "model": model,
        "digest": _first(records, chosen, "digest"),
        "origin": bundle["origin"],
        "made_at": timestamp(now),
        "public_key": key.public.to_text(),
        "checkpoint": note,
        "rotations": [
            bundle["documents"][name]
            for record in records
            if record["action"] == ROTATION
            for name in record["body"]["statements"]
        ],
        "records": [
            {
                "index": index,
                "record": bundle["records"][index],
                "proof": [step.hex() for step in merkle.inclusion_proof(index, size, read)],
            }
            for index in chosen
        ],
        "documents": documents,
        "lineage": _lineage(records, chosen, documents),
        "controls": _controls(records, chosen),
    }
    return {
        "pack": PACK_VERSION,
        "body": body,
        "statement": base64.b64encode(_sign_body(body, key, now)).decode(),
    }


def _sign_body(body: Mapping[str, Any], key: SigningKey, now: datetime) -> bytes:
    statement = Statement(
        subjects={"pack": digest_of(body)},
        predicate_type=PACK_TYPE,
        predicate={
            "model": body["model"],
            "issued_at": timestamp(now),
            "expires_at": timestamp(now + timedelta(days=3653)),
        },
    )
    return sign(statement, key).envelope


def verify_pack(
    pack: Mapping[str, Any], *, trusted: Sequence[PublicKey] | None, witnesses: Sequence[WitnessKey] = ()
) -> VerifiedPack:
    """Check a pack offline: its signature, every record's proof, every document's digest.

    Raises:
        EvidenceInvalid: `EVIDENCE_INVALID`, or as `verify_receipt_file`.
    """
    # 1. The shape and the signature over all of it.
    body = _signed_body(pack, trusted)
    # 2. Every record is in the log.
    receipts = [_receipt_of(body, one) for one in body["records"]]
    found = [verify_receipt_file(one, trusted=trusted, witnesses=witnesses) for one in receipts]
    if not found:
        raise _invalid("the pack holds no record")
    # 3. Every document is the one that a record names.
    named = {name for one in found for name in digests_in(one.record["body"])}
    for name, text in body["documents"].items():
        if name not in named or digest(base64.b64decode(text)) != name:
            raise _invalid("a document of the pack is named by no record, or does not match its digest")
    # 4. What the pack tells is what its records say.
    records = {one.index: one.record for one in found}
    if body["lineage"] != _lineage(records, sorted(records), body["documents"]):
        raise _invalid("the pack's lineage is not what its records say")
    return VerifiedPack(
        model=str(body["model"]),
        records=len(found),
        documents=len(body["documents"]),
        size=found[0].checkpoint.size,
        keyid=found[0].keyid,
        trusted=trusted is not None,
        witnessed_at=found[0].witnessed_at,
    )


def to_html(pack: Mapping[str, Any]) -> str:
    """Return a pack as one page that needs nothing else: no script, no font, no network."""
    body = pack["body"]
    records = [{"#": one["index"], **json.loads(one["record"])} for one in body["records"]]
    sections = [
        ("Model", _table([("id", body["model"]), ("digest", body["digest"]), ("made", body["made_at"])])),
        ("Lineage", _table([(name, value) for name, value in body["lineage"].items()])),
        ("What happened", _grid(("#", "time (UTC)", "phase", "action", "by", "details"), map(_row, records))),
        ("What was stated", "".join(_statement(name, text) for name, text in body["documents"].items())),
        ("Controls these records speak to", _grid(("control", "asks for", "records"), map(_control, body["controls"]))),
        (
            "How to check this",
            "<p>This page claims no conformity. It is drawn from the signed file beside it, which <code>fabric verify"
            "</code> checks without a network; ask the log's owner for its key, and the witness for its own.</p>"
            f"<pre>{html.escape(body['checkpoint'])}</pre>",
        ),
    ]
    inner = "".join(f"<h2>{html.escape(title)}</h2>{content}" for title, content in sections)
    title = html.escape(f"Evidence of model {body['model']}")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{title}</title><style>{_STYLE}</style></head><body><h1>{title}</h1>{inner}</body></html>\n"
    )


_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a}"
    "table{border-collapse:collapse;width:100%}td,th{border:1px solid #ccc;padding:.3rem .5rem;text-align:left;"
    "vertical-align:top;overflow-wrap:anywhere}th{background:#f3f3f3}pre{white-space:pre-wrap;overflow-wrap:anywhere;"
    "background:#f7f7f7;padding:.6rem;font-size:12px}"
)


def _chosen(records: Sequence[Mapping[str, Any]], model: str) -> list[int]:
    """Return the indices of every record that tells of the model or of what it was made from."""
    made = [r for r in records if r["action"] == "return" and r["phase"] == "intent" and "model" in r["body"]]
    own = next((r for r in made if r["body"]["model"] == model), None)
    if own is None:
        raise InvalidInput(
            Reason.EVIDENCE_INVALID,
            "the log admitted no such model",
            nearest(model, [str(r["body"]["model"]) for r in made]),
        )
    body = own["body"]
    crossing, matrix = body.get("crossing"), body.get("matrix_statement")
    reservations = {
        r["body"]["cost"].get("reservation")
        for r in records
        if _about(r, model, crossing, matrix) and "cost" in r["body"]
    }
    ids = {
        r["intent"] or r["id"]
        for r in records
        if _about(r, model, crossing, matrix)
        or r["action"] == ROTATION
        or (r["body"].get("reservation") is not None and r["body"]["reservation"] in reservations)
    }
    return [i for i, r in enumerate(records) if (r["intent"] or r["id"]) in ids]


def _about(record: Mapping[str, Any], model: str, crossing: object, matrix: object) -> bool:
    body = record["body"]
    return bool(
        body.get("model") == model
        or (crossing is not None and body.get("crossing") == crossing)
        or (matrix is not None and matrix in (body.get("matrix_statement"), body.get("statement")))
    )


def _lineage(
    records: Mapping[int, Mapping[str, Any]] | Sequence[Mapping[str, Any]],
    chosen: Sequence[int],
    documents: Mapping[str, str],
) -> dict[str, Any]:
    """Return where the model comes from: the first value of each field, in the order of the log."""
    fields = ("records", "recipe", "rows", "columns", "purpose", "labels", "crossing", "from_zone", "to_zone")
    told: dict[str, Any] = {}
    for name in (*fields, "jurisdiction", "provider", "spec", "commit", "matrix_statement", "digest"):
        value = _first(records, chosen, name)
        if value not in (None, ""):
            told[name] = value
    matrix = documents.get(str(told.get("matrix_statement")))
    if matrix is not None:
        predicate = _predicate(matrix)
        # Versions of the records are keyed: a plain digest would confirm a guess.
        told |= {f"record_versions.{name}": version for name, version in dict(predicate.get("inputs") or {}).items()}
    told["decisions"] = [
        rule
        for index in chosen
        for decision in records[index]["body"].get("decisions", [])
        for rule in decision.get("rules", [])
    ]
    told["approvals"] = [one for index in chosen for one in records[index]["body"].get("approvals", [])]
    return told


def _first(
    records: Mapping[int, Mapping[str, Any]] | Sequence[Mapping[str, Any]], chosen: Sequence[int], name: str
) -> Any:
    return next((records[i]["body"][name] for i in chosen if name in records[i]["body"]), None)


def _controls(records: Sequence[Mapping[str, Any]], chosen: Sequence[int]) -> list[dict[str, Any]]:
    return [
        {
            "control": name,
            "asks": asks,
            "records": [i for i in chosen if not actions or records[i]["action"] in actions],
        }
        for name, asks, actions in _CONTROLS
    ]


def _tree(contents: Sequence[str]) -> merkle.NodeReader:
    nodes: dict[tuple[int, int], bytes] = {}

    def read(level: int, index: int) -> bytes:
        return nodes[level, index]

    for size, content in enumerate(contents):
        for level, index, value in merkle.append(size, merkle.leaf_hash(content.encode()), read):
            nodes[level, index] = value
    return read


def _newest_note(bundle: Mapping[str, Any], last: int, key: PublicKey) -> str:
    """Return a witness's note that covers record `last` and that `key` signed, or else the newest checkpoint."""
    cosigned = [
        note
        for note in bundle["cosignatures"]
        if stated_checkpoint(note).size > last and last_signer(note, bundle["origin"]) == key_id(bundle["origin"], key)
    ]
    return str(cosigned[-1] if cosigned else bundle["checkpoints"][-1])


def _signed_body(pack: Mapping[str, Any], trusted: Sequence[PublicKey] | None) -> dict[str, Any]:
    if set(pack) != {"pack", "body", "statement"} or pack["pack"] != PACK_VERSION:
        raise _invalid(f"the pack is not of version {PACK_VERSION}")
    body = pack["body"]
    try:
        if not isinstance(body, dict) or set(body) != _BODY_KEYS:
            raise ValueError
        signer = PublicKey.from_text(body["public_key"])
        envelope = base64.b64decode(pack["statement"], validate=True)
        signed = verify(envelope, trusted=[signer], predicate_type=PACK_TYPE, now=None)
        whole = signed.statement.subjects == {"pack": digest_of(body)}
    except (ValueError, TypeError, FabricError):
        raise _invalid("the pack is malformed, or its signature does not verify") from None
    if not whole:
        raise _invalid("the pack is not what was signed")
    return body


def _receipt_of(body: Mapping[str, Any], one: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "receipt": RECEIPT_VERSION,
        "origin": body["origin"],
        "public_key": body["public_key"],
        "index": one["index"],
        "record": one["record"],
        "checkpoint": body["checkpoint"],
        "proof": one["proof"],
        "rotations": body["rotations"],
    }


def _predicate(text: str) -> dict[str, Any]:
    try:
        envelope = json.loads(base64.b64decode(text, validate=True))
        predicate = json.loads(base64.b64decode(envelope["payload"], validate=True))["predicate"]
    except (ValueError, KeyError, TypeError):
        return {}
    return predicate if isinstance(predicate, dict) else {}


def _row(record: Mapping[str, Any]) -> tuple[object, ...]:
    return (
        record["#"],
        record["at"][:19],
        record["phase"],
        record["action"],
        record["body"].get("actor") or record["by"]["actor"],
        json.dumps(record["body"], sort_keys=True),
    )


def _control(one: Mapping[str, Any]) -> tuple[object, ...]:
    return one["control"], one["asks"], ", ".join(f"#{index}" for index in one["records"]) or "none"


def _statement(name: str, text: str) -> str:
    told = json.dumps(_predicate(text), indent=1, sort_keys=True)
    return f"<details><summary>{html.escape(name)}</summary><pre>{html.escape(told)}</pre></details>"


def _table(rows: Sequence[tuple[str, object]]) -> str:
    cells = (f"<tr><th>{html.escape(n)}</th><td>{html.escape(_said(v))}</td></tr>" for n, v in rows)
    return f"<table>{''.join(cells)}</table>"


def _grid(titles: Sequence[str], rows: Any) -> str:
    head = "".join(f"<th>{html.escape(title)}</th>" for title in titles)
    lines = ("".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) for row in rows)
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _said(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _invalid(message: str) -> EvidenceInvalid:
    return EvidenceInvalid(Reason.EVIDENCE_INVALID, message, "`fabric evidence pack MODEL` writes one that verifies")
