"""A driver that never heard of the fabric: it tries every way of Ray's to land somewhere, and prints where it did."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time

import ray
from ray import tune
from ray.util.placement_group import placement_group, placement_group_table
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

SOON = 120.0
"""Seconds; nothing here waits for a place in vain, but a worker on a busy machine takes its time to start."""


def here() -> str:
    return ray.get_runtime_context().get_node_labels()["zone"]


@ray.remote(num_cpus=0)
def look() -> str:
    time.sleep(0.05)
    return here()


@ray.remote(num_cpus=0)
def nested() -> list[str]:
    return ray.get([look.remote() for _ in range(4)])


@ray.remote(num_cpus=0)
class Looker:
    def look(self) -> str:
        return here()

    def start(self) -> list[str]:
        return ray.get([look.remote() for _ in range(4)])

    def die(self) -> None:
        os._exit(1)


@ray.remote(num_cpus=0, max_retries=3)
def dies_once(path: str) -> str:
    if not os.path.exists(path):
        open(path, "w").close()
        os._exit(1)
    return here()


def zones_by_node() -> dict[str, str]:
    return {node["NodeID"]: node["Labels"]["zone"] for node in ray.nodes()}


def actors_of(**options) -> list[str]:
    actors = [Looker.options(**options).remote() for _ in range(6)]
    return ray.get([actor.look.remote() for actor in actors])


def restarted() -> list[str]:
    actor = Looker.options(max_restarts=2, max_task_retries=2).remote()
    seen = [ray.get(actor.look.remote())]
    with contextlib.suppress(ray.exceptions.RayError):
        ray.get(actor.die.options(max_task_retries=0).remote())
    return [*seen, ray.get(actor.look.remote())]


def detached() -> list[str]:
    found = []
    for number in range(4):
        actor = Looker.options(name=f"kept-{number}-{time.time()}", lifetime="detached").remote()
        found.append(ray.get(actor.look.remote()))
        ray.kill(actor)
    return found


def queues() -> list[str]:
    zones, found = zones_by_node(), []
    for _ in range(4):
        queue = Queue()
        queue.put(1)
        found.append(ray.get(queue.actor.__ray_call__.remote(lambda self: ray.get_runtime_context().get_node_id())))
        queue.shutdown()
    return [zones[node] for node in found]


def groups() -> list[str]:
    zones, found = zones_by_node(), []
    for bundle in ({"memory": 1}, {"memory": 4096}, {"zone_private": 0.001}):
        group = placement_group([bundle], strategy="SPREAD")
        ray.get(group.ready())
        found += [zones[node] for node in placement_group_table(group)["bundles_to_node_id"].values()]
        strategy = PlacementGroupSchedulingStrategy(group)
        found.append(ray.get(look.options(scheduling_strategy=strategy).remote()))
        ray.util.remove_placement_group(group)
    return found


def data() -> list[str]:
    class Mark:
        def __call__(self, batch):
            return {"zone": [here()] * len(batch["id"])}

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    many = ray.data.range(8, override_num_blocks=4)
    pool = many.map_batches(Mark, concurrency=2, num_cpus=0).take_all()
    return [row["zone"] for row in pool]


def trials() -> list[str]:
    def trial(config):
        tune.report({"private": float(here() == "private")})

    tuner = tune.Tuner(
        tune.with_resources(trial, {"CPU": 0, "zone_private": 0.001}),
        param_space={"x": tune.grid_search([1, 2])},
        run_config=tune.RunConfig(storage_path=os.environ["LANDING_FOLDER"], verbose=0),
    )
    return ["private" if result.metrics["private"] else "public" for result in tuner.fit()]


def train() -> list[str]:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    def loop():
        time.sleep(0.5)

    scaling = ScalingConfig(num_workers=1, resources_per_worker={"CPU": 0, "zone_private": 0.001})
    DataParallelTrainer(
        loop, scaling_config=scaling, run_config=RunConfig(storage_path=os.environ["LANDING_FOLDER"])
    ).fit()
    zones = zones_by_node()
    return [zones[row.node_id] for row in ray.util.state.list_actors(limit=1000) if row.node_id]


def retried() -> list[str]:
    return [ray.get(dies_once.remote(os.path.join(os.environ["LANDING_FOLDER"], f"died-{time.time()}")))]


def attempt(act) -> tuple[str, list[str]]:
    """Return how it was refused, and where it ran; "pending" if Ray goes on looking for a place."""
    try:
        seen = act()
    except ray.exceptions.GetTimeoutError:
        return "pending", []
    except Exception as error:
        cause = getattr(error, "cause", None) or error
        return f"{type(cause).__name__} {getattr(cause, 'reason', '')}".strip(), []
    return "", [seen] if isinstance(seen, str) else sorted(seen)


def soon(ref) -> object:
    return ray.get(ref, timeout=SOON)


def group_outside() -> object:
    group = placement_group([{"zone_public": 1}])
    return soon(group.ready())


def asking() -> dict[str, str]:
    outside = next(node for node, zone in zones_by_node().items() if zone == "public")
    there = NodeAffinitySchedulingStrategy(outside, soft=False)
    perhaps = NodeAffinitySchedulingStrategy(outside, soft=True)
    ways = {
        "task by resource": lambda: soon(look.options(resources={"zone_public": 1}).remote()),
        "task by label": lambda: soon(look.options(label_selector={"zone": "public"}).remote()),
        "task by a label that is not": lambda: soon(look.options(label_selector={"zone": "!private"}).remote()),
        "task by fallback": lambda: soon(
            look.options(
                label_selector={"zone": "private"}, fallback_strategy=[{"label_selector": {"zone": "public"}}]
            ).remote()
        ),
        "task by node": lambda: soon(look.options(scheduling_strategy=there).remote()),
        "task perhaps by node": lambda: soon(look.options(scheduling_strategy=perhaps).remote()),
        "actor by resource": lambda: soon(Looker.options(resources={"zone_public": 1}).remote().look.remote()),
        "actor by label": lambda: soon(Looker.options(label_selector={"zone": "public"}).remote().look.remote()),
        "group by resource": group_outside,
        "detached actor": lambda: soon(
            Looker.options(name="far", lifetime="detached", resources={"zone_public": 1}).remote().look.remote()
        ),
    }
    return {name: attempt(act) for name, act in ways.items()}


def passing() -> dict[str, str]:
    """What a job can do while a crossing of its own is open, and what not even then."""
    from fabric.guard import passage

    with passage("public", "c" * 32):
        far = Looker.options(resources={"zone_public": 1}).remote()
        found = {
            "actor": attempt(lambda: soon(far.look.remote())),
            "task": attempt(lambda: soon(look.options(resources={"zone_public": 1}).remote())),
            "task started outside": attempt(lambda: soon(nested.options(resources={"zone_public": 1}).remote())),
            "task started by an actor outside": attempt(lambda: soon(far.start.remote())),
            "unasked": attempt(lambda: set(ray.get([look.remote() for _ in range(20)]))),
        }
    found["after"] = attempt(lambda: soon(look.options(resources={"zone_public": 1}).remote()))
    return found


WAYS = {
    "task": lambda: ray.get([look.remote() for _ in range(40)]),
    "spread task": lambda: ray.get([look.options(scheduling_strategy="SPREAD").remote() for _ in range(20)]),
    "nested task": lambda: ray.get(nested.remote()),
    "actor": actors_of,
    "spread actor": lambda: actors_of(scheduling_strategy="SPREAD"),
    "restarted actor": restarted,
    "detached actor": detached,
    "queue": queues,
    "placement group": groups,
    "retry": retried,
}
LIBRARIES = {"data": data, "tune": trials, "train": train}


@ray.remote(num_cpus=1)
class Busy:
    def hold(self) -> None:
        return None


def unguarded() -> dict[str, str]:
    """What a driver without the guard meets: what is for outside is refused where it arrives."""
    from ray._raylet import CoreWorker

    assert not hasattr(CoreWorker, "_fabric_ground")
    group = placement_group([{"zone_public": 1}])
    ray.get(group.ready(), timeout=SOON)
    in_group = PlacementGroupSchedulingStrategy(group)
    tasks = [look.remote() for _ in range(40)]
    actors = [Looker.remote() for _ in range(8)]
    return {
        "tasks": [attempt(lambda ref=ref: ray.get(ref, timeout=SOON)) for ref in tasks],
        "actors": [attempt(lambda each=each: ray.get(each.look.remote(), timeout=SOON)) for each in actors],
        "asking": [
            attempt(lambda: ray.get(look.options(resources={"zone_public": 1}).remote(), timeout=SOON)),
            attempt(lambda: ray.get(look.options(label_selector={"zone": "public"}).remote(), timeout=SOON)),
            attempt(lambda: ray.get(look.options(scheduling_strategy=in_group).remote(), timeout=SOON)),
            attempt(lambda: ray.get(Looker.options(resources={"zone_public": 1}).remote().look.remote(), timeout=SOON)),
        ],
    }


def main() -> None:
    ray.init(log_to_driver=False, logging_level="ERROR")
    busy = [Busy.options(num_cpus=1).remote() for _ in range(2)]
    if "unguarded" in sys.argv:
        ray.get([actor.hold.remote() for actor in busy])
        print("FOUND" + json.dumps(unguarded()), flush=True)
        return
    for actor in busy:
        ray.kill(actor)
    found: dict[str, object] = {"idle": {name: attempt(way) for name, way in {**WAYS, **LIBRARIES}.items()}}
    found["asking"] = asking()
    busy = [Busy.options(num_cpus=1).remote() for _ in range(2)]
    ray.get([actor.hold.remote() for actor in busy])
    found["full"] = {name: attempt(way) for name, way in WAYS.items()}
    found["passing"] = passing()
    print("FOUND" + json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
