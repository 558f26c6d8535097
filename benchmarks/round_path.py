"""One round of ten sites over mTLS with secure aggregation and no training: seconds by phase, bytes up of a site."""

from statistics import median

from benchmarks.federations import federation, zeros
from benchmarks.figures import Figure
from cli.round_table import PHASE_TITLES
from fl_core.rounds.report import RoundReport

SITES = 10
ROUNDS = 8
RING_BITS = 20
SIZES = {"10k": 10_026, "1m": 1_000_000}
FIXED_BYTES = 20_000
SLACK = 1.1


def measure(*, quick: bool = False) -> list[Figure]:
    """Medians over the rounds but the first, in which everything is loaded and compiled."""
    sites, rounds, sizes = (4, 2, {"10k": 10_026}) if quick else (SITES, ROUNDS, SIZES)
    figures: list[Figure] = []
    with federation(sites, secure=True) as running:
        for label, parameters in sizes.items():
            job = {
                "name": f"round-{label}",
                "rounds": rounds,
                "codec": {"clip": 1.0, "ring_bits": RING_BITS},
                "cohort": {"min": sites, "max": sites},
                "max_weight": 100,
                "evaluate_every": 0,
                "phases": {"recruiting": {"min_seconds": 0.0, "max_seconds": 60.0}},
            }
            figures += _figures(label, parameters, running.train(job, zeros(parameters))[1:])
    return figures


def _figures(label: str, parameters: int, reports: list[RoundReport]) -> list[Figure]:
    phases = [phase for phase in PHASE_TITLES if any(phase in report.phase_seconds for report in reports)]
    bytes_up = max(count for report in reports for count in report.bytes_up.values())
    allowed = SLACK * parameters * RING_BITS / 8 + FIXED_BYTES
    return [
        Figure(f"round_{label}", median(report.round_seconds for report in reports), "s"),
        *(
            Figure(f"round_{label}_{phase}", median(report.phase_seconds.get(phase, 0.0) for report in reports), "s")
            for phase in phases
        ),
        Figure(f"bytes_up_{label}", float(bytes_up), "B", baseline=allowed),
    ]
