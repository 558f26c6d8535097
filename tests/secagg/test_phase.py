"""The turn of a phase."""

import copy

import pytest

from fl_core.errors import LocalProtocolError
from fl_core.secagg.phase import Turn


def test_a_turn_is_taken_once() -> None:
    turn = Turn()
    with turn:
        pass
    with pytest.raises(LocalProtocolError, match="stepped twice"), turn:
        pass


def test_a_turn_cannot_be_taken_while_it_is_held() -> None:
    turn = Turn()
    with turn, pytest.raises(LocalProtocolError, match="stepped twice"), turn:
        pass


def test_a_turn_comes_back_when_the_step_raises() -> None:
    turn = Turn()
    with pytest.raises(ValueError, match="step"), turn:
        raise ValueError("step")
    with turn:
        pass


def test_a_refused_second_step_does_not_give_the_turn_back() -> None:
    turn = Turn()
    with turn:
        pass
    for _ in range(2):
        with pytest.raises(LocalProtocolError), turn:
            pass


def test_a_turn_can_be_neither_copied_nor_stored() -> None:
    with pytest.raises(LocalProtocolError, match="copied"):
        copy.copy(Turn())
    with pytest.raises(LocalProtocolError, match="copied"):
        copy.deepcopy(Turn())
