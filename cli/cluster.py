"""A whole federation on this machine: CA, certificates, configurations and the three services as processes.

WORKDIR/ca/                         the federation CA
WORKDIR/{coordinator,...}/          certificate, key, config.yaml, state and log of a service
WORKDIR/operator/, operator.yaml    what `tacit train` and `tacit status` need
WORKDIR/sites/CLIENT_ID/            certificate, key, state and log of a site; site.yaml
"""

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from cli.ports import LOOPBACK, check_free, free_ports
from cli.processes import ChildProcess, stop_all
from cli.yaml_files import write_yaml
from fl_core.errors import ConfigError, PeerLost

if TYPE_CHECKING:
    from fl_core.transport.authority import CertificateAuthority, IssuedFiles

FEDERATION = "local"
SERVICES = ("coordinator", "aggregator", "keyserver")
READY_TIMEOUT_S = 60.0
POLL_S = 0.05
MIN_COHORT = 3
PLAIN_UPDATES = "plain-updates"


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """What a local cluster may be told.

    Args:
        base_port: the coordinator's port; aggregator and key server take the next two. 0 takes free ports.
        log_level: of the services.
        presence_grace_s: how long a site may be away before it counts as lost.
        drain_seconds: how long a round that runs may finish when the cluster is stopped.
        has_paillier_key: make a key for encrypted jobs.
        settings: more settings of a service, by its name.
    """

    base_port: int = 0
    log_level: str = "info"
    presence_grace_s: float = 1.0
    drain_seconds: float = 2.0
    has_paillier_key: bool = False
    settings: Mapping[str, Mapping[str, object]] = field(default_factory=dict)


