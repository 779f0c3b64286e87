"""The attack list: every way that is tried, and every way that other tests hold.

`WAYS` can be run against any lab that has what `Way.needs` names: "burst" and "train" fit a lab over a real cluster.
`python -m attacks.ways`, run in `tests`, prints the rows that stand in SECURITY.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from attacks import ways_of_code, ways_of_crossings, ways_of_parameters, ways_of_results
from attacks.lab import NOT_STOPPED, Way, ways_in

_GROUPS = (ways_of_code, ways_of_parameters, ways_of_crossings, ways_of_results)

WAYS: tuple[Way, ...] = tuple(way for group in _GROUPS for way in ways_in(vars(group)))
STOPPED: tuple[Way, ...] = tuple(way for way in WAYS if way.wall != NOT_STOPPED)
"""The ways that must end in a `FabricError`, or in nothing planted among what was carried."""


LIVE: tuple[Way, ...] = tuple(way for way in STOPPED if way.needs in ("burst", "train"))
"""The ways that fit a lab over a real cluster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A way that a test elsewhere holds.

    Attributes:
        test: the file and the function.
    """

    id: str
    what: str
    wall: str
    test: str


HELD: tuple[Held, ...] = (
    Held(
        id="object-ref",
        what="An ObjectRef or a remote function in a closure",
        wall="capsule",
        test="test_capsule.py::test_a_reference_into_the_private_cluster_is_refused",
    ),
    Held(
        id="job-working-dir",
        what="Data in the working directory of a job",
        wall="session",
        test="test_session.py::test_a_working_directory_with_anything_else_is_refused_by_name",
    ),
    Held(
        id="job-env-vars",
        what="Values in the env_vars and py_modules of a job",
        wall="session",
        test="test_session.py::test_what_else_ray_gives_to_every_node_is_refused_without_its_value",
    ),
    Held(
        id="exception-text",
        what="A value in the text of an exception that a burst raises",
        wall="results",
        test="test_refusals.py::test_an_error_in_a_burst_comes_back_without_its_message",
    ),
    Held(
        id="callers-callback",
        what="A caller's own callback, which Ray Tune would keep where the public zone reads",
        wall="cluster",
        test="test_main_job.py::test_what_a_caller_passes_is_not_written_where_the_public_zone_reads",
    ),
    Held(
        id="command-line",
        what="A value on the driver's command line, which Ray tells to every node",
        wall="cluster",
        test="test_main_job.py::test_no_planted_value_lies_anywhere_on_the_public_side_after_all_that",
    ),
    Held(
        id="work-that-did-not-ask",
        what="Tasks, actors, queues, placement groups, retries, Ray Data, Tune and Train's helpers, all of no CPU, the "
        "head idle or full",
        wall="guard",
        test="test_landing.py::test_work_that_did_not_ask_runs_inside_or_not_at_all",
    ),
    Held(
        id="zone-by-rays-own-api",
        what="A task, actor or placement group that asks for `zone_public` past the border, by resource, label, "
        "fallback or node",
        wall="guard",
        test="test_landing.py::test_asking_by_rays_own_api_past_the_border_is_refused",
    ),
    Held(
        id="driver-without-the-guard",
        what="The same from a driver that does not have the guard: what arrives outside does not run",
        wall="guard",
        test="test_landing.py::test_without_the_guard_in_the_driver_the_node_refuses_what_arrives",
    ),
    Held(
        id="entrypoint-outside",
        what="The entrypoint of a job placed in the public zone",
        wall="guard",
        test="test_landing.py::test_an_entrypoint_that_is_placed_outside_does_not_run",
    ),
    Held(
        id="carried-by-a-job",
        what="Data in a job's working directory, py_modules, env_vars and metadata, by a program that never heard of "
        "the fabric",
        wall="guard",
        test="test_landing.py::test_what_a_job_carries_reaches_no_file_and_no_process_of_the_public_node",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A way that a stretched cluster does not stop, with what to do about it."""

    id: str
    what: str
    instead: str


NAMED: tuple[Named, ...] = (
    Named(
        id="ray-by-hand",
        what="A program of the private zone that unwraps the guard, or asks for `zone_public` by Ray's own API while a "
        "crossing of its own job is open, and passes raw arguments, actor handles, ObjectRefs or `ray.put`",
        instead="the guard and policy bind honest code; `fabric doctor` names it afterwards; public nodes that you "
        "control",
    ),
    Named(
        id="actor-handle-as-tunnel",
        what="Code on the public node that calls actors of the private zone, or looks them up by name",
        instead="two clusters with the border between them",
    ),
    Named(
        id="inner-put-and-dynamic-returns",
        what="Code on the public node that calls `ray.put`, yields dynamic returns or starts tasks: it holds what "
        "crossed and no more, and can start work in the private zone",
        instead="two clusters with the border between them",
    ),
    Named(
        id="ray-return-pickle",
        what="The tuple of bytes that a burst returns, and the metrics that Ray Train reports, are pickles of Ray, and "
        "the driver loads them before `results.decode` sees them",
        instead="two clusters; models and checkpoints come back as files and are not affected",
    ),
    Named(
        id="task-names-and-metric-tags",
        what="A program that gives its own Ray tasks, actors, metrics or Tune trials names with data in them; ours "
        "have fixed names",
        instead="the SDK names what it starts",
    ),
    Named(
        id="covert-channels",
        what="Timing, sizes, the choice of one of several harmless values, and values encoded on purpose below the "
        "limits: a capsule has 256 KiB, 512 constants, 32,000 characters, 8 computed settings; a burst 64 parameters",
        instead="the limits bound it, and the ledger holds the digest of every byte that crossed",
    ),
)


def rows() -> str:
    """Return the attack list as Markdown tables: what is tried, what other tests hold, what is not stopped."""
    tried = [f"| `{way.id}` | {way.what} | {way.wall} | {_end(way)} |" for way in STOPPED]
    held = [f"| `{way.id}` | {way.what} | {way.wall} | `{way.test}` |" for way in HELD]
    bounded = [f"| `{way.id}` | {way.what} |" for way in WAYS if way.wall == NOT_STOPPED]
    named = [f"| `{way.id}` | {way.what} | {way.instead} |" for way in NAMED]
    return "\n".join(
        [
            f"### Tried and stopped: {len(STOPPED)} ways",
            "",
            "| way | what it tries | wall | how it ends |",
            "|---|---|---|---|",
            *tried,
            "",
            f"### Held by other tests: {len(HELD)} ways",
            "",
            "| way | what it tries | wall | test |",
            "|---|---|---|---|",
            *held,
            "",
            "### Not stopped, and bounded",
            "",
            "Reading code and numbers cannot stop these in principle. A test shows that each gets through.",
            "",
            "| way | what gets through, and how much |",
            "|---|---|",
            *bounded,
            "",
            "### Not stopped in one stretched cluster",
            "",
            "| way | what it does | instead |",
            "|---|---|---|",
            *named,
            "",
        ]
    )


def _end(way: Way) -> str:
    return ", ".join(f"`{reason}`" for reason in sorted(way.by)) or "left behind"


if __name__ == "__main__":
    print(rows())
