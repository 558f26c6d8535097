"""`tacit up`: a federation on this machine, until Ctrl-C."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import CLUSTER_DIR
from cli.output import JsonOption, print_json, say

if TYPE_CHECKING:
    from types import FrameType

    from cli.cluster import LocalCluster

WATCH_S = 0.5


def up(
    workdir: Annotated[
        Path, typer.Option("--workdir", "-w", help="Everything of the cluster lies here.")
    ] = CLUSTER_DIR,
    sites: Annotated[
        int, typer.Option("--sites", help="Make identities and site.yaml for this many sites.", min=0)
    ] = 3,
    port: Annotated[
        int, typer.Option("--port", help="The coordinator's; the other two take the next ones. 0: free ones.", min=0)
    ] = 0,
    as_json: JsonOption = False,
) -> None:
    """Start a local cluster: CA, certificates and the three services, on SQLite.

    It says READY when all health checks pass. Ctrl-C stops all of it; the folder can be used again.
    """
    from cli.cluster import ClusterOptions, LocalCluster

    with terminated_as_interrupt(), LocalCluster(workdir, ClusterOptions(base_port=port)) as cluster:
        names = [f"site-{number:02d}" for number in range(1, sites + 1)]
        paths = {name: str(cluster.add_site(name)) for name in names}
        _announce(cluster, paths, as_json)
        _watch(cluster)


@contextmanager
def terminated_as_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block as Ctrl-C does, so that what it started is stopped."""

    def interrupt(_number: int, _frame: "FrameType | None") -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _announce(cluster: "LocalCluster", sites: dict[str, str], as_json: bool) -> None:
    if as_json:
        facts = {
            "workdir": str(cluster.workdir),
            "operator_config": str(cluster.operator_config),
            "services": cluster.addresses,
            "processes": {name: process.popen.pid for name, process in cluster.processes.items()},
            "sites": sites,
        }
        print_json({"ready": True, **facts})
        return
    for service, address in cluster.addresses.items():
        typer.echo(f"  {service:12} {address}")
    if sites:
        first = next(iter(sites.values()))
        typer.echo(f"  run a site   tacit site --config {first} --trainer package.module:factory")
    typer.echo(f"  run a job    tacit train JOB.yaml --config {cluster.operator_config}")
    typer.echo("READY, Ctrl-C stops all")


def _watch(cluster: "LocalCluster") -> None:
    try:
        while True:
            cluster.check_alive()
            time.sleep(WATCH_S)
    except KeyboardInterrupt:
        say("stopping")
