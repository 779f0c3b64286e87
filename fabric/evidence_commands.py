"""The commands of evidence: list, save, prove, reconcile, rotate, pack, verify; and those of a witness.

`fabric verify` and `fabric witness` need no configuration, no key of the fabric and no network.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fabric.config import Config, Environment, find_config, load_config
from fabric.errors import EvidenceInvalid, FabricError, InvalidInput, Reason
from fabric.evidence import Evidence, explain, kept_notes, read_document, save_json
from fabric.ledger import Ledger
from fabric.local_cluster import running
from fabric.notes import WitnessKey
from fabric.recording import is_gone, now, open_ledger, origin_of
from fabric.rotating import rotate_key
from fabric.statements import PublicKey, SigningKey
from fabric.stores import Home
from fabric.verification import Verified, VerifiedReceipt, verify_bundle, verify_receipt_file

if TYPE_CHECKING:
    from fabric.pack import VerifiedPack
    from fabric.witness_service import Notary

evidence_app = typer.Typer(help="What was recorded, and the proofs of it.", rich_markup_mode=None)
witness_app = typer.Typer(
    help="A witness: run it where the fabric's administrators have no rights.", no_args_is_help=True
)

ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="fabric.toml, or the folder it is in.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
KeyOption = Annotated[list[str] | None, typer.Option("--key", help="The log's public key, from its owner.")]
WitnessKeyOption = Annotated[
    list[str] | None, typer.Option("--witness-key", help="A witness's key, name+id+base64, from the witness.")
]


@evidence_app.callback(invoke_without_command=True)
def evidence(
    context: typer.Context,
    config: ConfigOption = None,
    save: Annotated[Path | None, typer.Option("--save", help="Write the bundle for an auditor.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List what was recorded, or save it as one file that verifies offline."""
    context.obj = config
    if context.invoked_subcommand is not None:
        return
    with _ledger(config) as (_, _, ledger):
        found = Evidence.of(ledger, ledger.keys[-1])
    if save is not None:
        target = found.save(save)
        if as_json:
            _print_json({"path": str(target), "records": len(found.entries), "key": found.key.to_text()})
            return
        typer.echo(f"Wrote {target}: {len(found.entries)} records. Check it with: fabric verify {target}")
        typer.echo(f"Give the auditor this key by another way: {found.key.to_text()}")
    elif as_json:
        _print_json([{"index": entry.index, **entry.record} for entry in found.entries])
    else:
        typer.echo(str(found))


@evidence_app.command()
def receipt(
    context: typer.Context,
    record: Annotated[str, typer.Argument(help="The record's id, as `fabric evidence --json` lists it.")],
    out: Annotated[Path, typer.Option("--out", help="Where to write it.")],
    config: ConfigOption = None,
) -> None:
    """Write the receipt of one record, which `fabric verify` checks alone."""
    with _ledger(config or context.obj) as (_, _, ledger):
        save_json(out, ledger.receipt_file(record))
    typer.echo(f"Wrote {out}. Check it with: fabric verify {out}")


