"""In-memory delivery of the sites' messages, in virtual time and with faults."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from fl_core.errors import NotEnough, RemoteProtocolError
from fl_core.secagg.messages import KeyAdvertisement, MaskedInput, RevealedShares, SealedShares, SurvivorSignature
from fl_core.simulation.clock import VirtualClock
from fl_core.simulation.faults import DropoutSchedule, Step

SiteMessage = KeyAdvertisement | SealedShares | MaskedInput | SurvivorSignature | RevealedShares
M = TypeVar("M", bound=SiteMessage)


@dataclass(frozen=True, slots=True)
class Envelope:
    """A message of the site at `sender`, as it reached a server."""

    sender: int
    step: Step
    message: SiteMessage = field(repr=False)
    arrived_s: float


Tap = Callable[[Envelope], None]
"""Sees every envelope that arrives."""


class Network:
    """Delivers messages after a latency. What a server refuses is kept with its reason, and disturbs nobody.

    Args:
        clock: virtual time.
        schedule: who vanishes, who is late.
        latency_s: seconds from every site to every server.
        tap: sees every envelope that arrives.
    """

    __slots__ = ("_clock", "_latency_s", "_refused", "_schedule", "_stopped", "_tap")

    def __init__(
        self, clock: VirtualClock, schedule: DropoutSchedule, latency_s: float, tap: Tap | None = None
    ) -> None:
        self._clock = clock
        self._schedule = schedule
        self._latency_s = latency_s
        self._tap = tap
        self._refused: list[tuple[int, Step, RemoteProtocolError]] = []
        self._stopped: list[tuple[int, Step, NotEnough]] = []

    @property
    def stopped(self) -> tuple[tuple[int, Step, NotEnough], ...]:
        """Sites that went no further because too few others did: site, step and reason."""
        return tuple(self._stopped)

    @property
    def refused(self) -> tuple[tuple[int, Step, RemoteProtocolError], ...]:
        """Messages that a server refused: sender, step and reason."""
        return tuple(self._refused)

    def send(self, sender: int, step: Step, make: Callable[[], M], receive: Callable[[M], None]) -> None:
        """Send the message of a site, if it is still there to send it.

        Args:
            sender: index of the site.
            step: which of its messages.
            make: makes the message; called when it arrives, so that a thousand vectors are never held at once.
            receive: the server's end.
        """
        if not self._schedule.sends(sender, step):
            return
        delay_s = self._latency_s + self._schedule.delay_of(sender, step)
        self._clock.after(delay_s, lambda: self._deliver(sender, step, make, receive))

    def _deliver(self, sender: int, step: Step, make: Callable[[], M], receive: Callable[[M], None]) -> None:
        try:
            message = make()
        except NotEnough as error:
            self._stopped.append((sender, step, error))
            return
        if self._tap is not None:
            self._tap(Envelope(sender, step, message, self._clock.now_s))
        try:
            receive(message)
        except RemoteProtocolError as error:
            self._refused.append((sender, step, error))
