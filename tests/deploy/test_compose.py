"""docker-compose.yml: valid by the official schema, hardened, and every command line in it does what it says."""

import asyncio
import json
import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import jsonschema
import pytest
import yaml
from compose_kit import ROOT, machine, read_compose, services_of_our_image
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from cli.compose_demo.command import site_name
from cli.compose_demo.enrolment import Desk
from cli.compose_demo.identities import open_demo_authority
from fl_core.errors import ConfigError
from fl_core.transport.authority import CertificateAuthority, request_certificate
from fl_core.transport.identity import Role, identity_of
from services.aggregator.settings import AggregatorSettings
from services.coordinator.settings import CoordinatorSettings
from services.keyserver.settings import KeyServerSettings
from tests.postgres_server import find_binaries, running_postgres

COMPOSE = read_compose()
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def test_the_file_is_valid_by_the_official_schema() -> None:
    source = files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    schema = json.loads(source.read_text())
    validator = jsonschema.validators.validator_for(schema)(schema)
    assert [error.message for error in validator.iter_errors(COMPOSE)] == []
    broken = {**COMPOSE, "services": {"x": {"imagee": "y"}}}
    assert list(validator.iter_errors(broken))


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_service_has_as_few_rights_as_can_be(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert "no-new-privileges:true" in service["security_opt"]
    assert not service.get("privileged", False)
    # Our image names its user itself; see test_image.py.
    assert "build" in service or not str(service["user"]).startswith("0")
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:")


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_secrets_are_files_that_only_their_readers_see(name: str) -> None:
    for variable, value in SERVICES[name].get("environment", {}).items():
        if re.search(r"password|secret|token|key", variable, re.IGNORECASE):
            assert variable.endswith(("_FILE", "__FILE")), variable
            assert str(value).startswith("/run/")
    mounted = {volume.partition(":")[0] for volume in SERVICES[name].get("volumes", [])}
    readers = {
        "ca": {"init", "desk"},
        "coordinator-identity": {"init", "coordinator"},
        "aggregator-identity": {"init", "aggregator"},
        "keyserver-identity": {"init", "keyserver"},
        "operator-identity": {"init", "operator"},
        "postgres-password": {"init", "postgres", "coordinator", "keyserver"},
        "grafana-password": {"init", "grafana"},
    }
    for volume, allowed in readers.items():
        assert volume not in mounted or name in allowed, volume


def test_everything_that_is_named_is_there() -> None:
    for name, service in SERVICES.items():
        for volume in service.get("volumes", []):
            source, colon, _ = volume.partition(":")
            if source.startswith("."):
                assert (ROOT / source).is_dir(), volume
            else:
                assert not colon or source in COMPOSE["volumes"], volume
        assert set(service.get("networks", [])) <= set(COMPOSE["networks"])
        for other, condition in service.get("depends_on", {}).items():
            healthy = condition["condition"] == "service_healthy"
            assert other in SERVICES, name
            assert not healthy or "healthcheck" in SERVICES[other], f"{name} waits for the health of {other}"
        if "build" not in service:
            assert re.fullmatch(r"[\w/.-]+:[\w.-]*\d[\w.-]*", service["image"]), "pin a version"


def test_prometheus_scrapes_every_service_where_it_serves_its_metrics() -> None:
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    targets = {
        target for job in config["scrape_configs"] for part in job["static_configs"] for target in part["targets"]
    }
    serving = {
        f"{name}:{service['environment']['TACIT_METRICS_LISTEN'].rpartition(':')[2]}"
        for name, service in SERVICES.items()
        if "TACIT_METRICS_LISTEN" in service.get("environment", {})
    }
    assert targets == serving
    for rules in config["rule_files"]:
        assert (ROOT / "deploy/prometheus" / rules).is_file()


def test_replicas_of_one_container_are_sites_of_their_own() -> None:
    assert site_name("3f2a9c001b7e") == "site-3f2a9c001b7e"
    assert site_name("Some_Host.local") == "site-some-host-local"
    assert len({site_name(f"{number:012x}") for number in range(100)}) == 100


def test_the_desk_refuses_any_ca_but_that_of_the_demo(tmp_path: Path) -> None:
    CertificateAuthority.create(tmp_path / "ca", "hospital")
    with pytest.raises(ConfigError, match="not that of the demo"):
        open_demo_authority(tmp_path / "ca")


def test_the_desk_grants_the_role_and_the_name_of_a_site_and_no_other(tmp_path: Path) -> None:
    authority, desk = open_demo_authority(tmp_path / "ca"), Desk(tmp_path / "desk")
    desk.open(authority)
    _, honest = request_certificate(tmp_path / "honest", authority.federation, Role.SITE, "site-1")
    _, greedy = request_certificate(tmp_path / "greedy", authority.federation, Role.COORDINATOR, "coordinator-1")
    for name, request in {"site-1": honest, "coordinator-1": greedy, "site-2": honest}.items():
        (desk.requests / f"{name}.pem").write_bytes(request.read_bytes())
    (desk.requests / "site-3.pem").write_bytes(b"x" * 100_000)
    outcomes = dict(desk.grant_all(authority))
    assert {name for name, outcome in outcomes.items() if outcome == "granted"} == {"site-1"}
    assert identity_of((desk.granted / "site-1.pem").read_bytes()).name == "site/site-1"
    assert [path.name for path in desk.granted.iterdir()] == ["site-1.pem"]
    assert not list(desk.requests.iterdir())


@pytest.mark.parametrize(
    ("name", "kind"),
    [("coordinator", CoordinatorSettings), ("aggregator", AggregatorSettings), ("keyserver", KeyServerSettings)],
)
def test_the_config_of_a_service_is_read_and_its_password_comes_from_a_file(
    name: str, kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "password").write_text("hush\n")
    config = (ROOT / "deploy/compose" / f"{name}.yaml").read_text()
    (tmp_path / "config.yaml").write_text(config.replace("/run/tacit/postgres-password", str(tmp_path)))
    settings = kind.from_file(tmp_path / "config.yaml")
    assert settings.service_id == f"{name}-1"
    if name != "aggregator":
        url = settings.database if name == "coordinator" else settings.journal_url
        assert url == f"postgresql+asyncpg://tacit:hush@postgres/{name}"
        assert "hush" not in repr(settings)


@pytest.mark.e2e
@pytest.mark.timeout(900)
@pytest.mark.slow
@pytest.mark.skipif(find_binaries() is None, reason="no PostgreSQL on this machine")
def test_every_command_line_runs_and_the_federation_trains(tmp_path: Path, free_port: Callable[[], int]) -> None:
    binaries = find_binaries()
    assert binaries is not None
    ports = {name: free_port() for name in ("coordinator", "aggregator", "keyserver")}
    metrics = {name: free_port() for name in ports}
    with running_postgres(binaries) as server:
        asyncio.run(_make_databases(server))
        texts = {
            **{f"{name}:{7001 + place}": f"127.0.0.1:{ports[name]}" for place, name in enumerate(ports)},
            **{f"0.0.0.0:{7001 + place}": f"127.0.0.1:{ports[name]}" for place, name in enumerate(ports)},
            "tacit@postgres": f"tacit@{server.rpartition('@')[2]}",
            "rounds: 20": "rounds: 2",
            "max: 100": "max: 3",
        }
        with machine(tmp_path, texts) as here:
            here.run(here.command("init"), here.environment("init", {}), "init")
            here.run(here.command("init"), here.environment("init", {}), "init, once more")
            for name in ports:
                extra = {"TACIT_METRICS_LISTEN": f"127.0.0.1:{metrics[name]}"}
                here.start(name, here.command(name), here.environment(name, extra), f"ready {name}")
            here.start("desk", here.command("desk"), here.environment("desk", {}), "")
            for replica in ("3f2a9c001b7e", "77d0a1b2c3d4", "0123456789ab"):
                environment = here.environment("site", {"HOSTNAME": replica})
                here.start(replica, here.command("site", replica), environment, "coordinator_connected")
            for name in (*ports, "desk"):
                here.run(here.health_command(name), here.environment(name, {}), f"the health check of {name}")
            here.run(here.command("operator"), here.environment("operator", {}), "the job")
            for name, port in metrics.items():
                with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as page:
                    assert b"tacit_rpc_finished_total" in page.read(), name
            assert here.stop() == [0] * 7
        started = {"init", *ports, "desk", "site", "operator"}
        assert started == set(services_of_our_image()), "a service of the compose file is not started by this test"


async def _make_databases(server: str) -> None:
    engine = create_async_engine(f"{server}/postgres", isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        await connection.execute(text("CREATE DATABASE coordinator"))
        for path in sorted((ROOT / "deploy/postgres").glob("*.sql")):
            await connection.execute(text(path.read_text()))
    await engine.dispose()
