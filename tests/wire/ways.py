"""Ways by which raw data might leave, tried in a driver of the private zone while the link is watched.

`WAYS` is the hook: a list of callables, each given a `wire.driving.ClusterLab`. A way ends in a refusal, in a result,
or in any other error; what it ends in is told, but only the search of the wire and of the public side says whether it
leaked. Those here use Ray and the driver itself; ways through outbound code and crossings have lists of their own.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import ray
from ray.util import metrics

INSIDE: dict[str, Any] = {"resources": {"zone_private": 0.001}, "num_cpus": 1}


def closure_over_the_records(lab: Any) -> object:
    held = lab.records
    return lab.burst(lambda table: (table.num_rows, held.num_rows))


def default_argument(lab: Any) -> object:
    row = lab.records.to_pylist()[-1]

    def work(table, held=row):
        return table.num_rows

    return lab.burst(work)


def class_attribute(lab: Any) -> object:
    class Holder:
        held = lab.records.column("notes").to_pylist()[-1]

        def __call__(self, table):
            return table.num_rows

    return lab.burst(Holder())


def parameter(lab: Any) -> object:
    return lab.burst(lambda table, who: len(who), {"who": lab.planted["name"]})


def network_with_a_raw_layer(lab: Any) -> object:
    from torch import nn

    held = lab.records.column("income").to_pylist()

    def network(inputs, outputs):
        return nn.Linear(inputs + 0 * len(held), outputs)

    return lab.train(lab.small, network=network)


def justification(lab: Any) -> object:
    return lab.burst(lambda table: table.num_rows, justification=f"asked by {lab.planted['name']}")


def task_and_actor_names_inside(lab: Any) -> object:
    class Keeper:
        def ping(self):
            return 1

    task = ray.remote(_rows).options(**INSIDE, name=lab.planted["email"])
    actor = ray.remote(Keeper).options(**INSIDE, name=lab.planted["name"]).remote()
    return ray.get([task.remote(lab.records), actor.ping.remote()])


def exception_inside(lab: Any) -> object:
    def fails(table):
        raise ValueError(table.to_pylist()[-1])

    return ray.get(ray.remote(fails).options(**INSIDE, max_retries=0).remote(lab.records))


def print_and_log_inside(lab: Any) -> object:
    def tells(row):
        print(row, flush=True)
        print(row, file=sys.stderr, flush=True)
        logging.getLogger().warning("%s", row)

    tells(lab.planted)
    return ray.get(ray.remote(tells).options(**INSIDE).remote(lab.planted))


def objects_put_inside(lab: Any) -> object:
    lab.kept = [ray.put(lab.records.to_pandas()), ray.put([{"nested": ray.put(lab.planted)}]), ray.put(lab.records)]
    return ray.get(ray.remote(_rows).options(**INSIDE).remote(lab.kept[2]))


def plain_tasks(lab: Any) -> object:
    # Nothing is said of where they run: with no CPU outside, they run inside.
    return len(ray.get([ray.remote(_rows).remote(lab.records) for _ in range(8)]))


def metric_labels(lab: Any) -> object:
    counter = metrics.Counter("seen", description="rows seen", tag_keys=("who",))
    counter.inc(1, tags={"who": lab.planted["email"]})
    return None


def environment_and_thread_names(lab: Any) -> object:
    os.environ["WHO"] = lab.planted["notes"]
    thread = threading.Thread(target=lambda: None, name=lab.planted["name"])
    thread.start()
    thread.join()
    return ray.get(ray.remote(_rows).options(**INSIDE).remote(lab.records))


def exception_of_the_work_outside(lab: Any) -> object:
    def fails(table):
        raise ValueError(str(table.to_pylist()[0]))

    return lab.burst(fails)


def result_too_odd_to_return(lab: Any) -> object:
    return lab.burst(lambda table: table.schema)


def _rows(table):
    return table.num_rows


WAYS: list[Callable[[Any], object]] = [
    closure_over_the_records,
    default_argument,
    class_attribute,
    parameter,
    network_with_a_raw_layer,
    justification,
    task_and_actor_names_inside,
    exception_inside,
    print_and_log_inside,
    objects_put_inside,
    plain_tasks,
    metric_labels,
    environment_and_thread_names,
    exception_of_the_work_outside,
    result_too_odd_to_return,
]
