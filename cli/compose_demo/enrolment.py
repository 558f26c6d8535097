"""How a site of the demo gets its certificate: it lays a request on a desk, and the desk signs whatever it asks for.

DESK/ca.pem, DESK/crl.pem     for everybody
DESK/requests/SITE.pem        what a site asks for; its key stays at the site
DESK/granted/SITE.pem         its certificate

A true federation has no such desk: there a person signs, who knows who asks.
"""

import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cli.compose_demo.identities import FEDERATION
from fl_core.errors import PeerLost, TacitError
from fl_core.transport.authority import CertificateAuthority, request_certificate, write_atomically
from fl_core.transport.identity import Role

POLL_S = 0.2
MAX_REQUEST_BYTES = 16 << 10
MAX_SITES = 1000
"""Certificates that one desk grants; a site that runs wild cannot fill the disk."""

_NAME = re.compile(r"[a-z0-9-]{1,63}\.pem")


@dataclass(frozen=True, slots=True)
class Desk:
    """The folder that the desk and the sites share."""

    folder: Path

    @property
    def requests(self) -> Path:
        """What sites ask for."""
        return self.folder / "requests"

    @property
    def granted(self) -> Path:
        """What they get."""
        return self.folder / "granted"

    def open(self, authority: CertificateAuthority) -> None:
        """Make the folders and lay out what everybody needs."""
        self.requests.mkdir(parents=True, exist_ok=True)
        self.granted.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(authority.ca_path, self.folder / "ca.pem")
        shutil.copyfile(authority.crl_path, self.folder / "crl.pem")

    def grant_all(self, authority: CertificateAuthority) -> list[tuple[str, str]]:
        """Answer every request that lies on the desk.

        Returns:
            Name of the site and "granted", or why it was not.
        """
        return [self._grant(path, authority) for path in sorted(self.requests.iterdir()) if _NAME.fullmatch(path.name)]

    def _grant(self, path: Path, authority: CertificateAuthority) -> tuple[str, str]:
        try:
            if path.stat().st_size > MAX_REQUEST_BYTES or len(list(self.granted.iterdir())) >= MAX_SITES:
                return path.stem, "refused: too large, or too many sites"
            certificate = authority.sign(path.read_bytes(), role=Role.SITE, subject_id=path.stem)
            write_atomically(self.granted / path.name, certificate)
            return path.stem, "granted"
        except TacitError as error:
            return path.stem, f"refused: {error}"
        finally:
            path.unlink(missing_ok=True)


def run_desk(desk: Desk, authority: CertificateAuthority, tell: Callable[[str, str], None]) -> None:
    """Answer requests until the process is told to stop.

    Args:
        desk: the shared folder.
        authority: the CA of the demo.
        tell: told the name of each site and what became of its request.
    """
    desk.open(authority)
    while True:
        for site, outcome in desk.grant_all(authority):
            tell(site, outcome)
        time.sleep(POLL_S)


def enrol(desk: Desk, client_id: str, folder: Path, timeout_s: float) -> None:
    """Make a key in `folder`, ask for its certificate, and wait for it. Does nothing where there is one already.

    Raises:
        PeerLost: the desk did not answer in time, or refused.
    """
    if (folder / "certificate.pem").exists():
        return
    (folder / "key.pem").unlink(missing_ok=True)
    deadline = time.monotonic() + timeout_s
    _wait_for(desk.requests, deadline)
    _, request = request_certificate(folder, FEDERATION, Role.SITE, client_id)
    (desk.granted / f"{client_id}.pem").unlink(missing_ok=True)
    write_atomically(desk.requests / f"{client_id}.pem", request.read_bytes())
    granted = desk.granted / f"{client_id}.pem"
    _wait_for(granted, deadline)
    shutil.copyfile(desk.folder / "ca.pem", folder / "ca.pem")
    shutil.copyfile(desk.folder / "crl.pem", folder / "crl.pem")
    write_atomically(folder / "certificate.pem", granted.read_bytes())


def _wait_for(path: Path, deadline: float) -> None:
    while not path.exists():
        if time.monotonic() > deadline:
            raise PeerLost("the enrolment desk did not answer", got=f"no {path}", fix="look at the desk's log")
        time.sleep(POLL_S)
