"""The guard in a Ray process: every task, actor and placement group gets a zone; outside, only expected work runs.

It stands in drivers (`RAY_RUNTIME_ENV_HOOK`, which Ray calls in `ray.init`) and in every worker of a node (the node's
own worker file). It is a seat belt on the inside of the pinned Ray 2.60: it binds honest code; a program that unwraps
it is not bound. Where Ray's inside is not as expected it refuses, rather than stand aside.
"""

from __future__ import annotations

import functools
import json
import os
import runpy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray._private.function_manager as function_manager
import ray._raylet as raylet
from ray.experimental import internal_kv
from ray.util.placement_group import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from fabric._ray_node import GUARD
from fabric.errors import ClusterUnavailable, Reason
from fabric.landing import Ground, admit_work, settle

RAY_VERSION = "2.60."
_NAMESPACE = b"fabric"
_GUARDED = "_fabric_ground"
_RESOURCES, _STRATEGY, _SELECTOR, _FALLBACK = 5, 9, 16, 17
"""Positions of `CoreWorker.submit_task`'s arguments, after self; the guard's own test submits by them."""
_TASK_ARGUMENTS = 18


# Standing in.


def on_init(runtime_env: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Stand in a driver before it connects (`RAY_RUNTIME_ENV_HOOK`); what a job carries goes where it works only.

    Ray copies the working directory and py_modules of a job to every node as it starts, unless told otherwise.
    """
    stand(Ground(**_ground(json.loads(os.environ[GUARD]))))
    if not runtime_env:
        return runtime_env
    config = {**dict(runtime_env.get("config") or {}), "eager_install": False}
    return {**runtime_env, "config": config}


def run_worker(ground: Mapping[str, Any]) -> None:
    """Stand in a worker, then become Ray's own worker process."""
    stand(Ground(**_ground(ground)))
    worker = Path(ray.__file__).parent / "_private" / "workers" / "default_worker.py"
    sys.path[0] = str(worker.parent)
    sys.argv[0] = str(worker)
    runpy.run_path(str(worker), run_name="__main__")


def stand(ground: Ground) -> None:
    """Put the guard before Ray's core worker in this process; it must not be connected yet.

    Raises:
        ClusterUnavailable: `CLUSTER_FAILED`: this is another Ray than the guard was made for.
    """
    if not ray.__version__.startswith(RAY_VERSION):
        raise ClusterUnavailable(
            Reason.CLUSTER_FAILED,
            f"the guard stands on Ray {RAY_VERSION}x and this is {ray.__version__}",
            "install the pinned Ray (constraints.txt)",
        )
    inside: Any = raylet
    if not hasattr(inside.CoreWorker, _GUARDED):
        inside.CoreWorker = _guarded(inside.CoreWorker, ground)
        if ground.zone != ground.home:
            _watch_functions(ground)


def _ground(value: Mapping[str, Any]) -> dict[str, Any]:
    return {**value, "outside": tuple(value["outside"])}


# Requests.


def _guarded(base: Any, ground: Ground) -> Any:
    """Return a subclass of Ray's core worker: what it is asked gets a zone, or is refused. Ray casts, so no proxy."""

    class Guarded(base):
        def submit_task(self, *asked: Any, **named: Any) -> Any:
            if len(asked) != _TASK_ARGUMENTS or named:
                raise _unexpected("submit_task")
            selector, fallback = _settled(
                ground, asked[1], asked[_RESOURCES], asked[_STRATEGY], asked[_SELECTOR], asked[_FALLBACK]
            )
            return super().submit_task(*asked[:_SELECTOR], selector, fallback)

        def create_actor(self, *asked: Any, **named: Any) -> Any:
            if len(asked) < 7 or "label_selector" not in named:
                raise _unexpected("create_actor")
            named["label_selector"], named["fallback_strategy"] = _settled(
                ground,
                asked[1],
                {**asked[_RESOURCES], **asked[6]},
                named["scheduling_strategy"],
                named["label_selector"],
                named["fallback_strategy"],
            )
            return super().create_actor(*asked, **named)

        def create_placement_group(self, name: Any, bundles: Any, *rest: Any) -> Any:
            if len(rest) != 5:
                raise _unexpected("create_placement_group")
            selectors = rest[3] or [{} for _ in bundles]
            settled = [
                settle(ground, bundle, chosen, open_to=is_open, what="a placement group")
                for bundle, chosen in zip(bundles, selectors, strict=True)
            ]
            return super().create_placement_group(name, bundles, *rest[:3], settled, *rest[4:])

    setattr(Guarded, _GUARDED, ground)
    return Guarded


def _settled(
    ground: Ground,
    descriptor: Any,
    resources: Mapping[str, float],
    strategy: Any,
    selector: Mapping[str, str] | None,
    fallback: Sequence[Mapping[str, Any]] | None,
) -> tuple[Any, Any]:
    what = name_of(descriptor)
    wanted = [name for name, amount in resources.items() if amount]
    if isinstance(strategy, PlacementGroupSchedulingStrategy):
        # Its bundles have a zone already, given when it was made; a selector of the task's own would not be met.
        group = strategy.placement_group
        bundles = group.bundle_specs if group is not None else []
        settle(ground, [*wanted, *(n for b in bundles for n in b)], None, open_to=is_open, what=what)
        return selector, fallback
    settled = settle(ground, wanted, selector, open_to=is_open, what=what)
    others = [
        {**option, "label_selector": settle(ground, wanted, option.get("label_selector"), open_to=is_open, what=what)}
        for option in fallback or ()
    ]
    return settled, others or fallback


def name_of(descriptor: Any) -> str:
    """Return the last name of what a function descriptor of Ray describes."""
    return str(getattr(descriptor, "class_name", "") or getattr(descriptor, "function_name", "") or "this work")


def _unexpected(method: str) -> ClusterUnavailable:
    return ClusterUnavailable(
        Reason.CLUSTER_FAILED,
        f"Ray's {method} is not the one that the guard was made for",
        "install the pinned Ray (constraints.txt)",
    )


# Work that has arrived outside.


def _watch_functions(ground: Ground) -> None:
    """Let a worker outside run a task, or make an actor, only after `admit_work`; Ray asks here for what it runs."""
    found = function_manager.FunctionActorManager.get_execution_info

    @functools.wraps(found)
    def watched(manager: Any, job_id: Any, descriptor: Any) -> Any:
        info = found(manager, job_id, descriptor)
        if descriptor.class_name and descriptor.function_name != "__init__":
            return info  # A method of an actor that was admitted.
        return info._replace(function=_admitted(info.function, ground, name_of(descriptor)))

    function_manager.FunctionActorManager.get_execution_info = watched


def _admitted(function: Callable[..., Any], ground: Ground, what: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def run(*args: Any, **named: Any) -> Any:
        group = get_current_placement_group()
        of_group = [name for bundle in (group.bundle_specs if group else ()) for name in bundle]
        assigned = ray.get_runtime_context().get_assigned_resources()
        admit_work(ground, [*assigned, *of_group], open_to=is_open, what=what)
        return function(*args, **named)

    return run


# The crossings that are open, as the cluster's own store tells every process of it.


@contextmanager
def passage(zone: str, crossing: str) -> Iterator[None]:
    """Let the work of this job ask for `zone` while the block runs, which is while one crossing to it is used."""
    key = _prefix(zone) + crossing.encode()
    internal_kv._internal_kv_put(key, b"1", overwrite=True, namespace=_NAMESPACE)
    try:
        yield
    finally:
        internal_kv._internal_kv_del(key, namespace=_NAMESPACE)


def is_open(zone: str) -> bool:
    """Say whether this job has a crossing to `zone` open."""
    return bool(internal_kv._internal_kv_list(_prefix(zone), namespace=_NAMESPACE))


def _prefix(zone: str) -> bytes:
    return f"passage:{ray.get_runtime_context().get_job_id()}:{zone}:".encode()
