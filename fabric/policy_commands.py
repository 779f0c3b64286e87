"""The commands about policy: `fabric plan`, `fabric approve`, `fabric policy show | test | diff | sign`.

None of them needs a cluster, moves anything or imports Ray. `approve` and `policy sign` write what they signed. What
decides is imported by the command that asks it, so that the others answer at once.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fabric.config import Config, Environment, find_config, load_config
from fabric.errors import InvalidInput, Reason
from fabric.labels import Labels
from fabric.statements import SigningKey

if TYPE_CHECKING:
    from fabric.policy import Policy
    from fabric.policy_replay import Replay

ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="fabric.toml, or the folder it is in.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
KeyOption = Annotated[Path, typer.Option("--key", help="File of your key: 32 bytes. Made if it is not there.")]
DaysOption = Annotated[int, typer.Option("--days", help="How long the signature holds.", min=1, max=366)]

FAILED_STATUS = 1
_WINDOW = re.compile(r"([1-9][0-9]{0,3})([dh])\Z")

policy_app = typer.Typer(
    name="policy",
    help="Show, test, compare and sign the policy.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


def plan(
    records: Annotated[str, typer.Argument(help="Name of the records in fabric.toml.")],
    recipe: Annotated[Path, typer.Option("--recipe", help="The recipe that makes the matrix.")],
    zone: Annotated[str, typer.Option("--zone", help="Answer for this zone only.")] = "",
    purpose: Annotated[str, typer.Option(help="By default the recipe's own.")] = "",
    justification: Annotated[str, typer.Option(help="Why the work leaves the private zone.")] = "",
    code: Annotated[str, typer.Option("--code", help="Digest of the capsule that goes with it, if one does.")] = "",
    ask: Annotated[Path | None, typer.Option("--ask", help="Write what a second person would have to approve.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say for every zone whether the work may go there, why, and what would change that. Nothing moves."""
    from fabric.planning import last_statement, plan_work, question_about  # noqa: PLC0415
    from fabric.session import Session  # noqa: PLC0415
    from sanitize.recipe import parse_recipe  # noqa: PLC0415

    made = parse_recipe(_text(recipe, Reason.RECIPE_INVALID), source=recipe.name)
    session = Session.open(Environment.read(), config_path=config)
    try:
        signed = last_statement(session, made)
        found = plan_work(
            session,
            made,
            records=records,
            signed=signed,
            zone=zone,
            purpose=purpose,
            justification=justification,
            code=code,
        )
        if ask is not None:
            question = question_about(session, signed, zone, purpose or made.purpose, code)
            ask.write_text(json.dumps(question.to_json(), indent=2) + "\n", encoding="utf-8")
    finally:
        session.ledger.close()
    typer.echo(json.dumps(found.to_json(), indent=2) if as_json else str(found))


