"""The simulator: the same by seed, audited apart from the decision, and honest about the common rules."""

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fabric.audit import Audit
from fabric.baselines import rule_named
from fabric.cli import app
from fabric.comparison import compare, frontier, summary
from fabric.dispatch_rules import Rules
from fabric.errors import InvalidInput, Reason
from fabric.fleet import Extend, Health, Need, Pool, Start
from fabric.judging import Judge
from fabric.labels import Labels
from fabric.policy import Policy
from fabric.queueing import Dispatch
from fabric.simulation import Simulation, World
from fabric.traces import Assigning, Facts, TraceJob, peak_gpus, read_trace
from fabric.zones import Zone, ZoneKind

ALIBABA = Path(__file__).parents[2] / "shared" / "data" / "alibaba-gpu-2023" / "openb_pod_list_default.csv"
ZONES = {
    "private": Zone(name="private", kind=ZoneKind.PRIVATE, jurisdiction="EU", cpus=2),
    "public": Zone(name="public", kind=ZoneKind.PUBLIC, jurisdiction="EU"),
}
RULES = Rules(stale_s=math.inf)
POLICY = Policy.default()


TASKS = "name,num_gpu,qos,creation_time,deletion_time,scheduled_time"


def world(private, public=1_000, budget=None):
    inside = Pool(
        zone="private", kind=ZoneKind.PRIVATE, gpu_model="A100", gpus_total=private, price=0, health=Health.HEALTHY
    )
    outside = Pool(
        zone="public", kind=ZoneKind.PUBLIC, gpu_model="A100", gpus_total=public, price=3_670_000, egress=90_000,
        health=Health.HEALTHY,
    )  # fmt: skip
    return World(zones=ZONES, pools=(inside, outside), budget_micros=budget)


def some(count=400, seed=3):
    return list(read_trace(f"synthetic:{count}", seed=seed))


def squeezed(count=400, seed=3):
    jobs = some(count, seed)
    return jobs, world(max(16, int(0.6 * peak_gpus(jobs))))


def refused(source):
    with pytest.raises(InvalidInput) as caught:
        list(read_trace(source, seed=1))
    assert caught.value.reason is Reason.TRACE_INVALID
    return caught.value


@pytest.mark.parametrize("source", ["synthetic:0", "synthetic:many", "nowhere.csv", "synthetic:-5"])
def test_a_trace_that_cannot_be_read_is_refused(source):
    assert refused(source).hint


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no row"),
        ("job_id,submitted_s,duration_s,gpus\n", "no row"),
        ("job_id,submitted_s,duration_s\na,1,2\n", "'gpus'"),
        ("job_id,submitted_s,duration_s,gpus,dealine_s\na,1,2,1,3\n", "deadline_s"),
        ("job_id,submitted_s,duration_s,gpus\na,1,secret,1\n", "row 1"),
        ("job_id,submitted_s,duration_s,gpus\na,1,nan,1\n", "row 1"),
        ("job_id,submitted_s,duration_s,gpus\na,1,0,1\n", "row 1"),
        ("job_id,submitted_s,duration_s,gpus,spot\na,1,2,1,perhaps\n", "row 1"),
        ("job_id,submitted_s,duration_s,gpus\na,1,2,1\na,1,2,1\n", "twice"),
        ("job_id,submitted_s,duration_s,gpus\na,1,2,1\nb,1,2,1,secret\n", "row 2"),
        ("job_id,submitted_s,duration_s,gpus\na,1,2,-1\n", "row 1"),
        ("job_id,submitted_s,duration_s,gpus,workers\na,1,2,1,-7\n", "row 1"),
        ("job_id,submitted_s,duration_s,gpus,deadline_s\na,1,2,1,nan\n", "row 1"),
        ("job_id,submitted_s,duration_s,gpus,deadline_s\na,1,2,1,inf\n", "row 1"),
        ("job_id,submitted_s,duration_s,gpus,deadline_s\na,9,2,1,3\n", "row 1"),
        ("job_id,submitted_s,duration_s,gpus,priority\na,1,2,1,1000\n", "row 1"),
        ("job_id,submitted_s,duration_s,gpus,egress_bytes\na,1,2,1,-4\n", "row 1"),
        ("job_id,submitted_s,duration_s,gpus,data_classification\na,1,2,1,secret\n", "row 1"),
        (f"{TASKS}\na,1,LS,nan,5,1\n", "row 1"),
        (f"{TASKS}\na,1,LS,1,inf,1\n", "row 1"),
        (f"{TASKS}\na,secret,LS,1,5,1\n", "row 1"),
        (f"{TASKS}\na,-1,LS,1,5,1\n", "row 1"),
        (f"{TASKS}\na,1,LS,1,,1\n", "row 1"),
        (f"{TASKS}\na,0,LS,1,5,1\n", "no row of a job that ran on GPUs"),
    ],
)
def test_a_trace_that_is_wrong_is_refused_by_row_and_column_and_never_by_value(tmp_path, text, says):
    path = tmp_path / "trace.csv"
    path.write_text(text)
    error = refused(str(path))
    assert says in str(error)
    assert "secret" not in str(error)


