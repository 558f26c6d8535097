"""What an attack is: a malicious party against the phases of production, and the one check that stops it.

An attack that fails with and without its check shows nothing, so each is run twice.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fl_core.errors import TacitError


@dataclass(frozen=True, slots=True)
class Check:
    """One check of production code, and what stands in its place when it is taken out."""

    owner: Any
    name: str
    instead: Any

    @contextmanager
    def removed(self) -> Iterator[None]:
        """Run the block without the check. Not for processes that do anything else meanwhile."""
        kept = self.owner.__dict__[self.name] if hasattr(self.owner, "__dict__") else getattr(self.owner, self.name)
        setattr(self.owner, self.name, self.instead)
        try:
            yield
        finally:
            setattr(self.owner, self.name, kept)


@dataclass(frozen=True, slots=True)
class Attack:
    """One attack.

    Args:
        name: what is attacked.
        malicious: who attacks.
        stopped_by: the check, in words.
        check: the check, in code.
        succeeds: does the attack; whether the attacker reached its end. It may also raise what stopped it.
    """

    name: str
    malicious: str
    stopped_by: str
    check: Check = field(repr=False)
    succeeds: Callable[[], bool] = field(repr=False)

    def is_stopped(self) -> bool:
        """Whether the attack fails against production code."""
        return not _reaches_its_end(self.succeeds)

    def succeeds_without_check(self) -> bool:
        """Whether the attack succeeds once its check is taken out."""
        with self.check.removed():
            return _reaches_its_end(self.succeeds)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one attack."""

    attack: Attack
    is_stopped: bool
    succeeds_without_check: bool

    @property
    def is_right(self) -> bool:
        """Whether the check holds, and is what holds."""
        return self.is_stopped and self.succeeds_without_check


def run_attacks(attacks: Sequence[Attack]) -> list[Outcome]:
    """Run every attack twice: as things are, and without its check."""
    return [Outcome(attack, attack.is_stopped(), attack.succeeds_without_check()) for attack in attacks]


def nothing(*_: object, **__: object) -> None:
    """Stands in the place of a check that was taken out."""


def _reaches_its_end(succeeds: Callable[[], bool]) -> bool:
    try:
        return succeeds()
    except TacitError:
        return False
