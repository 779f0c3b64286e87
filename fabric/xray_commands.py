"""`fabric xray`: what would cross with a function, before anyone submits it. Nothing is sent and nothing recorded."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any

import typer

from fabric.capsule import xray
from fabric.errors import InvalidInput, Reason, Refused, nearest

_REFUSED_STATUS = Refused.exit_status


def show_xray(
    target: Annotated[str, typer.Argument(help="module:function; the module is imported from here.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a function captures and what of it must not cross; exit status 3 if anything."""
    fn = load_function(target, Path.cwd())
    from sanitize.inspection import Inspector  # noqa: PLC0415 - Presidio, for this command alone

    seen = xray(fn, inspect_text=Inspector().inspect_text)
    typer.echo(json.dumps(seen.to_json(), indent=2) if as_json else str(seen))
    if seen.refused:
        raise typer.Exit(_REFUSED_STATUS)


def load_function(target: str, folder: Path) -> Callable[..., Any]:
    """Return the function that `target` names, importing its module from `folder` or from what is installed.

    Raises:
        InvalidInput: `CONFIG_INVALID`, `CONFIG_MISSING`: there is no such module or function, or it is none.
    """
    module_name, _, path = target.partition(":")
    if not path or not all(part.isidentifier() for part in f"{module_name}.{path}".split(".")):
        raise InvalidInput(Reason.CONFIG_INVALID, f"{target!r} is not of the form module:function", "train:network")
    sys.path.insert(0, str(folder))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        there = [each.stem for each in folder.glob("*.py")]
        near = (
            nearest(module_name, there) if there else f"there is no Python file in {folder}; go to the folder it is in"
        )
        raise InvalidInput(Reason.CONFIG_MISSING, f"there is no module {error.name!r}", near) from None
    except Exception as error:  # noqa: BLE001 - a module that reads data may quote it
        kind = type(error).__name__
        hint = "it must be importable without work: put work under `if __name__ == '__main__'`"
        raise InvalidInput(Reason.CONFIG_INVALID, f"importing {module_name!r} fails with {kind}", hint) from None
    finally:
        sys.path.remove(str(folder))
    try:
        fn = attrgetter(path)(module)
    except AttributeError:
        names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        near = nearest(path, names)
        raise InvalidInput(Reason.CONFIG_MISSING, f"module {module_name!r} has no {path!r}", near) from None
    if not callable(fn):
        raise InvalidInput(
            Reason.CONFIG_INVALID, f"{target!r} is a {type(fn).__name__}, no function", "name a function"
        )
    return fn  # type: ignore[no-any-return]
