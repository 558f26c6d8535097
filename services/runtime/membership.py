"""Who may speak for an index of a roster, and for a service that a plan names."""

from hashlib import sha256

from fl_core.errors import PermissionRefused, PlanError, RemoteProtocolError
from fl_core.rounds.plan import RoundPlan, ServiceEndpoint
from fl_core.transport.identity import Identity


def check_site(plan: RoundPlan, identity: Identity, index: int) -> None:
    """Check that a caller is the site at `index` of the roster, with the very certificate of the plan.

    Raises:
        RemoteProtocolError: no site has this index.
        PermissionRefused: the caller is another one, or shows another certificate.
    """
    if not 0 <= index < len(plan.roster):
        raise RemoteProtocolError(
            "no site of the roster has this index",
            expected=f"0 to {len(plan.roster) - 1}",
            got=index,
            fix="use the index of your own certificate in the plan",
        )
    entry = plan.roster[index]
    if identity.id != entry.client_id:
        raise PermissionRefused(
            f"the caller is not the site at index {index} of the roster",
            expected=entry.client_id,
            got=identity.id,
            fix="use the index of your own certificate; a site that is not in the roster waits for an invitation",
        )
    if identity.certificate_sha256 != entry.certificate_sha256:
        raise PermissionRefused(
            f"{identity.id} shows another certificate than the plan names",
            expected=entry.certificate_sha256.hex()[:16],
            got=identity.certificate_sha256.hex()[:16],
            fix="wait for the next attempt, whose plan names the new certificate",
        )


def check_own_certificate(identity: Identity, certificate_der: bytes) -> None:
    """Check that a certificate in a message is the one of the connection.

    Raises:
        PermissionRefused: it is another one.
    """
    if sha256(certificate_der).digest() != identity.certificate_sha256:
        raise PermissionRefused(
            "a message names another certificate than its connection", expected=identity.certificate_sha256.hex()[:16]
        )


def check_service(endpoint: ServiceEndpoint, identity: Identity) -> None:
    """Check that a calling service is the one that the plan names, with the very certificate of the plan.

    Raises:
        PermissionRefused: it is another one.
    """
    if (identity.id, identity.certificate_sha256) != (endpoint.service_id, endpoint.certificate_sha256):
        raise PermissionRefused(
            "the caller is not the service that the plan names", expected=endpoint.service_id, got=identity.name
        )


def check_addressed(endpoint: ServiceEndpoint | None, own: Identity) -> None:
    """Check that a plan names this very service.

    Raises:
        PlanError: it names another one, another certificate, or none.
    """
    if endpoint is None:
        raise PlanError("the plan has no use for this service", expected=f"a plan that names {own.name}")
    if (endpoint.service_id, endpoint.certificate_sha256) != (own.id, own.certificate_sha256):
        raise PlanError(
            "the plan names another service or another certificate",
            expected=f"{own.id} with certificate {own.certificate_sha256.hex()[:16]}",
            got=f"{endpoint.service_id} with certificate {endpoint.certificate_sha256.hex()[:16]}",
            fix="look at the addresses in the configuration of the coordinator; the certificate may be renewed",
        )
