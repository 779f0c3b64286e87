"""Holds in words and as JSON: why a job waits, until when, and what stands in each pool's way."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from fabric.errors import Reason
from fabric.fleet import MICROS, Hold, Job, Obstacle

_WORDS: Mapping[Reason, str] = {
    Reason.WAITS_FOR_ROOM: "needs {needs}, {free} free",
    Reason.WAITS_ITS_TURN: "{free} free, and starting now would delay the job at the head of the line",
    Reason.ROOM_RESERVED: "{free} free, kept for work that may not leave",
    Reason.WAITING_IS_CHEAPER: "may leave, and waiting is cheaper",
    Reason.POOL_FULL: "needs {needs}, {free} free",
    Reason.ZONE_HAS_NO_ROOM: "needs {needs}, has {total} in all",
    Reason.GPU_MODEL_UNKNOWN: "has no such GPU",
    Reason.PROVIDER_THROTTLED: "the provider throttles",
    Reason.ZONE_DOWN: "is down",
    Reason.ZONE_DEGRADED: "is degraded",
    Reason.HEALTH_UNKNOWN: "nothing is known of its health",
    Reason.EGRESS_BLOCKED: "nothing crosses the border to it",
    Reason.PRICE_UNKNOWN: "a price is unknown",
    Reason.PRICE_JUMPED: "the price jumped to {price} from {usual} a GPU-hour",
    Reason.PRICE_TOO_HIGH: "{price} is more than the {most} that are allowed",
    Reason.BUDGET_UNKNOWN: "no budget is known that covers it",
    Reason.BUDGET_SPENT: "costs {cost_micros}, the budget has {left_micros} left",
    Reason.QUOTA_EXCEEDED: "needs {needs} GPUs, {held} of a quota of {quota} are held",
    Reason.CLOCK_SET_BACK: "the clock was set back",
    Reason.POLICY_DENIED: "refused by policy",
    Reason.DEADLINE_MISSED: "can no longer meet its deadline",
}
_MONEY = ("cost_micros", "left_micros", "price", "usual", "most")


def text(hold: Hold, job: Job | None = None) -> str:
    """Return a hold as one line for people: needs, what each pool says, the earliest time, the reason's token."""
    asked = ""
    if job is not None:
        many = f"{job.need.total_gpus} {job.need.gpu_model or 'GPU'}" if job.need.gpus else f"{job.need.total_cpus} CPU"
        asked = f"needs {many}; "
    parts = [_obstacle_text(one) for one in hold.obstacles]
    if not parts:
        parts = [_filled(hold.reason, hold.numbers)]
    earliest = "" if hold.until_s is None else f"; earliest {clock(hold.until_s)}"
    return f"{asked}{'; '.join(parts)}{earliest} [{hold.reason.value}]"


def to_json(hold: Hold) -> dict[str, Any]:
    """Return a hold as plain JSON values; times in whole minutes, so that a guess that moves a little is no change."""
    return {
        "reason": hold.reason.value,
        "until_s": None if hold.until_s is None else math.ceil(hold.until_s / 60) * 60,
        "numbers": dict(hold.numbers),
        "zones": {
            each.pool: {"reason": each.reason.value, "numbers": dict(each.numbers), "rules": list(each.rules)}
            for each in hold.obstacles
        },
    }


def from_json(job: str, raw: Mapping[str, Any]) -> Hold:
    """Return the hold of a job that `to_json` wrote."""
    return Hold(
        job=job,
        reason=Reason(raw["reason"]),
        until_s=raw["until_s"],
        numbers=tuple(raw["numbers"].items()),
        obstacles=tuple(
            Obstacle(
                pool=pool,
                reason=Reason(told["reason"]),
                numbers=tuple(told["numbers"].items()),
                rules=tuple(told["rules"]),
            )
            for pool, told in raw["zones"].items()
        ),
    )


def clock(at_s: float) -> str:
    """Return a time as people read it, in UTC."""
    return datetime.fromtimestamp(at_s, tz=UTC).strftime("%Y-%m-%d %H:%M")


def _obstacle_text(one: Obstacle) -> str:
    if one.reason is Reason.POLICY_DENIED:
        facts = dict(one.numbers)
        asked = [
            f"{name}={facts[name]}, policy wants {facts[f'{name}_required']}"
            for name in facts
            if f"{name}_required" in facts
        ]
        rules = f" ({', '.join(one.rules)})" if one.rules else ""
        return f"{one.pool} refused: {'; '.join(asked) or 'policy says no'}{rules}"
    return f"{one.pool}: {_filled(one.reason, one.numbers)}"


def _filled(reason: Reason, numbers: tuple[tuple[str, int], ...]) -> str:
    words = _WORDS.get(reason, reason.value.lower().replace("_", " "))
    values = {name: f"{value / MICROS:.2f}" if name in _MONEY else str(value) for name, value in numbers}
    try:
        return words.format(**values)
    except KeyError:
        return words.split(",")[0].format_map(_Unsaid(values))


class _Unsaid(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return "?"
