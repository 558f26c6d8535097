"""A large model down to a site and its update up, through the real services: speed, and memory of who receives.

The baselines are a plain socket without TLS and a copy in memory, both of the same number of bytes.
"""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import psutil  # type: ignore[import-untyped, unused-ignore]

from benchmarks.federations import Federation, federation, zeros
from benchmarks.figures import Figure
from cli.demo.events import EventKind, SiteEvent

PARAMETERS = 100_000_000
TENSORS = 10
FLOAT_BYTES = 4
RING_BITS = 32
CHUNK_BYTES = 1 << 18
SAMPLE_S = 0.02
CLIENT_ID = "site-01"


def measure(*, quick: bool = False) -> list[Figure]:
    """Megabytes per second each way, and the growth of the resident memory of each receiver in models."""
    parameters = 1_000_000 if quick else PARAMETERS
    model_bytes = parameters * FLOAT_BYTES
    with federation(1, secure=False) as running:
        watched = {name: process.popen.pid for name, process in running.cluster.processes.items()}
        watched["site"] = running.sites.pid(CLIENT_ID)
        with _memory_of(watched) as memory:
            events = _train(running, parameters, memory)
    socket_speed, copy_speed = _plain_socket_speed(model_bytes), _copy_speed(model_bytes)
    down = model_bytes / 1e6 / (_when(events, EventKind.TRAINING) - _when(events, EventKind.INVITED))
    up = model_bytes / 1e6 / (_when(events, EventKind.UPLOADED) - _when(events, EventKind.UPLOADING))
    return [
        Figure("model_down", down, "MB/s", baseline=socket_speed),
        Figure("update_up", up, "MB/s", baseline=socket_speed),
        Figure("plain_socket", socket_speed, "MB/s", baseline=copy_speed),
        Figure("copy_in_memory", copy_speed, "MB/s"),
        Figure("aggregator_growth", memory.growth("aggregator") / model_bytes, "models", baseline=2.5),
        Figure("coordinator_growth", memory.growth("coordinator") / model_bytes, "models"),
        Figure("site_growth", memory.growth("site") / model_bytes, "models"),
    ]


def _train(running: Federation, parameters: int, memory: "_Memory") -> list[SiteEvent]:
    job = {
        "name": "transport",
        "rounds": 1,
        "aggregation": "plain",
        "codec": {"clip": 1.0, "ring_bits": RING_BITS},
        "cohort": {"min": 1, "max": 1},
        "max_weight": 100,
        "max_dropout": 0.0,
        "chunk_bytes": CHUNK_BYTES,
        "evaluate_every": 0,
        "phases": {"recruiting": {"min_seconds": 0.0, "max_seconds": 60.0}},
    }
    # What the coordinator holds of the submission is no growth of the round.
    running.train(job, zeros(parameters, TENSORS), submitted=memory.start_over)
    return running.sites.events[CLIENT_ID]


def _when(events: list[SiteEvent], kind: EventKind) -> float:
    return next(event.at for event in events if event.kind is kind)


@dataclass(slots=True)
class _Memory:
    """Resident memory of some processes: what it was at the start, and its peak since."""

    processes: dict[str, psutil.Process]
    start: dict[str, int] = field(default_factory=dict)
    peak: dict[str, int] = field(default_factory=dict)

    def start_over(self) -> None:
        """Count from now on."""
        self.start = {name: process.memory_info().rss for name, process in self.processes.items()}
        self.peak = dict(self.start)

    def sample(self) -> None:
        """Look once."""
        for name, process in self.processes.items():
            self.peak[name] = max(self.peak[name], process.memory_info().rss)

    def growth(self, name: str) -> int:
        """Bytes between start and peak."""
        return self.peak[name] - self.start[name]


@contextmanager
def _memory_of(processes: dict[str, int]) -> Iterator[_Memory]:
    memory = _Memory({name: psutil.Process(pid) for name, pid in processes.items()})
    memory.start_over()
    done = threading.Event()

    def watch() -> None:
        while not done.wait(SAMPLE_S):
            memory.sample()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield memory
    finally:
        done.set()
        watcher.join()


def _plain_socket_speed(count: int) -> float:
    """MB/s of a loopback connection without TLS, sent in chunks of the same size."""
    payload = memoryview(bytes(CHUNK_BYTES))
    with socket.create_server(("127.0.0.1", 0)) as server:
        receiver = threading.Thread(target=_receive_all, args=(server, count))
        receiver.start()
        with socket.create_connection(server.getsockname()) as sender:
            began = time.perf_counter()
            for start in range(0, count, CHUNK_BYTES):
                sender.sendall(payload[: min(CHUNK_BYTES, count - start)])
            sender.shutdown(socket.SHUT_WR)
            receiver.join()
            return count / 1e6 / (time.perf_counter() - began)


def _receive_all(server: socket.socket, count: int) -> None:
    target = memoryview(bytearray(count))
    connection, _ = server.accept()
    with connection:
        received = 0
        while received < count:
            received += connection.recv_into(target[received : received + CHUNK_BYTES])


def _copy_speed(count: int) -> float:
    source, target = np.ones(count, np.uint8), np.zeros(count, np.uint8)
    began = time.perf_counter()
    np.copyto(target, source)
    return count / 1e6 / (time.perf_counter() - began)
