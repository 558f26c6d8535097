"""What the coordinator is told about a session, and what is counted of it."""

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

from fl_core.rounds.machine import AbandonReason, DropoutReason
from fl_core.secagg.messages import Beacon


class Phase(StrEnum):
    """What a session waits for."""

    ADVERTISING = "advertising"
    FREEZING = "freezing"
    SHARING = "sharing"
    UPLOADING = "uploading"
    SIGNING = "signing"
    REVEALING = "revealing"
    EXPANDING = "expanding"
    FINISHED = "finished"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Dropped:
    """A site that is not waited for any more, and why."""

    index: int
    reason: DropoutReason


@dataclass(frozen=True, slots=True)
class Frozen:
    """U1 of a sparse graph is frozen; the coordinator reveals the beacon for this digest."""

    directory_digest: bytes


@dataclass(frozen=True, slots=True)
class Closed:
    """The exchange is over: U1, U2, the message bytes of each site, and the beacon of a sparse graph."""

    advertised: tuple[int, ...]
    shared: tuple[int, ...]
    bytes_up: dict[int, int]
    bytes_down: dict[int, int]
    directory_digest: bytes
    commitments_root: bytes
    beacon: Beacon | None


@dataclass(frozen=True, slots=True)
class Failed:
    """The exchange cannot be finished."""

    reason: AbandonReason
    detail: str


ExchangeFact = Dropped | Frozen | Closed | Failed


@dataclass(slots=True)
class Unmasked:
    """What came of rounds 3 and 4; `failure` is set when no mask was released."""

    failure: AbandonReason | None = None
    detail: str = ""
    dropouts: list[Dropped] = field(default_factory=list)
    signed: tuple[int, ...] = ()
    revealed: tuple[int, ...] = ()
    bytes_up: dict[int, int] = field(default_factory=dict)
    bytes_down: dict[int, int] = field(default_factory=dict)


class Traffic:
    """Message bytes by site."""

    def __init__(self) -> None:
        self.up: Counter[int] = Counter()
        self.down: Counter[int] = Counter()
