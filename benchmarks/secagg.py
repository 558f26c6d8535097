"""Whole sessions of secure aggregation in one process, by cohort: seconds in all, and seconds of each party."""

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

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
Arguments = ParamSpec("Arguments")


def measure(*, quick: bool = False) -> list[Figure]:
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
        server, aggregator = CollectingAdvertisements(context, verifier), CollectingMaskedInputs(context)
        advertised = [
            self._of("site", client.advertise, context, index, self.cohort.signers[index], verifier, entropy)
            for index in indices
        ]
        for _, advertisement in advertised:
            self._of("key server", server.receive, advertisement)
        sharing, directory = self._of("key server", server.close)
        shared = [self._of("site", phase.step, directory) for phase, _ in advertised]
        for index, (_, sealed) in enumerate(shared):
            self._of("key server", sharing.receive, index, sealed)
        relay, relayed = self._of("key server", sharing.close)
        ready = [self._of("site", phase.step, relayed[index]) for index, (phase, _) in enumerate(shared)]
        uploads = [self._of("site", phase.step, self.cohort.vectors[index]) for index, phase in enumerate(ready)]
        for _, masked in uploads:
            self._of("aggregator", aggregator.add, masked)
        awaiting, survivors = aggregator.freeze(relay.participants)
        signing = self._of("key server", relay.freeze, survivors)
        signed = [self._of("site", phase.step, survivors) for phase, _ in uploads]
        for _, signature in signed:
            self._of("key server", signing.receive, signature)
        revealing, proof = self._of("key server", signing.close)
        revealed = [self._of("site", phase.step, proof) for phase, _ in signed]
        for _, shares in revealed:
            self._of("key server", revealing.receive, shares)
        mask = self._of("key server", self._of("key server", revealing.close).combined_mask)
        aggregate = self._of("aggregator", awaiting.step, mask)
        np.testing.assert_array_equal(aggregate.sum, self.cohort.sum_of(indices))

    def _of(self, party: str, work: Callable[Arguments, T], *arguments: Arguments.args, **named: Arguments.kwargs) -> T:
        """Do a step of a party, on its stopwatch."""
        began = time.perf_counter()
        result = work(*arguments, **named)
        self.seconds[party] += time.perf_counter() - began
        return result
