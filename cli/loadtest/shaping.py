"""A slow line between one site and the services: a relay of TCP in this process, below TLS.

Each site has one line in each direction. All of its connections share it: the bytes leave one after the other at the
line's rate, and arrive after its latency. A full line is not read from, so that the sender feels it by TCP.
"""

import asyncio
from dataclasses import dataclass, field

from cli.loadtest.options import Shaping
from cli.ports import LOOPBACK

PIECE_BYTES = 1 << 14
PIECES_IN_FLIGHT = 1024
MBIT = 1e6 / 8


@dataclass(slots=True)
class Line:
    """One direction of a site's line.

    Args:
        bytes_per_s: rate; None for no limit.
        latency_s: from one end to the other.
    """

    bytes_per_s: float | None
    latency_s: float
    bytes_carried: int = 0
    _free_at: float = 0.0

    async def carry(self, count: int) -> float:
        """Wait until so many bytes have left; returns when they arrive, in seconds of the loop's clock."""
        self.bytes_carried += count
        left = now = asyncio.get_running_loop().time()
        if self.bytes_per_s is not None:
            left = self._free_at = max(now, self._free_at) + count / self.bytes_per_s
            await asyncio.sleep(left - now)
        return left + self.latency_s


@dataclass(slots=True)
class SlowLine:
    """The line of one site: relays to every address that the site asks for.

    Args:
        shaping: rate and latency.
    """

    shaping: Shaping
    up: Line = field(init=False)
    down: Line = field(init=False)
    _relays: dict[str, tuple[str, asyncio.Server]] = field(init=False, default_factory=dict)
    _connections: set[asyncio.Task[None]] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        rate = None if self.shaping.rate_mbit is None else self.shaping.rate_mbit * MBIT
        self.up, self.down = (Line(rate, self.shaping.latency_ms / 1000) for _ in range(2))

    async def to(self, address: str) -> str:
        """The near end of the line to an address, host:port."""
        if address not in self._relays:
            host, _, port = address.rpartition(":")

            async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await self._relay(reader, writer, host.strip("[]"), int(port))

            server = await asyncio.start_server(accepted, LOOPBACK, 0, limit=PIECE_BYTES)
            self._relays[address] = f"{LOOPBACK}:{server.sockets[0].getsockname()[1]}", server
        return self._relays[address][0]

    def known(self, address: str) -> str:
        """As `to`, for an address that was asked for before."""
        return self._relays[address][0]

    def close(self) -> None:
        """Break every connection and listen no more."""
        for _, server in self._relays.values():
            server.close()
        self._relays.clear()
        for task in self._connections:
            task.cancel()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            far_reader, far_writer = await asyncio.open_connection(host, port, limit=PIECE_BYTES)
            try:
                async with asyncio.TaskGroup() as tasks:
                    _connect(tasks, reader, far_writer, self.up)
                    _connect(tasks, far_reader, writer, self.down)
            finally:
                far_writer.transport.abort()
        except* OSError:
            # One end broke the connection, or there is none: so it is for the other end.
            pass
        finally:
            self._connections.discard(task)
            writer.transport.abort()


def _connect(tasks: asyncio.TaskGroup, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: Line) -> None:
    under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(PIECES_IN_FLIGHT)
    tasks.create_task(_send_off(reader, line, under_way))
    tasks.create_task(_deliver(under_way, writer))


async def _send_off(reader: asyncio.StreamReader, line: Line, under_way: "asyncio.Queue[tuple[float, bytes]]") -> None:
    while True:
        piece = await reader.read(PIECE_BYTES)
        await under_way.put((await line.carry(len(piece)), piece))
        if not piece:
            return


async def _deliver(under_way: "asyncio.Queue[tuple[float, bytes]]", writer: asyncio.StreamWriter) -> None:
    loop = asyncio.get_running_loop()
    while True:
        arrival, piece = await under_way.get()
        await asyncio.sleep(max(0.0, arrival - loop.time()))
        if not piece:
            writer.write_eof()
            return
        writer.write(piece)
        await writer.drain()
