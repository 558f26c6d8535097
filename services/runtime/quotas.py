"""What one site may ask of a service, so that none can take the others' share: calls, connections, requests, bytes.

A caller beyond its quota is not refused at once but after a pause: the refusal costs the service next to nothing, and a
caller that does nothing but try again can try only so often. Mistakes, such as messages that cannot be read, have a
quota of their own; nobody makes many by accident.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic

from fl_core.errors import (
    CodecError,
    CryptoError,
    Overloaded,
    PermissionRefused,
    RemoteProtocolError,
    SessionFrozen,
    StaleMessage,
    StreamError,
    TacitError,
    UnknownSession,
)
from services.runtime.metrics import QUOTA_EXCEEDED
from services.runtime.settings import QuotaSettings

MISTAKES = (CodecError, CryptoError, PermissionRefused, RemoteProtocolError, StreamError)
HONEST = (SessionFrozen, StaleMessage, UnknownSession)
"""Among them those that come of being late."""

FORGOTTEN_AFTER_S = 600.0
LARGEST_TABLE = 100_000


def is_mistake(error: TacitError) -> bool:
    """Whether a caller made an error that an honest one hardly makes."""
    return isinstance(error, MISTAKES) and not isinstance(error, HONEST)


@dataclass(slots=True)
class Bucket:
    """A budget that fills up again: so many per second, at most `size`.

    Args:
        per_second: how fast it fills.
        size: how much it holds; full at the start.
        now: the time at which it is made.
    """

    per_second: float
    size: float
    now: float
    _left: float = field(init=False)

    def __post_init__(self) -> None:
        self._left = self.size

    def take(self, amount: float, now: float) -> bool:
        """Take `amount` out; False when there is not so much, and then nothing is taken."""
        self._left = min(self.size, self._left + (now - self.now) * self.per_second)
        self.now = now
        if amount > self._left:
            return False
        self._left -= amount
        return True


@dataclass(slots=True)
class _Account:
    requests: Bucket
    sent: Bucket
    mistakes: Bucket
    calls: int = 0
    connections: Counter[str] = field(default_factory=Counter)
    last_s: float = 0.0


class Quotas:
    """The accounts of all callers.

    Args:
        settings: what each may ask.
        clock: seconds.
    """

    def __init__(self, settings: QuotaSettings, clock: Callable[[], float] = monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._accounts: dict[str, _Account] = {}

    def __len__(self) -> int:
        return len(self._accounts)

    @asynccontextmanager
    async def call(self, caller: str, peer: str) -> AsyncIterator[None]:
        """Count one call of a caller for the length of the block.

        Args:
            caller: its name.
            peer: the connection that the call came on.

        Raises:
            Overloaded: the caller is beyond a quota.
        """
        account = self._account(caller)
        account.calls += 1
        account.connections[peer] += 1
        try:
            await self._check(account)
            yield
        finally:
            account.calls -= 1
            account.connections[peer] -= 1
            if not account.connections[peer]:
                del account.connections[peer]

    async def received(self, caller: str, size: int) -> None:
        """Count the bytes of a message.

        Raises:
            Overloaded: the caller is beyond its quota.
        """
        if not self._account(caller).sent.take(size, self._clock()):
            await self._refuse("bytes", f"{self._settings.bytes_per_second:g} bytes per second")

    async def mistaken(self, caller: str) -> None:
        """Count a mistake; returns at once as long as there are few."""
        if not self._account(caller).mistakes.take(1, self._clock()):
            QUOTA_EXCEEDED.labels("mistakes").inc()
            await asyncio.sleep(self._settings.pause_seconds)

    async def _check(self, account: _Account) -> None:
        limits = self._settings
        if account.calls > limits.calls:
            await self._refuse("calls", f"at most {limits.calls} calls at once")
        if len(account.connections) > limits.connections:
            await self._refuse("connections", f"at most {limits.connections} connections at once")
        if not account.requests.take(1, self._clock()):
            await self._refuse("requests", f"{limits.requests_per_second:g} calls per second")

    async def _refuse(self, quota: str, expected: str) -> None:
        QUOTA_EXCEEDED.labels(quota).inc()
        await asyncio.sleep(self._settings.pause_seconds)
        raise Overloaded(
            f"the caller is beyond its quota of {quota}",
            expected=expected,
            fix="ask less often; the operator can raise `quota` in the configuration of the service",
        )

    def _account(self, caller: str) -> _Account:
        now = self._clock()
        account = self._accounts.get(caller)
        if account is None:
            self._forget(now)
            limits = self._settings
            account = self._accounts[caller] = _Account(
                Bucket(limits.requests_per_second, limits.requests_at_once, now),
                Bucket(limits.bytes_per_second, limits.bytes_at_once, now),
                Bucket(limits.mistakes_per_second, limits.mistakes_at_once, now),
            )
        account.last_s = now
        return account

    def _forget(self, now: float) -> None:
        """Callers are certificates of the federation, so there are not many; still they do not pile up for ever."""
        if len(self._accounts) < LARGEST_TABLE:
            return
        idle = [name for name, a in self._accounts.items() if not a.calls and now - a.last_s > FORGOTTEN_AFTER_S]
        for name in idle:
            del self._accounts[name]
