"""Virtual time: events in the order in which they are due, and no waiting between them."""

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count

from fl_core.errors import LocalProtocolError

Action = Callable[[], None]


class VirtualClock:
    """Holds actions until their time comes. Actions due at the same time run in the order in which they were set."""

    __slots__ = ("_events", "_now_s", "_order")

    def __init__(self) -> None:
        self._events: list[tuple[float, int, Action]] = []
        self._order = count()
        self._now_s = 0.0

    @property
    def now_s(self) -> float:
        """Seconds since the simulation began."""
        return self._now_s

    def after(self, delay_s: float, action: Action) -> None:
        """Run `action` when `delay_s` seconds have passed.

        Raises:
            LocalProtocolError: the delay is negative.
        """
        if delay_s < 0:
            raise LocalProtocolError("time does not run backwards", expected="a delay >= 0 s", got=delay_s)
        heappush(self._events, (self._now_s + delay_s, next(self._order), action))

    def run(self, deadline_s: float, done: Callable[[], bool]) -> None:
        """Run what is due until `done()`, or until `deadline_s`, at which the clock then stands."""
        while not done():
            if not self._events or self._events[0][0] > deadline_s:
                self._now_s = deadline_s
                return
            self._now_s, _, action = heappop(self._events)
            action()

    def drain(self) -> None:
        """Run everything that is still due, however late."""
        while self._events:
            self._now_s, _, action = heappop(self._events)
            action()
