"""Where uploads wait for their turn: a bounded number, and whoever finds no seat is told when to come back."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from fl_core.errors import Overloaded

FIRST_PACE_S = 0.025
"""Seconds from one turn to the next, before any was seen."""

HASTE = 0.9
"""Visits follow each other a little faster than turns, so that no place stays empty."""

SLOWEST_PACE_S = 5.0
WEIGHT = 0.2
"""Of the newest turn in the running mean."""

LONGEST_RETRY_AFTER_S = 30.0


class WaitingRoom:
    """A seat is a call that is open on a connection, about 70 KB; a time to come back costs nothing.

    The times follow each other at about the pace at which turns come, so those who come back find seats.

    Args:
        seats: calls that wait at once.
        clock: seconds.
    """

    def __init__(self, seats: int, clock: Callable[[], float] = monotonic) -> None:
        self._seats = seats
        self._clock = clock
        self._taken = 0
        self._pace_s = FIRST_PACE_S
        self._last_turn_s: float | None = None
        self._next_visit_s = 0.0

    @contextmanager
    def seat(self) -> Iterator[None]:
        """Sit in the block, which ends when it is the caller's turn.

        Raises:
            Overloaded: no seat is free; it says when to come back.
        """
        if self._taken >= self._seats:
            raise Overloaded(
                "many other sites wait to upload",
                expected=f"at most {self._seats} that wait",
                fix="come back at the time that is said",
                retry_after_s=self._appoint(),
            )
        self._taken += 1
        try:
            yield
            self._note_turn()
        finally:
            self._taken -= 1

    def _appoint(self) -> float:
        """Seconds until the visit that follows the one that was given last."""
        now, step_s = self._clock(), HASTE * self._pace_s
        earliest = now + self._taken * step_s
        self._next_visit_s = max(self._next_visit_s + step_s, earliest)
        self._next_visit_s = min(self._next_visit_s, now + LONGEST_RETRY_AFTER_S)
        return self._next_visit_s - now

    def _note_turn(self) -> None:
        now = self._clock()
        # The pace is that of turns that were waited for; an empty room says nothing about it.
        if self._last_turn_s is not None and self._taken > 1:
            newest = min(now - self._last_turn_s, SLOWEST_PACE_S)
            self._pace_s += WEIGHT * (newest - self._pace_s)
        self._last_turn_s = now
