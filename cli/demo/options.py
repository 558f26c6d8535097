"""What the demo may be told, and what follows from it: the job, the clients' names, who is killed and where."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np

from cli.demo.private import PRIVATE_RING_BITS, privacy_section
from fl_core.codec.presets import PRESETS
from fl_core.errors import ConfigError
from fl_core.rounds.plan import Aggregation, Scalar
from fl_core.rounds.privacy_terms import Mechanism
from fl_core.secagg.profiles import default_threshold

KILL_ROUND = 3
MIN_SITES = 3
MAX_SITES = 100
EPOCHS = 5
LEARNING_RATE = 0.02
BATCH_SIZE = 16
RING_BITS = 20
MAX_WEIGHT = 1500
"""More than all digits together, so that any split fits."""
CHUNK_BYTES = 2048
"""Small, so that the upload of a small model has a middle."""
SMALL_CHUNK_BYTES = 64
"""With a codec that a user names, which may leave very few bytes."""


class KillPhase(StrEnum):
    """Where in the attempt a site dies."""

    AFTER_KEYS = "after sharing keys"
    AFTER_TRAINING = "after training"
    MID_UPLOAD = "in the middle of an upload"
    AFTER_UPLOAD = "after uploading"


_PHASES = {
    Aggregation.SECAGG: (KillPhase.AFTER_KEYS, KillPhase.MID_UPLOAD, KillPhase.AFTER_UPLOAD),
    Aggregation.PAILLIER: (KillPhase.AFTER_TRAINING, KillPhase.MID_UPLOAD, KillPhase.AFTER_UPLOAD),
    Aggregation.PLAIN: (KillPhase.AFTER_TRAINING, KillPhase.MID_UPLOAD, KillPhase.AFTER_UPLOAD),
}


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """One run of the demo.

    Args:
        workdir: folder of everything that the run leaves.
        sites: how many site processes.
        rounds: how many rounds.
        aggregation: masked, encrypted or plain.
        kill: how many sites are killed in round 3, or in the last round when there are fewer.
        seed: of data split, model, training and the choice of victims. Masks and rounding never depend on it.
        record: sites log their updates before masking, for the check of exactness.
        codec: the name of a preset; a ring of 20 bits without rotation or selection when None.

        privacy: who adds noise; nobody when None.
        epsilon: of the whole job, at a delta of 1e-5.

    Raises:
        ConfigError: a number is out of range, or too many sites are killed for the threshold to hold.
    """

    workdir: Path
    sites: int = 10
    rounds: int = 8
    aggregation: Aggregation = Aggregation.SECAGG
    kill: int = 3
    seed: int = 1
    record: bool = True
    codec: str | None = None
    privacy: Mechanism | None = None
    epsilon: float = 8.0

    def __post_init__(self) -> None:
        if not MIN_SITES <= self.sites <= MAX_SITES:
            raise ConfigError("--sites is out of range", expected=f"{MIN_SITES} to {MAX_SITES}", got=self.sites)
        if self.rounds < 1:
            raise ConfigError("--rounds is out of range", expected="1 or more", got=self.rounds)
        if not 0 <= self.kill <= most_kills(self.sites):
            raise ConfigError(
                "--kill is out of range",
                expected=f"0 to {most_kills(self.sites)} of {self.sites} sites, so that enough survive",
                got=self.kill,
                fix="lower --kill or raise --sites",
            )
        if self.codec is not None and self.codec not in PRESETS:
            raise ConfigError("--codec is unknown", expected=" | ".join(PRESETS), got=self.codec)
        if self.codec and self.aggregation is not Aggregation.PLAIN and not PRESETS[self.codec].is_maskable:
            raise ConfigError(
                f"the codec {self.codec} does not work under masks",
                fix="say --aggregation plain, or take another codec",
            )
        if self.privacy is not None and self.codec is not None and self.privacy.is_in_ring:
            raise ConfigError("--privacy rounds updates in its own way", fix="leave --codec out, or take local noise")
        if self.seed < 0:
            raise ConfigError("--seed is out of range", expected="0 or more", got=self.seed)

    @property
    def kill_round(self) -> int:
        """The round in which sites are killed."""
        return min(KILL_ROUND, self.rounds)

    @property
    def client_ids(self) -> tuple[str, ...]:
        """The names of the sites, ascending."""
        return tuple(f"site-{number:02d}" for number in range(1, self.sites + 1))

    def victims(self) -> dict[str, KillPhase]:
        """Who is killed, and where; drawn by the seed."""
        chosen = np.random.default_rng([self.seed, self.sites]).choice(self.client_ids, self.kill, replace=False)
        phases = _PHASES[self.aggregation]
        return {str(client_id): phases[place % len(phases)] for place, client_id in enumerate(chosen)}

    @property
    def training(self) -> dict[str, Scalar]:
        """What the sites' trainers are told."""
        return {"epochs": EPOCHS, "learning_rate": LEARNING_RATE, "seed": self.seed}

    def job(self, shares: Sequence[int] = ()) -> dict[str, object]:
        """The job, as it would stand in a file for `tacit train`.

        Args:
            shares: samples of each site; only a private job depends on them.
        """
        job = self._job()
        if self.privacy is not None:
            job["privacy"] = privacy_section(self.privacy, self.epsilon, shares, BATCH_SIZE, EPOCHS)
            if self.privacy.is_in_ring:
                job["codec"] = {"ring_bits": PRIVATE_RING_BITS}
        return job

    def _job(self) -> dict[str, object]:
        return {
            "name": "digits",
            "rounds": self.rounds,
            "aggregation": self.aggregation.value,
            "codec": {"clip": 1.0, "ring_bits": RING_BITS} if self.codec is None else {"preset": self.codec},
            # Sites that were killed stay away: later rounds must be content with the rest.
            "cohort": {"min": self.sites - self.kill, "max": self.sites},
            "max_weight": MAX_WEIGHT,
            "chunk_bytes": CHUNK_BYTES if self.codec is None else SMALL_CHUNK_BYTES,
            # The demo measures each model itself, on digits that no site has.
            "evaluate_every": 0,
            # Whoever is connected takes part; a wait for sites that are dead would not bring them back.
            "phases": {"recruiting": {"min_seconds": 0.0, "max_seconds": 120.0}},
            "training": self.training,
        }


def most_kills(sites: int) -> int:
    """How many of `sites` may die in one attempt that still reaches the default threshold."""
    return max(0, sites - default_threshold(sites))
