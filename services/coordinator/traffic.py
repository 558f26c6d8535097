"""Message bytes that the coordinator itself exchanged with each site, by job, until a report takes them."""

from collections import defaultdict

from services.coordinator.records import SiteBytes

MAX_COUNTERS = 100_000


class Traffic:
    """Counts bytes by job and site. Sites that nobody reports on are forgotten beyond a bound."""

    def __init__(self) -> None:
        self._counters: dict[tuple[str, str], SiteBytes] = defaultdict(SiteBytes)

    def count(self, job_id: str, client_id: str, *, up: int = 0, down: int = 0) -> None:
        """Add the bytes of a message."""
        if len(self._counters) >= MAX_COUNTERS:
            self._counters.clear()
        self._counters[job_id, client_id] += SiteBytes(up, down)

    def take(self, job_id: str, client_id: str) -> SiteBytes:
        """Bytes since the last time that they were taken."""
        return self._counters.pop((job_id, client_id), SiteBytes())