def approve_command(
    question: Annotated[Path, typer.Argument(help="A file that `fabric plan --ask` wrote.")],
    key: KeyOption,
    days: DaysOption = 7,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Approve what somebody else asked for, with your own key; bound to its code, recipe and schema."""
    from fabric.approvals import Question, approve, find_approver  # noqa: PLC0415
    from fabric.planning import keep_approval  # noqa: PLC0415
    from fabric.recording import now  # noqa: PLC0415
    from fabric.session import Session  # noqa: PLC0415

    session = Session.open(Environment.read(), config_path=config)
    try:
        asked = Question.from_json(_json(question))
        signing = read_key(key)
        approver = find_approver(session.border.approvals.approvers, signing.public)
        with session.border.refusals("approve", None, session.job):
            signed = approve(asked, approver, signing, now=now(), lasts=timedelta(days=days))
        path = keep_approval(session, asked, approver, signed)
    finally:
        session.ledger.close()
    body = {
        "approval": signed.digest,
        "question": asked.digest,
        "approver": approver.name,
        "expires_at": signed.statement.predicate["expires_at"],
        "path": str(path),
    }
    text = (
        f"Approved by {approver.name} until {body['expires_at'][:16]}: {asked.action} to {asked.zone}. Kept as {path}"
    )
    typer.echo(json.dumps(body, indent=2) if as_json else text)


@policy_app.command("show")
def show(
    config: ConfigOption = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print what a rule may read.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the rules in force: id, effect, reason and way out."""
    from fabric.policy import default_texts  # noqa: PLC0415

    policy = _in_force(_loaded(config))
    if schema:
        typer.echo(default_texts()[1])
        return
    if as_json:
        rules = [rule.to_json() for rule in policy.rules]
        typer.echo(json.dumps({"digest": policy.digest, "version": policy.version, "rules": rules}, indent=2))
        return
    typer.echo(f"{len(policy.rules)} rules, version {policy.version}, {policy.digest}")
    for rule in policy.rules:
        marks = " (floor)" * rule.floor + f" (in place of {rule.replaces})" * bool(rule.replaces)
        typer.echo(f"{rule.effect:<6} {rule.id}{marks}: {rule.reason}")
        if rule.way_out:
            typer.echo(f"       way out: {rule.way_out}")


@policy_app.command("test")
def try_table(
    table: Annotated[Path, typer.Argument(help="TOML of [[case]] tables: action, zone, labels, ..., expect.")],
    draft: Annotated[list[Path] | None, typer.Option("--policy", help="Try these files, not those in force.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Decide a table of cases, and fail if one is not decided as expected."""
    from fabric.policy_replay import run_table  # noqa: PLC0415

    loaded = _loaded(config)
    policy = _drafted(draft) if draft else _in_force(loaded)
    results = run_table(policy, _text(table, Reason.CONFIG_INVALID), loaded.zones, source=table.name)
    failed = [result for result in results if not result.passed]
    if as_json:
        body = {"cases": len(results), "failed": len(failed), "results": [result.to_json() for result in results]}
        typer.echo(json.dumps(body, indent=2))
    else:
        for result in failed:
            rules = ", ".join(result.rules)
            typer.echo(f"FAILED {result.name}: expected {result.expected}, decided {result.decided} by {rules}")
        typer.echo(f"{len(results) - len(failed)} of {len(results)} cases as expected")
    if failed:
        raise typer.Exit(FAILED_STATUS)


@policy_app.command("diff")
def diff(
    old: Annotated[str, typer.Argument(help="`current`, `default`, or a policy file beside the default set.")],
    new: Annotated[str, typer.Argument(help="The same.")],
    window: Annotated[str, typer.Option("--replay", help="Decide again what the ledger holds of: 30d, 12h.")] = "30d",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show which rules differ, and who would be blocked, freed or moved had the new policy been in force."""
    from fabric.policy_replay import recorded_decisions, replay  # noqa: PLC0415
    from fabric.recording import now  # noqa: PLC0415
    from fabric.session import Session  # noqa: PLC0415

    loaded = _loaded(config)
    before, after = (_named(name, loaded) for name in (old, new))
    session = Session.open(Environment.read(), config_path=config)
    try:
        entries = ((entry.index, entry.record) for entry in session.ledger.entries())
        past = list(recorded_decisions(entries, since=now() - _window(window)))
    finally:
        session.ledger.close()
    found = replay(before, after, past, list(loaded.zones.values()))
    rules_before, rules_after = ({rule.id: rule for rule in policy.rules} for policy in (before, after))
    gone = sorted(set(rules_before) - set(rules_after))
    come = sorted(set(rules_after) - set(rules_before))
    if as_json:
        body = {"old": before.digest, "new": after.digest, "removed": gone, "added": come, **found.to_json()}
        typer.echo(json.dumps(body, indent=2))
        return
    for mark, names in (("-", gone), ("+", come)):
        for name in names:
            typer.echo(f"{mark} {name}: {(rules_before | rules_after)[name].reason}")
    _print_replay(found, window)


@policy_app.command("sign")
def sign_command(
    key: KeyOption,
    version: Annotated[int, typer.Option("--version", help="Of the set; larger than the last.", min=1)],
    days: DaysOption = 366,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Sign the policy files that fabric.toml names, once they validate; the change is recorded."""
    from fabric.planning import record_change  # noqa: PLC0415
    from fabric.policy_files import sign_policy  # noqa: PLC0415
    from fabric.recording import now  # noqa: PLC0415

    loaded = _loaded(config)
    settings = loaded.policy
    if not settings.files or settings.signature is None:
        raise InvalidInput(
            Reason.CONFIG_INVALID, "fabric.toml names no policy files", 'add [policy] files = ["site.cedar"]'
        )
    signing = read_key(key)
    signed, policy = sign_policy(settings.files, signing, version=version, now=now(), lasts=timedelta(days=days))
    record_change(loaded, policy, signed, signing)
    settings.signature.write_bytes(signed.envelope)
    is_declared = signing.public in settings.signers
    body = {
        "path": str(settings.signature),
        "policy": policy.digest,
        "version": version,
        "key": signing.public.to_text(),
        "declared": is_declared,
        "expires_at": signed.statement.predicate["expires_at"],
    }
    if as_json:
        typer.echo(json.dumps(body, indent=2))
        return
    typer.echo(f"Signed {len(policy.rules)} rules as version {version}: {settings.signature}")
    if not is_declared:
        typer.echo(f"The key is not declared yet: add to [policy] signers = [{signing.public.to_text()!r}]")


@policy_app.command("lower")
def lower_command(
    matrix: Annotated[str, typer.Argument(help="Digest of the matrix, as `fabric plan` names it.")],
    to: Annotated[str, typer.Option("--to", help="Its classification: public, internal or confidential.")],
    key: KeyOption,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """State, as a data steward, that one matrix is less sensitive than the records it was made from."""
    from fabric.planning import lower  # noqa: PLC0415
    from fabric.session import Session  # noqa: PLC0415

    classification = Labels.parse({"data_classification": to}).data_classification
    session = Session.open(Environment.read(), config_path=config)
    try:
        path = lower(session, matrix, classification, read_key(key))
    finally:
        session.ledger.close()
    body = {"matrix": matrix, "to": classification.value, "path": str(path)}
    typer.echo(json.dumps(body, indent=2) if as_json else f"Lowered to {classification.value}. Kept as {path}")


def read_key(path: Path) -> SigningKey:
    """Return the key in a file of 32 bytes, made for its owner only if there is no such file.

    Raises:
        InvalidInput: `KEY_UNKNOWN` if the file is no key, or cannot be read or made.
    """
    try:
        if not path.exists():
            made = SigningKey.generate()
            with open(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
                file.write(made.seed)
            return made
        seed = path.read_bytes()
    except OSError:
        raise InvalidInput(Reason.KEY_UNKNOWN, f"cannot read or make the key {path}", "check the path") from None
    if len(seed) != 32:
        raise InvalidInput(Reason.KEY_UNKNOWN, f"{path} is not a key of 32 bytes", "name your own key's file")
    return SigningKey.from_seed(seed)


def _loaded(path: Path | None) -> Config:
    return load_config(find_config(Environment.read(), path, Path.cwd()))


def _in_force(config: Config) -> Policy:
    from fabric.policy_files import load_policy  # noqa: PLC0415
    from fabric.recording import now  # noqa: PLC0415

    settings = config.policy
    return load_policy(settings.files, settings.signature, settings.signers, now=now())


def _drafted(files: Sequence[Path]) -> Policy:
    from fabric.policy_files import read_policy, read_text  # noqa: PLC0415

    return read_policy(files, [read_text(path) for path in files])


def _named(name: str, config: Config) -> Policy:
    """Return the policy that a word of the command line means; a draft needs no signature to be compared."""
    from fabric.policy import Policy  # noqa: PLC0415

    if name == "current":
        return _in_force(config)
    return Policy.default() if name == "default" else _drafted([Path(name)])


def _window(text: str) -> timedelta:
    found = _WINDOW.match(text)
    if found is None:
        raise InvalidInput(Reason.CONFIG_INVALID, "the time to replay is not like 30d or 12h", "--replay 30d")
    count = int(found[1])
    return timedelta(days=count) if found[2] == "d" else timedelta(hours=count)


def _text(path: Path, reason: Reason) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise InvalidInput(reason, f"{path} cannot be read as text", "check the path") from None


def _json(path: Path) -> object:
    """Return what a JSON file holds; None if it is none."""
    try:
        return json.loads(_text(path, Reason.CONFIG_INVALID))
    except (ValueError, RecursionError):
        return None


def _print_replay(found: Replay, window: str) -> None:
    typer.echo(f"{found.same} decisions of the last {window} stay as they are, {len(found.differences)} would differ")
    for one in found.differences:
        where = f" to {', '.join(one.to)}" if one.to else ""
        typer.echo(
            f"  {one.kind}{where}: record {one.recorded.index}, job {one.recorded.job}, {one.action} in {one.zone} "
            f"[{', '.join(one.rules)}]"
        )
    if found.unreplayable:
        typer.echo(f"{found.unreplayable} decisions were recorded without what the rules read")
    if found.unlike_record:
        typer.echo(f"{len(found.unlike_record)} records were decided under yet another policy")
