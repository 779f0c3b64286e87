"""The commands of recipes: suggest, check, show, presets, sign. They need no cluster.

What reads records reads them inside, and what it prints holds names and counts, never a value. A recipe's signature
is a statement about its digest by the data owner's key, in a file beside it; the recipe changed, the statement no
longer fits.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fabric.config import Config, Environment, find_config, load_config
from fabric.errors import ClusterUnavailable, InvalidInput, Reason
from fabric.recipe_signing import SUFFIX, sign_recipe, verify_recipe
from fabric.recording import now
from fabric.statements import PublicKey, Signed, SigningKey
from fabric.stores import Home
from sanitize.presets import check_preset, describe
from sanitize.recipe import Column, Join, Recipe, parse_recipe

if TYPE_CHECKING:
    import pyarrow as pa

recipe_app = typer.Typer(
    name="recipe",
    help="What the owner of records lets out: suggest, check, show and sign recipes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="fabric.toml, or the folder it is in.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
FileArgument = Annotated[Path, typer.Argument(help="A recipe.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fate:
    """What becomes of one outgoing column, in words."""

    column: str
    source: str
    treatment: str
    role: str
    becomes: str

    @classmethod
    def of(cls, column: Column) -> Fate:
        """Return the fate that a recipe gives to a column."""
        return cls(
            column=column.name, source=column.source, treatment=column.action,
            role=column.role.value, becomes=_becomes(column),
        )  # fmt: skip

    def to_json(self) -> dict[str, str]:
        """Return the fate as JSON; its values, in order, are the cells of its line in a table."""
        return {
            "column": self.column,
            "from": self.source,
            "treatment": self.treatment,
            "role": self.role,
            "becomes": self.becomes,
        }


@recipe_app.command()
def suggest(
    records: Annotated[list[str], typer.Argument(help="Records of fabric.toml; the first is what the recipe is of.")],
    join: Annotated[
        list[str] | None, typer.Option("--join", help="a.key=b.key; found by their keys if left out.")
    ] = None,
    subject: Annotated[str, typer.Option(help="Column that says whose row it is; found if left out.")] = "",
    purpose: Annotated[str, typer.Option(help="What for; the records' label if left out.")] = "",
    target: Annotated[str, typer.Option(help="Column to predict; none if left out.")] = "",
    preset: Annotated[str, typer.Option(help="A rule of law to keep: see `fabric recipe presets`.")] = "",
    out: Annotated[Path | None, typer.Option("--out", help="Write it there instead of printing it.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Propose a recipe for records, each column with the reason why it may leave or stays."""
    loaded = _inside(config)
    # Presidio and pyarrow are this command's alone.
    from sanitize.inspection import Inspector  # noqa: PLC0415
    from sanitize.profile import profile  # noqa: PLC0415
    from sanitize.suggest import suggest as propose  # noqa: PLC0415

    if out is not None and out.exists():
        raise InvalidInput(Reason.FILE_EXISTS, f"{out} is there already", "name a new file")
    first = records[0]
    aim = purpose or loaded.source(first).labels.purpose
    if not aim:
        raise InvalidInput(
            Reason.RECIPE_INVALID, f"records {first!r} have no label `purpose`", "say what for with --purpose"
        )
    joins = _joins(join, first) if join else None
    tables = {name: _table(loaded, name) for name in dict.fromkeys(records)}
    found = profile(tables, Inspector(), subject)
    text = propose(
        found, records=first, joins=joins, purpose=aim, name=f"{first}-{aim}",
        subject=subject, preset=preset or None, target=target, today=date.today(),
    )  # fmt: skip
    if out is not None:
        _write_new(out, text.encode())
        typer.echo(f"Wrote {out}. Read each line, change it, then: fabric recipe check {out}", err=as_json)
    if as_json:
        _print_json({"recipe": text, "profile": found.to_json()})
    elif out is None:
        typer.echo(text, nl=False)


