"""Chaos: services and sites are killed and restarted, links are spoilt, round after round, and nothing may break.

    python tests/e2e/chaos.py --rounds 200 --seed 1 [--workdir DIR] [--faults kill_service,cut,...]

A seed gives the same schedule. After each round the invariants are checked: the versions of the model form one chain,
each aggregate equals the sum of its survivors exactly (with `--private`: whatever was released had been counted), no
site unmasked a session twice, no session is orphaned, no process holds more than it did. At the end no file is left.
"""

import argparse
import asyncio
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from battered_federation import BatteredFederation, Health, battered_federation
from fault_proxy import Faults

from cli.cluster import SERVICES

SITES = 4
MANY_ROUNDS = 1_000_000
SETTLED_LOOKS = 6
LARGEST_PROCESS = 512 << 20
MEMORY_SLACK = 32 << 20
"""Bytes by which a process may grow once it has settled."""

DESCRIPTOR_SLACK = 48
THREAD_SLACK = 24

PRIVATE: dict[str, object] = {
    "privacy": {"mechanism": "central", "epsilon": 100.0, "delta": 0.001, "clip": 1.0, "noise_multiplier": 500.0},
    "codec": {"clip": 1.0, "ring_bits": 32},
}

Fault = Callable[[BatteredFederation, random.Random], Awaitable[None]]


async def kill_service(federation: BatteredFederation, draw: random.Random) -> None:
    """SIGKILL, and a new start after a while."""
    service = draw.choice(SERVICES)
    await federation.kill_service(service)
    await asyncio.sleep(draw.uniform(0.0, 1.5))
    await federation.start_service(service)


async def stop_service(federation: BatteredFederation, draw: random.Random) -> None:
    """SIGTERM, a graceful end, and a new start."""
    service = draw.choice(SERVICES)
    await federation.stop_service(service)
    await asyncio.sleep(draw.uniform(0.0, 1.0))
    await federation.start_service(service)


async def freeze_service(federation: BatteredFederation, draw: random.Random) -> None:
    """A service stands still, as when its machine swaps."""
    service = draw.choice(SERVICES)
    federation.signal_service(service, signal.SIGSTOP)
    await asyncio.sleep(draw.uniform(0.5, 4.0))
    federation.signal_service(service, signal.SIGCONT)


async def kill_site(federation: BatteredFederation, draw: random.Random) -> None:
    """SIGKILL, and a new start after a while."""
    site = draw.choice(sorted(federation.sites))
    await federation.kill_site(site)
    await asyncio.sleep(draw.uniform(0.0, 1.5))
    federation.start_site(site)


async def cut(federation: BatteredFederation, draw: random.Random) -> None:
    """Every connection to a service is reset, a few times."""
    proxy = federation.proxies[draw.choice(SERVICES)]
    for _ in range(draw.randint(1, 3)):
        proxy.cut()
        await asyncio.sleep(draw.uniform(0.0, 0.5))


def spoilt(faults: Callable[[random.Random], Faults]) -> Fault:
    """A link that is bad for a while."""

    async def spoil(federation: BatteredFederation, draw: random.Random) -> None:
        proxy = federation.proxies[draw.choice(SERVICES)]
        proxy.faults = faults(draw)
        await asyncio.sleep(draw.uniform(0.5, 3.0))
        proxy.faults = Faults()

    return spoil


FAULTS: dict[str, Fault] = {
    "kill_service": kill_service,
    "stop_service": stop_service,
    "freeze_service": freeze_service,
    "kill_site": kill_site,
    "cut": cut,
    "slow": spoilt(lambda draw: Faults(delay_s=draw.uniform(0.0, 0.3), bytes_per_second=draw.uniform(2e4, 1e6))),
    "corrupt": spoilt(lambda draw: Faults(corrupt_every_bytes=draw.uniform(2e3, 1e5))),
    "swallow": spoilt(lambda _: Faults(swallow=True)),
}


