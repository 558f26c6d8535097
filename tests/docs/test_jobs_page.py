"""docs/jobs.md says every key of a job, its default and its range, as `JobSpec` has them."""

import re
from collections.abc import Mapping

import pytest
import yaml
from pages import DOCS, table_of, yaml_blocks_of

from fl_core.errors import PlanError
from fl_core.rounds.job import CodecChoice, JobSpec, job_from_mapping
from fl_core.rounds.plan import MAX_TRAINING_OPTIONS, PhaseSchedule
from fl_core.rounds.planner import check_job

PAGE = (DOCS / "jobs.md").read_text()
KEYS = table_of(PAGE, "key")
PHASES = table_of(PAGE, "phase")
DEFAULTS = JobSpec(name="x", rounds=1)
NEEDED = ("name", "rounds")
NEEDS: Mapping[str, Mapping[str, object]] = {
    "codec.density": {"selection": "random"},
    "codec.levels": {"rotation": True},
}
"""What a value of a key can only stand beside."""


def flat(mapping: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in mapping.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) and value else {f"{prefix}{name}": value}
    return found


def job_with(key: str, value: object) -> JobSpec:
    mapping: dict[str, object] = {"name": "x", "rounds": 1}
    section, dot, name = key.partition(".")
    mapping[section] = {**NEEDS.get(key, {}), name: value} if dot else value
    # A plain job is held to the bounds of JobSpec alone.
    return job_from_mapping({"aggregation": "plain", **mapping})


def number(text: str) -> float | int:
    text = {"cohort.min": "3", "cohort.max": "100"}.get(text, text).replace(",", "")
    return int(text) if re.fullmatch(r"\d+", text) else float(text)


def just_outside(value: float | int, sign: int) -> float | int:
    return value + sign if isinstance(value, int) else value * (1 + sign * 0.1)


def samples_of(range_text: str, default: object) -> tuple[list[object], list[object]]:
    """Values that a range allows, and values that it does not."""
    if match := re.fullmatch(r"(\S+) to below (\S+)", range_text):
        low, high = number(match[1]), number(match[2])
        return [float(low), high - 1e-9], [low - 1e-9, float(high)]
    if match := re.fullmatch(r"(\S+) to (\S+) bytes", range_text):
        low, high = int(match[1]), int(match[2])
        return ["x" * low, "x" * high], ["x" * (low - 1), "x" * (high + 1)]
    if match := re.fullmatch(r"(\S+) to (\S+)", range_text):
        low, high = number(match[1]), number(match[2])
        return [low, high], [just_outside(low, -1), just_outside(high, 1)]
    if match := re.fullmatch(r"above (\S+) to (\S+)", range_text):
        low, high = number(match[1]), number(match[2])
        return [1e-12, high], [float(low), high + 1e-9]
    if match := re.fullmatch(r"above (\S+)", range_text):
        return [1e-12, 1e12], [float(number(match[1])), float("inf")]
    if range_text == "false, true":
        return [False, True], ["another"]
    names = range_text.split(", ")
    assert default in names
    return list(names), ["another"]


def test_every_key_of_a_job_stands_in_the_table_and_no_other() -> None:
    assert [row[0] for row in PHASES.rows] == [f"phases.{name}" for name in PhaseSchedule.__dataclass_fields__]
    in_code = {key for key in flat(DEFAULTS.to_mapping()) if not key.startswith("phases.")}
    in_code |= {f"codec.{name}" for name in CodecChoice.__dataclass_fields__} | {"threshold", "min_survivors"}
    in_code |= {"cohort.split"}
    assert {row[0] for row in KEYS.rows} == in_code


@pytest.mark.parametrize("key", sorted(KEYS.column("default")))
def test_the_default_is_that_of_the_code(key: str) -> None:
    said = KEYS.column("default")[key]
    if said == "needed":
        with pytest.raises(PlanError, match=f"lacks '{key}'"):
            job_from_mapping({name: {"name": "x", "rounds": 1}[name] for name in NEEDED if name != key})
        return
    value = flat(DEFAULTS.to_mapping()).get(key)
    words = {"none": None, "empty": {}, "false": False}
    assert (words[said] if said in words else said if isinstance(value, str) else number(said)) == value


@pytest.mark.parametrize("key", sorted(set(KEYS.column("range")) - {"training"}))
def test_the_range_is_that_of_the_code(key: str) -> None:
    default = flat(DEFAULTS.to_mapping()).get(key)
    right, wrong = samples_of(KEYS.column("range")[key], default)
    for value in right:
        job_with(key, value)
    for value in wrong:
        with pytest.raises(PlanError):
            job_with(key, value)


def test_there_may_be_as_many_training_options_as_the_page_says() -> None:
    assert KEYS.column("range")["training"] == f"up to {MAX_TRAINING_OPTIONS} options"


@pytest.mark.parametrize("phase", sorted(PHASES.column("max_seconds")))
def test_the_bounds_of_a_phase_are_those_of_the_code(phase: str) -> None:
    bounds = getattr(DEFAULTS.phases, phase.removeprefix("phases."))
    assert float(PHASES.column("min_seconds")[phase]) == bounds.min_seconds
    assert float(PHASES.column("max_seconds")[phase]) == bounds.max_seconds


def test_a_phase_needs_its_max_seconds_and_no_more() -> None:
    with pytest.raises(PlanError, match="max_seconds"):
        job_from_mapping({"name": "x", "rounds": 1, "phases": {"signing": {"min_seconds": 1}}})
    job = job_from_mapping({"name": "x", "rounds": 1, "phases": {"signing": {"max_seconds": 5}}})
    assert job.phases.signing.min_seconds == 0


@pytest.mark.parametrize("block", yaml_blocks_of(PAGE))
def test_every_example_is_a_job_that_can_hold(block: str) -> None:
    content = {"name": "x", "rounds": 1, **yaml.safe_load(block)}
    content.pop("model", None)
    check_job(job_from_mapping(content))


def test_a_secure_job_needs_three_sites() -> None:
    for least, refused in ((3, False), (2, True)):
        mapping = {"name": "x", "rounds": 1, "cohort": {"min": least}}
        if refused:
            with pytest.raises(PlanError):
                job_from_mapping(mapping)
        else:
            check_job(job_from_mapping(mapping))
