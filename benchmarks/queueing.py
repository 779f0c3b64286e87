"""How well, and how fast, the dispatch decision is.

    python benchmarks/queueing.py compare [--seeds 6] [--plot frontier.svg]   Alibaba's trace, rules side by side
    python benchmarks/queueing.py jobs [--jobs 1000000]                       a synthetic trace on one core
    python benchmarks/queueing.py length                                      one decision against the queue's length

Alibaba's trace is looked for in ../shared/data. What it does not hold is drawn by `fabric.traces.Assigning`, whose
docstring is the rule. Private capacity is 60 per cent of the peak demand. Times are CPU seconds of one process.
"""

from __future__ import annotations

import argparse
import gc
import math
import random
import time
from dataclasses import replace
from pathlib import Path

from fabric.baselines import rule_named
from fabric.comparison import Summary, compare, frontier, summary, table
from fabric.dispatch_rules import Rules
from fabric.fleet import (
    Account,
    AccountsSeen,
    EgressSeen,
    Ended,
    Health,
    Job,
    Need,
    Pool,
    PoolSeen,
    Scope,
    Submitted,
    Verdict,
)
from fabric.labels import Classification, WorkloadClass
from fabric.policy import Policy
from fabric.queueing import Dispatch
from fabric.simulation import Simulation, World
from fabric.traces import Assigning, TraceJob, peak_gpus, read_trace, synthetic
from fabric.zones import Zone, ZoneKind

ALIBABA = Path(__file__).parents[2] / "shared" / "data" / "alibaba-gpu-2023" / "openb_pod_list_default.csv"
NAMES = ("ours", "fifo", "burst-all", "fixed-5min", "burst-all+strict", "fixed-5min+strict")
RULES = Rules(stale_s=math.inf)
ABLATIONS = {
    "ours, nothing is moved": replace(RULES, max_moves=0),
    "ours, no reserve": replace(RULES, reserve=0.0),
    "ours, no head start inside": replace(RULES, stays_s=0.0),
}
SLACKS = {
    "tight": (0.1, 0.25, 0.5),
    "mixed": Assigning(seed=0).slacks,
    "loose": (2.0, 4.0, 8.0),
}
YES = Verdict(permitted=True)


def world(private: int, public: int) -> World:
    """Return one private and one public zone; an A100 at 3.67 an hour, egress at 0.09 a GB."""
    zones = {
        "private": Zone(name="private", kind=ZoneKind.PRIVATE, jurisdiction="EU", cpus=2),
        "public": Zone(name="public", kind=ZoneKind.PUBLIC, jurisdiction="EU"),
    }
    return World(zones=zones, pools=(pool("private", private, 0), pool("public", public, 3_670_000)))


def pool(zone: str, gpus: int, price: int) -> Pool:
    """Return a healthy pool of A100."""
    kind = ZoneKind.PRIVATE if zone == "private" else ZoneKind.PUBLIC
    return Pool(
        zone=zone, kind=kind, gpu_model="A100", gpus_total=gpus, price=price, egress=90_000, health=Health.HEALTHY
    )


def alibaba(seed: int, slack: str) -> list[TraceJob]:
    """Return Alibaba's trace with labels and deadlines drawn by the seed."""
    jobs = list(read_trace(str(ALIBABA), seed=seed))
    if slack == "mixed":
        return jobs
    assigning = Assigning(seed=seed, slacks=SLACKS[slack])
    return [
        assigning.job(
            job.id, submitted_s=job.submitted_s, duration_s=job.duration_s, gpus=job.need.total_gpus,
            workload=job.workload,
        )
        for job in jobs
    ]  # fmt: skip


def run_compare(seeds: int, plot: Path | None) -> None:
    """Compare the rules over every seed and every rule of deadlines."""
    policy = Policy.default()
    for slack in SLACKS:
        for seed in range(1, seeds + 1):
            jobs = alibaba(seed, slack)
            there = world(int(0.6 * peak_gpus(jobs)), 1_000)
            results = compare(lambda jobs=jobs: jobs, NAMES, there, RULES, policy)  # type: ignore[misc]
            rows = [summary(result) for result in results]
            print(f"\ndeadlines {slack}, seed {seed}: {len(jobs):,} jobs, {there.pools[0].gpus_total} private GPUs")
            print(table(rows))
            print(_verdict(rows))
            if slack == "mixed" and seed == 1:
                print(table([_ablated(name, rules, jobs, there, policy) for name, rules in ABLATIONS.items()]))
                knob = frontier(lambda jobs=jobs: jobs, there, RULES, policy)  # type: ignore[misc]
                print(table([row for _, row in knob]))
                if plot is not None:
                    from fabric.simulation_plots import plot as draw  # noqa: PLC0415 - matplotlib is optional

                    draw(results[:4], knob, plot, capacity=there.pools[0].gpus_total)


def _ablated(name: str, rules: Rules, jobs: list[TraceJob], there: World, policy: Policy) -> Summary:
    return summary(Simulation(there, rule_named("ours", rules), policy, name).run(jobs))


