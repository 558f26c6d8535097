"""One site of a load test: the SDK itself with a made-up trainer, in an event loop that it shares with many others."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import grpc

from cli.loadtest.metering import Tally, metered
from cli.loadtest.schedule import VanishPoint
from cli.loadtest.shaping import SlowLine
from client_sdk import Site, SiteConfig, SiteObserver, Trainer
from client_sdk.network import DirectNetwork
from fl_core.rounds.plan import RoundPlan
from fl_core.secagg.messages import RingVector
from fl_core.transport.identity import Role
from fl_core.transport.preflight import ServiceCertificate
from fl_core.transport.tls import Credentials

Attempt = tuple[int, int]
"""Round and attempt."""


class Recorded(NamedTuple):
    """What a site encoded, before it was masked."""

    ring_bits: int
    vector: RingVector


class MeteredNetwork(DirectNetwork):
    """Counts the bytes of a site, and leads over its slow line where it has one.

    Args:
        tally: of the site.
        line: of the site; straight to the services when None.
    """

    def __init__(self, tally: Tally, line: SlowLine | None) -> None:
        self._tally = tally
        self._line = line

    async def look_at(
        self, address: str, credentials: Credentials, role: Role, service_id: str | None
    ) -> ServiceCertificate:
        """See who listens at an address."""
        near = address if self._line is None else await self._line.to(address)
        return await super().look_at(near, credentials, role, service_id)

    def open(self, address: str, credentials: Credentials, role: Role, service_id: str | None) -> grpc.aio.Channel:
        """Open a channel; a site looks at an address before it opens one."""
        near = address if self._line is None else self._line.known(address)
        return metered(super().open(near, credentials, role, service_id), self._tally)


@dataclass(slots=True)
class LightSite(SiteObserver):
    """A site that may vanish, and comes back when it is told to.

    It vanishes as a process that dies: its connections break, and nobody is told.

    Args:
        config: of the site.
        trainer: what it trains with.
        vanishes: the rounds in which it vanishes, with the step.
        line: its slow line, if it has one.
        said: told `connected` and `vanished`.
    """

    config: SiteConfig
    trainer: Trainer
    vanishes: Mapping[int, VanishPoint]
    line: SlowLine | None
    said: Callable[[str], None]
    tally: Tally = field(default_factory=Tally)
    recorded: dict[Attempt, Recorded] = field(default_factory=dict)
    task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Take part from now on; after the site vanished, with nothing but its state folder."""
        if self.task is not None:
            await asyncio.wait((self.task,))
        site = Site(self.config, observer=self, network=MeteredNetwork(self.tally, self.line))
        self.task = asyncio.create_task(site.participate(self.trainer))

    def forget(self, attempt: Attempt) -> None:
        """Let go of what was recorded up to an attempt."""
        self.recorded = {key: entry for key, entry in self.recorded.items() if key > attempt}

    def connected(self, coordinator: str) -> None:  # noqa: ARG002
        """See `SiteObserver`."""
        self.said("connected")

    def invited(self, plan: RoundPlan) -> None:
        """See `SiteObserver`."""
        self._vanish_at(VanishPoint.INVITED, plan)

    def keys_shared(self, plan: RoundPlan) -> None:
        """See `SiteObserver`."""
        self._vanish_at(VanishPoint.KEYS_SHARED, plan)

    def trained(self, plan: RoundPlan, num_samples: int, metrics: Mapping[str, float]) -> None:  # noqa: ARG002
        """See `SiteObserver`."""
        self._vanish_at(VanishPoint.TRAINED, plan)

    def encoded(self, plan: RoundPlan, index: int, vector: RingVector) -> None:  # noqa: ARG002
        """Keeps the update for the check of the sum."""
        self.recorded[plan.round_id, plan.attempt] = Recorded(plan.codec.ring_bits, vector)

    def upload_chunk_sent(self, plan: RoundPlan, index: int, count: int) -> None:
        """The middle is the first chunk that has as many behind it as before it."""
        if index == count // 2:
            self._vanish_at(VanishPoint.MID_UPLOAD, plan)

    def uploaded(self, plan: RoundPlan) -> None:
        """See `SiteObserver`."""
        self._vanish_at(VanishPoint.UPLOADED, plan)

    def _vanish_at(self, point: VanishPoint, plan: RoundPlan) -> None:
        # Whoever vanished comes back for the second attempt at a round, and stays.
        if plan.attempt == 1 and self.vanishes.get(plan.round_id) is point and self.task is not None:
            self.task.cancel()
            if self.line is not None:
                self.line.close()
            self.said("vanished")
