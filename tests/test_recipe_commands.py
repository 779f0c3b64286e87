"""The recipe commands: what they refuse, and that a suggested recipe is checked, shown, signed and verified."""

import json
import shutil
import subprocess
import sys
from datetime import UTC, datetime

import pytest
from typer.testing import CliRunner

from fabric.errors import FabricError, Reason
from fabric.people import write_people
from fabric.recipe_commands import recipe_app
from fabric.recipe_signing import sign_recipe, verify_recipe
from fabric.starter import write_starter
from fabric.statements import SigningKey
from sanitize.recipe import parse_recipe

RECIPE = "people.recipe.toml"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    write_starter(folder)
    write_people(folder / "people.csv", rows=600, seed=7)
    return folder


@pytest.fixture
def folder(made, tmp_path, monkeypatch):
    for name in ("FABRIC_CONFIG", "FABRIC_ZONE", "FABRIC_ZONE_KIND", "FABRIC_TRUSTED_KEYS"):
        monkeypatch.delenv(name, raising=False)
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def run(*command):
    """Return what a command printed, or raise what it raised."""
    done = CliRunner().invoke(recipe_app, list(command))
    if isinstance(done.exception, Exception):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def refused(reason, *command):
    with pytest.raises(FabricError) as caught:
        run(*command)
    assert caught.value.reason is reason
    return caught.value


@pytest.mark.parametrize("command", [("suggest", "people"), ("check", RECIPE), ("sign", RECIPE, "--home")])
def test_what_reads_records_or_keys_refuses_to_run_outside(folder, monkeypatch, command):
    monkeypatch.setenv("FABRIC_ZONE", "public")
    monkeypatch.setenv("FABRIC_ZONE_KIND", "public")
    assert "'public'" in refused(Reason.DRIVER_OUTSIDE, *command).message
    assert not (folder / f"{RECIPE}.sig").exists()


def test_a_suggestion_overwrites_nothing(folder):
    before = (folder / RECIPE).read_text()
    refused(Reason.FILE_EXISTS, "suggest", "people", "--out", RECIPE)
    assert (folder / RECIPE).read_text() == before


def test_unknown_records_are_refused_with_the_nearest(folder):
    assert "did you mean 'people'" in refused(Reason.UNKNOWN_RECORDS, "suggest", "peple").hint


@pytest.mark.parametrize(
    "join", ["people.id", "people.id=", "a.id=people.id", "other.id=more.id", "people.id=people.id"]
)
def test_a_join_that_is_none_is_refused(folder, join):
    assert "--join people." in refused(Reason.RECIPE_INVALID, "suggest", "people", "--join", join).hint


def test_a_suggestion_is_written_checked_and_shown(folder):
    run("suggest", "people", "--target", "cost", "--out", "new.toml")
    recipe = parse_recipe((folder / "new.toml").read_text(), source="new.toml")
    assert recipe.purpose == "cost-forecast"
    assert recipe.columns[-1].source == "cost"
    assert "names no preset" in run("check", "new.toml")
    shown = run("show", "new.toml")
    assert "birth_date" in shown
    assert "columns stay inside: name, email, national_id, phone" in shown


def test_a_suggestion_as_json_holds_the_recipe_and_the_profile(folder):
    told = json.loads(run("suggest", "people", "--preset", "hipaa-safe-harbor", "--json"))
    assert parse_recipe(told["recipe"], source="told").preset == "hipaa-safe-harbor"
    assert {column["name"] for column in told["profile"]["columns"]} >= {"name", "cost"}


def test_a_recipe_that_reads_a_column_which_is_not_there_is_refused(folder):
    text = (folder / RECIPE).read_text().replace('from = "plan"', 'from = "plann"')
    (folder / RECIPE).write_text(text)
    assert "did you mean 'plan'" in refused(Reason.COLUMN_MISSING, "check", RECIPE).hint


def test_a_recipe_that_breaks_its_preset_is_refused(folder):
    text = (
        (folder / RECIPE).read_text().replace('records = "people"\n', 'records = "people"\npreset = "gdpr-minimum"\n')
    )
    (folder / RECIPE).write_text(text)
    assert "does not say which columns hold names" in refused(Reason.RECIPE_INVALID, "check", RECIPE).message


def test_a_check_as_json_says_what_leaves_and_what_stays(folder):
    told = json.loads(run("check", RECIPE, "--json"))
    assert told["columns"][-1] == "cost"
    assert told["staying"] == ["name", "email", "national_id", "phone", "notes"]
    assert told["signed"] is None


