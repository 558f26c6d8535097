"""Where the sites of a load test take part: in a local cluster, or in a federation that runs already."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cli.cluster import ClusterOptions, LocalCluster
from cli.operator import OperatorConfig
from cli.yaml_files import write_yaml
from fl_core.transport.authority import CertificateAuthority, IssuedFiles
from fl_core.transport.identity import Role
from services.runtime.settings import split_address

PRESENCE_GRACE_S = 0.25
"""On one machine a connection breaks when its site vanished, and no network makes it break otherwise."""
COORDINATOR_PORT = 7001
OPERATOR = "loadtest"


@dataclass(frozen=True, slots=True)
class Federation:
    """Everything that sites and operator need.

    Args:
        coordinator: host:port.
        authority: the CA that makes their certificates.
        folder: for certificates and configurations.
        pids: of the services, by name; empty when they are not ours.
    """

    coordinator: str
    authority: CertificateAuthority
    folder: Path
    pids: Mapping[str, int] = field(default_factory=dict)

    def operator(self) -> OperatorConfig:
        """A new operator of the federation."""
        files = self.authority.issue(Role.OPERATOR, OPERATOR, self.folder / OPERATOR)
        return OperatorConfig(self.coordinator, files.certificate, files.key, files.ca, files.crl)

    def add_site(self, client_id: str, policy: Mapping[str, object]) -> Path:
        """A new site; returns the path of its `site.yaml`."""
        folder = self.folder / "sites" / client_id
        files = self.authority.issue(Role.SITE, client_id, folder)
        content: dict[str, object] = {
            "client_id": client_id,
            "coordinator": self.coordinator,
            **_credentials(files),
            "state_dir": "state",
            "policy": dict(policy),
        }
        return write_yaml(folder / "site.yaml", content)


@contextmanager
def local_federation(workdir: Path, *, has_paillier_key: bool = False) -> Iterator[Federation]:
    """A cluster of its own, which runs while the block does."""
    options = ClusterOptions(presence_grace_s=PRESENCE_GRACE_S, has_paillier_key=has_paillier_key)
    with LocalCluster(workdir / "cluster", options) as cluster:
        authority = CertificateAuthority.load(cluster.workdir / "ca")
        pids = {name: process.popen.pid for name, process in cluster.processes.items()}
        yield Federation(cluster.addresses["coordinator"], authority, workdir, pids)


@contextmanager
def running_federation(target: str, authority: Path, workdir: Path) -> Iterator[Federation]:
    """A federation that runs already.

    Args:
        target: HOST or HOST:PORT of its coordinator; the usual port without one.
        authority: folder of its CA.
        workdir: for the certificates of the sites.

    Raises:
        ConfigError: the address cannot be read, or the folder holds no CA.
    """
    address = target if ":" in target else f"{target}:{COORDINATOR_PORT}"
    split_address(address)
    yield Federation(address, CertificateAuthority.load(authority), workdir)


def _credentials(files: IssuedFiles) -> dict[str, object]:
    return {name: str(getattr(files, name)) for name in ("certificate", "key", "ca", "crl")}
