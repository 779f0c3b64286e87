"""The evidence pack of a model and the commands around it: what is refused, and what an auditor reads and checks."""

from __future__ import annotations

import base64
import copy
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from fabric.artifacts import digest
from fabric.config import load_config
from fabric.errors import FabricError, Reason
from fabric.evidence import Evidence, explain
from fabric.ledger import Ledger
from fabric.pack import pack_model, to_html, verify_pack
from fabric.starter import write_starter
from fabric.statements import SigningKey, Statement, sign, timestamp
from fabric.verification import verify_bundle

ORIGIN = "fabric.example/ledger"
KEY = SigningKey.from_seed(bytes(range(32)))
NEW = SigningKey.from_seed(bytes(range(1, 33)))
START = datetime(2025, 3, 1, 12, tzinfo=UTC)
RECIPE, SPEC, POLICY = digest(b"recipe"), digest(b"spec"), digest(b"policy")


def said(predicate: dict[str, Any], subjects: dict[str, str]) -> bytes:
    expires = {"expires_at": timestamp(START + timedelta(days=30))}
    kind = "urn:zonefabric:statement:matrix:v1"
    return sign(Statement(subjects=subjects, predicate_type=kind, predicate={**predicate, **expires}), KEY).envelope


def one_model(ledger: Ledger, model: str, *, zone: str = "public") -> None:
    """Record how a model came to be: sanitized, moved, trained, brought back."""
    content = model.encode()
    statement = said(
        {"inputs": {"people": "hmac-sha256:ab"}, "note": "<script>alert(1)</script>"}, {"m": digest(content)}
    )
    name = ledger.attach(statement)
    sanitize = ledger.intend("sanitize", {"records": ["people"], "recipe": RECIPE})
    ledger.conclude(sanitize, "done", {"matrix": digest(content), "rows": 120, "statement": name})
    crossing = ledger.intend(
        "crossing",
        {
            "crossing": f"c-{model}",
            "actor": "p-0123456789abcdef",
            "from_zone": "private",
            "to_zone": zone,
            "jurisdiction": "EU",
            "purpose": "cost-forecast",
            "policy": POLICY,
            "decision": {"effect": "permit", "rules": ["public-burst"]},
            "decisions": [{"effect": "permit", "rules": ["public-burst"]}],
            "approvals": [{"approver": "p-00000000000000aa", "role": "steward"}],
            "statements": [name],
            "subjects": {"m": digest(content)},
            "columns": ["age", "cost"],
            "rows": 120,
            "bytes": 4000,
        },
    )
    ledger.conclude(crossing, "done", {"crossing": f"c-{model}", "bytes": 4000})
    work = {"crossing": f"c-{model}", "matrix_statement": name, "spec": SPEC}
    job = ledger.intend("job", {"kind": "training", "zone": zone, "workers": 2, **work})
    back = ledger.intend("return", {"model": model, "digest": digest(b"weights"), "from_zone": zone, **work})
    ledger.conclude(back, "done", {"model": model})
    ledger.conclude(job, "done", {})


@pytest.fixture
def bundle(tmp_path: Path) -> dict[str, Any]:
    ledger = Ledger.open(
        tmp_path / "log", key=KEY, origin=ORIGIN, clock=lambda: START, new_id=lambda: uuid4().hex, actor="p-1"
    )
    one_model(ledger, "model-a")
    ledger.observe("refusal", {"what": "export", "code": "POLICY_DENIED", "zone": "public"})
    one_model(ledger, "model-b", zone="edge")
    made = ledger.bundle()
    ledger.close()
    return made


@pytest.fixture
def pack(bundle: dict[str, Any]) -> dict[str, Any]:
    return pack_model(bundle, "model-a", key=KEY, now=START)


def refused(call: Callable[[], object]) -> FabricError:
    with pytest.raises(FabricError) as caught:
        call()
    return caught.value


def test_a_model_that_the_log_never_admitted_has_no_pack(bundle: dict[str, Any]) -> None:
    error = refused(lambda: pack_model(bundle, "model-c", key=KEY, now=START))
    assert "model-a" in error.hint


