"""Trying again: exponential backoff with full jitter, so that many sites do not come back in step.

Source: Brooker 2015, Exponential Backoff and Jitter (AWS Architecture Blog), "full jitter".
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from fl_core.errors import ConfigError, Overloaded, PeerLost, TacitError

T = TypeVar("T")
Uniform = Callable[[float, float], float]

# Jitter spreads load and protects nothing, so no cryptographic generator is needed.
draw_uniform: Uniform = random.SystemRandom().uniform


@dataclass(slots=True)
class Backoff:
    """Delays between attempts: uniform in [0, ceiling], where the ceiling doubles up to a limit.

    Args:
        first_s: ceiling of the first delay.
        max_s: largest ceiling.
        uniform: draws from [low, high].

    Raises:
        ConfigError: 0 < first_s <= max_s does not hold.
    """

    first_s: float = 0.1
    max_s: float = 5.0
    uniform: Uniform = draw_uniform
    _failures: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if not 0 < self.first_s <= self.max_s:
            raise ConfigError(
                "the delays of a backoff are out of range",
                expected="0 < first_s <= max_s",
                got=f"{self.first_s} and {self.max_s}",
            )

    def next_delay(self) -> float:
        """Seconds to wait after one more failure."""
        # The exponent is bounded because a float overflows long before a patient site gives up.
        ceiling = min(self.max_s, self.first_s * 2.0 ** min(self._failures, 64))
        self._failures += 1
        return self.uniform(0.0, ceiling)

    def reset(self) -> None:
        """Begin anew, after a success."""
        self._failures = 0


async def retry(
    call: Callable[[], Awaitable[T]],
    *,
    deadline_s: float,
    backoff: Backoff | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> T:
    """Call until it succeeds, fails for good, or the time is up.

    Only errors that say of themselves that they are retryable are tried again, so `call` must be idempotent. A service
    that names a time is asked again then.

    Args:
        call: makes one attempt; raises our errors, not gRPC's.
        deadline_s: seconds for all attempts and delays together; a running attempt is cancelled then.
        backoff: delays between attempts.
        sleep: waits; a virtual clock in tests.

    Returns:
        What the successful attempt returned.

    Raises:
        TacitError: the first error that is not retryable; at the deadline the last retryable one, or PeerLost.
    """
    delays = backoff or Backoff()
    last: TacitError | None = None
    try:
        async with asyncio.timeout(deadline_s) as deadline:
            while True:
                try:
                    return await call()
                except TacitError as error:
                    if not error.retryable:
                        raise
                    last = error
                await sleep(_pause(last, delays))
    except TimeoutError as error:
        if not deadline.expired():
            raise
        if last is not None:
            raise last from error
        raise PeerLost("no answer before the deadline", expected=f"within {deadline_s:g} s") from error


def _pause(error: TacitError, delays: Backoff) -> float:
    if isinstance(error, Overloaded) and error.retry_after_s is not None:
        # The service gives every caller another time, so there is nothing to spread.
        return error.retry_after_s
    return delays.next_delay()
