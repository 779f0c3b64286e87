"""Configuration: read once, closed, and every refusal says where and what is allowed."""

import pytest

from fabric.config import Environment, find_config, load_config
from fabric.errors import InvalidInput, Reason
from fabric.specs import JobSpec, SweepSpec, TrainingSpec, parse
from fabric.statements import SigningKey
from fabric.zones import find_zone

GOOD = """
[fabric]
name = "t"
[zones.private]
kind = "private"
jurisdiction = "EU"
cpus = 2
[zones.public]
kind = "public"
jurisdiction = "EU"
[records.people]
path = "people.csv"
labels = { allowed_execution_zone = ["private", "public"], burst_eligible = true }
"""


def load(tmp_path, text):
    (tmp_path / "fabric.toml").write_text(text)
    return load_config(tmp_path / "fabric.toml")


def refusal(tmp_path, text):
    with pytest.raises(InvalidInput) as caught:
        load(tmp_path, text)
    return caught.value


def test_a_good_file_is_read_with_paths_relative_to_it(tmp_path):
    config = load(tmp_path, GOOD)
    assert config.state == tmp_path / ".fabric"
    assert config.source("people").path == tmp_path / "people.csv"
    assert config.private.resource == "zone_private"


@pytest.mark.parametrize(
    ("change", "reason", "hint"),
    [
        (("cpus = 2", "cpu = 2"), Reason.UNKNOWN_KEY, "did you mean 'cpus'?"),
        (("[fabric]", "[fabrik]"), Reason.UNKNOWN_KEY, "did you mean 'fabric'?"),
        (('name = "t"', 'nam = "t"'), Reason.UNKNOWN_KEY, "did you mean 'name'?"),
        (('name = "t"', ""), Reason.CONFIG_INVALID, ""),
        (("burst_eligible", "burst_elligible"), Reason.UNKNOWN_LABEL, "did you mean 'burst_eligible'?"),
        (("burst_eligible = true", 'burst_eligible = "maybe"'), Reason.LABEL_INVALID, "true or false"),
        (('"private", "public"]', '"private", "pubic"]'), Reason.UNKNOWN_ZONE, "did you mean 'public'?"),
        (('kind = "public"', 'kind = "rented"'), Reason.CONFIG_INVALID, ""),
        (('kind = "public"', 'kind = "private"\ncpus = 1'), Reason.CONFIG_INVALID, "exactly one"),
        (("cpus = 2", "cpus = 0"), Reason.CONFIG_INVALID, "cpus to 2"),
        (('kind = "public"', 'kind = "public"\ncpus = 4'), Reason.CONFIG_INVALID, "cpus = 0"),
        (("[zones.public]", "[zones.Public_1]"), Reason.CONFIG_INVALID, "lower-case"),
        (("cpus = 2", "cpus = 'two'"), Reason.CONFIG_INVALID, ""),
        (('name = "t"', 'name = "t'), Reason.CONFIG_INVALID, "TOML"),
    ],
)
def test_what_is_wrong_is_named_with_what_is_allowed(tmp_path, change, reason, hint):
    error = refusal(tmp_path, GOOD.replace(*change))
    assert error.reason is reason
    assert hint in error.hint


def test_the_error_of_a_wrong_value_does_not_repeat_it(tmp_path):
    error = refusal(tmp_path, GOOD.replace("cpus = 2", "cpus = 'Jane Doe 219-09-9999'"))
    assert "219-09-9999" not in str(error)


def test_unknown_records_and_zones_are_refused_with_the_nearest(tmp_path):
    config = load(tmp_path, GOOD)
    with pytest.raises(InvalidInput, match="did you mean 'people'"):
        config.source("peple")
    with pytest.raises(InvalidInput, match="did you mean 'public'"):
        find_zone(config.zones, "pubic")


def test_no_file_anywhere_is_refused(tmp_path):
    with pytest.raises(InvalidInput) as caught:
        find_config(Environment.read({}), None, tmp_path)
    assert caught.value.reason is Reason.CONFIG_MISSING
    with pytest.raises(InvalidInput):
        find_config(Environment.read({"FABRIC_CONFIG": str(tmp_path / "none.toml")}), None, tmp_path)


def test_the_nearest_file_above_is_found(tmp_path):
    (tmp_path / "fabric.toml").write_text(GOOD)
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert find_config(Environment.read({}), None, tmp_path / "a" / "b") == tmp_path / "fabric.toml"
    assert find_config(Environment.read({}), tmp_path, tmp_path / "a") == tmp_path / "fabric.toml"


def test_a_jobs_metadata_becomes_its_labels_without_rays_own_keys():
    key = SigningKey.from_seed(bytes(32)).public
    found = Environment.read(
        {
            "RAY_JOB_CONFIG_JSON_ENV_VAR": '{"metadata": {"job_submission_id": "j1", "job_name": "j", "purpose": "x"}, '
            '"runtime_env": {"working_dir": "gcs://_ray_pkg.zip"}}',
            "FABRIC_ZONE": "private",
            "FABRIC_TRUSTED_KEYS": key.to_text(),
        }
    )
    assert found.job_id == "j1"
    assert found.job_labels == {"purpose": "x"}
    assert found.working_dir == "gcs://_ray_pkg.zip"
    assert found.trusted == (key,)


@pytest.mark.parametrize("text", ["not json", "[1]", ""])
def test_a_job_environment_that_is_not_json_is_no_job(text):
    assert Environment.read({"RAY_JOB_CONFIG_JSON_ENV_VAR": text}).job_id == ""


def test_a_spec_refuses_an_unknown_key_in_a_nested_table_with_the_nearest():
    with pytest.raises(InvalidInput) as caught:
        parse(
            JobSpec,
            'records = "a"\nrecipe = "b"\nzone = "public"\n[training.model]\nhiden = [1]',
            source="train.toml",
        )
    assert caught.value.reason is Reason.UNKNOWN_KEY
    assert "did you mean 'hidden'?" in caught.value.hint


@pytest.mark.parametrize("text", ["epochs = 0", "learning_rate = -1.0", "workers = 1.5", "task = 'clustering'"])
def test_a_value_out_of_range_is_refused(text):
    with pytest.raises(InvalidInput) as caught:
        parse(TrainingSpec, text, source="train.toml")
    assert caught.value.reason is Reason.CONFIG_INVALID
    assert text.split(" ")[0] in caught.value.message


def test_a_sweep_is_every_combination_in_order():
    spec = parse(
        SweepSpec,
        "[search]\nlearning_rate = [0.1, 0.2]\nhidden = [[4], [8, 8]]\n[training]\nepochs = 3",
        source="sweep.toml",
    )
    assert [(t.learning_rate, t.model.hidden, t.epochs) for t in spec.trials()] == [
        (0.1, [4], 3), (0.1, [8, 8], 3), (0.2, [4], 3), (0.2, [8, 8], 3),
    ]  # fmt: skip