@dataclass(slots=True)
class ChaosResult:
    """What a run showed."""

    rounds: int = 0
    committed: int = 0
    attempts: int = 0
    seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    abandoned: Counter[str] = field(default_factory=Counter)
    largest_growth_bytes: int = 0

    def to_json(self) -> dict[str, object]:
        """For `json.dumps`."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class Chaos:
    """One run.

    Args:
        federation: that is battered.
        seed: of the schedule.
        faults: names of the faults that are drawn from.
        is_private: noise is added to each sum, so its ledger is checked instead of its exactness.
        say: told one line for each round.
    """

    federation: BatteredFederation
    seed: int
    faults: Sequence[str]
    is_private: bool
    say: Callable[[str], None]
    result: ChaosResult = field(default_factory=ChaosResult)
    _first: dict[int, Health] = field(default_factory=dict)
    _looks: Counter[int] = field(default_factory=Counter)

    async def run(self, rounds: int) -> ChaosResult:
        """Spoil at least one thing in each of `rounds` rounds, and check everything after each."""
        began = time.monotonic()
        job_id = await self.federation.submit(MANY_ROUNDS, **(PRIVATE if self.is_private else {}))
        for number in range(1, rounds + 1):
            draw = random.Random(f"{self.seed}/{number}")
            committed = self.result.committed
            await self._spoil(draw)
            reports = await self.federation.until_committed(job_id, committed + 1, patience_s=240.0)
            check = self.federation.check_ledger if self.is_private else partial(self.federation.check_exact, reports)
            self.result.committed = check()
            self.federation.check_chain()
            self.federation.check_unmasked_once()
            await self.federation.check_no_orphans(job_id)
            self._check_growth()
            self.result.rounds = number
            self.result.attempts = len(reports)
            self.result.abandoned = Counter(r.abandon_reason.value for r in reports if r.abandon_reason)
            self.result.seconds = round(time.monotonic() - began, 1)
            self.say(json.dumps(self.result.to_json()))
        await self.federation.cancel(job_id)
        return self.result

    async def _spoil(self, draw: random.Random) -> None:
        names = [draw.choice(list(self.faults)) for _ in range(draw.randint(1, 2))]

        async def later(name: str) -> None:
            await asyncio.sleep(draw.uniform(0.0, 1.5))
            self.result.faults[name] += 1
            await FAULTS[name](self.federation, draw)

        # One after the other: two faults of one process would only be noise.
        for name in names:
            await later(name)

    def _check_growth(self) -> None:
        for name, now in self.federation.health().items():
            assert now.rss <= LARGEST_PROCESS, (name, now)
            self._looks[now.pid] += 1
            first = self._first.setdefault(now.pid, now)
            if self._looks[now.pid] <= SETTLED_LOOKS:
                # A process loads and compiles until it has seen every part of a round.
                self._first[now.pid] = max(first, now, key=lambda health: health.rss)
                continue
            growth = now.rss - first.rss
            self.result.largest_growth_bytes = max(self.result.largest_growth_bytes, growth)
            assert growth <= MEMORY_SLACK, (name, first, now)
            assert now.descriptors <= first.descriptors + DESCRIPTOR_SLACK, (name, first, now)
            assert now.threads <= first.threads + THREAD_SLACK, (name, first, now)


async def run_chaos(
    workdir: Path,
    rounds: int,
    seed: int,
    faults: Sequence[str] = tuple(FAULTS),
    *,
    is_private: bool = False,
    say: Callable[[str], None] = print,
) -> ChaosResult:
    """A whole run in a folder: start, spoil, check, stop, and check what is left.

    Raises:
        AssertionError: an invariant does not hold; the ends of all logs are shown before.
    """
    async with battered_federation(workdir, SITES, behind_proxies=True) as federation:
        try:
            result = await Chaos(federation, seed, faults, is_private, say).run(rounds)
        except BaseException:
            say(federation.tails())
            raise
    federation.check_files()
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert not tasks, tasks
    return result


def main() -> None:
    """The long form, as a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workdir", type=Path)
    parser.add_argument("--faults", default=",".join(FAULTS), help="names, with commas")
    parser.add_argument("--private", action="store_true", help="a job with central noise; checks its ledger")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tacit-chaos-") as folder:
        workdir, faults = options.workdir or Path(folder), options.faults.split(",")
        asyncio.run(run_chaos(workdir, options.rounds, options.seed, faults, is_private=options.private))


if __name__ == "__main__":
    sys.exit(main())
