"""Where a Ray request may land: nowhere outside, unless it asks for a zone to which a crossing of its job is open.

Pure. Ray has no default selector and no admission hook, so `fabric.guard` asks this of every request in a process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from fabric.errors import ClusterUnavailable, Reason, Refused

LABEL = "zone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """Where a process stands: the zone of its node, the private zone, and all the others."""

    zone: str
    home: str
    outside: tuple[str, ...]


def asked_for(
    ground: Ground, resources: Iterable[str], selector: Mapping[str, str], *, what: str = "this work"
) -> str | None:
    """Return the outside zone that a request asks for, by the zone's resource or by its label; None for none.

    Raises:
        Refused: `POLICY_DENIED`: it asks for two zones, or by a label that does not name one zone.
    """
    names = set(resources)
    asked = {z for z in ground.outside if any(n == f"zone_{z}" or n.startswith(f"zone_{z}_group_") for n in names)}
    label = selector.get(LABEL, ground.home)
    if label in ground.outside:
        asked.add(label)
    elif label != ground.home or (asked and LABEL in selector):
        raise _refused(what, "asks by a label that does not name the zone it asks for")
    if len(asked) > 1:
        raise _refused(what, "asks for two zones outside")
    return asked.pop() if asked else None


def settle(
    ground: Ground,
    resources: Iterable[str],
    selector: Mapping[str, str] | None,
    *,
    open_to: Callable[[str], bool],
    what: str,
) -> dict[str, str]:
    """Return the label selector that a request gets: always one zone.

    Args:
        open_to: says whether a crossing of this job to a zone is open.
        what: the name of the function or class, for the refusal.

    Raises:
        ClusterUnavailable: `DRIVER_OUTSIDE`: the process itself is outside; nothing is started from there.
        Refused: `POLICY_DENIED`: it asks for a zone outside, past the border.
    """
    stay(ground, what)
    zone = asked_for(ground, resources, selector or {}, what=what)
    if zone is not None and not open_to(zone):
        raise _refused(what, f"asks for zone {zone!r} past the border")
    return {**(selector or {}), LABEL: zone or ground.home}


def stay(ground: Ground, what: str) -> None:
    """Refuse to start anything from outside.

    Raises:
        ClusterUnavailable: `DRIVER_OUTSIDE`.
    """
    if ground.zone != ground.home:
        raise ClusterUnavailable(
            Reason.DRIVER_OUTSIDE,
            f"{what} would be started from zone {ground.zone!r}",
            "work outside starts no other work: return, and start it inside",
        )


def admit_work(ground: Ground, assigned: Iterable[str], *, open_to: Callable[[str], bool], what: str) -> None:
    """Refuse, on a node outside, to run what did not ask for its zone, or whose job has no crossing to it open.

    Args:
        assigned: names of the resources that Ray holds for the work, and of those its placement group asked for.

    Raises:
        Refused: `POLICY_DENIED`.
    """
    if ground.zone == ground.home:
        return
    if asked_for(ground, assigned, {}, what=what) != ground.zone:
        raise _refused(what, f"landed in zone {ground.zone!r} without asking for it")
    if not open_to(ground.zone):
        raise _refused(what, f"asks for zone {ground.zone!r} past the border")


def _refused(what: str, why: str) -> Refused:
    return Refused(
        Reason.POLICY_DENIED,
        f"{what} {why}",
        "use fabric.connect(): train, sweep and burst let a matrix cross and run beside it",
    )