def test_a_file_that_is_no_text_is_refused(folder):
    (folder / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    refused(Reason.RECIPE_INVALID, "show", "bytes.toml")
    refused(Reason.RECIPE_INVALID, "show", "nowhere.toml")


def test_a_recipe_is_shown_where_there_are_no_records(folder, tmp_path, monkeypatch):
    shutil.copy(folder / RECIPE, tmp_path / "alone.toml")
    monkeypatch.chdir(tmp_path)
    assert "not known here: there is no fabric.toml" in run("show", "alone.toml")
    told = json.loads(run("show", "alone.toml", "--json"))
    assert told["staying"] is None
    assert {
        "column": "cost",
        "from": "cost",
        "treatment": "round",
        "role": "target",
        "becomes": "rounded to 10",
    } in told["columns"]


def test_outside_a_recipe_is_shown_without_reading_records(folder, monkeypatch):
    monkeypatch.setenv("FABRIC_ZONE_KIND", "public")
    assert json.loads(run("show", RECIPE, "--json"))["staying"] is None


def test_every_treatment_is_told_in_words(folder):
    settings = {
        "keep": "", "round": "to = 5\nhigh = 10", "clip": "low = 0\nhigh = 9", "bin": "edges = [1, 2]", "year": "",
        "age": 'at = "2026-01-01"\nband = 5', "duration": 'until = "b"', "encode": "", "prefix": "", "grid": "",
        "pseudonymise": "", "vectorise": "", "perturb": "low = 0\nhigh = 10\nepsilon = 1\nto = 1", "redact": "",
    }  # fmt: skip
    text = 'name = "all"\npurpose = "p"\nrecords = "people"\n'
    for treatment, keys in settings.items():
        text += f'[columns.x_{treatment}]\nfrom = "a"\ntreatment = "{treatment}"\nrole = "feature"\n{keys}\n'
    (folder / "all.toml").write_text(text)
    (folder / "fabric.toml").unlink()
    told = {c["treatment"]: c["becomes"] for c in json.loads(run("show", "all.toml", "--json"))["columns"]}
    assert set(told) == set(settings)
    assert told["round"] == "rounded to 5, at most 10"
    assert told["age"] == "years at 2026-01-01, in bands of 5, over 89 together"
    assert all("{" not in words for words in told.values())


def test_the_presets_are_listed_with_every_category(folder):
    told = json.loads(run("presets", "--json"))
    assert [preset["name"] for preset in told] == ["hipaa-safe-harbor", "gdpr-minimum"]
    assert "164.514(b)(2)(i)(R)" in run("presets")


def test_a_signature_needs_one_key(folder):
    refused(Reason.KEY_UNKNOWN, "sign", RECIPE)
    (folder / "owner.key").write_bytes(b"k" * 32)
    refused(Reason.KEY_UNKNOWN, "sign", RECIPE, "--home", "--key", "owner.key")
    (folder / "short.key").write_bytes(b"k" * 31)
    refused(Reason.KEY_UNKNOWN, "sign", RECIPE, "--key", "short.key")


def test_a_signed_recipe_verifies_by_the_owners_key_and_by_no_other(folder):
    (folder / "owner.key").write_bytes(b"k" * 32)
    key = json.loads(run("sign", RECIPE, "--key", "owner.key", "--json"))["key"]
    other = SigningKey.generate().public.to_text()
    assert "Signed by key" in run("check", RECIPE, "--key", key)
    refused(Reason.KEY_UNKNOWN, "check", RECIPE, "--key", other)
    refused(Reason.KEY_UNKNOWN, "check", RECIPE)


def test_a_recipe_signed_with_the_fabrics_key_verifies_where_that_fabric_is(folder):
    run("sign", RECIPE, "--home")
    assert json.loads(run("check", RECIPE, "--json"))["signed"]["purpose"] == "cost-forecast"


def test_a_recipe_changed_after_it_was_signed_is_refused_and_not_signed_over(folder):
    run("sign", RECIPE, "--home")
    text = (folder / RECIPE).read_text().replace("to = 5000", "to = 1")
    (folder / RECIPE).write_text(text)
    assert "another recipe" in refused(Reason.DIGEST_MISMATCH, "check", RECIPE).message
    refused(Reason.FILE_EXISTS, "sign", RECIPE, "--home")


def test_a_comment_does_not_break_a_signature(folder):
    run("sign", RECIPE, "--home")
    (folder / RECIPE).write_text("# read on Monday\n" + (folder / RECIPE).read_text())
    assert "Signed by key" in run("check", RECIPE)


def test_a_broken_signature_is_refused(folder):
    run("sign", RECIPE, "--home")
    signature = folder / f"{RECIPE}.sig"
    signature.write_bytes(signature.read_bytes()[:-20])
    refused(Reason.STATEMENT_INVALID, "check", RECIPE)


def test_a_signature_past_its_days_is_refused(folder):
    recipe = parse_recipe((folder / RECIPE).read_text(), source=RECIPE)
    key = SigningKey.from_seed(b"k" * 32)
    envelope = sign_recipe(recipe, key, now=datetime(2026, 1, 1, tzinfo=UTC), days=10).envelope
    verify_recipe(envelope, recipe, trusted=[key.public], now=datetime(2026, 1, 10, tzinfo=UTC))
    with pytest.raises(FabricError) as caught:
        verify_recipe(envelope, recipe, trusted=[key.public], now=datetime(2026, 1, 11, tzinfo=UTC))
    assert caught.value.reason is Reason.STATEMENT_EXPIRED


@pytest.mark.parametrize("command", [("presets",), ("show", RECIPE), ("sign", RECIPE, "--home"), ("check", RECIPE)])
def test_commands_that_need_no_presidio_do_not_import_it(folder, command):
    program = (
        "import sys; from fabric.recipe_commands import recipe_app\n"
        f"recipe_app({list(command)!r}, standalone_mode=False)\n"
        "print(*({'ray', 'torch', 'presidio_analyzer', 'spacy', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""
