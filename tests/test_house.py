"""The house: what is imported when, and that documents and code name the same things."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fabric.errors import Reason

ROOT = Path(__file__).parent.parent
HEAVY = ("ray", "torch", "presidio_analyzer", "spacy", "pandas")


def loaded_by(code: str, cwd: Path | None = None) -> set[str]:
    program = f"{code}\nimport sys; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=cwd, capture_output=True, text=True, check=True)
    return {name for name in HEAVY if name in done.stdout.splitlines()[-1].split()}


@pytest.mark.parametrize("module", ["fabric", "fabric.cli", "fabric.border", "fabric.session", "fabric.verification"])
def test_importing_it_imports_neither_ray_nor_torch_nor_presidio(module):
    assert loaded_by(f"import {module}") == set()


@pytest.mark.parametrize(
    "command", ["--help", "status", "evidence", "up --help", "verify --help", "doctor --help", "gpus", "cost"]
)
def test_a_command_that_needs_no_cluster_imports_none_of_them(tmp_path, command):
    subprocess.run([Path(sys.executable).parent / "fabric", "init", "--rows", "100"], cwd=tmp_path, check=True)
    code = f"import sys; sys.argv = ['fabric', *{command.split()!r}]\nfrom fabric.cli import main\n"
    code += "try: main()\nexcept SystemExit: pass"
    assert loaded_by(code, tmp_path) == set()


def test_every_reason_token_stands_in_the_architecture_with_a_way_out():
    table = (ROOT / "ARCHITECTURE.md").read_text().split("## Reason tokens")[1].split("## Glossary")[0]
    assert set(re.findall(r"`([A-Z_]{6,})`", table)) == {reason.value for reason in Reason}


def test_every_reason_token_is_used_by_the_code():
    code = "".join(p.read_text() for folder in ("fabric", "sanitize", "jobs") for p in (ROOT / folder).glob("*.py"))
    unused = [reason for reason in Reason if code.count(f"Reason.{reason.value}") == 0]
    assert unused == []


def test_no_module_uses_the_fakes_so_nothing_can_switch_the_border_off():
    for folder in ("fabric", "sanitize", "jobs"):
        for path in (ROOT / folder).glob("*.py"):
            if path.name != "testing.py":
                assert not re.search(r"fabric\.testing|import testing|UnsafeBorder", path.read_text()), path


def test_every_module_has_its_line_in_the_architecture():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    for folder in ("fabric", "sanitize", "jobs"):
        for path in (ROOT / folder).glob("*.py"):
            if path.stem not in ("__init__",):
                assert path.stem in text, path


def test_every_test_that_the_architecture_names_exists():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    tests = {p.name: p.read_text() for p in (ROOT / "tests").glob("test_*.py")}
    for name, function in re.findall(r"(test_\w+\.py)(?:::(test_\w+))?", text):
        assert name in tests
        assert not function or f"def {function}(" in tests[name]


def test_every_command_of_the_readme_exists():
    from typer.main import get_command

    from fabric.cli import app

    commands = set(get_command(app).commands)
    readme = (ROOT / "README.md").read_text()
    assert set(re.findall(r"^fabric (\w+)", readme, re.M)) <= commands
    assert commands <= set(re.findall(r"fabric (\w+)", readme))


def test_the_readmes_treatments_are_the_recipes():
    from sanitize.recipe import TREATMENTS

    assert set(re.findall(r"^\| `(\w+)` \|", (ROOT / "README.md").read_text(), re.M)) == set(TREATMENTS)


def test_the_starters_and_the_examples_files_are_valid():
    from fabric.specs import JobSpec, parse
    from sanitize.recipe import parse_recipe

    for path in [*(ROOT / "fabric" / "starter_files").glob("*.toml"), *(ROOT / "jobs" / "synthea").glob("*.toml")]:
        if "recipe" in path.name:
            parse_recipe(path.read_text(), source=path.name)
        elif path.name != "fabric.toml":
            parse(JobSpec, path.read_text(), source=path.name)


def test_only_outbound_code_is_ever_unpickled():
    loading = re.compile(
        r"\b(?:c?loud)?pickle\.loads?\(|torch\.load\(|joblib|read_pickle|allow_pickle=True|marshal\.loads?\("
    )
    found = {p.name for folder in ("fabric", "sanitize", "jobs") for p in (ROOT / folder).glob("*.py")
             if loading.search(p.read_text())}  # fmt: skip
    assert found == {"capsule.py"}


def test_every_test_that_security_md_names_is_there():
    named = re.findall(r"`(test_\w+\.py)(?:::(\w+))?`", (ROOT / "SECURITY.md").read_text())
    assert len(named) > 40
    for file, function in named:
        text = (ROOT / "tests" / file).read_text()
        assert not function or f"def {function}(" in text, f"{file}::{function}"


@pytest.mark.parametrize(
    "section",
    ["The walls, and their tests", "What comes back", "Sideways", "Money, the queue, the border's port, Kubernetes"],
)
def test_every_claim_of_security_md_names_its_test(section):
    text = (ROOT / "SECURITY.md").read_text().split(f"## {section}\n")[1].split("\n## ")[0]
    claims = [row for row in re.findall(r"^\| (.*) \|$", text, re.M) if not row.endswith("| test")]
    assert len(claims) > 4
    assert [claim for claim in claims if not re.search(r"`test_\w+\.py", claim)] == []
