"""Racers for the last money and spenders that are killed: each is a process of its own, some with threads."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from crashing import KEY, ORIGIN, store

from fabric.budget_store import BudgetStore, Reservation, SQLiteBudgets, State
from fabric.budgets import Limit, Order, Period, Unit
from fabric.charges import Usage
from fabric.errors import FabricError
from fabric.fleet import Scope
from fabric.labels import Classification, WorkloadClass
from fabric.ledger import Ledger
from fabric.spending import Spending

HERE = Path(__file__).parent
AT = 1_795_800_000.0  # 27 November 2026, in the middle of everything
KEYED = "hmac-sha256:00"
PRELUDE = (
    f"import sys; from pathlib import Path; sys.path[:0] = [{str(HERE)!r}, {str(HERE.parent)!r}]; import spenders\n"
)

WORK = Scope(team="oncology", project="p1", classification=Classification.CONFIDENTIAL, workload=WorkloadClass.TRAINING)
LIMITS = (
    Limit(name="all", scope=Scope(), unit=Unit.MICROS, amount=10_000, period=Period.MONTH),
    Limit(name="team", scope=Scope(team="oncology"), unit=Unit.MICROS, amount=1_000, period=Period.DAY),
    Limit(name="gpus", scope=Scope(), unit=Unit.GPUS, amount=7, period=None, zone="public"),
    Limit(name="hours", scope=Scope(), unit=Unit.GPU_SECONDS, amount=90_000, period=Period.WEEK, zone="public"),
)


def order(amount: int = 10, *, gpus: int = 0, gpu_seconds: int = 0, scope: Scope = WORK, zone: str = "public") -> Order:
    return Order(scope=scope, zone=zone, amount_micros=amount, gpus=gpus, gpu_seconds=gpu_seconds)


def budgets(where: str, limits: Sequence[Limit] = LIMITS) -> BudgetStore:
    if where.startswith("postgresql"):
        from fabric.postgres_budgets import PostgresBudgets

        return BudgetStore(PostgresBudgets(where), limits)
    return BudgetStore(SQLiteBudgets(Path(where)), limits)


def spending(where: str, limits: Sequence[Limit] = LIMITS, owner: str = "spender") -> Spending:
    ledger = Ledger.open(
        store(where),
        key=KEY,
        origin=ORIGIN,
        clock=lambda: datetime.now(UTC),
        new_id=lambda: uuid4().hex,
        owner=owner,
    )
    return Spending(budgets(where, limits), ledger, "EUR")


def books(money: BudgetStore, at: float = AT) -> dict[str, tuple[int, int]]:
    """Return what is reserved and spent of each limit, as its meter says."""
    return {one.limit.name: (one.reserved, one.spent) for one in money.balances(at)}


def added_up(
    reservations: Sequence[Reservation], limits: Sequence[Limit], at: float = AT
) -> dict[str, tuple[int, int]]:
    """Return the same as the reservations say."""
    found = {}
    for limit in limits:
        window = limit.window(at)
        reserved = spent = 0
        for one in reservations:
            asked = limit.asks(one.order)
            if asked is None or limit.window(one.at) != window:
                continue
            reserved += asked if one.state is State.HELD else 0
            if one.state is State.SETTLED and asked:
                used = one.usage.gpu_seconds if one.usage else asked
                spent += {Unit.MICROS: one.spent_micros or 0, Unit.GPUS: 0, Unit.GPU_SECONDS: used}[limit.unit]
        found[limit.name] = (reserved, spent)
    return found


def start(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + code], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )


def race(where: str, *, processes: int, threads: int) -> Counter[str]:
    """Let that many race for what is left, from one moment on, and count what each was told."""
    running = [start(f"spenders.racer({where!r}, {number}, {threads})") for number in range(processes)]
    for one in running:
        assert one.stdout is not None
        assert one.stdout.readline() == "ready\n"
    for one in running:
        assert one.stdin is not None
        one.stdin.write("go\n")
        one.stdin.flush()
    told: Counter[str] = Counter()
    for one in running:
        out, _ = one.communicate(timeout=1800)
        told.update(out.split())
    return told


def racer(where: str, number: int, threads: int) -> None:
    stores = [budgets(where) for _ in range(threads)]
    for one in stores:
        one.balances(AT)  # connect before the start
    print("ready", flush=True)
    sys.stdin.readline()
    said: list[str] = []

    def run(money: BudgetStore, thread: int) -> None:
        try:
            money.reserve(f"r-{number}-{thread}", f"j-{number}-{thread}", order(100), AT)
            said.append("reserved")
        except FabricError as error:
            said.append(error.reason.value)

    started = [threading.Thread(target=run, args=(one, place)) for place, one in enumerate(stores)]
    for one in started:
        one.start()
    for one in started:
        one.join()
    print(*said, flush=True)


def spender(where: str, number: int, count: int) -> None:
    """Work through the same reservations from the start, whatever was done of them before; end each in its own way."""
    money = spending(where, owner=f"spender-{number}")
    print("ready", flush=True)
    sys.stdin.readline()
    for place in range(count):
        name = f"r-{number}-{place}"
        try:
            money.reserve(name, f"j-{number}-{place}", order(7, gpus=1, gpu_seconds=60), AT, justification_key=KEYED)
        except FabricError as error:
            if error.reason.value not in ("BUDGET_SPENT", "QUOTA_EXCEEDED"):
                raise
            continue
        ending = place % 4
        if ending == 0:
            money.release(name, AT + 1)
        elif ending < 3:
            # As much as was reserved, or more.
            money.settle(name, 7 * ending, AT + 1, usage=Usage(gpu_seconds=30))
        print(name, flush=True)
    print("finished", flush=True)


def killed(where: str, *, rounds: int, seed: int, count: int = 12) -> int:
    """Kill two spenders at random moments, again and again, then let them finish; return how many were cut off."""
    chance = random.Random(seed)
    midway = 0
    for turn in range(rounds):
        running = [start(f"spenders.spender({where!r}, {number}, {count})") for number in range(2)]
        for one in running:
            assert one.stdout is not None
            assert one.stdout.readline() == "ready\n"
        for one in running:
            assert one.stdin is not None
            one.stdin.write("go\n")
            one.stdin.flush()
        # The first time at once, when nothing is done yet: however fast the machine, somebody is cut off.
        time.sleep(chance.random() * 0.12 if turn else 0)
        for one in running:
            os.kill(one.pid, signal.SIGKILL)
        for one in running:
            assert one.stdout is not None
            midway += "finished" not in one.stdout.read()
            one.wait()
            one.stdout.close()
            assert one.stdin is not None
            one.stdin.close()
    for number in range(2):
        out, _ = start(f"spenders.spender({where!r}, {number}, {count})").communicate("go\n", timeout=1800)
        assert "finished" in out
    return midway
