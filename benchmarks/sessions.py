"""Whole sessions of secure aggregation in one process, with a stopwatch for each party."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from benchmarks.figures import Figure
from fl_core.secagg import client
from fl_core.secagg.exchange import CollectingAdvertisements
from fl_core.secagg.masked_sum import CollectingMaskedInputs
from fl_core.simulation import stages
from fl_core.simulation.faults import spread_dropouts
from fl_core.simulation.federation import simulate_session

SIZES = (50, 100, 200)
LENGTH = 10_000
DROPOUT = 0.3

T = TypeVar("T")


def measure_sessions(*, quick: bool) -> list[Figure]:
    """For each cohort: a session without faults by party, and one in which 30 % drop out over all phases."""
    figures: list[Figure] = []
    # The first session compiles and loads; that is no part of the others.
    _Timed(stages.make_cohort(8, length=64)).run()
    for size in (10,) if quick else SIZES:
        cohort = stages.make_cohort(size, length=LENGTH)
        timed = _Timed(cohort)
        timed.run()
        figures += [
            Figure(f"session_{size}_sites", sum(timed.seconds.values()), "s"),
            Figure(f"one_site_of_{size}", timed.seconds["site"] / size, "s"),
            Figure(f"key_server_of_{size}", timed.seconds["key server"], "s"),
            Figure(f"aggregator_of_{size}", timed.seconds["aggregator"], "s"),
            Figure(f"session_{size}_sites_30_percent_drop_out", _with_dropouts(cohort), "s"),
        ]
    return figures


def _with_dropouts(cohort: stages.Cohort) -> float:
    schedule = spread_dropouts(range(int(DROPOUT * cohort.context.size)))
    began = time.perf_counter()
    result = simulate_session(cohort.context, cohort.vectors, cohort.entropy, schedule=schedule, signers=cohort.signers)
    seconds = time.perf_counter() - began
    np.testing.assert_array_equal(result.sum, cohort.sum_of(result.survivors))
    return seconds


@dataclass(slots=True)
class _Timed:
    """One session without faults, with a stopwatch for each party."""

    cohort: stages.Cohort
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def run(self) -> None:
        """Run it and check the sum."""
        context, verifier, entropy = self.cohort.context, self.cohort.verifier, self.cohort.entropy
        indices = range(context.size)
        server = CollectingAdvertisements(context, verifier)
        aggregator = CollectingMaskedInputs(context)
        site, key_server = self._by("site"), self._by("key server")
        advertised = [
            site(lambda i=index: client.advertise(context, i, self.cohort.signers[i], verifier, entropy))
            for index in indices
        ]
        for _, advertisement in advertised:
            key_server(lambda a=advertisement: server.receive(a))
        sharing, directory = key_server(server.close)
        shared = [site(lambda p=phase: p.step(directory)) for phase, _ in advertised]
        for index, (_, sealed) in enumerate(shared):
            key_server(lambda i=index, s=sealed: sharing.receive(i, s))
        relay, relayed = key_server(sharing.close)
        uploads = [
            site(lambda i=index, p=phase: p.step(relayed[i]).step(self.cohort.vectors[i]))
            for index, (phase, _) in enumerate(shared)
        ]
        for _, masked in uploads:
            self._by("aggregator")(lambda m=masked: aggregator.add(m))
        awaiting, survivors = aggregator.freeze(relay.participants)
        signing = key_server(lambda: relay.freeze(survivors))
        signed = [site(lambda p=phase: p.step(survivors)) for phase, _ in uploads]
        for _, signature in signed:
            key_server(lambda s=signature: signing.receive(s))
        revealing, proof = key_server(signing.close)
        revealed = [site(lambda p=phase: p.step(proof)) for phase, _ in signed]
        for _, shares in revealed:
            key_server(lambda s=shares: revealing.receive(s))
        mask = key_server(lambda: revealing.close().combined_mask())
        aggregate = self._by("aggregator")(lambda: awaiting.step(mask))
        np.testing.assert_array_equal(aggregate.sum, self.cohort.sum_of(indices))

    def _by(self, party: str) -> Callable[[Callable[[], T]], T]:
        def timed(work: Callable[[], T]) -> T:
            with self._stopwatch(party):
                return work()

        return timed

    @contextmanager
    def _stopwatch(self, party: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[party] += time.perf_counter() - began