def _verdict(rows: list[Summary]) -> str:
    ours = rows[0]
    beaten = [
        row.rule
        for row in rows
        if row.cost_micros and row is not ours and (row.missed <= ours.missed or row.cost_micros <= ours.cost_micros)
    ]
    wrong = sum(row.violations + row.starved for row in rows)
    if beaten or wrong:
        return f"NOT better at once than {', '.join(beaten)}; {wrong} violations or starved"
    return "fewer missed deadlines and lower cost than each rule that bursts; no violation, nothing starved"


def run_jobs(count: int) -> None:
    """Simulate a synthetic trace on one core."""
    there = world(1_024, 100_000)
    simulation = Simulation(there, rule_named("ours", RULES), Policy.default())
    gc.collect()
    gc.freeze()
    begun_s = time.process_time()
    result = simulation.run(synthetic(count, seed=1, gpus=1_024))
    taken_s = time.process_time() - begun_s
    row = summary(result)
    deepest = max((waiting for *_, waiting in result.usage), default=0)
    print(
        f"{count:,} jobs in {taken_s:.0f} CPU s: {count / taken_s:,.0f} jobs/s, "
        f"{result.decisions / taken_s:,.0f} calls of decide/s"
    )
    print(f"deepest queue {deepest:,}; {row.missed:,} missed, {row.violations} violations, {row.starved} starved")


def queued(length: int) -> tuple[Dispatch, random.Random]:
    """Return a decision with a full private zone and so many jobs that wait."""
    draw = random.Random(7)  # noqa: S311
    dispatch = Dispatch(RULES)
    for one in (pool("private", 512, 0), pool("public", 100_000, 3_670_000)):
        dispatch.apply(PoolSeen(pool=one))
    dispatch.apply(EgressSeen(zone="public", open=True, at_s=0.0))
    account = Account(name="all", scope=Scope(), limit_micros=10**18)
    dispatch.apply(AccountsSeen(accounts=(account,), quotas=(), at_s=0.0))
    number = 0
    while len(dispatch.waiting) < length:
        for _ in range(min(1_000, max(1, length - len(dispatch.waiting)))):
            dispatch.apply(Submitted(job=made(number, 1.0, draw)))
            number += 1
        dispatch.decide(1.0)
    return dispatch, draw


def made(number: int, at_s: float, draw: random.Random) -> Job:
    """Return a job of one of ten teams; six in ten may leave, with days of slack."""
    verdicts = {"private": YES, "public": YES} if draw.random() < 0.6 else {"private": YES}
    lasts_s = draw.uniform(300.0, 20_000.0)
    return Job(
        id=f"j{number}", token=f"j{number}", team=f"team-{draw.randrange(10)}", project="p",
        classification=Classification.INTERNAL, workload=WorkloadClass.TRAINING, priority=0, submitted_s=at_s,
        deadline_s=at_s + lasts_s + draw.uniform(5e5, 5e6), need=Need(workers=draw.choice((1, 1, 1, 2, 4, 8)), gpus=1),
        duration_s=lasts_s, checkpointed=draw.random() < 0.5, egress_bytes=10**9, justified=True, verdicts=verdicts,
    )  # fmt: skip


def run_length() -> None:
    """Measure one decision (an event and what is to be done about it) against how many jobs wait."""
    print(f"{'queued':>8}  {'us/decision':>11}  {'decisions/s':>11}  {'us/submit':>9}  {'us/end':>7}")
    for length in (10, 100, 1_000, 10_000, 100_000):
        dispatch, draw = queued(length)
        rounds = 10_000
        fresh = [made(10**7 + n, 2.0 + n / 10, draw) for n in range(rounds)]
        gc.collect()
        gc.freeze()
        spent = [0.0, 0.0]
        for n, job in enumerate(fresh):
            now_s = 2.0 + n / 10
            ends = next(iter(dispatch.running)) if len(dispatch.waiting) >= length else ""
            begun_s = time.process_time()
            dispatch.apply(Submitted(job=job))
            dispatch.decide(now_s)
            between_s = time.process_time()
            if ends:
                dispatch.apply(Ended(job=ends, at_s=now_s))
            dispatch.decide(now_s)
            spent[0] += between_s - begun_s
            spent[1] += time.process_time() - between_s
        total = sum(spent)
        print(
            f"{length:>8,}  {total / rounds / 2 * 1e6:>11.1f}  {2 * rounds / total:>11,.0f}"
            f"  {spent[0] / rounds * 1e6:>9.1f}  {spent[1] / rounds * 1e6:>7.1f}   ({len(dispatch.waiting):,} after)"
        )
        gc.unfreeze()


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    comparing = parts.add_parser("compare")
    comparing.add_argument("--seeds", type=int, default=6)
    comparing.add_argument("--plot", type=Path)
    parts.add_parser("jobs").add_argument("--jobs", type=int, default=1_000_000)
    parts.add_parser("length")
    given = parser.parse_args()
    if given.part == "compare" and not ALIBABA.is_file():
        raise SystemExit(f"{ALIBABA} is not there: put the trace beside the checkout")
    if given.part == "compare":
        run_compare(given.seeds, given.plot)
    elif given.part == "jobs":
        run_jobs(given.jobs)
    else:
        run_length()


if __name__ == "__main__":
    main()