@evidence_app.command()
def reconcile(
    context: typer.Context,
    config: ConfigOption = None,
    owner: Annotated[
        list[str] | None, typer.Option("--gone", help="An owner that you know to be gone, such as a lost machine's.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List open intents and close none.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Close as abandoned the intents whose process is gone, and list those still open."""
    with _ledger(config or context.obj) as (_, home, ledger):
        gone = set(owner or ())
        closed = [] if dry_run else ledger.reconcile(lambda token: token in gone or is_gone(home, token))
        still = ledger.open_intents()
        shut = [] if dry_run else _shut_left_open(home, ledger)
    rows = [("abandoned", entry) for entry in closed] + [("open", entry) for entry in still]
    if as_json:
        _print_json([{"state": state, "index": e.index, **e.record} for state, e in rows])
        return
    for state, entry in rows:
        told = entry.record
        typer.echo(f"{state:<10} {entry.index:>6}  {told['at'][:19]}  {told['action']:<10} owner {told['by']['owner']}")
    typer.echo(f"{len(closed)} closed as abandoned, {len(still)} open.")
    if shut:
        typer.echo(
            f"{len(shut)} crossings lay ready at the border for work that is over; their tokens open nothing now."
        )


def _shut_left_open(home: Home, ledger: Ledger) -> list[str]:
    """Close at the border the crossings whose work is over: of a driver that died nobody else does."""
    from fabric.staging import Staging  # noqa: PLC0415 - only this needs what signs tokens

    intents: dict[str, str] = {}
    over: set[str] = set()
    for entry in ledger.entries():
        record = entry.record
        if record["action"] == "job" and record["phase"] == "intent":
            intents[record["id"]] = str(record["body"].get("crossing"))
        elif record["phase"] == "outcome" and record["intent"] in intents:
            over.add(intents[record["intent"]])
    staging = Staging.of(home, ledger.keys)
    return [crossing for crossing in staging.crossings() if crossing in over and staging.close(crossing)]


@evidence_app.command()
def rotate(context: typer.Context, config: ConfigOption = None) -> None:
    """Sign with a new key from now on; old proofs keep verifying."""
    loaded = _config(config or context.obj)
    if running(loaded.state) is not None:
        raise FabricError(
            Reason.FABRIC_ALREADY_UP, "the fabric is up, and its nodes trust the old key only", "`fabric down` first"
        )
    key = rotate_key(Home.open(loaded.state), lambda home, old: open_ledger(loaded, home, old))
    typer.echo(f"The log is signed by a new key from now on. Tell auditors and witnesses: {key.to_text()}")


@evidence_app.command()
def keys(context: typer.Context, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Print the log's origin and its public keys, the one in use last."""
    with _ledger(config or context.obj) as (loaded, _, ledger):
        found = [key.to_text() for key in ledger.keys]
    if as_json:
        _print_json({"origin": origin_of(loaded), "keys": found})
        return
    typer.echo(f"origin {origin_of(loaded)}")
    for number, text in enumerate(found):
        typer.echo(f"key    {text}{'' if number < len(found) - 1 else '  (in use)'}")


@evidence_app.command("witness")
def show_witness(context: typer.Context, config: ConfigOption = None) -> None:
    """Show the witness the log now, and say how much it has seen."""
    with _ledger(config or context.obj) as (loaded, _, ledger):
        if not loaded.evidence.witness:
            raise InvalidInput(
                Reason.CONFIG_INVALID, "no witness is named", "set evidence.witness in fabric.toml to a folder or URL"
            )
        seen = ledger.show_witness()
    typer.echo(f"The witness has seen {seen} records.")


@evidence_app.command()
def schema(
    role: Annotated[str, typer.Option("--role", help="The application's database role.")] = "fabric",
) -> None:
    """Print the SQL by which a PostgreSQL administrator makes the tables; the role may insert and select only.

    Of the budgets' and the queue's tables it may also update the columns in which a reservation or a job goes on.
    """
    from fabric import postgres_budgets, postgres_jobs, postgres_store  # noqa: PLC0415 - only this needs SQLAlchemy

    parts = (postgres_store, postgres_budgets, postgres_jobs)
    typer.echo("".join(part.schema_sql(role) for part in parts), nl=False)


@evidence_app.command()
def pack(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="The model's id.")],
    out: Annotated[Path | None, typer.Option("--out", help="A folder for the two files.")] = None,
    config: ConfigOption = None,
) -> None:
    """Write all evidence of one model: signed JSON for machines, one HTML page for an auditor."""
    from fabric.pack import PACK_SUFFIX, pack_model, to_html  # noqa: PLC0415 - only this command and one other

    with _ledger(config or context.obj) as (_, home, ledger):
        made = pack_model(ledger.bundle(), model, key=home.signing_key(), now=now())
    folder = out or Path(".")
    target = folder / f"{model}{PACK_SUFFIX}"
    save_json(target, made)
    page = target.with_suffix(".html")
    try:
        page.write_text(to_html(made), encoding="utf-8")
    except OSError:
        raise InvalidInput(Reason.EVIDENCE_UNWRITABLE, f"cannot write {page}", "name a folder with --out") from None
    typer.echo(f"Wrote {target} and {page}. Check the first with: fabric verify {target}")


def verify(
    bundle: Annotated[Path, typer.Argument(help="A bundle, a receipt or a pack.")],
    key: KeyOption = None,
    witness_key: WitnessKeyOption = None,
    kept: Annotated[
        Path | None, typer.Option("--kept", help="A folder of checkpoints kept elsewhere: the witness's copy.")
    ] = None,
    explained: Annotated[
        bool, typer.Option("--explain", help="Say where it ran, what moved, and who can prove it.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check evidence offline: signatures, tree, witness, and that the story holds together."""
    trusted = [PublicKey.from_text(text) for text in key] if key else None
    witnesses = [WitnessKey.from_text(text) for text in witness_key or ()]
    document = read_document(bundle)
    if "receipt" in document:
        _say_receipt(verify_receipt_file(document, trusted=trusted, witnesses=witnesses), as_json)
        return
    if "pack" in document:
        from fabric.pack import verify_pack  # noqa: PLC0415

        _say_pack(verify_pack(document, trusted=trusted, witnesses=witnesses), as_json)
        return
    notes = kept_notes(kept, str(document.get("origin", ""))) if kept else ()
    found = verify_bundle(document, trusted=trusted, kept=notes, witnesses=witnesses)
    if as_json:
        _print_json({**_summary(found), **({"explained": explain(document, found)} if explained else {})})
        return
    _say_bundle(found)
    if explained:
        for question, answers in explain(document, found).items():
            typer.echo(f"\n{question}")
            for line in answers:
                typer.echo(f"  {line}")


@witness_app.command("key")
def witness_key(
    new: Annotated[Path, typer.Option("--new", help="Where to write the private key.")],
    name: Annotated[str, typer.Option("--name", help="The witness's name, such as a host of its owner.")],
) -> None:
    """Make a witness's key, and print the public half."""
    from fabric.witness_service import write_key_text  # noqa: PLC0415 - a witness's commands import a server

    key = SigningKey.generate()
    public = WitnessKey(name=name, key=key.public).to_text()
    WitnessKey.from_text(public)
    try:
        with open(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="ascii") as file:
            file.write(write_key_text(name, key))
    except OSError:
        raise InvalidInput(Reason.FILE_EXISTS, f"cannot make {new}", "name a new file") from None
    typer.echo(public)


LogOption = Annotated[
    list[str], typer.Option("--log", help="ORIGIN=KEY of a log to witness; again for each key of a rotated one.")
]
KeyFileOption = Annotated[Path, typer.Option("--key", help="The private key that `fabric witness key` made.")]
FolderOption = Annotated[Path, typer.Option("--folder", help="The witness's own memory and copies.")]


@witness_app.command("serve")
def witness_serve(
    key: KeyFileOption,
    log: LogOption,
    folder: FolderOption,
    port: Annotated[int, typer.Option("--port", min=0, max=65535)] = 7780,
    host: Annotated[str, typer.Option("--host")] = "127.0.0.1",
) -> None:
    """Cosign over HTTP the checkpoints that continue what was seen (C2SP tlog-witness)."""
    from fabric.witness_service import serve  # noqa: PLC0415

    notary = _notary(key, log, folder)
    try:
        server = serve(notary, host, port)
    except OSError:
        raise InvalidInput(Reason.PORT_TAKEN, f"port {port} of {host} is taken", "name another with --port") from None
    typer.echo(f"witness {notary.public.to_text()}")
    typer.echo(f"listening on http://{host}:{server.server_address[1]}")
    with server:
        server.serve_forever()


@witness_app.command("cosign")
def witness_cosign(
    shared: Annotated[Path, typer.Argument(help="The folder that the fabric writes its checkpoints to.")],
    key: KeyFileOption,
    log: LogOption,
    folder: FolderOption,
    every: Annotated[int, typer.Option("--every", help="Again after so many seconds; 0 for once.", min=0)] = 0,
) -> None:
    """Cosign what waits in a shared folder."""
    from fabric.witness_service import cosign_folder  # noqa: PLC0415

    notary = _notary(key, log, folder)
    while True:
        done, refused = cosign_folder(notary, shared)
        typer.echo(f"{done} cosigned, {len(refused)} refused")
        for line in refused:
            typer.echo(f"  {line}", err=True)
        if refused:
            raise EvidenceInvalid(
                Reason.EVIDENCE_INVALID, f"{len(refused)} logs do not continue", "keep both copies, and ask their owner"
            )
        if not every:
            return
        time.sleep(every)


def _notary(key: Path, logs: list[str], folder: Path) -> Notary:
    from fabric.witness_service import Notary, read_key_file  # noqa: PLC0415

    try:
        name, signing = read_key_file(key.read_text("ascii"))
    except (OSError, UnicodeDecodeError):
        raise InvalidInput(Reason.KEY_UNKNOWN, f"cannot read {key}", "`fabric witness key` makes one") from None
    known: dict[str, list[PublicKey]] = {}
    for text in logs:
        origin, _, public = text.partition("=")
        known.setdefault(origin, []).append(PublicKey.from_text(public))
    return Notary(folder, name=name, key=signing, logs=known, clock=now)


@contextmanager
def _ledger(path: Path | None) -> Iterator[tuple[Config, Home, Ledger]]:
    environment = Environment.read()
    loaded = load_config(find_config(environment, path, Path.cwd()))
    home = Home.open(loaded.state)
    ledger = open_ledger(loaded, home, home.signing_key(), person=environment.person)
    try:
        yield loaded, home, ledger
    finally:
        ledger.close()


def _config(path: Path | None) -> Config:
    return load_config(find_config(Environment.read(), path, Path.cwd()))


def _summary(found: Verified) -> dict[str, Any]:
    return {
        "valid": True,
        "trusted": found.trusted,
        "records": found.records,
        "checkpoints": found.checkpoints,
        "statements": found.statements,
        "crossings": found.crossings,
        "refusals": found.refusals,
        "open_intents": list(found.open_intents),
        "keyids": list(found.keyids),
        "vouched": found.vouched,
        "witnessed": found.witnessed,
        "witnessed_at": found.witnessed_at,
    }


def _say_bundle(found: Verified) -> None:
    typer.echo(
        f"Verified: {found.records} records, {found.crossings} crossings resting on {found.statements} statements, "
        f"{found.refusals} refusals, {len(found.open_intents)} intents without an outcome."
    )
    typer.echo(f"Signed by key {found.keyids[0]}.")
    if found.witnessed:
        typer.echo(f"Cosigned by a witness up to record {found.witnessed - 1}, at {found.witnessed_at}.")
    if found.vouched:
        typer.echo(f"The first {found.vouched} records are those of the copy that was kept.")
    if not found.trusted:
        typer.echo("The key came from the bundle itself, so this shows that it is whole, not whose it is: use --key.")
    if not found.witnessed and not found.vouched:
        typer.echo("No witness was asked: whoever holds the key and the database could have rewritten both.")


def _say_receipt(found: VerifiedReceipt, as_json: bool) -> None:
    told = {
        "valid": True,
        "trusted": found.trusted,
        "index": found.index,
        "size": found.checkpoint.size,
        "origin": found.checkpoint.origin,
        "keyid": found.keyid,
        "witnessed_at": found.witnessed_at,
        "record": found.record,
    }
    if as_json:
        _print_json(told)
        return
    record = found.record
    typer.echo(f"Verified: record {found.index} of {found.checkpoint.origin}, {record['phase']} of {record['action']}.")
    typer.echo(f"Signed by key {found.keyid} over {found.checkpoint.size} records; recorded at {record['at']}.")
    if found.witnessed_at:
        typer.echo(f"Cosigned by a witness at {found.witnessed_at}.")
    if not found.trusted:
        typer.echo("The key came from the receipt itself: use --key.")


def _say_pack(found: VerifiedPack, as_json: bool) -> None:
    if as_json:
        _print_json({"valid": True, **asdict(found)})
        return
    typer.echo(f"Verified: the pack of model {found.model}: {found.records} records, {found.documents} statements.")
    typer.echo(f"Signed by key {found.keyid} over {found.size} records.")
    if found.witnessed_at:
        typer.echo(f"Cosigned by a witness at {found.witnessed_at}.")
    if not found.trusted:
        typer.echo("The key came from the pack itself: use --key.")


def _print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2))
