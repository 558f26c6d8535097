"""What happens at the port before anybody has shown a certificate; gRPC itself does not tell."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from services.runtime.metrics import CONNECTIONS_OPEN
from services.runtime.settings import split_address

TABLES = (Path("/proc/self/net/tcp"), Path("/proc/self/net/tcp6"))
ESTABLISHED = "01"


@contextmanager
def counting_connections(address: str) -> Iterator[None]:
    """Show the connections to a port in the metrics while the block runs, whether or not they ever say anything."""
    _, port = split_address(address)
    count = connections_to(port)
    CONNECTIONS_OPEN.set_function(lambda: float(count()))
    try:
        yield
    finally:
        CONNECTIONS_OPEN.set_function(lambda: 0.0)


def connections_to(port: int) -> Callable[[], int]:
    """Counts the established connections to a port of this machine; 0 where the system does not tell."""
    ours = f":{port:04X}"

    def count() -> int:
        return sum(_is_ours(line, ours) for table in TABLES if table.exists() for line in _lines(table))

    return count


def _is_ours(line: str, ours: str) -> bool:
    fields = line.split()
    return len(fields) > 3 and fields[1].endswith(ours) and fields[3] == ESTABLISHED


def _lines(table: Path) -> list[str]:
    return table.read_text().splitlines()[1:]
