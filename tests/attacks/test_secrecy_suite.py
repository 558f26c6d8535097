"""The short form of the attacks, as `tacit selftest --secrecy` runs it: each is stopped, and by its check alone."""

import pytest

from fl_core.simulation.adversary import SUITE
from fl_core.simulation.attack import Attack, Check, Outcome, run_attacks


@pytest.mark.parametrize("attack", SUITE, ids=lambda attack: attack.name)
def test_the_attack_is_stopped(attack: Attack) -> None:
    assert attack.is_stopped()


@pytest.mark.parametrize("attack", SUITE, ids=lambda attack: attack.name)
def test_without_its_check_the_attack_succeeds(attack: Attack) -> None:
    assert attack.succeeds_without_check()
    assert attack.is_stopped()


class Door:
    def check(self) -> None:
        raise AssertionError("this check raises no error of ours")


def test_a_removed_check_comes_back_even_when_the_block_raises() -> None:
    kept = Door.check

    def fail_without_it() -> None:
        with Check(Door, "check", lambda _: None).removed():
            assert Door.check is not kept
            raise KeyError

    with pytest.raises(KeyError):
        fail_without_it()
    assert Door.check is kept


@pytest.mark.parametrize(("succeeds", "right"), [(lambda: True, False), (lambda: False, False)])
def test_an_attack_that_is_not_stopped_or_never_succeeds_is_no_proof(succeeds: object, right: bool) -> None:
    attack = Attack("idle", "nobody", "nothing", Check(Door, "check", lambda _: None), succeeds)  # type: ignore[arg-type]
    (outcome,) = run_attacks([attack])
    assert outcome.is_right is right
    assert outcome == Outcome(attack, outcome.is_stopped, outcome.succeeds_without_check)
