"""The part of kustomize that our manifests use, so that a folder can be held against fabric.toml without kubectl.

Resources, one namespace, patches by JSON Patch (`add` only). Anything else in a kustomization is refused, not skipped.
A test holds it equal to `kubectl kustomize`. Reads from a mapping of paths to text; touches no disk.
"""

from __future__ import annotations

import copy
import posixpath
from collections.abc import Mapping
from typing import Any

import yaml

from fabric.errors import InvalidInput, Reason

Document = dict[str, Any]
FILE = "kustomization.yaml"
_KNOWN = frozenset({"apiVersion", "kind", "namespace", "resources", "components", "patches"})
_OF_A_COMPONENT = _KNOWN - {"namespace", "components"}
_OF_THE_CLUSTER = frozenset({"Namespace", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"})
MAX_BYTES = 8 * 1024**2
MAX_DEPTH = 64


def parse_documents(text: str, source: str) -> list[Document]:
    """Return the YAML documents of a file; a `List` is what it lists.

    Raises:
        InvalidInput: `CONFIG_INVALID` if it is no YAML of Kubernetes objects, or too large.
    """
    if len(text) > MAX_BYTES:
        raise _wrong(f"{source} is larger than {MAX_BYTES >> 20} MiB", "export one zone's namespace at a time")
    flat = _flat(load(text, source), source)
    for each in flat:
        if not isinstance(each, dict) or not isinstance(each.get("metadata", {}), dict):
            raise _wrong(f"{source} holds something that is no Kubernetes object", "it must be a mapping with a kind")
    return flat


def _flat(found: list[Any], source: str) -> list[Any]:
    flat: list[Any] = []
    for each in found:
        if isinstance(each, dict) and str(each.get("kind", "")).endswith("List") and "items" in each:
            listed = [] if each["items"] is None else each["items"]
            if not isinstance(listed, list):
                raise _wrong(f"{source} holds a list that lists nothing", "its items must be a list of objects")
            flat += _flat(listed, source)
        else:
            flat.append(each)
    return flat


# libyaml where it is there: it reads the same documents ten times as fast.
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):
    """YAML in which a key stands once: of two, readers do not agree which one counts."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(names)) != len(names):
            raise yaml.constructor.ConstructorError(None, None, "a key stands twice", node.start_mark)
        return super().construct_mapping(node, deep=deep)


def load(text: str, source: str) -> list[Any]:
    """Return the documents of YAML that is neither deep nor points back: a few aliases can grow into gigabytes.

    Raises:
        InvalidInput: `CONFIG_INVALID`.
    """
    depth = 0
    try:
        for event in yaml.parse(text, Loader=_Loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH or isinstance(event, yaml.AliasEvent):
                raise _wrong(f"{source} is not YAML that is read here", "write it without aliases and deep nesting")
        return [each for each in yaml.load_all(text, Loader=_Loader) if each is not None]
    except (yaml.YAMLError, ValueError, RecursionError):
        hint = "check it with a YAML linter: a key may stand once in a mapping"
        raise _wrong(f"{source} is not YAML", hint) from None


def build(files: Mapping[str, str], folder: str) -> list[Document]:
    """Return the objects that the kustomization in `folder` builds.

    Raises:
        InvalidInput: `CONFIG_INVALID` where it is wrong, or uses what is not known here.
    """
    return _built(files, posixpath.normpath(folder), ())


def _built(files: Mapping[str, str], folder: str, above: tuple[str, ...]) -> list[Document]:
    path = posixpath.join(folder, FILE)
    if folder in above:
        raise _wrong(f"{path} includes itself", "a base names no overlay")
    raw = _kustomization(files, path)
    found: list[Document] = []
    for name in raw.get("resources") or []:
        target = posixpath.normpath(posixpath.join(folder, name))
        if posixpath.join(target, FILE) in files:
            found += _built(files, target, (*above, folder))
        else:
            found += copy.deepcopy(parse_documents(_text(files, target), target))
    for name in raw.get("components") or []:
        target = posixpath.normpath(posixpath.join(folder, name))
        component = _kustomization(files, posixpath.join(target, FILE), known=_OF_A_COMPONENT)
        for resource in component.get("resources") or []:
            found += parse_documents(_text(files, posixpath.join(target, resource)), resource)
        _patch_all(files, target, component, found)
    if namespace := raw.get("namespace"):
        _place(found, namespace)
    _patch_all(files, folder, raw, found)
    return found


def _kustomization(files: Mapping[str, str], path: str, *, known: frozenset[str] = _KNOWN) -> Document:
    raw = parse_documents(_text(files, path), path)
    if len(raw) != 1 or not raw[0].keys() <= known:
        unknown = sorted({str(key) for each in raw for key in each} - known)
        raise _wrong(
            f"{path} uses {', '.join(unknown) or 'several documents'}", f"known here: {', '.join(sorted(known))}"
        )
    _check_form(raw[0], path)
    return raw[0]


def _check_form(raw: Document, path: str) -> None:
    """Refuse what kustomize reads otherwise than we do: a selector we do not know can leave a patch unused."""
    listed = [raw.get(name) or [] for name in ("resources", "components", "patches")]
    if not all(isinstance(each, list) for each in listed) or not isinstance(raw.get("namespace") or "", str):
        raise _wrong(f"{path} has a list or a name of another kind", "render the folder again")
    resources, components, patches = listed
    if not all(isinstance(name, str) for name in [*resources, *components]):
        raise _wrong(f"{path} lists something that is no path", "render the folder again")
    for patch in patches:
        target = patch.get("target") if isinstance(patch, dict) else None
        form = isinstance(target, dict) and patch.keys() == {"path", "target"} and target.keys() == {"kind", "name"}
        if not form or not all(isinstance(each, str) for each in [patch["path"], *(target or {}).values()]):
            raise _wrong(f"{path} has a patch of another form", "known here: path, and target with kind and name")


def _text(files: Mapping[str, str], path: str) -> str:
    if path not in files:
        raise _wrong(f"there is no {path}", "render the folder again")
    return files[path]


def _place(found: list[Document], namespace: str) -> None:
    for each in found:
        if each.get("kind") not in _OF_THE_CLUSTER:
            each.setdefault("metadata", {})["namespace"] = namespace


def _patch_all(files: Mapping[str, str], folder: str, raw: Document, found: list[Document]) -> None:
    for patch in raw.get("patches") or []:
        target = patch["target"]
        chosen = [
            each for each in found
            if each.get("kind") == target["kind"] and each["metadata"].get("name") == target["name"]
        ]  # fmt: skip
        if len(chosen) != 1:
            raise _wrong(
                f"a patch is for {target['kind']} {target['name']}, of which there are {len(chosen)}", "name one"
            )
        source = posixpath.normpath(posixpath.join(folder, patch["path"]))
        for operation in _operations(_text(files, source), source):
            _add(chosen[0], operation, source)


def _operations(text: str, source: str) -> list[Document]:
    listed = load(text, source)
    if not all(isinstance(each, list) for each in listed):
        raise _wrong(f"{source} is no JSON Patch", "write a list of operations")
    found = [operation for each in listed for operation in each]
    for each in found:
        if not isinstance(each, dict) or each.get("op") != "add":
            raise _wrong(f"{source} has an operation that is not known here", "known here: add")
        path = each.get("path")
        if each.keys() != {"op", "path", "value"} or not isinstance(path, str) or not path.startswith("/"):
            raise _wrong(f"{source} has an operation without its path or value", "render the folder again")
    return found


def _add(document: Document, operation: Document, source: str) -> None:
    *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]]
    here: Any = document
    try:
        for part in parents:
            here = here[int(part)] if isinstance(here, list) else here[part]
        if isinstance(here, list):
            here.insert(len(here) if last == "-" else int(last), copy.deepcopy(operation["value"]))
        else:
            here[last] = copy.deepcopy(operation["value"])
    except (KeyError, IndexError, ValueError, TypeError):
        raise _wrong(f"{source} adds at a path which is not there", "render the folder again") from None


def _wrong(message: str, hint: str) -> InvalidInput:
    return InvalidInput(Reason.CONFIG_INVALID, message, hint)
