"""Attackers as a program: strangers that connect and show no certificate, and a site that sends garbage.

    python attackers.py strangers --count 500 --seconds 20 ADDRESS...
    python attackers.py garbage --config site.yaml --seconds 20 ROLE=ADDRESS...

Only addresses of this machine are attacked, for a bounded time.
"""

import argparse
import asyncio
import json
import os
import random
import ssl
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import grpc

from client_sdk import SiteConfig
from fl_core.transport.channel import open_channel
from fl_core.transport.identity import Role
from fl_core.transport.tls import Credentials
from services.runtime.settings import split_address

LOOPBACK = "127.0.0.1"
PAUSE_S = 0.5
"""Between two connections of one stranger, once it was thrown out."""

AT_ONCE = 64
METHODS = {
    Role.COORDINATOR: ("CoordinatorService", ("LeaveRound", "ReportEvaluation"), ("SubmitJob",)),
    Role.AGGREGATOR: ("AggregatorService", ("GetUpload", "NoSuchMethod"), ("UpdateParameters",)),
    Role.KEYSERVER: ("KeyServerService", ("GetStatus",), ("ExchangeKeys", "RevealShares")),
}


async def strangers(addresses: Sequence[str], count: int, counts: Counter[str]) -> None:
    """Keep `count` connections open that say nothing, say garbage, or offer TLS without a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    async with asyncio.TaskGroup() as tasks:
        for number in range(count):
            host, port = split_address(addresses[number // 3 % len(addresses)])
            tasks.create_task(_stranger(host, port, context if number % 3 == 2 else None, number % 3 == 1, counts))


async def _stranger(host: str, port: int, context: ssl.SSLContext | None, is_loud: bool, counts: Counter[str]) -> None:
    assert host == LOOPBACK
    while True:
        with suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
            reader, writer = await asyncio.open_connection(host, port, ssl=context)
            counts["connections"] += 1
            try:
                if is_loud:
                    writer.write(os.urandom(2000))
                while await reader.read(1000):
                    pass
            finally:
                writer.transport.abort()
        await asyncio.sleep(PAUSE_S)


async def garbage(config: Path, targets: Sequence[str], counts: Counter[str]) -> None:
    """One site with a certificate calls everything with random bytes, as fast as it can."""
    site = SiteConfig.from_file(config)
    credentials = Credentials.from_files(site.certificate, site.key, site.ca, site.crl)
    async with asyncio.TaskGroup() as tasks:
        for target in targets:
            role, _, address = target.partition("=")
            assert split_address(address)[0] == LOOPBACK
            channel = open_channel(address, credentials, Role(role))
            for _ in range(AT_ONCE):
                tasks.create_task(_garbage(channel, Role(role), counts))


async def _garbage(channel: grpc.aio.Channel, role: Role, counts: Counter[str]) -> None:
    service, unary, streaming = METHODS[role]
    draw = random.Random()
    while True:
        payload = draw.randbytes(draw.choice((3, 300, 30_000, 300_000)))
        try:
            if draw.random() < 0.5:
                await channel.unary_unary(f"/fl_core.wire.v1.{service}/{draw.choice(unary)}")(payload, timeout=30)
            else:
                call = channel.stream_unary(f"/fl_core.wire.v1.{service}/{draw.choice(streaming)}")
                await call(iter([payload] * 20), timeout=30)
        except (grpc.RpcError, asyncio.InvalidStateError) as error:
            counts[str(error.code()) if isinstance(error, grpc.aio.AioRpcError) else type(error).__name__] += 1


async def _for_a_while(seconds: float, attack: "asyncio.Future[None]") -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(attack, seconds)


def main() -> None:
    """Attack until the time is up; prints what happened."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("strangers", "garbage"))
    parser.add_argument("targets", nargs="+")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--config", type=Path)
    options = parser.parse_args()
    counts: Counter[str] = Counter()

    async def run() -> None:
        attack = (
            strangers(options.targets, options.count, counts)
            if options.kind == "strangers"
            else garbage(options.config, options.targets, counts)
        )
        await _for_a_while(options.seconds, asyncio.ensure_future(attack))

    asyncio.run(run())
    sys.stdout.write(json.dumps(counts) + "\n")


if __name__ == "__main__":
    main()
