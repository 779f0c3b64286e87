"""What room a zone has: nodes that are there, nodes that come when they are asked for, and what other work holds."""

import threading
import time

import pytest
from dispatch_lab import Lab
from test_outside import says, served

from fabric.capacity import NODES_COME_S, Capacity, bundles, pool_of
from fabric.catalogue import PriceBook
from fabric.config import Environment, load_config
from fabric.fleet import Health
from fabric.session import Session
from fabric.starter import write_starter
from fabric.zones import Topology, Zone, ZoneKind

NOW = 1_795_800_000.0
INSIDE = Zone(name="private", kind=ZoneKind.PRIVATE, jurisdiction="DE", cpus=6)
RENTED = Zone(name="public", kind=ZoneKind.PUBLIC, jurisdiction="DE", slots=4, gpus=4, gpu_model="H200")


def node(name, alive=True, **resources):
    return {"NodeID": name, "Alive": alive, "Resources": resources}


def seen(zone, *nodes, free=(), **more):
    return pool_of(zone, nodes, dict(free), **{"held": 0, "spared": 0, "now_s": NOW, **more})


def test_without_nodes_a_zone_of_fixed_nodes_is_down_and_has_no_room():
    pool = seen(RENTED)
    assert (pool.health, pool.gpus_total, pool.cpus_total) == (Health.DOWN, 0, 0)


def test_a_dead_node_among_fixed_ones_degrades_the_zone_and_takes_its_room_away():
    pool = seen(RENTED, node("a", zone_public=2.0, GPU=2.0), node("b", alive=False, zone_public=2.0, GPU=2.0))
    assert (pool.health, pool.gpus_total, pool.cpus_total) == (Health.DEGRADED, 2, 2)


def test_where_nodes_come_when_asked_for_an_empty_zone_has_all_that_is_declared():
    pool = seen(RENTED, elastic=True)
    assert (pool.health, pool.gpus_total, pool.gpus_taken) == (Health.HEALTHY, 4, 0)
    gone = seen(RENTED, node("a", alive=False, zone_public=2.0, GPU=2.0), elastic=True)
    assert gone.health is Health.HEALTHY  # an idle node went


@pytest.mark.parametrize(("late_s", "health"), [(NODES_COME_S - 1, Health.HEALTHY), (NODES_COME_S, Health.THROTTLED)])
def test_nodes_that_do_not_come_count_as_throttled(late_s, health):
    assert seen(RENTED, held=2, elastic=True, short_since_s=NOW - late_s).health is health


def test_what_other_work_holds_is_taken_and_the_queues_own_is_not_counted_twice():
    free = {"a": {"CPU": 1.0}}
    alone = seen(INSIDE, node("a", CPU=6.0), free=free, held=2)
    assert (alone.cpus_total, alone.cpus_taken) == (5, 3)  # one CPU is kept for sanitizing
    assert seen(INSIDE, node("a", CPU=6.0), free=free, held=2, spared=1).cpus_taken == 2
    waiting = seen(INSIDE, held=2, elastic=True)  # placed, and its nodes are still to come
    assert (waiting.cpus_total, waiting.cpus_taken) == (5, 0)


def test_a_zone_that_answers_slowly_holds_up_nobody_and_is_unknown_until_it_has_answered(tmp_path):
    answered = threading.Event()

    def slow(handler):
        answered.wait(60)
        says(b"", 404)(handler)

    with served(slow) as (jobs, _):
        write_starter(tmp_path, topology=Topology.FEDERATED)
        (tmp_path / "token").write_text("of-that-cluster")
        with (tmp_path / "fabric.toml").open("a") as file:
            file.write(f'\n[outside.public]\njobs = "{jobs.url}"\ntoken_file = "token"\n')
        session = Session.open(Environment.read({"FABRIC_PERSON": "someone"}), config_path=tmp_path)
        try:
            capacity = Capacity(session=session, store=Lab(tmp_path).store, book=PriceBook(session.config.prices))
            public = session.config.zones["public"]
            asked = capacity._elsewhere(public, NOW)
            assert (asked.health, asked.observed_s) == (Health.UNKNOWN, 0.0)
            answered.set()
            while (pool := capacity._elsewhere(public, NOW)).health is Health.UNKNOWN:
                time.sleep(0.01)
            assert (pool.health, pool.observed_s, pool.cpus_total) == (Health.HEALTHY, NOW, public.slots)
        finally:
            session.ledger.close()


@pytest.mark.parametrize("topology", Topology)
def test_nodes_are_asked_for_where_placed_work_runs_in_this_cluster(tmp_path, topology):
    write_starter(tmp_path, topology=topology)
    config = load_config(tmp_path / "fabric.toml")
    lab = Lab(tmp_path, inside=1, outside=4, clock_s=NOW)
    lab.submit("stays", need={"workers": 1})
    lab.submit("leaves", need={"workers": 3})
    assert bundles(config, lab.store.jobs()) == []  # what only waits asks for nothing
    lab.dispatcher().turn()
    placed = {row.id: row for row in lab.store.jobs()}
    assert {row.zone for row in placed.values()} == {"private", "public"}
    outside = [({"zone_public": 1.0}, {"zone": "public"})] * 3 if topology is Topology.STRETCHED else []
    assert sorted(bundles(config, placed.values()), key=str) == [({"CPU": 1.0}, {"zone": "private"}), *outside]
