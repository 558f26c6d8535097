"""Keys that are made once: a small one, and that of ISO/IEC 18033-6."""

import json
from pathlib import Path
from typing import Any

import pytest

from fl_core.crypto.paillier.keys import PrivateKey, generate_private_key
from fl_core.simulation.entropy import seeded_entropy


@pytest.fixture(scope="session")
def vectors() -> dict[str, Any]:
    """Known answers of others."""
    text = (Path(__file__).parents[2] / "vectors" / "paillier.json").read_text()
    parsed: dict[str, Any] = json.loads(text)
    return parsed


@pytest.fixture(scope="session")
def iso_key(vectors: dict[str, Any]) -> PrivateKey:
    """The key of the standard's vector, 2048 bits."""
    return PrivateKey(int(vectors["iso_18033_6"]["p"], 16), int(vectors["iso_18033_6"]["q"], 16))


@pytest.fixture(scope="session")
def small_key() -> PrivateKey:
    """256 bits: breaks in seconds, tests in milliseconds."""
    return generate_private_key(256, seeded_entropy(1))
