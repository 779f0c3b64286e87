"""Reaching a zone: which site runs its work, by the fabric's topology, and how its cluster is found."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from fabric.border_carrier import BorderCarrier
from fabric.errors import ClusterUnavailable, FabricError, Reason
from fabric.federated import Federated
from fabric.local_cluster import running
from fabric.outside_jobs import JobState, OutsideJobs, job_id
from fabric.session import Session
from fabric.sites import Site, Stretched
from fabric.staging import Staging
from fabric.zones import Zone


def site_of(session: Session, zone: Zone) -> Site:
    """Return the site of a zone.

    Raises:
        ClusterUnavailable: `FABRIC_DOWN`: the zone's own cluster, or the border before it, is not up.
    """
    config = session.config
    if not config.is_elsewhere(zone):
        return Stretched(session)
    jobs, address = _found(session, zone)
    return Federated(
        session=session,
        zone=zone,
        jobs=jobs,
        border=BorderCarrier.of(config, session.home, session.ledger, address=address),
        lost_s=config.border.lost_seconds,
        sends_papers=zone.name in config.outside,
    )


def answers(session: Session, zone: Zone) -> bool:
    """Say whether the cluster of a zone that is a cluster of its own can be reached and lets this fabric in."""
    try:
        # It knows no job of that name; an answer that says so is an answer.
        return _found(session, zone)[0].state("is-it-there") is JobState.ABSENT
    except FabricError:
        return False


def abandon(session: Session, driver: str) -> list[str]:
    """End what a dead driver left running in other zones' clusters, and return its crossings that were still open.

    Each is closed, so that its tokens open nothing, and its job is stopped if that cluster answers; if it does not, the
    job ends itself when the border next refuses it. Asked again, it does nothing more.

    Raises:
        FabricError: `EVIDENCE_UNWRITABLE`.
    """
    zones, left = session.config.zones, dict[str, str]()
    for entry in session.ledger.entries():
        record = entry.record
        if record["action"] == "crossing" and record["body"].get("job") == driver:
            if record["phase"] == "intent":
                left[record["body"]["crossing"]] = record["body"]["to_zone"]
            elif record["phase"] == "observation":
                left.pop(record["body"]["crossing"], None)
    there = {crossing: zones[name] for crossing, name in left.items() if name in zones}
    shut = [crossing for crossing, zone in there.items() if session.config.is_elsewhere(zone)]
    staging = Staging.of(session.home, session.ledger.keys)
    for crossing in shut:
        zone = there[crossing]
        staging.close(crossing)
        with suppress(FabricError):
            _found(session, zone)[0].stop(job_id(crossing))
        body = {"crossing": crossing, "job": driver, "to_zone": zone.name, "what": "closed"}
        session.ledger.observe("crossing", body)
    return shut


def _found(session: Session, zone: Zone) -> tuple[OutsideJobs, str]:
    """Return the jobs API of a zone's cluster, and the address under which that zone reaches the border."""
    config = session.config
    terms = config.outside.get(zone.name)
    if terms is not None:
        jobs = OutsideJobs(zone=zone.name, url=terms.jobs, token=_token(terms.token_file, zone))
        return jobs, f"{config.border.advertise or config.border.host}:{config.border.port}"
    cluster = running(config.state)
    node = next((each for each in cluster.nodes if each.zone == zone.name), None) if cluster else None
    if cluster is None or node is None or not node.jobs_url:
        raise _down(zone, "`fabric up` starts one on this machine; [outside] in fabric.toml names one elsewhere")
    token = _token(cluster.outside_token_path(zone.name), zone)
    return OutsideJobs(zone=zone.name, url=node.jobs_url, token=token), cluster.border_address


def _token(path: Path, zone: Zone) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        raise _down(zone, f"its token is expected in {path}") from None


def _down(zone: Zone, hint: str) -> ClusterUnavailable:
    return ClusterUnavailable(Reason.FABRIC_DOWN, f"the cluster of zone {zone.name!r} is not known to be up", hint)