@recipe_app.command()
def check(
    file: FileArgument,
    key: Annotated[
        list[str] | None, typer.Option("--key", help="The owner's public key, as `sign` printed it.")
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a recipe against the columns of its records, its preset, and its signature if there is one."""
    loaded = _inside(config)
    recipe = _read(file)
    # 1. The columns.
    columns = _columns(loaded, recipe)
    recipe.check(dict.fromkeys(columns, ""))
    # 2. The preset.
    check_preset(recipe, columns)
    # 3. The signature.
    signed = _signed(file, recipe, _trusted(loaded, key))
    if as_json:
        _print_json(
            {
                "valid": True, "recipe": recipe.name, "digest": recipe.digest, "purpose": recipe.purpose,
                "records": list(recipe.sources), "columns": list(recipe.outgoing), "preset": recipe.preset or None,
                "staying": _staying(recipe, columns), "signed": signed.statement.predicate if signed else None,
            }
        )  # fmt: skip
        return
    preset = f"keeps preset {recipe.preset}" if recipe.preset else "names no preset"
    typer.echo(f"{file}: recipe {recipe.name!r} for {recipe.purpose!r} is valid and {preset}.")
    typer.echo(f"  {len(recipe.outgoing)} columns leave, {len(_staying(recipe, columns))} stay; {recipe.digest}")
    if signed is None:
        typer.echo("  It is not signed: fabric recipe sign")
    else:
        said = signed.statement.predicate
        typer.echo(f"  Signed by key {said['keyid'][:16]} until {said['expires_at'][:10]}.")


@recipe_app.command()
def show(file: FileArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show what a recipe makes of each column, and which columns stay."""
    recipe = _read(file)
    fates = [Fate.of(column) for column in recipe.columns]
    staying, unknown = _staying_if_known(recipe, config)
    if as_json:
        _print_json(
            {
                "recipe": recipe.to_json(), "digest": recipe.digest, "staying": staying,
                "columns": [fate.to_json() for fate in fates],
            }
        )  # fmt: skip
        return
    joined = "".join(f", joined with {name} where {j.left} = {j.right}" for name, j in recipe.joins.items())
    typer.echo(f"{recipe.name}: {recipe.records}{joined}, for {recipe.purpose}")
    typer.echo(f"  subject: {recipe.subject or 'each row is another'}; preset: {recipe.preset or 'none'}")
    head = ("column", "from", "treatment", "role", "what becomes of it")
    for line in _aligned([head, *(tuple(fate.to_json().values()) for fate in fates)]):
        typer.echo(f"  {line}")
    if staying is None:
        typer.echo(f"Which columns stay is not known here: {unknown}")
    else:
        typer.echo(f"{len(staying)} columns stay inside: {', '.join(staying) or 'none'}")


@recipe_app.command()
def presets(as_json: JsonOption = False) -> None:
    """List the presets: the rules of law that a recipe can name, and what each asks."""
    known = describe()
    if as_json:
        _print_json(known)
        return
    for preset in known:
        typer.echo(f"{preset['name']}: {preset['title']} ({preset['source']})")
        rows = [("category", "clause", "what", "may leave by")]
        for category in preset["categories"]:
            allows = category["allows"]
            ways = allows if isinstance(allows, str) else ", ".join(allows) or "no treatment"
            rows.append((category["key"], category["clause"], category["what"], ways))
        for line in _aligned(rows):
            typer.echo(f"  {line}")
        for treatment, why in preset["forbids"].items():
            typer.echo(f"  no column by {treatment}: {why}")
        if preset["needs_why"]:
            typer.echo("  every column says why its purpose needs it")
        typer.echo(f"  {preset['note']}")


@recipe_app.command()
def sign(
    file: FileArgument,
    key: Annotated[Path | None, typer.Option("--key", help="The owner's private key: a file of 32 bytes.")] = None,
    home: Annotated[bool, typer.Option("--home", help="Sign with this fabric's own key.")] = False,
    days: Annotated[int, typer.Option(help="How long the signature is valid.", min=1, max=3_660)] = 366,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Sign a recipe as the owner of its records: a statement about its digest, beside the file."""
    recipe = _read(file)
    if (key is None) == (not home):
        raise InvalidInput(
            Reason.KEY_UNKNOWN, "one key signs a recipe", "name the owner's with --key, or this fabric's with --home"
        )
    signer = _private(key) if key is not None else Home.open(_inside(config).state).signing_key()
    signed = sign_recipe(recipe, signer, now=now(), days=days)
    target = file.with_name(file.name + SUFFIX)
    _write_new(target, signed.envelope)
    if as_json:
        _print_json({"path": str(target), "digest": recipe.digest, "key": signer.public.to_text()})
        return
    typer.echo(f"Wrote {target}: recipe {recipe.digest}")
    typer.echo(f"Whoever checks it needs this key by another way: {signer.public.to_text()}")


def _signed(file: Path, recipe: Recipe, trusted: Sequence[PublicKey]) -> Signed | None:
    """Return the statement beside the recipe's file, if there is one and it says this recipe."""
    path = file.with_name(file.name + SUFFIX)
    if not path.exists():
        return None
    try:
        envelope = path.read_bytes()
    except OSError:
        raise InvalidInput(Reason.STATEMENT_INVALID, f"{path} cannot be read", "check the path") from None
    return verify_recipe(envelope, recipe, trusted=trusted, now=now())


def _trusted(config: Config, keys: Sequence[str] | None) -> tuple[PublicKey, ...]:
    """Return the keys given; without any, those the node was given and the fabric's own."""
    if keys:
        return tuple(PublicKey.from_text(text) for text in keys)
    home = Home(config.state)
    own = (home.signing_key().public,) if home.signing_key_file.exists() else ()
    return (*Environment.read().trusted, *own)


def _private(path: Path) -> SigningKey:
    try:
        seed = path.read_bytes()
    except OSError:
        seed = b""
    if len(seed) != 32:
        raise InvalidInput(Reason.KEY_UNKNOWN, f"{path} is not a key of 32 bytes", "make one of 32 random bytes")
    return SigningKey.from_seed(seed)


def _inside(path: Path | None) -> Config:
    """Return the configuration, in the private zone only.

    Raises:
        ClusterUnavailable: `DRIVER_OUTSIDE`.
    """
    environment = Environment.read()
    if environment.outside:
        raise ClusterUnavailable(
            Reason.DRIVER_OUTSIDE,
            f"this runs in zone {environment.zone!r}, and records are read in the private zone only",
            "run it on a machine of the private zone",
        )
    return load_config(find_config(environment, path, Path.cwd()))


def _read(file: Path) -> Recipe:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise InvalidInput(Reason.RECIPE_INVALID, f"{file} cannot be read as text", "check the path") from None
    return parse_recipe(text, source=file.name)


def _table(config: Config, name: str) -> pa.Table:
    from sanitize.reading import read_records  # noqa: PLC0415 - pyarrow, where records are read

    return read_records(config.source(name).path, name=name).table


def _columns(config: Config, recipe: Recipe) -> list[str]:
    """Return every column that the recipe could read, those joined in prefixed."""
    columns = list(_table(config, recipe.records).column_names)
    for name in recipe.joins:
        columns += [f"{name}.{column}" for column in _table(config, name).column_names]
    return columns


def _staying(recipe: Recipe, columns: Sequence[str]) -> list[str]:
    made_from = {source for column in recipe.columns for source in (column.source, *column.also_reads)}
    return [column for column in columns if column not in made_from]


def _staying_if_known(recipe: Recipe, path: Path | None) -> tuple[list[str] | None, str]:
    """Return the columns that stay, or None and why they are not known: a recipe can be read anywhere."""
    try:
        config = _inside(path)
        for name in recipe.sources:
            config.source(name)
    except (InvalidInput, ClusterUnavailable) as wrong:
        if path is not None:
            raise
        return None, wrong.message
    return _staying(recipe, _columns(config, recipe)), ""


def _joins(texts: Sequence[str], first: str) -> dict[str, Join]:
    """Read `a.key=b.key`; what is not of the first records keeps its prefix, as in a recipe."""
    found: dict[str, Join] = {}
    for text in texts:
        left, _, right = text.partition("=")
        (a, _, left_key), (b, _, right_key) = left.strip().partition("."), right.strip().partition(".")
        if not (left_key and right_key) or b == first or (a != first and a not in found):
            raise InvalidInput(
                Reason.RECIPE_INVALID,
                f"--join {text!r} is not of the form a.key=b.key with {first!r} or records joined before on its left",
                f"write --join {first}.key=other.key",
            )
        found[b] = Join(left=left_key if a == first else f"{a}.{left_key}", right=right_key)
    return found


def _becomes(column: Column) -> str:
    """Return what a treatment makes of a column, in words, from its settings."""
    settings = column.settings()
    told = {
        name: ", ".join(map(str, value)) if isinstance(value, list) else str(value) for name, value in settings.items()
    }
    bounds = "".join(f", at {word} {told[key]}" for word, key in (("least", "low"), ("most", "high")) if key in told)
    return _WORDS[column.action].format_map({**told, "bounds": bounds, "band": told.get("band", "1")})


_WORDS: Mapping[str, str] = {
    "keep": "the number as it is",
    "round": "rounded to {to}{bounds}",
    "clip": "the number{bounds}",
    "bin": "codes of the intervals between {edges}",
    "year": "the year only",
    "age": "years at {at}, in bands of {band}, over 89 together",
    "duration": "minutes until {until}, rounded to {to}",
    "encode": "codes; levels of fewer than {min_count} subjects as one; the dictionary stays inside",
    "prefix": "codes of the first {digits} digits; areas of few people, and levels of fewer than {min_count}, as one",
    "grid": "degrees rounded to {to}",
    "pseudonymise": "a code for each value, by {by}",
    "vectorise": "{size} numbers counted from its words by a keyed hash",
    "perturb": "the number{bounds}, with noise of epsilon {epsilon}, to {to}",
    "redact": "the text without the identifiers that are found in it",
}


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _write_new(path: Path, content: bytes) -> None:
    """Write a file that is not there yet, whole."""
    try:
        with open(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644), "wb") as file:
            file.write(content)
    except FileExistsError:
        raise InvalidInput(
            Reason.FILE_EXISTS, f"{path} is there already", "name a new file, or remove the old one first"
        ) from None
    except OSError:
        raise InvalidInput(Reason.FILE_EXISTS, f"cannot write {path}", "name a file you may write") from None


def _print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2))
