"""What `tacit demo --privacy` adds to the job, and what it says about the budget at the end."""

from collections.abc import Mapping, Sequence
from math import ceil

from fl_core.privacy.events import Noise, PrivacyEvent
from fl_core.privacy.renyi import epsilon_of
from fl_core.rounds.privacy_terms import Mechanism

DELTA = 1e-5
UPDATE_CLIP = 1.0
"""L2 norm of a site's update, about the median of this model's."""
SAMPLE_CLIP = 1.0
"""L2 norm of one sample's gradient."""
PRIVATE_RING_BITS = 24


def privacy_section(mechanism: Mechanism, epsilon: float, shares: Sequence[int], batch: int, epochs: int) -> object:
    """The `privacy` section of the demo's job.

    Args:
        mechanism: who adds the noise.
        epsilon: of the whole job.
        shares: samples of each site; the costliest of them decides how much local noise there must be.
        batch: expected samples of a step.
        epochs: of a round.
    """
    section: dict[str, object] = {"mechanism": mechanism.value, "epsilon": epsilon, "delta": DELTA}
    if mechanism is not Mechanism.LOCAL:
        return section | {"clip": UPDATE_CLIP}
    rate, steps = max((_local_cost(count, batch, epochs) for count in shares), key=_epsilon_of)
    return section | {"clip": SAMPLE_CLIP, "sampling_rate": rate, "steps": steps}


def budget_in_words(report: Mapping[str, object]) -> str:
    """One line about what was spent, from the job's privacy report."""
    spent, budget = report["spent"], report["budget"]
    assert isinstance(spent, Mapping)
    assert isinstance(budget, Mapping)
    return (
        f"epsilon {spent['epsilon']:.3g} of {budget['epsilon']:g} at delta {budget['delta']:g} for each "
        f"{report['unit_of_privacy']}; noise by the {report['noise_by']}".replace("by the every", "by every")
    )


def cost_in_words(report: Mapping[str, object], sites: int) -> str:
    """One line about what the budget costs in accuracy, and what would change it."""
    if report["unit_of_privacy"] == "site":
        return f"the noise of a mean falls with the number of sites: {sites} are few, a hundred or more pay little"
    return "the noise falls with the number of samples at each site: these sites have few"


def _local_cost(samples: int, batch: int, epochs: int) -> tuple[float, int]:
    rate = min(1.0, batch / samples)
    return rate, epochs * ceil(1 / rate)


def _epsilon_of(cost: tuple[float, int]) -> float:
    return epsilon_of(PrivacyEvent(Noise.GAUSSIAN, 1.0, 4.0, cost[0], cost[1]).curve(), DELTA)
