"""No bytes from outside make a parser or a handler raise anything but errors of ours, or take memory without bound."""

import tracemalloc
from collections.abc import Iterator
from importlib import import_module

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import handlers
from tests.fuzz import targets as fuzzing
from tests.fuzz.seeds import messages_by_name

TARGETS = fuzzing.targets()
ON_DISK = {name for name, target in TARGETS.items() if name in {each.name for each in fuzzing._files()}}
SAME_READER = {"AggregatorSettings_yaml", "KeyServerSettings_yaml", "OperatorConfig_yaml", "job_yaml"}
"""They read YAML as the coordinator's settings do, which takes a second for the deepest inputs."""
ROOM_BYTES = 4 << 20
"""What a parser may take for itself; beyond it, a multiple of what came."""
FACTOR = 64


@pytest.fixture(scope="module", autouse=True)
def services() -> Iterator[None]:
    """The services whose handlers are fuzzed; nothing of them is left, nor held by a call that is over."""
    bench = handlers.bench()
    yield
    held = bench.held()
    bench.close()
    assert not any(held.values()), held


def inputs(target: fuzzing.Target) -> st.SearchStrategy[bytes]:
    """Any bytes, and valid ones with a part replaced."""
    if not target.seeds:
        return st.binary(max_size=512)
    seed = st.sampled_from(target.seeds)
    replaced = st.builds(
        lambda whole, at, cut, put: whole[: at % (len(whole) + 1)] + put + whole[at % (len(whole) + 1) + cut :],
        seed,
        st.integers(0, 1 << 16),
        st.integers(0, 8),
        st.binary(max_size=8),
    )
    return st.one_of(replaced, st.binary(max_size=512))


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_any_bytes_give_a_value_or_an_error_of_ours(name: str) -> None:
    target = TARGETS[name]

    @settings(
        max_examples=25 if name in ON_DISK else 60,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(inputs(target))
    def check(data: bytes) -> None:
        target.run(data)

    check()


@pytest.mark.parametrize("name", sorted(name for name, target in TARGETS.items() if target.seeds))
def test_the_fuzzer_starts_from_something_valid(name: str) -> None:
    for seed in TARGETS[name].seeds:
        TARGETS[name].parse(seed)


def test_every_conversion_of_the_wire_is_fuzzed_from_a_valid_message() -> None:
    seeds = messages_by_name()
    for name, convert in fuzzing.conversions():
        assert name in TARGETS
        kind = fuzzing._arguments(convert)[0]
        if hasattr(kind, "DESCRIPTOR"):
            assert kind.DESCRIPTOR.full_name in seeds, f"tests/fuzz/seeds.py has no {kind.__name__}"


BOMB = (
    b"[&a [" + b"x," * 9 + b"]" + b"".join(b", &%c [%s]" % (98 + i, b"*%c, " % (97 + i) * 9) for i in range(7)) + b"]"
)
"""A few hundred bytes that are five million values when they are written out."""


def test_every_rpc_of_every_service_is_fuzzed() -> None:
    names = {rpc.method for rpc in handlers.rpcs()}
    assert {"UpdateParameters", "SubmitMask", "ExchangeKeys", "RevealShares", "ReportAggregate", "SubmitJob"} <= names
    assert {rpc.name for rpc in handlers.rpcs()} <= set(TARGETS)


HOSTILE = {
    "deep json": b"[" * 100_000,
    "deep object": b'{"name":' * 50_000,
    "deep yaml": b"- " * 20_000 + b"x",
    "flow yaml": b"[" * 5_000,
    "bomb": BOMB,
    "impossible date": b"name: 2001-99-99\n",
    "long integer": b"rounds: " + b"9" * 10_000,
    "long json integer": b'{"name": "x", "rounds": ' + b"9" * 10_000 + b"}",
    "nul": b"\x00" * 64,
    "surrogates": b'{"name": "\\ud800", "rounds": 1}',
    "yaml tag": b"!!python/object/apply:os.system [id]\n",
    "huge header": (100_000_000).to_bytes(8, "little") + b"{}",
    "infinite": b'{"name": "x", "rounds": Infinity}',
    "merge": b"<<: 3\nname: x\n",
    "keys": b"? [1, 2]\n: 3\n? {a: b}\n: 4\n",
}


@pytest.mark.parametrize("kind", sorted(HOSTILE))
def test_what_breaks_naive_parsers_breaks_none(kind: str) -> None:
    for name in TARGETS.keys() - SAME_READER:
        TARGETS[name].run(HOSTILE[kind])


@pytest.mark.parametrize("kind", sorted(HOSTILE))
def test_no_input_from_the_network_takes_memory_beyond_what_was_sent(kind: str) -> None:
    data = HOSTILE[kind]
    for name in TARGETS.keys() - ON_DISK:
        tracemalloc.start()
        try:
            TARGETS[name].run(data)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak <= ROOM_BYTES + FACTOR * len(data), name


def test_the_command_lists_the_targets(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("atheris")
    command = import_module("tests.fuzz.__main__")
    assert command.main(["no-such-target"]) == 2
    assert "plan_from_proto/mutated" in capsys.readouterr().out.split()
