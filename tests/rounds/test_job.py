"""Jobs as operators write them: read, written back, and refused with the name of what is wrong."""

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_core.errors import PlanError
from fl_core.rounds.job import MAX_JSON_CHARACTERS, CodecChoice, JobSpec, job_from_json, job_from_mapping
from fl_core.rounds.optimizer import OptimizerName
from fl_core.rounds.plan import Aggregation, PhaseBounds

SMALLEST = {"name": "digits", "rounds": 8}

training = st.dictionaries(
    st.text(min_size=1, max_size=8, alphabet=st.characters(exclude_categories=["Cs"])),
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text("ab"),
    max_size=5,
)
jobs = st.fixed_dictionaries(
    {"name": st.text("abc", min_size=1, max_size=9), "rounds": st.integers(1, 1000)},
    optional={
        "aggregation": st.sampled_from(["secagg", "plain"]),
        "codec": st.fixed_dictionaries(
            {"clip": st.floats(1e-6, 1e6)}, optional={"bits": st.integers(1, 24), "ring_bits": st.integers(8, 32)}
        ),
        "cohort": st.fixed_dictionaries({"min": st.integers(3, 9), "max": st.integers(9, 99)}),
        "max_dropout": st.floats(0, 0.99),
        "max_weight": st.integers(1, 10**6),
        "chunk_bytes": st.sampled_from([8, 4096, 1 << 18]),
        "phases": st.fixed_dictionaries({"sharing": st.just({"min_seconds": 1, "max_seconds": 2.5})}),
        "optimizer": st.fixed_dictionaries({"name": st.sampled_from(list(OptimizerName)), "lr": st.floats(0.001, 2)}),
        "training": training,
        "evaluate_every": st.integers(0, 5),
    },
)


@given(jobs)
def test_a_job_written_as_json_is_read_back_the_same(mapping: dict[str, Any]) -> None:
    job = job_from_mapping(mapping)
    assert job_from_json(job.to_json()) == job


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=4),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from([*JobSpec.__slots__, "clip", "min", "x", "\ud800"]), inner, max_size=6)
        ),
        max_leaves=12,
    )
)
def test_whatever_stands_in_a_job_is_read_or_refused_as_a_plan_error(anything: Any) -> None:
    mapping = {**SMALLEST, **anything} if isinstance(anything, dict) else anything
    # Any other error than this one fails the test.
    with suppress(PlanError):
        assert isinstance(job_from_mapping(mapping), JobSpec)


def test_the_smallest_job_is_secure_and_survives_three_tenths() -> None:
    job = job_from_mapping(SMALLEST)
    assert job.aggregation is Aggregation.SECAGG
    assert (job.max_dropout, job.codec, job.cohort.min) == (0.3, CodecChoice(), 3)


def test_a_phase_without_min_seconds_may_close_at_once() -> None:
    job = job_from_mapping({**SMALLEST, "phases": {"signing": {"max_seconds": 9}}})
    assert job.phases.signing == PhaseBounds(0.0, 9.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"agregation": "plain"}, ["agregation", "did you mean 'aggregation'"]),
        ({"codec": {"clipp": 1.0}}, ["codec", "did you mean 'clip'"]),
        ({"zzz": 1}, ["zzz", "remove it"]),
        ({"phases": {"upload": {"max_seconds": 1}}}, ["did you mean 'uploading'"]),
        ({"phases": {"uploading": {"min_seconds": 1}}}, ["lacks 'max_seconds'"]),
        ({"phases": {"uploading": {"min_seconds": 3, "max_seconds": 1}}}, ["min_seconds <= max_seconds"]),
        ({"phases": {"uploading": {"max_seconds": float("nan")}}}, ["finite"]),
        ({"rounds": "8"}, ["rounds", "integer", "str"]),
        ({"rounds": True}, ["rounds", "integer", "bool"]),
        ({"rounds": 0}, ["rounds", "1 to"]),
        ({"name": ""}, ["name", "1 to 256"]),
        ({"name": 3}, ["name", "text"]),
        ({"aggregation": "masked"}, ["aggregation", "plain | secagg", "masked"]),
        ({"optimizer": {"lr": "1e-3"}}, ["lr", "1.0e-3"]),
        ({"optimizer": {"lr": 0}}, ["lr", "> 0"]),
        ({"optimizer": {"name": "sgd"}}, ["fedavg"]),
        ({"optimizer": []}, ["optimizer", "mapping"]),
        ({"codec": {"clip": -1}}, ["clip"]),
        ({"codec": {"clip": 10**400}}, ["clip", "64-bit"]),
        ({"codec": {"bits": 25}}, ["bits", "1 to 24"]),
        ({"codec": {"ring_bits": 7}}, ["ring_bits", "8 to 32"]),
        ({"cohort": {"min": 5, "max": 4}}, ["min 5, max 4"]),
        ({"cohort": {"min": 2}}, ["too small to hide", "plain"]),
        ({"max_dropout": 1.0}, ["max_dropout"]),
        ({"chunk_bytes": 12}, ["multiple of 8"]),
        ({"chunk_bytes": 1 << 21}, ["multiple of 8"]),
        ({"training": {"layers": [1, 2]}}, ["'layers'", "list"]),
        ({"training": {"lr": float("inf")}}, ["'lr'", "finite"]),
        ({"training": {"n": 2**63}}, ["'n'", "64-bit"]),
        ({"threshold": 101}, ["threshold", "1 to 100"]),
    ],
)
def test_what_is_wrong_in_a_job_is_named(change: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(PlanError) as refused:
        job_from_mapping({**SMALLEST, **change})
    assert all(word in str(refused.value) for word in words), str(refused.value)


@pytest.mark.parametrize("missing", ["name", "rounds"])
def test_a_job_needs_a_name_and_rounds(missing: str) -> None:
    with pytest.raises(PlanError, match=missing):
        job_from_mapping({key: value for key, value in SMALLEST.items() if key != missing})


def test_a_plain_job_may_have_one_site() -> None:
    assert job_from_mapping({**SMALLEST, "aggregation": "plain", "cohort": {"min": 1}}).cohort.min == 1


@pytest.mark.parametrize(
    "text",
    ["", "{", "[" * 100_000, "null", "[]", "NaN", '{"name": 1e999}', "9" * 5000, " " * (MAX_JSON_CHARACTERS + 1)],
)
def test_text_that_is_no_job_is_refused_as_a_plan_error(text: str) -> None:
    with pytest.raises(PlanError):
        job_from_json(text)
