"""An encrypted session of five sites under a key of 256 bits."""

import os

import numpy as np
import numpy.typing as npt
import pytest

from fl_core.crypto.paillier.keys import generate_private_key
from fl_core.simulation.encrypted import EncryptedFederation
from fl_core.simulation.entropy import seeded_entropy


@pytest.fixture(scope="session")
def federation() -> EncryptedFederation:
    """Five sites, 40 coordinates of 16 bits."""
    key = generate_private_key(256, seeded_entropy(1))
    return EncryptedFederation.make(key, os.urandom, sites=5, length=40, bits=16, ring_bits=20, min_survivors=3)


@pytest.fixture(scope="session")
def vectors() -> npt.NDArray[np.uint32]:
    """What the sites send; the second coordinate counts them."""
    drawn = np.random.default_rng(1).integers(0, 1 << 16, (5, 40), np.uint32)
    drawn[:, 1] = 1
    return drawn
