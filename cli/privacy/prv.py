"""A second, tighter figure for Gaussian noise: the PRV accountant of opacus, where opacus is installed."""

from importlib.util import find_spec

import numpy as np

from fl_core.privacy.events import Noise, PrivacyEvent

EPSILON_ERROR = 0.01


def prv_epsilon(event: PrivacyEvent, rounds: int, delta: float) -> float | None:
    """Epsilon by privacy random variables; None when opacus is missing or the noise is not Gaussian in the reals.

    A discrete Gaussian of more than a few steps has the curve of the Gaussian, but not quite its privacy random
    variable, so that no figure is given for it.

    Args:
        event: of one round.
        rounds: equal rounds.
        delta: of the guarantee.

    Source: Gopi, Lee, Wutschitz 2021, Numerical Composition of Differential Privacy.
    """
    if event.noise is not Noise.GAUSSIAN or event.exposed or find_spec("opacus") is None:
        return None
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(event.noise_multiplier, event.sampling_rate, rounds * event.steps)]
    with np.errstate(divide="ignore", invalid="ignore"):
        # Outside of the support of the variable opacus takes the logarithm of zero, and does not use it.
        return float(accountant.get_epsilon(delta, eps_error=EPSILON_ERROR))
