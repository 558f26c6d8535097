"""Attack: a server picks the graph, so that all neighbours of one site work for it.

The neighbours then hold all shares of the victim and the keys of all its masks: its vector lies open.

What stops it: the value behind the seed is committed to in the plan, before anybody sends keys; and it is revealed for
one directory only, which the coordinator signs, so that U1 cannot be tried and exchanged once the value is known.
"""

import pytest

from fl_core.errors import BadSignature, StaleMessage
from fl_core.secagg import beacon as beacons
from fl_core.simulation import ring_attacks


def test_a_directory_that_was_chosen_after_the_beacon_is_refused() -> None:
    with pytest.raises(BadSignature, match="did not sign this directory"):
        ring_attacks.exchange_the_members()


def test_without_the_coordinators_signature_the_victims_vector_lies_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beacons, "verify_once", lambda *_: None)
    assert ring_attacks.exchange_the_members()


def test_a_seed_that_a_server_chose_is_refused() -> None:
    with pytest.raises(StaleMessage, match="not the one of the plan"):
        ring_attacks.grind_the_value()


def test_without_the_commitment_the_victims_vector_lies_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beacons, "_check_committed", lambda *_: None)
    assert ring_attacks.grind_the_value()
