"""Kubernetes' admission as far as our policies use it: CEL by Google's own engine, variables, failure means no.

A variable is put where it is used, which is what Kubernetes does: it is evaluated when read, its error is the reader's.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

from cel_expr_python import cel

_T = cel.Type
_ENV = cel.NewEnv(variables={"object": _T.DYN, "oldObject": _T.DYN, "request": _T.DYN, "namespaceObject": _T.DYN})
_USE = re.compile(r"\bvariables\.(\w+)")


def inline(expression: str, variables: dict[str, str]) -> str:
    """Return an expression with its variables put in."""
    while _USE.search(expression):
        expression = _USE.sub(lambda found: f"({variables[found[1]]})", expression)
    return expression


@lru_cache(maxsize=4096)
def _compiled(expression: str) -> Any:
    return _ENV.compile(expression)


def evaluate(expression: str, bindings: dict[str, Any]) -> Any:
    """Return the value, or raise RuntimeError where CEL errs."""
    found = _compiled(expression).eval(_ENV.Activation({"oldObject": None, **bindings}))
    if str(found.type()) not in ("BOOL", "STRING", "Type.BOOL", "Type.STRING"):
        raise RuntimeError(str(found.type()))
    return found.value()


def refusals(policy: dict, thing: dict, namespace: dict, *, user: str = "someone", without: str = "") -> list[str]:
    """Return the messages of the validations that refuse `thing`; empty where it is admitted.

    Args:
        policy: a ValidatingAdmissionPolicy.
        without: leave out the validation whose message holds this.
    """
    spec = policy["spec"]
    assert spec["failurePolicy"] == "Fail"
    bindings = {"object": thing, "namespaceObject": namespace, "request": {"userInfo": {"username": user}}}
    variables = {each["name"]: each["expression"] for each in spec.get("variables", [])}
    for condition in spec.get("matchConditions", []):
        # Kubernetes gives match conditions no namespace and no variables.
        if not evaluate(condition["expression"], {"object": thing, "request": bindings["request"]}):
            return []
    found = []
    for each in spec["validations"]:
        if without and without in each["message"]:
            continue
        try:
            admitted = evaluate(inline(each["expression"], variables), bindings)
        except RuntimeError:
            admitted = False
        if admitted is not True:
            found.append(each["message"])
    return found


def selects(binding: dict, namespace: dict) -> bool:
    """Say whether a binding is for a namespace."""
    labels = namespace["metadata"].get("labels", {})
    for each in binding["spec"]["matchResources"]["namespaceSelector"]["matchExpressions"]:
        there = labels.get(each["key"])
        if each["operator"] == "Exists" and there is None:
            return False
        if each["operator"] == "NotIn" and there in each["values"]:
            return False
    return True


def copy(value: Any) -> Any:
    """Return a deep copy."""
    return json.loads(json.dumps(value))
