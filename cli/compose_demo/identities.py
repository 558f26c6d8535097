"""Everything that the demo federation needs before its services start: a CA, certificates, passwords, a model.

OUT/ca/            the CA and its key: for the enrolment desk alone
OUT/ROLE/          certificate, key, CA and revocation list of a service or of the operator
OUT/NAME-password/ one password in a file
"""

import secrets
import shutil
from pathlib import Path

from fl_core.errors import ConfigError
from fl_core.transport.authority import CertificateAuthority, write_atomically
from fl_core.transport.identity import Role

FEDERATION = "compose-demo"
PARTIES = (Role.COORDINATOR, Role.AGGREGATOR, Role.KEYSERVER, Role.OPERATOR)
PASSWORDS = ("postgres", "grafana")
PASSWORD_MODE = 0o444
"""PostgreSQL and Grafana read it as users of their own; the volume that holds it is mounted nowhere else."""

_PASSWORD_BYTES = 24


def make_identities(out: Path) -> None:
    """Make what is missing; what is there stays, so it can be run at every start.

    Raises:
        ConfigError: a folder cannot be written, or holds the CA of another federation.
    """
    authority = open_demo_authority(out / "ca")
    for role in PARTIES:
        folder = out / role.value
        if not (folder / "certificate.pem").exists():
            # A key without a certificate is what an interrupted run left.
            (folder / "key.pem").unlink(missing_ok=True)
            authority.issue(role, f"{role.value}-1", folder)
        shutil.copyfile(authority.crl_path, folder / "crl.pem")
    for name in PASSWORDS:
        _make_password(out / f"{name}-password" / "password")


def open_demo_authority(folder: Path) -> CertificateAuthority:
    """The CA of the demo, made when it is missing.

    Raises:
        ConfigError: the folder holds the CA of another federation, which must not sign for whoever asks.
    """
    if not (folder / "ca.pem").exists():
        return CertificateAuthority.create(folder, FEDERATION)
    authority = CertificateAuthority.load(folder)
    if authority.federation != FEDERATION:
        raise ConfigError(
            f"the CA in {folder} is not that of the demo",
            expected=FEDERATION,
            got=authority.federation,
            fix="a true federation signs with `tacit pki sign`, by somebody who knows who asks",
        )
    return authority


def _make_password(path: Path) -> None:
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, secrets.token_urlsafe(_PASSWORD_BYTES).encode())
    path.chmod(PASSWORD_MODE)
