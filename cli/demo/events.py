"""What a site process of the demo tells its parent: one JSON object per line on its stdout."""

import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Self


class EventKind(StrEnum):
    """What happened at a site."""

    CONNECTED = "connected"
    INVITED = "invited"
    TRAINING = "training"
    TRAINED = "trained"
    KEYS_SHARED = "keys_shared"
    UPLOADING = "uploading"
    UPLOADED = "uploaded"
    REVEALED = "revealed"
    LEFT = "left"
    HALTED = "halted"


@dataclass(frozen=True, slots=True)
class SiteEvent:
    """One event.

    Args:
        kind: what happened.
        round_id: in which round; 0 outside of one.
        at: when, seconds of this machine's monotonic clock, the same for all processes.
        detail: for people.
    """

    kind: EventKind
    round_id: int
    at: float
    detail: str = ""

    def emit(self) -> None:
        """Tell the parent."""
        sys.stdout.write(json.dumps(asdict(self)) + "\n")
        sys.stdout.flush()

    @classmethod
    def parse(cls, line: str) -> Self | None:
        """Read one line; None for what is no event, such as a print of a trainer."""
        try:
            fields = json.loads(line)
            return cls(EventKind(fields["kind"]), int(fields["round_id"]), float(fields["at"]), str(fields["detail"]))
        except (ValueError, KeyError, TypeError):
            return None


def emit(kind: EventKind, round_id: int = 0, detail: str = "") -> None:
    """Tell the parent that something happened now."""
    SiteEvent(kind, round_id, time.monotonic(), detail).emit()


def training_seconds(events: Iterable[Sequence[SiteEvent]], round_id: int) -> float:
    """Seconds of a round in which at least one site was training.

    Args:
        events: of each site, in order.
        round_id: the round.
    """
    spans = sorted(span for site in events for span in _training_spans(site, round_id))
    total, covered_until = 0.0, float("-inf")
    for start, end in spans:
        total += max(0.0, end - max(start, covered_until))
        covered_until = max(covered_until, end)
    return total


def _training_spans(events: Sequence[SiteEvent], round_id: int) -> list[tuple[float, float]]:
    """Start and end of each training; one that was cut off by death has no end and does not count."""
    starts: list[float] = []
    spans: list[tuple[float, float]] = []
    for event in events:
        if event.round_id != round_id:
            continue
        if event.kind is EventKind.TRAINING:
            starts.append(event.at)
        elif event.kind is EventKind.TRAINED and starts:
            spans.append((starts.pop(), event.at))
    return spans
