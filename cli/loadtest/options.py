"""What a load test may be told, and the job that follows from it."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

from fl_core.errors import ConfigError
from fl_core.rounds.plan import Aggregation

MIN_SITES = 3
MAX_SITES = 16_384
MAX_BITS = 24
MIN_RING_BITS = 8
MAX_RING_BITS = 32
LARGEST_WEIGHT = 100
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
        codec: what one coordinate is, see `codec_section`.
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
    aggregation: Aggregation = Aggregation.SECAGG
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
        codec_section(self.codec, self.sites)

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
    def ring_bits(self) -> int:
        """Bits of one coordinate on the wire."""
        return codec_section(self.codec, self.sites)["ring_bits"]

    @property
    def max_weight(self) -> int:
        """Most samples of one site."""
        return min(LARGEST_WEIGHT, (1 << codec_section(self.codec, self.sites)["bits"]) - 1)

    def job(self) -> dict[str, object]:
        """The job, as it would stand in a file for `tacit train`."""
        patient = {"min_seconds": PATIENCE_S, "max_seconds": PATIENCE_S}
        phases = ("advertising", "sharing", "uploading", "signing", "revealing")
        return {
            "name": "loadtest",
            "rounds": self.rounds,
            "aggregation": self.aggregation.value,
            "codec": {"clip": 1.0, **codec_section(self.codec, self.sites)},
            "cohort": {"min": self.sites, "max": self.sites},
            "max_weight": self.max_weight,
            "max_dropout": max(DEFAULT_MAX_DROPOUT, self.dropout),
            "evaluate_every": 0,
            "phases": {
                "recruiting": {"min_seconds": 0.0, "max_seconds": PATIENCE_S},
                **dict.fromkeys(phases, patient),
            },
        }


def codec_section(codec: str, sites: int) -> dict[str, int]:
    """Bits of one site's coordinate, and the smallest ring in which the coordinates of all sites have room.

    Args:
        codec: `int` and the bits, such as int16 or int8.
        sites: in one sum.

    Raises:
        ConfigError: there is no such codec, or the sum of so many sites needs more than 32 bits.
    """
    match = re.fullmatch(r"int([0-9]{1,2})", codec)
    bits = int(match[1]) if match else 0
    if not 1 <= bits <= MAX_BITS:
        raise ConfigError("--codec is unknown", expected=f"int1 to int{MAX_BITS}, such as int16", got=codec)
    ring_bits = max(MIN_RING_BITS, (sites * ((1 << bits) - 1)).bit_length())
    if ring_bits > MAX_RING_BITS:
        raise ConfigError(
            f"{codec} is too wide for {sites} sites",
            expected=f"a sum of at most {MAX_RING_BITS} bits",
            got=f"{ring_bits} bits",
            fix="take a codec with fewer bits, such as int16",
        )
    return {"bits": bits, "ring_bits": ring_bits}
