"""What a load test may be told, and the job that follows from it."""

import math
from dataclasses import dataclass
from pathlib import Path

from cli.loadtest.aggregation import LoadAggregation
from fl_core.codec.spec import CodecSpec
from fl_core.errors import ConfigError, PlanError
from fl_core.rounds.job import job_from_mapping, read_codec
from fl_core.rounds.planner import check_job, choose_codec

MIN_SITES = 3
MAX_SITES = 16_384
MAX_WEIGHT = 100
DEFAULT_MAX_DROPOUT = 0.3
PATIENCE_S = 300.0
"""Longest phase: everybody is waited for who is not lost, so that no round ends early to look fast."""


@dataclass(frozen=True, slots=True)
class Shaping:
    """What stands between each site and the services, in each direction.

    Args:
        rate_mbit: of one site's line, megabits per second; None for no limit.
        latency_ms: one way, milliseconds.

    Raises:
        ConfigError: a number is out of range.
    """

    rate_mbit: float | None = None
    latency_ms: float = 0.0

    def __post_init__(self) -> None:
        if self.rate_mbit is not None and not 0 < self.rate_mbit < math.inf:
            raise ConfigError("--rate-limit-mbit is out of range", expected="above 0", got=self.rate_mbit)
        if not 0 <= self.latency_ms < math.inf:
            raise ConfigError("--latency-ms is out of range", expected="0 or more", got=self.latency_ms)

    @property
    def is_needed(self) -> bool:
        """Whether anything is between site and service."""
        return self.rate_mbit is not None or self.latency_ms > 0


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """One run.

    Args:
        workdir: folder of everything that the run leaves.
        sites: how many sites.
        parameters: size of the model, float32.
        dropout: part of the sites that vanishes in each round.
        rounds: how many rounds.
        codec: a preset of `fl_core.codec.presets`.
        aggregation: masked or plain.
        processes: over how many processes the sites are spread.
        seed: of the schedule and of the made-up updates. Masks and rounding never depend on it.
        shaping: of the sites' lines.

    Raises:
        ConfigError: a number is out of range.
    """

    workdir: Path
    sites: int = 20
    parameters: int = 100_000
    dropout: float = 0.0
    rounds: int = 5
    codec: str = "int16"
    aggregation: LoadAggregation = LoadAggregation.SECAGG
    processes: int = 2
    seed: int = 1
    shaping: Shaping = Shaping()

    def __post_init__(self) -> None:
        for name, low, high in (
            ("sites", MIN_SITES, MAX_SITES),
            ("parameters", 1, 1 << 40),
            ("rounds", 1, 1_000_000),
            ("processes", 1, self.sites),
            ("seed", 0, 1 << 63),
        ):
            number = getattr(self, name)
            if not low <= number <= high:
                raise ConfigError(f"--{name} is out of range", expected=f"{low} to {high}", got=number)
        if not 0 <= self.dropout < 1:
            raise ConfigError("--dropout is out of range", expected="0 to below 1", got=self.dropout)
        try:
            check_job(job_from_mapping(self.job()))
        except PlanError as error:
            raise ConfigError(f"no such round can be: {error}", fix="change --codec, --dropout or --sites") from error

    @property
    def client_ids(self) -> tuple[str, ...]:
        """The names of the sites, ascending."""
        width = len(str(self.sites))
        return tuple(f"site-{number:0{width}d}" for number in range(1, self.sites + 1))

    @property
    def vanishing(self) -> int:
        """How many sites vanish in each round."""
        # A product such as 0.29 * 100 is a little less than the number that is meant.
        return math.floor(self.dropout * self.sites + 1e-9)

    @property
    def codec_spec(self) -> CodecSpec:
        """The codec of the first round."""
        return choose_codec(read_codec(self.codec), self.sites)

    def job(self) -> dict[str, object]:
        """The job, as it would stand in a file for `tacit train`."""
        patient = {"min_seconds": PATIENCE_S, "max_seconds": PATIENCE_S}
        phases = ("advertising", "sharing", "uploading", "signing", "revealing")
        return {
            "name": "loadtest",
            "rounds": self.rounds,
            **self.aggregation.job_settings,
            "codec": self.codec,
            "cohort": {"min": self.sites, "max": self.sites},
            "max_weight": MAX_WEIGHT,
            "max_dropout": max(DEFAULT_MAX_DROPOUT, self.dropout),
            "evaluate_every": 0,
            "phases": {
                "recruiting": {"min_seconds": 0.0, "max_seconds": PATIENCE_S},
                **dict.fromkeys(phases, patient),
            },
        }