def test_every_value_of_a_pack_that_changes_is_refused(pack: dict[str, Any]) -> None:
    def places(value: Any, path: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        return [path, *(place for key in keys for place in places(value[key], (*path, key)))]

    for *parents, last in places(pack, ())[1:]:
        bad = copy.deepcopy(pack)
        holder = bad
        for key in parents:
            holder = holder[key]
        holder[last] = "changed" if holder[last] != "changed" else 0
        assert refused(lambda bad=bad: verify_pack(bad, trusted=[KEY.public])).reason in (
            Reason.EVIDENCE_INVALID,
            Reason.KEY_UNKNOWN,
        )


def test_a_pack_that_the_signer_made_up_is_refused(pack: dict[str, Any], bundle: dict[str, Any]) -> None:
    """The holder of the key signs a pack whose lineage or records are not the log's."""
    from fabric.artifacts import digest_of
    from fabric.pack import PACK_TYPE

    def signed(body: dict[str, Any]) -> dict[str, Any]:
        predicate = {"model": "model-a", "expires_at": timestamp(START + timedelta(days=1))}
        made = Statement(subjects={"pack": digest_of(body)}, predicate_type=PACK_TYPE, predicate=predicate)
        return {"pack": 1, "body": body, "statement": base64.b64encode(sign(made, KEY).envelope).decode()}

    def spaced(text: str) -> str:
        return base64.b64encode(base64.b64decode(text) + b" ").decode()

    body = pack["body"]
    assert verify_pack(signed(body), trusted=[KEY.public]).records == 8
    for bad in (
        {**body, "lineage": {**body["lineage"], "rows": 7}},
        {**body, "records": []},
        {**body, "records": [{**body["records"][0], "index": 1}, *body["records"][1:]]},
        {**body, "records": [{**body["records"][0], "record": bundle["records"][-1]}]},
        {**body, "documents": {**body["documents"], digest(b"x"): base64.b64encode(b"x").decode()}},
        {**body, "documents": {name: base64.b64encode(b"x").decode() for name in body["documents"]}},
        {**body, "documents": {name: spaced(text) for name, text in body["documents"].items()}},
    ):
        assert refused(lambda bad=bad: verify_pack(signed(bad), trusted=[KEY.public])).reason is Reason.EVIDENCE_INVALID


def test_a_pack_by_a_key_that_is_not_trusted_is_refused(pack: dict[str, Any]) -> None:
    assert refused(lambda: verify_pack(pack, trusted=[NEW.public])).reason is Reason.KEY_UNKNOWN
    assert verify_pack(pack, trusted=None).trusted is False


def test_a_pack_holds_what_made_its_model_and_nothing_of_another(pack: dict[str, Any]) -> None:
    found = verify_pack(pack, trusted=[KEY.public])
    assert (found.model, found.records, found.documents, found.trusted) == ("model-a", 8, 1, True)
    told = json.dumps(pack["body"])
    assert "model-b" not in told
    lineage = pack["body"]["lineage"]
    assert lineage["recipe"] == RECIPE
    assert lineage["spec"] == SPEC
    assert lineage["records"] == ["people"]
    assert lineage["record_versions.people"] == "hmac-sha256:ab"
    assert (lineage["from_zone"], lineage["to_zone"]) == ("private", "public")
    assert lineage["decisions"] == ["public-burst"]
    assert lineage["approvals"][0]["approver"] == "p-00000000000000aa"


def test_a_pack_names_the_controls_it_speaks_to_and_claims_none(pack: dict[str, Any]) -> None:
    controls = {one["control"]: one["records"] for one in pack["body"]["controls"]}
    for name in ("AU-2", "AU-3", "AU-9", "AU-10", "AC-4", "SI-7", "164.312(b)", "164.312(c)", "CC6", "CC7", "Art. 12"):
        assert any(name in control for control in controls), name
    assert controls["NIST 800-53 AC-4"]
    page = to_html(pack)
    assert "claims no conformity" in page
    assert "compliant" not in page


def test_the_page_is_whole_and_runs_nothing(pack: dict[str, Any]) -> None:
    seen: list[tuple[str, dict[str, str | None]]] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            seen.append((tag, dict(attrs)))

    page = to_html(pack)
    Reader().feed(page)
    tags = {tag for tag, _ in seen}
    assert not tags & {"script", "img", "link", "iframe", "form", "object"}
    assert not any(name.startswith("on") or name in ("href", "src") for _, attrs in seen for name in attrs)
    assert "&lt;script&gt;alert(1)" in page
    assert "default-src &#x27;none&#x27;" in page or "default-src 'none'" in page


def test_after_a_rotation_the_old_key_s_owner_can_check_the_pack(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path, key=KEY, origin=ORIGIN, clock=lambda: START, new_id=lambda: uuid4().hex)
    one_model(ledger, "model-a")
    ledger.rotate(NEW)
    made = pack_model(ledger.bundle(), "model-a", key=NEW, now=START)
    for key in (KEY, NEW):
        assert verify_pack(made, trusted=[key.public]).records == 9


def test_a_bundle_alone_answers_the_three_questions(bundle: dict[str, Any]) -> None:
    told = explain(bundle, verify_bundle(bundle, trusted=[KEY.public]))
    ran, moved, provers = (told[q] for q in ("Where did it run?", "What moved?", "Who can prove it?"))
    assert any("zone=public" in line and "done" in line for line in ran)
    assert any("private -> public" in line and "rows=120" in line and "columns=age,cost" in line for line in moved)
    assert any("approved_by=p-00000000000000aa" in line for line in moved)
    assert any("POLICY_DENIED" in line for line in moved)
    assert any(KEY.public.keyid[:16] in line for line in provers)
    assert any("no witness" in line for line in provers)


# The commands.


def run(folder: Path, *command: str, status: int = 0) -> str:
    code = "import sys; from fabric.cli import main; sys.argv[0] = 'fabric'; main()"
    root = str(Path(__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {root!r}); {code}", *command],
        cwd=folder, capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_commands_from_a_record_to_an_auditor(tmp_path: Path) -> None:
    write_starter(tmp_path)
    from fabric.recording import open_ledger
    from fabric.stores import Home

    config = load_config(tmp_path / "fabric.toml")
    home = Home.open(config.state)
    ledger = open_ledger(config, home, home.signing_key(), person="someone")
    record = ledger.observe("drill", {"number": 1})
    ledger.intend("drill", {})
    ledger.close()
    key = json.loads(run(tmp_path, "evidence", "keys", "--json"))["keys"][0]
    run(tmp_path, "evidence", "receipt", record.id, "--out", "receipt.json")
    assert "record 0 of starter/ledger" in run(tmp_path, "verify", "receipt.json", "--key", key)
    assert "owner" in run(tmp_path, "evidence", "reconcile", "--dry-run")
    assert "1 open" in run(tmp_path, "evidence", "reconcile", "--dry-run")
    run(tmp_path, "evidence", "--save", "bundle.json")
    told = run(tmp_path, "verify", "bundle.json", "--key", key, "--explain")
    assert "Who can prove it?" in told
    assert "No witness was asked" in told
    assert "KEY_UNKNOWN" in run(tmp_path, "verify", "receipt.json", "--key", NEW.public.to_text(), status=4)
    assert "EVIDENCE_UNWITNESSED" in run(
        tmp_path,
        "verify",
        "bundle.json",
        "--witness-key",
        run(tmp_path, "witness", "key", "--new", "w", "--name", "w").strip(),
        status=4,
    )
    assert "in use" in run(tmp_path, "evidence", "rotate") + run(tmp_path, "evidence", "keys")
    assert "Verified" in run(tmp_path, "verify", "receipt.json", "--key", key)
    assert "EVIDENCE_INVALID" in run(tmp_path, "evidence", "pack", "no-model", status=2)
    assert "CONFIG_INVALID" in run(tmp_path, "evidence", "witness", status=2)


def test_a_witness_named_in_the_configuration_cosigns_through_a_folder(tmp_path: Path) -> None:
    write_starter(tmp_path)
    (tmp_path / "shared").mkdir()
    public = run(tmp_path, "witness", "key", "--new", "witness.key", "--name", "witness.example").strip()
    with (tmp_path / "fabric.toml").open("a") as file:
        file.write(f'\n[evidence]\nwitness = "shared"\nwitness_key = "{public}"\nwitness_required = true\n')
    run(tmp_path, "evidence")
    from fabric.recording import open_ledger
    from fabric.stores import Home

    config = load_config(tmp_path / "fabric.toml")
    home = Home.open(config.state)
    ledger = open_ledger(config, home, home.signing_key())
    ledger.intend("drill", {})
    found = Evidence.of(ledger, ledger.keys[-1])
    ledger.close()
    log = f"starter/ledger={found.key.to_text()}"
    assert "1 cosigned" in run(
        tmp_path, "witness", "cosign", "shared", "--key", "witness.key", "--log", log, "--folder", "memory"
    )
    assert "seen 1 records" in run(tmp_path, "evidence", "witness")
    run(tmp_path, "evidence", "--save", "bundle.json")
    told = run(tmp_path, "verify", "bundle.json", "--witness-key", public, "--kept", "memory")
    assert "Cosigned by a witness up to record 0" in told


def test_a_witness_that_is_required_must_be_named(tmp_path: Path) -> None:
    write_starter(tmp_path)
    with (tmp_path / "fabric.toml").open("a") as file:
        file.write("\n[evidence]\nwitness_required = true\n")
    assert refused(lambda: load_config(tmp_path / "fabric.toml")).reason is Reason.CONFIG_INVALID


def test_the_schema_command_prints_sql_that_grants_no_change_of_evidence(tmp_path: Path) -> None:
    pytest.importorskip("sqlalchemy")
    told = run(tmp_path, "evidence", "schema", "--role", "app")
    assert "GRANT SELECT, INSERT ON" in told
    evidence = told.split("CREATE SCHEMA fabric_budgets")[0]
    assert not any(f"GRANT {verb}" in evidence for verb in ("ALL", "UPDATE", "DELETE"))
    # A reservation and a job go on; only in the columns that say how far, and none of them goes away.
    assert not any(f"GRANT {verb}" in told for verb in ("ALL", "UPDATE ON", "DELETE", "TRUNCATE"))
    assert "CONFIG_INVALID" in run(tmp_path, "evidence", "schema", "--role", "two words", status=2)