def test_our_columns_are_read_from_csv_and_parquet_alike(tmp_path):
    import pyarrow.csv
    import pyarrow.parquet

    path = tmp_path / "trace.csv"
    path.write_text(
        "job_id,submitted_s,duration_s,gpus,workers,min_workers,gpu_model,deadline_s,checkpointed,justified,team,"
        "data_classification,allowed_execution_zone,burst_eligible,residency,purpose,export_control\n"
        'a,5,60,2,2,1,A100,500,true,true,cardio,internal,"private,public",true,EU,research,none\nb,1,60,1,,,,,,,,,,,,,\n'
    )
    first, second = read_trace(str(path), seed=1)
    assert (first.id, second.id) == ("b", "a")
    assert second.need == Need(workers=2, min_workers=1, gpus=2, gpu_model="A100")
    assert second.facts.labels.team == "cardio"
    assert first.facts.labels == Labels()
    pyarrow.parquet.write_table(pyarrow.csv.read_csv(path), tmp_path / "trace.parquet")
    assert list(read_trace(str(tmp_path / "trace.parquet"), seed=1)) == [first, second]


def test_the_same_seed_makes_the_same_trace_and_another_seed_another():
    assert some(50, 1) == some(50, 1)
    assert some(50, 1) != some(50, 2)


def test_two_in_five_tasks_may_not_leave_and_policy_itself_refuses_them():
    jobs = some(4_000, 5)
    judge = Judge(POLICY, ZONES)
    stay = [job for job in jobs if not judge.verdicts(job.facts)["public"].permitted]
    assert 0.37 < len(stay) / len(jobs) < 0.43
    assert all(judge.verdicts(job.facts)["private"].permitted for job in jobs)
    rules = Counter(rule for job in stay for rule in judge.verdicts(job.facts)["public"].rules)
    assert {"labels.zone", "labels.residency", "move.k"} <= set(rules)


def test_a_deadline_is_never_before_the_jobs_own_estimate():
    for job in some(500, 7):
        assert job.deadline_s >= job.submitted_s + max(job.duration_s, job.estimate_s) + Assigning(seed=0).least_slack_s


def test_the_same_trace_rules_and_seed_make_the_same_result():
    jobs, there = squeezed()
    first, again = (compare(lambda: jobs, ["ours"], there, RULES, POLICY)[0] for _ in range(2))
    assert first.outcomes == again.outcomes
    assert first.actions == again.actions


@pytest.mark.parametrize("name", ["ours", "fifo", "burst-all", "fixed-5min", "burst-all+strict"])
def test_no_rule_violates_anything_and_every_job_ends(name):
    jobs, there = squeezed()
    (result,) = compare(lambda: jobs, [name], there, RULES, POLICY)
    assert result.violations == {}
    assert summary(result).ended == len(jobs)
    for job in jobs:
        outcome = result.outcomes[job.id]
        assert outcome.end_s >= job.submitted_s + job.duration_s
        if outcome.stays:
            assert (outcome.micros, outcome.outside_s) == (0, 0.0)


@pytest.mark.parametrize("budget", [0, 5_000_000, 100_000_000])
def test_a_budget_is_never_overspent_and_what_cannot_be_paid_runs_inside(budget):
    jobs, there = squeezed()
    there = replace(there, budget_micros=budget, period_s=6 * 3_600.0)
    (result,) = compare(lambda: jobs, ["ours"], there, RULES, POLICY)
    assert {kind: n for kind, n in result.violations.items() if kind != "starved"} == {}
    assert result.most_spent_micros <= budget
    assert summary(result).ended + summary(result).shed == len(jobs)


def test_what_a_miss_may_cost_trades_money_for_deadlines():
    jobs, there = squeezed()
    rows = [row for _, row in frontier(lambda: jobs, there, RULES, POLICY)]
    assert rows[0].cost_micros == 0
    assert rows[0].missed >= rows[-1].missed
    assert rows[-1].cost_micros > 0


