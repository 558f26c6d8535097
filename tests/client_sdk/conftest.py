"""Fixtures of the SDK's tests: scripted services, and sites that take part in the background."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from scripted_services import Cluster

from client_sdk import Site, SiteConfig, SiteObserver, Trainer


@pytest.fixture
async def cluster(federation: Any, tmp_path: Path) -> AsyncIterator[Cluster]:
    """Three services that listen."""
    cluster = Cluster(federation, tmp_path)
    await cluster.start()
    yield cluster
    await cluster.stop()


@pytest.fixture
async def take_part() -> AsyncIterator[Callable[..., asyncio.Task[None]]]:
    """Starts sites, and ends them with the test."""
    tasks: list[asyncio.Task[None]] = []

    def start(config: SiteConfig, trainer: Trainer, observer: SiteObserver | None = None) -> asyncio.Task[None]:
        tasks.append(asyncio.create_task(Site(config, observer).participate(trainer)))
        return tasks[-1]

    yield start
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
