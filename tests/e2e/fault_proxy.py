"""A TCP proxy that makes a network bad: it delays, throttles, cuts, corrupts and swallows, by a seed.

It works on bytes, so that TLS and gRPC above it are the real ones. Faults can be changed while connections are open.
"""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

PIECE_BYTES = 1 << 16
SMOOTH_S = 0.02
"""A throttled link passes pieces of at most this many seconds, so that its rate is even."""

IN_FLIGHT = 64
"""Pieces that are on the way in one direction; more are held back by the socket."""


@dataclass(frozen=True, slots=True)
class Faults:
    """How bad a link is. Without arguments it is perfect.

    Args:
        delay_s: seconds that every byte is on its way, in each direction.
        bytes_per_second: most bytes that pass in each direction of one connection.
        cut_every_s: a connection is reset when it is this old.
        corrupt_every_bytes: one byte in so many, on average, is changed.
        swallow: everything is read and nothing arrives, as after a firewall lost its state.
    """

    delay_s: float = 0.0
    bytes_per_second: float = float("inf")
    cut_every_s: float = float("inf")
    corrupt_every_bytes: float = float("inf")
    swallow: bool = False


@dataclass(slots=True)
class FaultProxy:
    """Passes connections to `target` on. Made by `running_proxy`.

    Args:
        target: host:port.
        faults: of every connection, looked up for each piece of data.
        seed: of what is corrupted.
    """

    target: str
    faults: Faults = field(default_factory=Faults)
    seed: int = 0
    accepted: int = field(init=False, default=0)
    passed_bytes: int = field(init=False, default=0)
    corrupted: int = field(init=False, default=0)
    _random: random.Random = field(init=False)
    _connections: set[asyncio.Task[None]] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    @property
    def open_connections(self) -> int:
        """Connections that are open now."""
        return len(self._connections)

    def cut(self) -> None:
        """Reset every connection that is open now."""
        for connection in self._connections:
            connection.cancel()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass one connection on until it ends or is cut."""
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        self.accepted += 1
        try:
            with suppress(OSError, TimeoutError):
                await self._join(reader, writer)
        except asyncio.CancelledError:
            # By `cut`; the task of a connection has no other duty.
            pass
        finally:
            self._connections.discard(task)
            writer.transport.abort()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self.target.rpartition(":")
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        try:
            async with asyncio.timeout(self.faults.cut_every_s if self.faults.cut_every_s < 1e9 else None):
                await self._pump_both(reader, writer, far_reader, far_writer)
        finally:
            far_writer.transport.abort()

    async def _pump_both(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        far_reader: asyncio.StreamReader,
        far_writer: asyncio.StreamWriter,
    ) -> None:
        pumps = {
            asyncio.create_task(self._pump(reader, far_writer)),
            asyncio.create_task(self._pump(far_reader, writer)),
        }
        try:
            done, _ = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in done:
                pump.result()
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        on_the_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(IN_FLIGHT)
        arriving = asyncio.create_task(self._deliver(on_the_way, writer))
        clock = asyncio.get_running_loop().time
        free_at = clock()
        try:
            while data := await reader.read(self._piece_bytes()):
                free_at = max(clock(), free_at) + len(data) / self.faults.bytes_per_second
                await asyncio.sleep(max(0.0, free_at - clock()))
                await on_the_way.put((clock() + self.faults.delay_s, data))
            await on_the_way.join()
        finally:
            arriving.cancel()
            await asyncio.gather(arriving, return_exceptions=True)

    async def _deliver(self, on_the_way: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            due, data = await on_the_way.get()
            await asyncio.sleep(max(0.0, due - clock()))
            if not self.faults.swallow:
                writer.write(self._corrupt(data))
                await writer.drain()
                self.passed_bytes += len(data)
            on_the_way.task_done()

    def _piece_bytes(self) -> int:
        return max(1, int(min(PIECE_BYTES, self.faults.bytes_per_second * SMOOTH_S)))

    def _corrupt(self, data: bytes) -> bytes:
        if self._random.random() >= len(data) / self.faults.corrupt_every_bytes:
            return data
        self.corrupted += 1
        changed = bytearray(data)
        changed[self._random.randrange(len(changed))] ^= 1 << self._random.randrange(8)
        return bytes(changed)


@asynccontextmanager
async def running_proxy(
    target: str, faults: Faults | None = None, *, seed: int = 0, port: int = 0
) -> AsyncIterator[tuple[FaultProxy, str]]:
    """A proxy on the loopback interface, and its host:port; at the end its connections are cut.

    Args:
        target: host:port to which connections are passed on. Nobody needs to listen there yet.
        faults: how bad the link is.
        seed: of what is corrupted.
        port: to listen on; 0 takes a free one.
    """
    proxy = FaultProxy(target, faults or Faults(), seed)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", port)
    try:
        yield proxy, f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        proxy.cut()
        while proxy.open_connections:
            await asyncio.sleep(0.001)
