"""Noise that the survivors do not need: what is left of it in a sum, and what adding and taking it away costs."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from math import sqrt
from time import perf_counter

import numpy as np
import numpy.typing as npt

from benchmarks.figures import Figure
from benchmarks.stopwatch import best_in_a_row, one_core
from fl_core.codec.tensors import TensorManifest, TensorSpec
from fl_core.rounds.privacy_choice import Draw, PrivacyChoice
from fl_core.rounds.privacy_terms import Mechanism
from fl_core.rounds.private_codec import PrivateCodec
from fl_core.secagg.noise_seeds import parts_needed

RING_BITS = 32
SITES, FEWEST = 100, 70
SURVIVORS = (100, 90, 70)
COORDINATES = 512
MILLION = 1_000_000
REMOVED_FROM = 100_000
RUNS = 5

Keys = list[list[bytes]]


def codec_for(size: int) -> PrivateCodec:
    """Of a job of eight rounds with epsilon 1, for 100 sites of which 70 must survive."""
    terms = PrivacyChoice(Mechanism.DISTRIBUTED, 1.0, 1e-5, 1.0).terms(8, size, Draw(SITES, SITES, SITES))
    manifest = TensorManifest((TensorSpec("weights", "float32", (size,)),))
    return PrivateCodec(terms, manifest, RING_BITS, SITES, FEWEST)


def sum_variances(rounds: int) -> Iterator[Figure]:
    """The variance of the noise in a sum over the one that is accounted, and how far chance may have moved it."""
    codec = codec_for(COORDINATES)
    target = codec.terms.variance(codec.coordinates)
    for survivors in SURVIVORS:
        sums = np.array([_noise_of_sum(codec, survivors) for _ in range(rounds)], np.float64)
        name = f"{survivors} of {SITES} survive"
        yield Figure(f"variance of the noise over its target, {name}", float((sums**2).mean()) / target, "ratio")
        error = sqrt(2 / sums.size) * float((sums**2).mean()) / target
        yield Figure(f"standard error of the variance, {name}", error, "ratio")


def part_costs() -> Iterator[Figure]:
    """CPU milliseconds of a site's noise in all its parts, and of taking away what 100 sites do not need."""
    codec = codec_for(MILLION)
    vector, (own,) = np.zeros(codec.coordinates, np.uint32), _keys(codec, 1)
    with one_core():
        codec.add_parts(vector, [own], 0)
        spent = best_in_a_row(lambda: codec.add_parts(vector, [own], 0), RUNS)
    yield Figure(f"noise for 1M parameters, all {len(own)} parts of a site", 1e3 * spent, "ms")

    codec = codec_for(REMOVED_FROM)
    vector, removed = np.zeros(codec.coordinates, np.uint32), _removed(codec, _keys(codec, SITES))
    name = f"removal of {len(removed[0])} parts of {SITES} sites from {REMOVED_FROM // 1000}k parameters"
    with one_core():
        codec.add_parts(vector, removed, 0)
        spent = best_in_a_row(lambda: codec.add_parts(vector, removed, 0), RUNS)
    yield Figure(f"{name}, one core", 1e3 * spent, "ms")
    cores = len(os.sched_getaffinity(0))
    yield Figure(f"{name}, {cores} threads", 1e3 * min(_in_threads(codec, vector, removed, cores)), "wall ms")


def _in_threads(codec: PrivateCodec, vector: npt.NDArray[np.uint32], removed: Keys, threads: int) -> list[float]:
    edges = [*range(0, len(vector), -(-len(vector) // threads)), len(vector)]
    seconds = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(RUNS):
            began = perf_counter()
            jobs = [pool.submit(codec.add_parts, vector[at:end], removed, at) for at, end in pairwise(edges)]
            for job in jobs:
                job.result()
            seconds.append(perf_counter() - began)
    return seconds


def _noise_of_sum(codec: PrivateCodec, survivors: int) -> npt.NDArray[np.int32]:
    keys = _keys(codec, survivors)
    total, mask = np.zeros(codec.coordinates, np.uint32), np.zeros(codec.coordinates, np.uint32)
    codec.add_parts(total, keys, 0)
    codec.add_parts(mask, _removed(codec, keys), 0)
    return (total - mask).view(np.int32)


def _keys(codec: PrivateCodec, sites: int) -> Keys:
    return [[os.urandom(16) for _ in codec.parts] for _ in range(sites)]


def _removed(codec: PrivateCodec, keys: Keys) -> Keys:
    needed = parts_needed(codec.terms.noise_tiers(codec.cohort, codec.min_survivors), len(keys))
    return [own[needed:] for own in keys]
