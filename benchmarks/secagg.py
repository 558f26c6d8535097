"""Secure aggregation on one core: sessions by cohort, Shamir, unmasking, and the table of Bonawitz et al. 2017."""

import os
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from benchmarks.figures import Figure
from benchmarks.flower import Flower, flower
from benchmarks.sessions import measure_sessions
from benchmarks.stopwatch import best_by_turns, best_in_a_row, one_core
from benchmarks.unmasking import PreparedSession
from fl_core.crypto.shamir import combine, lagrange_at_zero, parse_shares, split_secrets
from fl_core.secagg.degrees import Profile
from fl_core.secagg.profiles import choose_graph

TURNS = 3
IN_A_ROW = 5
SECRET_BYTES = 32
MANY_SECRETS = 300
UNMASKING = ("rebuilding", "agreeing", "expanding")
WANTED_UNMASKING = 500.0
CORRUPT, DROPOUT = 0.05, 0.3
TABLE_DEGREES = {100: (28, 6), 1000: (76, 25)}
"""Degree and threshold for 5 % corrupt sites and 30 % drop-outs, honest but curious, everybody in U1, no audit."""
WANTED_SPARSE_S = 2.0
PAPER_SERVER_S = 413.767
PAPER_CLIENT_S = 1.699
"""Bonawitz et al. 2017, figure 8: n = 1000, d = 100,000 of 24 bits, 30 % dropped; one thread, without signatures."""


def measure(*, quick: bool = False) -> list[Figure]:
    """Seconds of CPU, each beside Flower's function or the paper's figure where there is one."""
    with one_core(), flower() as peer:
        return [
            *measure_sessions(quick=quick),
            *_shamir(100 if quick else 1000, 67 if quick else 667),
            *_shamir_beside_flower(20 if quick else 500, 11 if quick else 251, peer),
            *_unmasking(peer, size=20 if quick else 100, dropped=6 if quick else 30),
            *_bonawitz(100 if quick else 1000),
            *_sparse(100 if quick else 1000),
        ]


def _shamir(size: int, threshold: int) -> list[Figure]:
    """One site's two secrets split, and many secrets of the same holders rebuilt."""
    secrets = [os.urandom(SECRET_BYTES) for _ in range(MANY_SECRETS)]
    shares = split_secrets(secrets, threshold, range(size), os.urandom)
    rows = np.stack([parse_shares(held) for held in shares[:threshold]])
    coefficients = lagrange_at_zero(range(threshold))
    seconds = _best(
        {
            "split": lambda: split_secrets(secrets[:2], threshold, range(size), os.urandom),
            "coefficients": lambda: lagrange_at_zero(range(threshold)),
            "rebuild": lambda: combine(coefficients, rows),
        }
    )
    return [
        Figure(f"split_2_secrets_of_{size}_sites", seconds["split"], "s"),
        Figure(f"coefficients_of_{size}_sites", seconds["coefficients"], "s"),
        Figure(f"rebuild_{MANY_SECRETS}_secrets_of_{size}_sites", seconds["rebuild"], "s"),
    ]


def _shamir_beside_flower(size: int, threshold: int, peer: Flower | None) -> list[Figure]:
    """The two secrets of one site, split and rebuilt, coefficients included."""
    secrets = [os.urandom(SECRET_BYTES) for _ in range(2)]
    holders = range(threshold)
    shares = split_secrets(secrets, threshold, range(size), os.urandom)[:threshold]
    seconds = _best(
        {
            "split": lambda: split_secrets(secrets, threshold, range(size), os.urandom),
            "combine": lambda: combine(lagrange_at_zero(holders), np.stack([parse_shares(held) for held in shares])),
        }
    )
    theirs = {name: peer.seconds(name, size=size, threshold=threshold) for name in seconds} if peer else {}
    return [Figure(f"shamir_{name}_{size}_sites", taken, "s", theirs.get(name)) for name, taken in seconds.items()]


def _unmasking(peer: Flower | None, *, size: int, dropped: int) -> list[Figure]:
    """Rebuild, agree and expand for a complete graph; what Flower does in its unmask stage."""
    threshold, length = size // 2 + 1, 100_000
    session = PreparedSession.prepare(size, threshold=threshold, dropped=dropped, length=length, ring_bits=32)
    runs = [session.serve() for _ in range(TURNS)]
    ours = min(sum(run[step] for step in UNMASKING) for run in runs)
    name = f"unmask_{size}_sites_{dropped}_dropped"
    if peer is None:
        return [Figure(name, ours, "s")]
    theirs = peer.seconds("unmask", size=size, threshold=threshold, dropped=dropped, length=length)
    return [Figure(name, ours, "s", theirs), Figure(f"{name}_times_flower", theirs / ours, "x", WANTED_UNMASKING)]


def _bonawitz(size: int) -> list[Figure]:
    """The paper's own table: every step of the server, and of a site that checks all signatures."""
    session = PreparedSession.prepare(
        size, threshold=2 * size // 3 + 1, dropped=3 * size // 10, length=100_000, ring_bits=24
    )
    is_the_table = size == 1000
    server = _fastest(session.serve)
    site = _fastest(session.take_part)
    return [
        Figure(f"bonawitz_{size}_server", sum(server.values()), "s", PAPER_SERVER_S if is_the_table else None),
        *(Figure(f"bonawitz_{size}_server_{step}", taken, "s") for step, taken in server.items()),
        Figure(f"bonawitz_{size}_site", sum(site.values()), "s", PAPER_CLIENT_S if is_the_table else None),
        *(Figure(f"bonawitz_{size}_site_{step}", taken, "s") for step, taken in site.items()),
    ]


def _sparse(size: int) -> list[Figure]:
    """The same cohort on a sparse graph: at the degree of the literature, and at the one that a plan would have."""
    planned = choose_graph(size, CORRUPT, DROPOUT, Profile.HONEST_BUT_CURIOUS)
    table = TABLE_DEGREES[size]
    return [
        *_sparse_at(size, *table, WANTED_SPARSE_S if size == 1000 else None),
        *_sparse_at(size, planned.degree, planned.threshold, None),
    ]


def _sparse_at(size: int, degree: int, threshold: int, wanted: float | None) -> list[Figure]:
    session = PreparedSession.prepare(
        size, threshold=threshold, dropped=3 * size // 10, length=100_000, ring_bits=24, degree=degree
    )
    server, site = _fastest(session.serve), _fastest(session.take_part)
    name = f"sparse_{size}_k{degree}"
    return [
        Figure(f"{name}_server", sum(server.values()), "s", wanted),
        *(Figure(f"{name}_server_{step}", taken, "s") for step, taken in server.items()),
        Figure(f"{name}_site", sum(site.values()), "s"),
    ]


def _best(works: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    return best_by_turns({name: partial(best_in_a_row, work, IN_A_ROW) for name, work in works.items()}, TURNS)


def _fastest(run: Callable[[], dict[str, float]]) -> dict[str, float]:
    return min((run() for _ in range(TURNS)), key=lambda seconds: sum(seconds.values()))