class Wrong(Dispatch):
    """A decision that believes any policy, to see that the audit does not."""

    def decide(self, now_s):
        return tuple(
            replace(a, zone="public", pool="public/A100") if isinstance(a, Start) else a for a in super().decide(now_s)
        )


def test_the_audit_finds_work_outside_that_may_not_leave():
    jobs, there = squeezed(50)
    result = Simulation(there, Wrong(RULES), POLICY).run(jobs)
    assert result.violations["policy"] > 0


def test_the_audit_finds_what_is_planted():
    labels = Labels.parse({"burst_eligible": "true", "allowed_execution_zone": "private,public"})
    job = TraceJob(
        id="j", submitted_s=0.0, duration_s=9.0, estimate_s=9.0, deadline_s=None, need=Need(workers=4, gpus=1),
        facts=Facts(labels=labels, justified=False),
    )  # fmt: skip
    there = world(2)
    audit = Audit(there.pools, Judge(POLICY, ZONES), 10)
    start = Start(job="j", pool="private/A100", zone="private", workers=3, cost_micros=0, reason="")
    audit.starts(start, job)
    assert audit.violations == {"gang": 1, "capacity": 1}
    audit.starts(replace(start, pool="public/A100", workers=4, cost_micros=11), job)
    assert audit.violations == {"gang": 1, "capacity": 1, "policy": 2, "twice": 1, "budget": 1}
    audit.extends(Extend(job="j", cost_micros=1, until_s=0.0))
    audit.stops("j", 13)
    assert audit.violations["overspent"] == 1


def test_a_rule_that_there_is_not_is_refused_with_the_nearest_one():
    with pytest.raises(InvalidInput) as caught:
        compare(list, ["fixed-5mins"], world(1), RULES, POLICY)
    assert "fixed-5min" in caught.value.hint


@pytest.mark.skipif(not ALIBABA.is_file(), reason="../shared/data/alibaba-gpu-2023 is not beside the checkout")
def test_over_alibabas_trace_ours_misses_fewer_deadlines_for_less_money_than_each_rule_that_bursts():
    jobs = list(read_trace(str(ALIBABA), seed=1))
    there = world(int(0.6 * peak_gpus(jobs)))
    names = ["ours", "fifo", "burst-all", "fixed-5min"]
    ours, fifo, *bursting = map(summary, compare(lambda: jobs, names, there, RULES, POLICY))
    for row in (ours, fifo, *bursting):
        assert (row.violations, row.starved, row.ended) == (0, 0, len(jobs))
    for row in bursting:
        assert ours.missed < row.missed
        assert ours.cost_micros < row.cost_micros
    assert ours.missed < fifo.missed


def run(*args):
    return CliRunner().invoke(app, ["simulate", *args], catch_exceptions=False)


def test_the_command_prints_the_rules_side_by_side_and_as_json(tmp_path):
    done = run("synthetic:200", "--compare", "--json", "--plot", str(tmp_path / "p.svg"))
    assert done.exit_code == 0
    body = json.loads(done.stdout)
    assert [row["rule"] for row in body["rules"]] == ["ours", "fifo", "burst-all", "fixed-5min"]
    assert all(row["violations"] == 0 for row in body["rules"])
    assert (tmp_path / "p.svg").read_text().startswith("<?xml")


def test_the_command_takes_prices_from_a_catalogue_and_rules_from_fabric_toml(tmp_path):
    head = "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,Price,SpotPrice,Region,EgressPricePerGB\n"
    (tmp_path / "c.csv").write_text(head + "x,H200,1,8,9.00,,r,0.01\n")
    (tmp_path / "fabric.toml").write_text(
        '[fabric]\nname = "f"\n[zones.private]\nkind = "private"\njurisdiction = "EU"\ncpus = 2\n'
        "[dispatch.spill.training]\nmiss_price = 0\n[dispatch.spill.fine-tuning]\nmiss_price = 0\n"
        "[dispatch.spill.sweep]\nmiss_price = 0\n[dispatch.spill.batch-inference]\nmiss_price = 0\n"
    )
    options = ("--catalogue", str(tmp_path / "c.csv"), "--config", str(tmp_path), "--private-gpus", "20", "--json")
    done = run("synthetic:100", *options, "--gpu-model", "H200")
    # fabric.toml's rules: no rent is worth a deadline.
    assert json.loads(done.stdout)["rules"][0]["cost_micros"] == 0


def test_decisions_can_be_named_alone():
    assert type(rule_named("ours", RULES)) is Dispatch
    assert rule_named("fifo+strict", RULES).rules.reserve == 0.0
