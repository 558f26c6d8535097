"""The parts of `tacit loadtest` that need no federation."""

import asyncio
import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cli.loadtest.aggregation import LoadAggregation
from cli.loadtest.assignment import Assignment
from cli.loadtest.options import LoadOptions, Shaping
from cli.loadtest.result import percentile
from cli.loadtest.run import is_exact
from cli.loadtest.schedule import VanishPoint, schedule_of, vanishing_in
from cli.loadtest.shaping import Line, SlowLine
from fl_core.codec.packing import pack
from fl_core.errors import ConfigError
from fl_core.rounds.job import job_from_mapping
from fl_core.rounds.machine import RoundState
from fl_core.rounds.plan import JobId
from fl_core.rounds.planner import check_job, choose_sparse_graph
from fl_core.rounds.report import RoundReport

RING_BITS = 19


def options(**fields: object) -> LoadOptions:
    return replace(LoadOptions(Path("nowhere"), sites=100, dropout=0.3), **fields)  # type: ignore[arg-type]


def test_one_seed_gives_one_schedule_and_another_seed_another() -> None:
    assert schedule_of(options()) == schedule_of(options())
    assert schedule_of(options()) != schedule_of(options(seed=2))


def test_so_many_sites_vanish_in_each_round_and_at_every_step() -> None:
    rounds = [vanishing_in(options(), round_id) for round_id in range(1, 6)]
    assert [len(vanishing) for vanishing in rounds] == [30] * 5
    assert len({frozenset(vanishing) for vanishing in rounds}) == 5
    steps = {point for vanishing in rounds for point in vanishing.values()}
    assert steps == set(VanishPoint) - {VanishPoint.TRAINED}


def test_a_product_of_fractions_is_the_number_that_is_meant() -> None:
    assert options(dropout=0.29).vanishing == 29


@pytest.mark.parametrize("aggregation", LoadAggregation)
@pytest.mark.parametrize("sites", [3, 100, 1000])
def test_every_job_of_a_load_test_can_hold(sites: int, aggregation: LoadAggregation) -> None:
    job = job_from_mapping(options(sites=sites, aggregation=aggregation).job())
    check_job(job)
    is_sparse = choose_sparse_graph(job, sites) is not None
    assert is_sparse == (aggregation is LoadAggregation.SECAGG_PLUS and sites >= 100)


@pytest.mark.parametrize(
    "wrong",
    [{"sites": 2}, {"dropout": 1.0}, {"rounds": 0}, {"codec": "float"}, {"codec": "top-1pct-int8"}, {"seed": -1}],
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        options(**wrong)


@pytest.mark.parametrize("wrong", [{"rate_mbit": 0.0}, {"latency_ms": -1.0}, {"rate_mbit": float("inf")}])
def test_a_line_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Shaping(**wrong)


def test_an_assignment_is_read_as_it_was_written(tmp_path: Path) -> None:
    schedule = {"site-1": {2: VanishPoint.MID_UPLOAD}, "site-2": {}}
    sites = {name: tmp_path / name / "site.yaml" for name in schedule}
    written = Assignment(tmp_path, sites, schedule, 3, 10, "int16", 100, 1, Shaping(20.0, 50.0))
    assert Assignment.read(written.write(tmp_path / "assignment.json")) == written


def test_a_percentile_is_one_of_the_values() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.95) == 3.0
    assert percentile([float(value) for value in range(1, 101)], 0.95) == 95.0


def test_a_sum_is_exact_only_when_every_bit_of_it_is(tmp_path: Path) -> None:
    halves = [np.array([1 << 18, 5], np.uint64), np.array([1 << 18, 7], np.uint64)]
    parts = [part(tmp_path / f"{number}.npy", half) for number, half in enumerate(halves)]
    total = np.array([0, 12], np.uint32)
    assert is_exact(report_of(total), parts)
    assert not is_exact(report_of(total ^ np.uint32(1)), parts)
    assert not is_exact(report_of(total), parts[:1])
    assert not is_exact(report_of(total), [parts[0], {**parts[1], "complete": False}])
    assert not is_exact(report_of(total), [])


async def test_a_line_carries_bytes_at_its_rate_one_after_the_other() -> None:
    line = Line(bytes_per_s=1e6, latency_s=0.01)
    began = asyncio.get_running_loop().time()
    arrivals = await asyncio.gather(*(line.carry(10_000) for _ in range(3)))
    assert arrivals[0] >= began + 0.02
    assert np.diff(arrivals) == pytest.approx([0.01, 0.01])
    assert line.bytes_carried == 30_000


async def test_what_goes_over_a_slow_line_arrives_whole_and_ends() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read())
        writer.close()

    sent = np.random.default_rng(1).bytes(100_000)
    async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
        line = SlowLine(Shaping(rate_mbit=80.0, latency_ms=1.0))
        address = await line.to(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
        reader, writer = await asyncio.open_connection(*address.split(":"))
        writer.write(sent)
        writer.write_eof()
        assert await reader.read() == sent
        writer.close()
        line.close()
    assert (line.up.bytes_carried, line.down.bytes_carried) == (100_000, 100_000)


def part(path: Path, half: np.ndarray) -> dict[str, object]:
    np.save(path, half)
    return {"complete": True, "sum": str(path), "ring_bits": RING_BITS}


def report_of(total: np.ndarray) -> RoundReport:
    digest = hashlib.sha256(pack(total, RING_BITS).data).digest()
    return RoundReport(JobId("job"), 1, 1, RoundState.COMMITTED, aggregate_sha256=digest)
