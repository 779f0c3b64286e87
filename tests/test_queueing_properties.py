"""No state and no sequence of events places a job against policy, beyond a limit, in part or twice, or starves one."""

import math
from collections import Counter

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fabric.dispatch_rules import Rules
from fabric.fleet import (
    Account,
    AccountsSeen,
    Cancelled,
    Checkpointed,
    DrainBack,
    EgressSeen,
    Ended,
    Extend,
    ExtendRefused,
    Health,
    Hold,
    Job,
    Left,
    Need,
    Pool,
    PoolSeen,
    Preempt,
    Quota,
    Restored,
    Running,
    Scope,
    Shed,
    Start,
    StartRefused,
    Submitted,
    Verdict,
    VerdictsSeen,
)
from fabric.labels import Classification, WorkloadClass
from fabric.queueing import Dispatch
from fabric.zones import ZoneKind

ZONES = {"private": ZoneKind.PRIVATE, "alpha": ZoneKind.PUBLIC, "beta": ZoneKind.PUBLIC}
STALE_S = 50_000.0
RULES = Rules(
    stale_s=STALE_S, calm_s=60.0, stay_s=60.0, drain_left_s=300.0, checkpoint_s=120.0, models={"A": ("B",)},
    fail_over_up_to=Classification.CONFIDENTIAL,
)  # fmt: skip
verdicts = st.fixed_dictionaries(
    {},
    optional={
        zone: st.builds(Verdict, permitted=st.booleans(), until_s=st.sampled_from([math.inf, 500.0, 5_000.0]))
        for zone in ZONES
    },
)
needs = st.builds(
    lambda workers, gpus, least, model: Need(
        workers=workers, gpus=gpus, cpus=0, min_workers=min(least, workers), gpu_model=model
    ),
    st.integers(1, 4), st.integers(1, 2), st.integers(0, 2), st.sampled_from(["", "A", "B"]),
)  # fmt: skip


