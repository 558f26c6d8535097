"""How long a site waits before it calls a coordinator again."""

from fl_core.errors import NotLeading, TacitError
from fl_core.transport.retry import Backoff, Uniform, draw_uniform

LONGEST_PAUSE_S = 30.0
LONGEST_TAKEOVER_PAUSE_S = 3.0
"""While one replica lives: it drives the rounds as soon as the lease of the lost one has run out."""
STEADY_S = 10.0
"""A connection that held this long was a good one: the next pause is short again."""


class Reconnecting:
    """Pauses between calls that failed: long ones when nobody answers, short ones when another replica takes over soon.

    Args:
        replicas: coordinators that the site knows.
        uniform: draws from [low, high].
    """

    def __init__(self, replicas: int, uniform: Uniform = draw_uniform) -> None:
        self._replicas = replicas
        self._silence = Backoff(max_s=LONGEST_PAUSE_S, uniform=uniform)
        self._takeover = Backoff(max_s=LONGEST_TAKEOVER_PAUSE_S, uniform=uniform)
        self._calls_since_answer = replicas

    def reset(self) -> None:
        """The connection was a good one."""
        self._silence.reset()
        self._takeover.reset()
        self._calls_since_answer = self._replicas

    def next_delay(self, error: TacitError, held_s: float) -> float:
        """Seconds to wait.

        Args:
            error: why the connection ended.
            held_s: seconds that it held.
        """
        if held_s > STEADY_S:
            self.reset()
        self._calls_since_answer = 0 if isinstance(error, NotLeading) else self._calls_since_answer + 1
        # A site goes round all replicas, so an answer counts until the one that gave it has had its turn again.
        awaits_takeover = self._calls_since_answer < self._replicas
        return (self._takeover if awaits_takeover else self._silence).next_delay()
