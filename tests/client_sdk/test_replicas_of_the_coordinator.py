"""Which coordinator a site calls when there are several."""

from typing import Any

import pytest

from client_sdk import SiteConfig
from client_sdk.connections import Connections
from fl_core.errors import ConfigError, NotLeading, PeerLost
from fl_core.transport.identity import Role

THREE = ("a.example:1", "b.example:2", "c.example:3")


@pytest.fixture
def connections(federation: Any) -> Connections:
    return Connections(federation.credentials(Role.SITE, "anna"), THREE)


def test_a_site_follows_the_leader_that_a_replica_names(connections: Connections) -> None:
    connections.turn(NotLeading("this coordinator does not drive the rounds", expected=THREE[2]))
    assert connections.coordinator_address == THREE[2]


def test_a_site_calls_no_address_but_those_of_its_own_configuration(connections: Connections) -> None:
    connections.turn(NotLeading("this coordinator does not drive the rounds", expected="evil.example:9"))
    assert connections.coordinator_address == THREE[1]


def test_after_a_loss_the_replicas_are_tried_in_turn(connections: Connections) -> None:
    tried = []
    for _ in range(4):
        connections.turn(PeerLost("gone"))
        tried.append(connections.coordinator_address)
    assert tried == [THREE[1], THREE[2], THREE[0], THREE[1]]


def test_an_only_coordinator_is_called_again(federation: Any) -> None:
    alone = Connections(federation.credentials(Role.SITE, "anna"), THREE[:1])
    alone.turn(NotLeading("this coordinator does not drive the rounds", expected="evil.example:9"))
    assert alone.coordinator_address == THREE[0]


@pytest.mark.parametrize("coordinator", [[], ["a:1", "a:1"], ["a:1", "no-port"], ""])
def test_a_list_of_coordinators_that_makes_no_sense_is_refused(federation: Any, coordinator: Any) -> None:
    files = federation.issue(Role.SITE, "anna")
    with pytest.raises(ConfigError, match="coordinator"):
        SiteConfig(coordinator, files.certificate, files.key, files.ca, files.certificate.parent / "state")