class Dispatcher(RuleBasedStateMachine):
    """Drives a decision with anything that can happen, and keeps books of its own."""

    @initialize()
    def begin(self):
        self.dispatch = Dispatch(RULES)
        self.now_s = 0.0
        self.jobs: dict[str, Job] = {}
        self.held: dict[str, tuple[Pool, int]] = {}
        self.promised: dict[str, int] = {}
        self.ever: Counter[str] = Counter()
        self.pools: dict[str, Pool] = {}
        self.open: dict[str, bool] = {}
        self.left_micros = 0
        self.quota = Quota(name="q", scope=Scope(team="t0"), zone="private", gpus=100)
        for zone, model in (("private", "A"), ("alpha", "A"), ("beta", "B")):
            self.see(zone, model, 6, 0, Health.HEALTHY, 1_000_000)
            self.egress(zone, True)
        self.accounts(10**10, 100)

    def see(self, zone, model, total, taken, health, price):
        pool = Pool(
            zone=zone, kind=ZONES[zone], provider=zone, gpu_model=model, gpus_total=total, gpus_taken=min(taken, total),
            price=price, egress=1_000, health=health, observed_s=self.now_s,
        )  # fmt: skip
        self.pools[pool.name] = pool
        self.dispatch.apply(PoolSeen(pool=pool))

    def accounts(self, limit, quota):
        self.left_micros = limit
        self.quota = Quota(name="q", scope=Scope(team="t0"), zone="private", gpus=quota)
        # Read after all that was promised so far: the store counts it within what it says.
        account = Account(name="all", scope=Scope(), limit_micros=limit, observed_s=self.now_s)
        self.dispatch.apply(
            AccountsSeen(accounts=(account,), quotas=(self.quota,), at_s=math.nextafter(self.now_s, math.inf))
        )
        self.promised = dict.fromkeys(self.promised, 0)

    @rule(
        team=st.sampled_from(["t0", "t1", "t2"]), need=needs, given=verdicts, lasts=st.floats(10, 5_000),
        slack=st.none() | st.floats(0, 10_000), saved=st.booleans(), justified=st.booleans(),
        kind=st.sampled_from(list(Classification)), priority=st.integers(-2, 20), size=st.integers(0, 10**10),
    )  # fmt: skip
    def submit(self, team, need, given, lasts, slack, saved, justified, kind, priority, size):
        name = f"j{len(self.jobs)}"
        job = Job(
            id=name, token=name, team=team, project="p", classification=kind, workload=WorkloadClass.TRAINING,
            priority=priority, submitted_s=self.now_s, need=need, duration_s=lasts, checkpointed=saved,
            deadline_s=None if slack is None else self.now_s + lasts * 0.9 + slack + 1.0,
            egress_bytes=size, justified=justified, verdicts=given,
        )  # fmt: skip
        self.jobs[name] = job
        self.dispatch.apply(Submitted(job=job))

    @rule(by_s=st.floats(0, 3_000))
    def pass_time(self, by_s):
        self.now_s += by_s
        self.decide()

    @rule()
    def wake(self):
        at_s = self.dispatch.next_s()
        if at_s is not None and at_s < self.now_s + 100_000:
            self.now_s = max(self.now_s, at_s)
            self.decide()

    @rule(back_s=st.floats(1, 1_000))
    def set_the_clock_back(self, back_s):
        actions = self.dispatch.decide(self.now_s)
        self.check(actions)
        for action in self.dispatch.decide(self.now_s - back_s):
            assert isinstance(action, Hold)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), spent=st.floats(0, 1))
    def end(self, data, spent):
        name = data.draw(st.sampled_from(sorted(self.held)))
        self.stop(name, Ended(job=name, at_s=self.now_s, spent_micros=int(spent * self.promised.get(name, 0))))

    @precondition(lambda self: self.held)
    @rule(data=st.data(), left=st.floats(0, 6_000))
    def leave(self, data, left):
        name = data.draw(st.sampled_from(sorted(self.held)))
        spent = self.promised.get(name, 0)
        self.stop(name, Left(job=name, at_s=self.now_s, left_s=left, spent_micros=spent))

    @precondition(lambda self: self.held)
    @rule(data=st.data(), left=st.floats(0, 6_000))
    def checkpoint(self, data, left):
        name = data.draw(st.sampled_from(sorted(self.held)))
        self.dispatch.apply(Checkpointed(job=name, at_s=self.now_s, left_s=left))

    @precondition(lambda self: self.held)
    @rule(data=st.data(), reason=st.sampled_from(["BUDGET_SPENT", "POOL_FULL", "PROVIDER_THROTTLED", "whatever"]))
    def refuse(self, data, reason):
        name = data.draw(st.sampled_from(sorted(self.held)))
        pool, _ = self.held[name]
        self.stop(
            name, StartRefused(job=name, pool=pool.name, reason=reason, at_s=self.now_s, until_s=self.now_s + 100.0)
        )

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel(self, data):
        name = data.draw(st.sampled_from(sorted(self.jobs)))
        self.stop(name, Cancelled(job=name, at_s=self.now_s))

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), given=verdicts)
    def ask_policy_again(self, data, given):
        name = data.draw(st.sampled_from(sorted(self.jobs)))
        if name in self.dispatch.waiting:
            object.__setattr__(self.jobs[name], "verdicts", given)
            self.dispatch.apply(VerdictsSeen(job=name, verdicts=given, at_s=self.now_s))

    @rule(
        pool=st.sampled_from([("private", "A"), ("alpha", "A"), ("beta", "B")]), total=st.integers(0, 10),
        taken=st.integers(0, 4), health=st.sampled_from(list(Health)), price=st.none() | st.integers(0, 3_000_000),
    )  # fmt: skip
    def observe(self, pool, total, taken, health, price):
        self.see(*pool, total, taken, health, price)

    @rule(zone=st.sampled_from(["alpha", "beta"]), is_open=st.booleans())
    def egress(self, zone, is_open):
        self.open[zone] = is_open
        self.dispatch.apply(EgressSeen(zone=zone, open=is_open, at_s=self.now_s))

    @rule(limit=st.integers(0, 10**8), quota=st.integers(0, 12))
    def read_accounts(self, limit, quota):
        self.accounts(limit, quota)

    @rule()
    def submit_again(self):
        for job in self.jobs.values():
            self.dispatch.apply(Submitted(job=job))

    @rule()
    def begin_anew(self):
        """The dispatcher's process died: a fresh decision is told what the stores have."""
        waits = set(self.dispatch.waiting)
        self.dispatch = Dispatch(RULES)
        for pool in self.pools.values():
            self.dispatch.apply(PoolSeen(pool=pool))
        for zone, is_open in list(self.open.items()):
            self.egress(zone, is_open)
        reserved = dict(self.promised)
        self.accounts(self.left_micros, self.quota.gpus)
        for name in sorted(waits | set(self.held)):
            job = self.jobs[name]
            self.dispatch.apply(Submitted(job=job))
            if name in self.held:
                pool, gpus = self.held[name]
                running = Running(
                    job=job, pool=pool.name, workers=gpus // job.need.gpus, started_s=self.now_s,
                    left_s=job.duration_s, reserved_micros=reserved.get(name, 0),
                )  # fmt: skip
                self.dispatch.apply(Restored(running=running))
        self.decide()

    @precondition(lambda self: any(not pool.inside for pool, _ in self.held.values()))
    @rule(data=st.data())
    def refuse_to_pay_for_longer(self, data):
        away = sorted(name for name, (pool, _) in self.held.items() if not pool.inside)
        self.dispatch.apply(ExtendRefused(job=data.draw(st.sampled_from(away)), at_s=self.now_s))

    def stop(self, name, event):
        self.dispatch.apply(event)
        held = self.held.pop(name, None)
        promised = self.promised.pop(name, 0)
        if held is not None:
            self.left_micros += promised - getattr(event, "spent_micros", 0)

    def decide(self):
        self.check(self.dispatch.decide(self.now_s))

    def check(self, actions):
        for action in actions:
            job = self.jobs[action.job]
            match action:
                case Start():
                    self.check_start(action, job)
                case Shed():
                    if action.job in self.held:
                        self.stop(action.job, Ended(job=action.job, at_s=self.now_s, spent_micros=0))
                case Preempt() | DrainBack():
                    assert job.checkpointed
                    assert action.job in self.held
                case Extend():
                    self.left_micros -= action.cost_micros
                    self.promised[action.job] += action.cost_micros
                    assert self.left_micros >= 0
                case Hold():
                    assert action.job in self.dispatch.waiting

    def check_start(self, start, job):
        pool = self.pools[start.pool]
        verdict = job.verdicts.get(pool.zone)
        assert verdict is not None
        assert verdict.permitted
        assert self.now_s < verdict.until_s
        assert pool.health is Health.HEALTHY
        assert self.now_s - pool.observed_s <= STALE_S
        assert (job.need.min_workers or job.need.workers) <= start.workers <= job.need.workers
        assert start.job not in self.held
        asked = job.need.gpu_model
        assert asked in ("", pool.gpu_model) or (not pool.inside and pool.gpu_model in RULES.models.get(asked, ()))
        self.held[start.job] = (pool, start.workers * job.need.gpus)
        held = sum(gpus for other, gpus in self.held.values() if other.name == pool.name)
        assert held <= pool.gpus_total - pool.gpus_taken
        if not pool.inside:
            assert job.justified
            assert self.open[pool.zone]
            self.left_micros -= start.cost_micros
            self.promised[start.job] = start.cost_micros
            assert self.left_micros >= 0
        elif job.team == self.quota.scope.team:
            inside = [g for n, (p, g) in self.held.items() if p.inside and self.jobs[n].team == job.team]
            assert sum(inside) <= self.quota.gpus

    @invariant()
    def the_books_agree(self):
        if not hasattr(self, "dispatch"):
            return
        assert set(self.dispatch.running) == set(self.held)
        assert not set(self.dispatch.running) & set(self.dispatch.waiting)
        for room in self.dispatch.rooms.values():
            own = sum(g for p, g in self.held.values() if p.name == room.name)
            kept = sum(g for _, name, g, _ in room.running if name.startswith("home:"))
            assert room.gpus_held == own + kept

    @invariant()
    def whatever_waits_can_be_explained(self):
        for name in list(getattr(self, "dispatch", Dispatch(RULES)).waiting)[:3]:
            assert self.dispatch.explain(name, self.now_s) is not None

    def teardown(self):
        """At the end all recovers, and everything that may run inside does: nothing is starved."""
        if not hasattr(self, "dispatch"):
            return
        self.now_s += 1.0
        for zone, model in (("private", "A"), ("alpha", "A"), ("beta", "B")):
            self.see(zone, model, 10, 0, Health.HEALTHY, 1_000_000)
            self.egress(zone, True)
        self.accounts(10**12, 100)
        for _ in range(2_000):
            self.decide()
            if self.held:
                name = min(self.held)
                self.stop(name, Ended(job=name, at_s=self.now_s, spent_micros=0))
                continue
            at_s = self.dispatch.next_s()
            if not self.dispatch.waiting or at_s is None or at_s > 1e7:
                break
            self.now_s = max(self.now_s, at_s)
            for name, pool in list(self.pools.items()):
                self.see(pool.zone, pool.gpu_model, 10, 0, Health.HEALTHY, 1_000_000)
                assert name in self.pools
            for zone in ("alpha", "beta"):
                self.egress(zone, True)
            self.accounts(10**12, 100)
        for name in self.dispatch.waiting:
            job = self.jobs[name]
            inside = job.verdicts.get("private")
            can = inside is not None and inside.permitted and self.now_s < inside.until_s
            assert not (can and job.need.gpu_model in ("", "A")), job


TestDispatcher = Dispatcher.TestCase
TestDispatcher.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
