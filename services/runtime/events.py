"""Facts of a session in the order in which they happened, for everybody who watches: past ones first, then live."""

import asyncio
from collections.abc import AsyncIterator
from typing import Generic, TypeVar

from fl_core.errors import TacitError

FactT = TypeVar("FactT")


class Notice:
    """Wakes everybody who waits, each time that something changed."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def announce(self) -> None:
        """Wake everybody who waits now."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait(self, timeout_s: float | None = None) -> None:
        """Return at the next announcement, or after `timeout_s` seconds."""
        changed = self._changed
        try:
            async with asyncio.timeout(timeout_s):
                await changed.wait()
        except TimeoutError:
            return


class EventLog(Generic[FactT]):
    """A list that only grows, until it is closed or breaks.

    The one who appends bounds its length: a session has a bounded number of facts.
    """

    def __init__(self) -> None:
        self._facts: list[FactT] = []
        self._notice = Notice()
        self._closed = False
        self._error: TacitError | None = None

    def append(self, fact: FactT) -> None:
        """Add a fact and wake the watchers."""
        self._facts.append(fact)
        self._notice.announce()

    def close(self) -> None:
        """There will be no more facts: watchers end after the last one."""
        self._closed = True
        self._notice.announce()

    def fail(self, error: TacitError) -> None:
        """There will be no more facts because of `error`: watchers raise it after the last one."""
        if not self._closed:
            self._error = error
            self.close()

    async def follow(self) -> AsyncIterator[FactT]:
        """Every fact from the first one on, until the log is closed.

        Raises:
            TacitError: the error with which the log was broken.
        """
        seen = 0
        while True:
            for fact in self._facts[seen:]:
                seen += 1
                yield fact
            if seen < len(self._facts):
                continue
            if self._error is not None:
                raise self._error
            if self._closed:
                return
            await self._notice.wait()
