"""How much a flood slows a round down: 20 sites that send what is made up, calm, flooded and calm again.

    python tests/e2e/flood.py [--sites 20] [--rounds 6] [--parameters 100000] [--connections 500]

Prints one JSON object: median seconds of a round without an attacker, beside strangers, and beside a site that sends
garbage, the ratios, and what the metrics of the services show of it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import median

from cli.cluster import SERVICES, ClusterOptions, LocalCluster
from cli.loadtest.federation import Federation
from cli.loadtest.options import LoadOptions
from cli.loadtest.run import run_load_test
from cli.ports import LOOPBACK, free_ports
from fl_core.transport.authority import CertificateAuthority

ATTACKERS = Path(__file__).with_name("attackers.py")
SHOWN = (
    "tacit_tls_handshakes_total",
    "tacit_connections_open",
    "tacit_quota_exceeded_total",
    "tacit_rpc_refused_total",
)
LONGEST_ATTACK_S = 600.0


def measure(options: LoadOptions, cluster: LocalCluster, name: str) -> float:
    """Median seconds of a round."""
    folder = options.workdir / name
    authority = CertificateAuthority.load(cluster.workdir / "ca")
    federation = Federation(cluster.addresses["coordinator"], authority, folder)
    result = run_load_test(replace(options, workdir=folder), nullcontext(federation))
    return float(result.to_json()["round_seconds_median"])  # type: ignore[arg-type]


def shown(ports: dict[str, int]) -> dict[str, dict[str, float]]:
    """What the metrics of each service show of an attack."""
    found: dict[str, dict[str, float]] = {}
    for service, port in ports.items():
        with urllib.request.urlopen(f"http://{LOOPBACK}:{port}/metrics", timeout=30) as page:
            lines = page.read().decode().splitlines()
        values = (line.rsplit(" ", 1) for line in lines if line.startswith(SHOWN))
        found[service] = {name: float(value) for name, value in values}
    return found


def attacked(
    options: LoadOptions, cluster: LocalCluster, name: str, arguments: list[str], ports: dict[str, int]
) -> tuple[float, dict[str, dict[str, float]]]:
    """Median seconds of a round beside an attacker, and the metrics before it ends."""
    command = [sys.executable, str(ATTACKERS), *arguments, "--seconds", str(LONGEST_ATTACK_S)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as attacker:
        try:
            time.sleep(3.0)
            assert attacker.poll() is None
            return measure(options, cluster, name), shown(ports)
        finally:
            attacker.kill()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--parameters", type=int, default=100_000)
    parser.add_argument("--connections", type=int, default=500)
    chosen = parser.parse_args()
    ports = dict(zip(SERVICES, free_ports(3), strict=True))
    settings = {service: {"metrics_listen": f"{LOOPBACK}:{port}"} for service, port in ports.items()}
    with tempfile.TemporaryDirectory(prefix="tacit-flood-") as folder:
        options = LoadOptions(Path(folder), chosen.sites, chosen.parameters, 0.0, chosen.rounds)
        with LocalCluster(Path(folder) / "cluster", ClusterOptions(settings=settings)) as cluster:
            addresses = list(cluster.addresses.values())
            garbler = str(cluster.add_site("garbler"))
            named = [f"{service}={address}" for service, address in cluster.addresses.items()]
            measure(options, cluster, "warm-up")
            calm = [measure(options, cluster, "calm-1")]
            strangers = ["strangers", "--count", str(chosen.connections), *addresses]
            flooded, seen_strangers = attacked(options, cluster, "strangers", strangers, ports)
            calm.append(measure(options, cluster, "calm-2"))
            spoilt, seen_garbage = attacked(
                options, cluster, "garbage", ["garbage", "--config", garbler, *named], ports
            )
            calm.append(measure(options, cluster, "calm-3"))
        result = {
            "calm_seconds": calm,
            "strangers_seconds": flooded,
            "garbage_seconds": spoilt,
            "strangers_ratio": round(flooded / median(calm), 2),
            "garbage_ratio": round(spoilt / median(calm), 2),
            "metrics_beside_strangers": seen_strangers,
            "metrics_beside_garbage": seen_garbage,
        }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
