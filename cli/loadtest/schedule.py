"""Who vanishes in which round, and at which step: drawn by the seed, the same in every run."""

from collections.abc import Mapping
from enum import StrEnum

import numpy as np

from cli.loadtest.options import LoadOptions
from fl_core.rounds.plan import Aggregation


class VanishPoint(StrEnum):
    """The last step of a site before its connections break."""

    INVITED = "invited"
    KEYS_SHARED = "keys_shared"
    TRAINED = "trained"
    MID_UPLOAD = "mid_upload"
    UPLOADED = "uploaded"


_POINTS = {
    Aggregation.SECAGG: (
        VanishPoint.INVITED,
        VanishPoint.KEYS_SHARED,
        VanishPoint.MID_UPLOAD,
        VanishPoint.UPLOADED,
    ),
    Aggregation.PAILLIER: (VanishPoint.INVITED, VanishPoint.TRAINED, VanishPoint.MID_UPLOAD, VanishPoint.UPLOADED),
    Aggregation.PLAIN: (VanishPoint.INVITED, VanishPoint.TRAINED, VanishPoint.MID_UPLOAD, VanishPoint.UPLOADED),
}


def vanishing_in(options: LoadOptions, round_id: int) -> Mapping[str, VanishPoint]:
    """Who vanishes in a round, with the step."""
    draw = np.random.default_rng([options.seed, options.sites, round_id])
    chosen = draw.choice(options.sites, options.vanishing, replace=False)
    points = _POINTS[options.aggregation.of_job]
    steps = draw.integers(len(points), size=options.vanishing)
    return {options.client_ids[site]: points[step] for site, step in zip(chosen, steps, strict=True)}


def schedule_of(options: LoadOptions) -> dict[str, dict[int, VanishPoint]]:
    """For each site the rounds in which it vanishes, with the step."""
    schedule: dict[str, dict[int, VanishPoint]] = {client_id: {} for client_id in options.client_ids}
    for round_id in range(1, options.rounds + 1):
        for client_id, point in vanishing_in(options, round_id).items():
            schedule[client_id][round_id] = point
    return schedule
