"""A driver does its work with what it was given, not with what was asked for."""

import pytest
from dispatch_lab import Lab

from fabric.specs import JobSpec, SearchSpace, SweepSpec, TrainingSpec
from jobs.running import placed


@pytest.mark.parametrize("work", ["training", "sweep"])
def test_a_job_that_got_fewer_workers_uses_no_more(tmp_path, work):
    lab = Lab(tmp_path, inside=1, outside=0, clock_s=1_795_800_000.0)
    lab.submit("a", need={"workers": 2, "min_workers": 1}, denied=["public"])
    lab.dispatcher().turn()
    asked = {
        "training": TrainingSpec(workers=2),
        "sweep": SweepSpec(search=SearchSpace(learning_rate=[0.1, 0.2]), concurrent=2),
    }
    spec = JobSpec(records="r", recipe="", zone="auto", **{work: asked[work]})
    given = placed(spec, lab.store.find("a"))
    assert given.zone == "private"
    assert (given.training.workers if work == "training" else given.sweep.concurrent) == 1
