"""What every attempt works with: stores, sites, services and the clock."""

import time
from dataclasses import dataclass, field

from services.coordinator.aggregates import AggregateInbox
from services.coordinator.evaluation import EvaluationDesk
from services.coordinator.job_store import JobStore
from services.coordinator.journal import Clock
from services.coordinator.leadership import Leadership
from services.coordinator.models import ModelStore
from services.coordinator.peers import AggregatorPeer, KeyServerPeer
from services.coordinator.placement import ServicePool
from services.coordinator.presence import Presence
from services.coordinator.privacy_desk import PrivacyDesk
from services.coordinator.round_store import RoundStore
from services.coordinator.traffic import Traffic
from services.coordinator.transcripts import TranscriptStore


def steady_clock() -> Clock:
    """Seconds since the epoch, by a clock that is read once and then only runs forward."""
    offset = time.time() - time.monotonic()
    return lambda: offset + time.monotonic()


@dataclass(frozen=True, slots=True)
class Resources:
    """Everything that outlives an attempt."""

    jobs: JobStore
    rounds: RoundStore
    models: ModelStore
    transcripts: TranscriptStore
    leadership: Leadership
    presence: Presence
    aggregators: ServicePool[AggregatorPeer]
    keyservers: ServicePool[KeyServerPeer]
    evaluations: EvaluationDesk
    traffic: Traffic
    inbox: AggregateInbox
    privacy: PrivacyDesk
    clock: Clock = field(default_factory=steady_clock)

    async def close(self) -> None:
        """Close the connections to the services."""
        await self.aggregators.close()
        await self.keyservers.close()
