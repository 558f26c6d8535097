"""One phase of a session from the side of the one who waits: who is asked, who answered, and when it is over."""

import asyncio
from collections.abc import Callable, Iterable

from fl_core.rounds.machine import Quorum, next_deadline_s, quorum
from fl_core.rounds.plan import PhaseBounds
from services.runtime.events import Notice


class Gathering:
    """Counts answers against a quorum. Time runs from the moment it is made.

    Args:
        asked: sites that may answer.
        gone: sites for which nobody waits; one that answers all the same counts.
        needed: answers without which the attempt cannot go on.
        bounds: time bounds of the phase.
        notice: announced by whoever changes anything.
    """

    def __init__(
        self, asked: Iterable[int], gone: Iterable[int], needed: int, bounds: PhaseBounds, notice: Notice
    ) -> None:
        self._asked = frozenset(asked)
        self._gone = set(gone)
        self._answered: set[int] = set()
        self.needed = needed
        self._bounds = bounds
        self._notice = notice
        self._clock = asyncio.get_running_loop().time
        self._started = self._clock()

    @property
    def answered(self) -> frozenset[int]:
        """Sites that answered."""
        return frozenset(self._answered)

    @property
    def missing(self) -> frozenset[int]:
        """Sites that were waited for and did not answer."""
        return self._asked - self._answered - self._gone

    def answer(self, index: int) -> None:
        """A site answered."""
        self._answered.add(index)
        self._notice.announce()

    def drop(self, indices: Iterable[int]) -> None:
        """Do not wait for these sites any more."""
        self._gone.update(indices)
        self._notice.announce()

    async def is_met(self, check_alive: Callable[[], None]) -> bool:
        """Wait until the phase closes, or fails for want of answers.

        Args:
            check_alive: raises when the session was ended meanwhile.
        """
        while True:
            check_alive()
            elapsed_s = self._clock() - self._started
            expected = len(self._answered | (self._asked - self._gone))
            verdict = quorum(len(self._answered), expected, self.needed, elapsed_s, self._bounds)
            if verdict is not Quorum.WAIT:
                return verdict is Quorum.CLOSE
            next_s = next_deadline_s(len(self._answered), self.needed, self._bounds)
            await self._notice.wait(max(next_s - elapsed_s, 0.001))