@dataclass(slots=True)
class LocalCluster:
    """A local cluster in a work folder. As a context manager it starts, waits until it is ready, and stops.

    A folder that was used before is used again: identities, database and models stay.

    Args:
        workdir: the folder.
        options: what it is told.
        detours: addresses under which sites and services reach a service, where that is not the one it listens on.
    """

    workdir: Path
    options: ClusterOptions = field(default_factory=ClusterOptions)
    detours: dict[str, str] = field(default_factory=dict)
    addresses: dict[str, str] = field(init=False, default_factory=dict)
    processes: dict[str, ChildProcess] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.workdir = self.workdir.resolve()

    def __enter__(self) -> Self:
        try:
            self.start()
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def operator_config(self) -> Path:
        """The operator's configuration, for `--config` of the commands that talk to the coordinator."""
        return self.workdir / "operator.yaml"

    def start(self) -> None:
        """Write what is missing and start the three services.

        Raises:
            ConfigError: a port is in use, or the work folder cannot be written.
        """
        if not self.addresses:
            self.choose_ports()
        self._write_configurations()
        for service in SERVICES:
            self.start_service(service)

    def start_service(self, service: str) -> None:
        """Start one service, for the first time or after it ended."""
        config = self._folder(service) / "config.yaml"
        arguments = [sys.executable, "-m", f"services.{service}", "--config", str(config)]
        self.processes[service] = ChildProcess.start(service, arguments, self._folder(service) / "service.log")

    def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait until the health check of every service says that it serves.

        Raises:
            ConfigError: a service ended instead.
            PeerLost: a service is not ready in time.
        """
        import asyncio

        asyncio.run(self._wait_ready(timeout_s))

    def check_alive(self) -> None:
        """Check that every service still runs.

        Raises:
            ConfigError: one ended.
        """
        for process in self.processes.values():
            process.check_alive()

    def stop(self) -> None:
        """Stop the services, each by its process id."""
        stop_all(list(self.processes.values()))
        self.processes.clear()

    def add_site(
        self,
        client_id: str,
        *,
        require_secure_aggregation: bool = True,
        min_cohort: int = MIN_COHORT,
        paillier: str = "refuse",
        record_plain_updates: bool = False,
        log_level: str = "info",
    ) -> Path:
        """Make the identity and the configuration of a site, and return the path of its `site.yaml`."""
        folder = self.workdir / "sites" / client_id
        files = self._identity("site", client_id, folder)
        content: dict[str, object] = {
            "client_id": client_id,
            "coordinator": self._reached("coordinator"),
            **_credentials(files),
            "state_dir": "state",
            "policy": {
                "require_secure_aggregation": require_secure_aggregation,
                "min_cohort": min_cohort,
                "paillier": paillier,
            },
            "log": {"level": log_level, "format": "json"},
        }
        if record_plain_updates:
            content["record_plain_updates"] = PLAIN_UPDATES
        return write_yaml(folder / "site.yaml", content)

    def choose_ports(self) -> None:
        """Fill `addresses`; done by `start` where it was not done before.

        Raises:
            ConfigError: a port is in use.
        """
        base = self.options.base_port
        ports = [base + offset for offset in range(len(SERVICES))] if base else free_ports(len(SERVICES))
        check_free(ports)
        self.addresses = {service: f"{LOOPBACK}:{port}" for service, port in zip(SERVICES, ports, strict=True)}

    def _write_configurations(self) -> None:
        try:
            self.workdir.mkdir(parents=True, exist_ok=True)
            for service in SERVICES:
                self._write_service(service)
            operator = self._identity("operator", "operator", self.workdir / "operator")
            write_yaml(self.operator_config, {**self.addresses, **_credentials(operator)})
        except OSError as error:
            raise ConfigError(
                f"the work folder {self.workdir} cannot be used",
                got=error.strerror,
                fix="choose another with --workdir",
            ) from error

    def _write_service(self, service: str) -> None:
        files = self._identity(service, service, self._folder(service))
        content: dict[str, object] = {
            "service_id": service,
            "listen": self.addresses[service],
            "advertise": self._reached(service),
            **_credentials(files),
            "state_dir": "state",
            "log": {"level": self.options.log_level, "format": "json"},
            "drain_seconds": self.options.drain_seconds,
        }
        more = self.options.settings.get(service, {})
        write_yaml(self._folder(service) / "config.yaml", content | self._own_settings(service) | dict(more))

    def _own_settings(self, service: str) -> dict[str, object]:
        match service:
            case "coordinator":
                peers = {name: self._reached(name) for name in ("aggregator", "keyserver")}
                return {**peers, "presence_grace_s": self.options.presence_grace_s}
            case "aggregator":
                return {"coordinator": self._reached("coordinator")}
            case _:
                return self._paillier_settings() if self.options.has_paillier_key else {}

    def _paillier_settings(self) -> dict[str, object]:
        from cli.keys import DEFAULT_BITS, write_new_key, write_unlock_file
        from fl_core.crypto.paillier.key_files import UnlockSecret

        folder = self._folder("keyserver")
        key, unlock = folder / "paillier.key", folder / "paillier.unlock"
        if not unlock.exists():
            write_unlock_file(unlock)
        if not key.exists():
            write_new_key(key, DEFAULT_BITS, UnlockSecret(unlock.read_bytes(), is_passphrase=False))
        return {"paillier_key": str(key), "paillier_unlock_file": str(unlock)}

    def _reached(self, service: str) -> str:
        return self.detours.get(service, self.addresses[service])

    def _folder(self, service: str) -> Path:
        return self.workdir / service

    def _authority(self) -> "CertificateAuthority":
        from fl_core.transport.authority import CertificateAuthority

        folder = self.workdir / "ca"
        if (folder / "ca.pem").exists():
            return CertificateAuthority.load(folder)
        return CertificateAuthority.create(folder, FEDERATION)

    def _identity(self, role: str, subject_id: str, folder: Path) -> "IssuedFiles":
        from fl_core.transport.authority import IssuedFiles
        from fl_core.transport.identity import Role

        authority = self._authority()
        if (folder / "certificate.pem").exists():
            return IssuedFiles(folder / "certificate.pem", folder / "key.pem", folder / "ca.pem", authority.crl_path)
        return authority.issue(Role(role), subject_id, folder)

    async def _wait_ready(self, timeout_s: float) -> None:
        import asyncio

        from cli.operator import OperatorConfig, check_health
        from fl_core.transport.identity import Role

        deadline = time.monotonic() + timeout_s
        config = OperatorConfig.from_file(self.operator_config)
        for service in SERVICES:
            while not await check_health(config, Role(service)):
                self.processes[service].check_alive()
                if time.monotonic() > deadline:
                    raise PeerLost(
                        f"the {service} is not ready after {timeout_s:.0f} s",
                        got=self.processes[service].last_log_line(),
                        fix=f"read {self.processes[service].log}",
                    ) from None
                await asyncio.sleep(POLL_S)


def _credentials(files: "IssuedFiles") -> dict[str, object]:
    return {
        "certificate": str(files.certificate),
        "key": str(files.key),
        "ca": str(files.ca),
        "crl": str(files.crl),
    }
