"""Which sites are here: one open WatchRounds stream each, and a mailbox that outlives a short break of it."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from fl_core.errors import LocalProtocolError, Overloaded, TacitError
from fl_core.rounds.plan import ClientId
from fl_core.wire.v1 import coordinator_pb2 as pb
from services.runtime.events import Notice

MAILBOX_EVENTS = 256
"""Events that wait for one site. A site that lets more pile up is cut off and has to come back."""

OnLost = Callable[[ClientId], None]


@dataclass(frozen=True, slots=True)
class ConnectedSite:
    """A site as its certificate names it.

    Args:
        client_id: its name.
        certificate_sha256: of the certificate (DER).
        instance: of its process; empty when it does not tell.
    """

    client_id: ClientId
    certificate_sha256: bytes
    instance: bytes = b""


@dataclass(slots=True)
class _Mailbox:
    site: ConnectedSite
    events: deque[pb.WatchRoundsResponse] = field(default_factory=deque)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    stream: int = 0
    connected: bool = False
    overflown: bool = False
    lost_timer: asyncio.TimerHandle | None = None
    dismissed: TacitError | None = None


class Presence:
    """The sites that are connected, and the events that are on their way to them.

    Args:
        grace_s: a site whose stream broke counts as present for this long, and finds its events when it returns.
        heartbeat_s: a silent stream carries a heartbeat this often, so that a dead peer is noticed.
    """

    def __init__(self, grace_s: float, heartbeat_s: float) -> None:
        self._grace_s = grace_s
        self._heartbeat_s = heartbeat_s
        self._mailboxes: dict[ClientId, _Mailbox] = {}
        self._listeners: list[OnLost] = []
        self._streams = 0
        self.changes = Notice()

    def connected(self) -> tuple[ConnectedSite, ...]:
        """Sites with an open stream, by client_id."""
        here = (box.site for box in self._mailboxes.values() if box.connected)
        return tuple(sorted(here, key=lambda site: site.client_id))

    def is_present(self, client_id: ClientId) -> bool:
        """Whether the site is connected, or was so within the grace."""
        return client_id in self._mailboxes

    def send(self, client_id: ClientId, event: pb.WatchRoundsResponse) -> bool:
        """Leave an event for a site; says whether the site is here to get it."""
        box = self._mailboxes.get(client_id)
        if box is None:
            return False
        if len(box.events) >= MAILBOX_EVENTS:
            box.overflown = True
            box.events.clear()
        else:
            box.events.append(event)
        box.arrived.set()
        return True

    def broadcast(self, event: pb.WatchRoundsResponse) -> None:
        """Leave an event for every site that is here."""
        for client_id in tuple(self._mailboxes):
            self.send(client_id, event)

    def dismiss(self, error: TacitError) -> None:
        """End every stream with `error` and forget what was on its way: somebody else looks after the sites now."""
        boxes, self._mailboxes = list(self._mailboxes.values()), {}
        for box in boxes:
            if box.lost_timer is not None:
                box.lost_timer.cancel()
            box.dismissed = error
            box.arrived.set()
        self.changes.announce()

    @contextmanager
    def losses(self, on_lost: OnLost) -> Iterator[None]:
        """Call `on_lost` for each site whose stream stays broken longer than the grace, or that is a new process."""
        self._listeners.append(on_lost)
        try:
            yield
        finally:
            self._listeners.remove(on_lost)

    async def stream(self, site: ConnectedSite) -> AsyncGenerator[pb.WatchRoundsResponse, None]:
        """Serve one stream of a site: a heartbeat at once, then events as they come.

        An event leaves the mailbox only when the next one is asked for, so that an event on which the stream
        broke is sent again on the next stream.

        Raises:
            LocalProtocolError: a newer stream of the same site took over.
            Overloaded: the site did not read its events.
            TacitError: all sites were dismissed, for this reason.
        """
        box, number = self._attach(site)
        try:
            yield pb.WatchRoundsResponse(heartbeat=pb.Heartbeat())
            while True:
                event = await self._next(box, number)
                yield event or pb.WatchRoundsResponse(heartbeat=pb.Heartbeat())
                if event is not None and box.events and box.events[0] is event:
                    box.events.popleft()
        finally:
            self._detach(box, number)

    async def _next(self, box: _Mailbox, number: int) -> pb.WatchRoundsResponse | None:
        if not box.events and not box.overflown and box.dismissed is None and box.stream == number:
            box.arrived.clear()
            try:
                async with asyncio.timeout(self._heartbeat_s):
                    await box.arrived.wait()
            except TimeoutError:
                return None
        if box.dismissed is not None:
            raise box.dismissed
        if box.stream != number:
            raise LocalProtocolError(
                "another stream of this site took over", expected="one process per site", got=box.site.client_id
            )
        if box.overflown:
            box.overflown = False
            raise Overloaded("the site does not read its events", got=box.site.client_id, fix="connect again")
        return box.events[0] if box.events else None

    def _attach(self, site: ConnectedSite) -> tuple[_Mailbox, int]:
        box = self._mailboxes.setdefault(site.client_id, _Mailbox(site))
        if box.lost_timer is not None:
            box.lost_timer.cancel()
            box.lost_timer = None
        is_another_process = box.site.instance != site.instance and box.stream > 0
        self._streams += 1
        box.site, box.stream, box.connected = site, self._streams, True
        # Wakes the stream that this one replaces.
        box.arrived.set()
        if is_another_process and not box.events:
            # What the process before knew of an open attempt is gone, so nobody must wait for it in that attempt.
            self._tell_lost(site.client_id)
        self.changes.announce()
        return box, self._streams

    def _detach(self, box: _Mailbox, number: int) -> None:
        if box.stream != number or box.dismissed is not None:
            return
        box.connected = False
        loop = asyncio.get_running_loop()
        box.lost_timer = loop.call_later(self._grace_s, self._lose, box)
        self.changes.announce()

    def _lose(self, box: _Mailbox) -> None:
        if box.connected or self._mailboxes.get(box.site.client_id) is not box:
            return
        del self._mailboxes[box.site.client_id]
        self._tell_lost(box.site.client_id)
        self.changes.announce()

    def _tell_lost(self, client_id: ClientId) -> None:
        for on_lost in tuple(self._listeners):
            on_lost(client_id)
