"""`tacit pki`: the federation CA, offline, and the certificates of its parties."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.output import JsonOption, print_json
from fl_core.errors import ConfigError, NotFound

if TYPE_CHECKING:
    from fl_core.transport.authority import CertificateAuthority, IssuedCertificate
    from fl_core.transport.identity import Identity, Role

PASSPHRASE_VARIABLE = "TACIT_CA_PASSPHRASE"  # noqa: S105 - the name of a variable, not a passphrase
DEFAULT_CA = Path("ca")

pki_app = typer.Typer(help="The federation CA and certificates: who may take part, and as what.", no_args_is_help=True)

CaOption = Annotated[Path, typer.Option("--ca", help="Folder of the CA.", show_default=True)]
DaysOption = Annotated[int, typer.Option("--days", min=1, help="Days until the certificate expires.")]
RoleArgument = Annotated[str, typer.Argument(help="site, coordinator, aggregator, keyserver or operator.")]
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="Name of the party, such as hospital-a.")]
EncryptOption = Annotated[
    bool, typer.Option("--encrypt", help=f"Encrypt the CA key; the passphrase is asked for, or {PASSPHRASE_VARIABLE}.")
]


@pki_app.command()
def init(
    federation: Annotated[str, typer.Argument(help="Name of the federation: a-z, 0-9 and -.")],
    ca: CaOption = DEFAULT_CA,
    days: Annotated[int, typer.Option("--days", min=1, help="Days until the CA expires.")] = 3650,
    encrypt: EncryptOption = False,
    json: JsonOption = False,
) -> None:
    """Make a new federation CA.

    Keep its folder on a machine that runs no service. Every party pins its ca.pem.
    """
    from fl_core.transport.authority import CertificateAuthority

    passphrase = _new_passphrase() if encrypt else None
    authority = CertificateAuthority.create(ca, federation, days=days, passphrase=passphrase)
    result = {"federation": federation, "ca": str(authority.ca_path), "crl": str(authority.crl_path)}
    _report(json, result, f"CA of federation {federation} in {ca}. Give {authority.ca_path} to every party.")


@pki_app.command()
def issue(
    role: RoleArgument,
    subject_id: IdArgument,
    ca: CaOption = DEFAULT_CA,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the files; ROLE-ID when left out.")] = None,
    days: DaysOption = 365,
    json: JsonOption = False,
) -> None:
    """Make a key and its certificate in one step, for a local cluster.

    A party elsewhere makes its own key: `tacit pki request` there, `tacit pki sign` here.
    """
    granted = _role(role)
    folder = out or Path(f"{granted.value}-{subject_id}")
    files = open_authority(ca).issue(granted, subject_id, folder, days=days)
    result = {
        **_describe(_identity(files.certificate)),
        "certificate": str(files.certificate),
        "key": str(files.key),
        "ca": str(files.ca),
        "crl": str(files.crl),
    }
    _report(json, result, f"{granted.value}/{subject_id}: certificate, key and CA in {folder}")


@pki_app.command()
def request(
    role: RoleArgument,
    subject_id: IdArgument,
    federation: Annotated[str, typer.Option("--federation", help="Name of the federation.", show_default=False)],
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the files; ROLE-ID when left out.")] = None,
    json: JsonOption = False,
) -> None:
    """Make a key that stays here, and a request that goes to the operator of the CA."""
    from fl_core.transport.authority import request_certificate

    asked = _role(role)
    folder = out or Path(f"{asked.value}-{subject_id}")
    key, csr = request_certificate(folder, federation, asked, subject_id)
    result = {"federation": federation, "role": asked.value, "id": subject_id, "key": str(key), "request": str(csr)}
    _report(json, result, f"Send {csr} to the operator of the CA. Keep {key}; nobody else needs it.")


@pki_app.command()
def sign(
    request: Annotated[Path, typer.Argument(metavar="REQUEST", help="The request (PEM).")],
    subject_id: Annotated[str, typer.Option("--id", help="The id that you grant.", show_default=False)],
    role: Annotated[str, typer.Option("--role", help="The role that you grant.")] = "site",
    ca: CaOption = DEFAULT_CA,
    out: Annotated[
        Path | None, typer.Option("--out", help="File of the certificate; certificate.pem beside the request.")
    ] = None,
    days: DaysOption = 365,
    json: JsonOption = False,
) -> None:
    """Sign the request of a party whose identity you have checked.

    The role and id that you grant must be those that the request asks for.
    """
    from fl_core.transport.authority import write_atomically

    granted = _role(role)
    target = out or request.with_name("certificate.pem")
    if target.exists():
        raise ConfigError(f"{target} exists and is not overwritten", fix="choose another file with --out")
    certificate = open_authority(ca).sign(_read(request), role=granted, subject_id=subject_id, days=days)
    write_atomically(target, certificate)
    result = {**_describe(_identity(target)), "certificate": str(target)}
    _report(json, result, f"Signed {granted.value}/{subject_id}: send {target} and {ca / 'ca.pem'} back.")


@pki_app.command()
def revoke(
    certificate: Annotated[
        str | None,
        typer.Argument(metavar="CERTIFICATE", help="A certificate file, a serial number, or ROLE/ID for all of them."),
    ] = None,
    ca: CaOption = DEFAULT_CA,
    refresh: Annotated[bool, typer.Option("--refresh", help="Only renew the list before it goes out of date.")] = False,
    json: JsonOption = False,
) -> None:
    """Put certificates on the revocation list.

    Services that read the list from this folder refuse them at once; give the new crl.pem to all others.
    """
    if refresh == (certificate is not None):
        raise ConfigError("nothing to do", expected="either a certificate or --refresh")
    authority = open_authority(ca)
    if certificate is None:
        authority.refresh_revocations()
        _report(json, {"crl": str(authority.crl_path), "revoked": []}, f"Renewed {authority.crl_path}.")
        return
    revoked = [authority.revoke(serial) for serial in _serials(authority, certificate)]
    names = ", ".join(str(identity) for identity in revoked)
    result = {"crl": str(authority.crl_path), "revoked": [_describe(identity) for identity in revoked]}
    _report(json, result, f"Revoked {names}. Give {authority.crl_path} to every party.")


@pki_app.command()
def show(
    path: Annotated[Path, typer.Argument(help="Folder of a CA, a certificate, or a request.")] = DEFAULT_CA,
    json: JsonOption = False,
) -> None:
    """Show what a CA has issued, or who a certificate or request stands for."""
    if path.is_dir():
        _show_authority(path, json)
    elif b"CERTIFICATE REQUEST" in _read(path):
        _show_request(path, json)
    else:
        identity = _identity(path)
        expired = " (expired)" if identity.not_after < datetime.now(UTC) else ""
        line = f"{identity} of federation {identity.federation}, valid until {_day(identity.not_after)}{expired}"
        _report(json, _describe(identity), line)


def _show_authority(folder: Path, json: bool) -> None:
    # Only public files are read, so no passphrase is needed to look.
    from fl_core.transport.authority import read_issued

    federation, issued = read_issued(folder)
    if json:
        print_json({"federation": federation, "certificates": [_describe_issued(entry) for entry in issued]})
        return
    _print_table(federation, issued)


def _print_table(federation: str, issued: "list[IssuedCertificate]") -> None:
    from rich.table import Table

    from cli.output import console

    table = Table(title=f"Federation {federation}", title_justify="left")
    for heading in ("role", "id", "status", "valid until", "serial"):
        table.add_column(heading, overflow="fold")
    now = datetime.now(UTC)
    for entry in issued:
        who = entry.identity
        table.add_row(who.role.value, who.id, entry.status(now), _day(who.not_after), f"{who.serial:x}")
    console().print(table)


def _show_request(path: Path, json: bool) -> None:
    from fl_core.transport.authority import parse_request
    from fl_core.transport.identity import parse_names

    federation, role, subject_id = parse_names(parse_request(_read(path)).extensions)
    result = {"federation": federation, "role": role.value, "id": subject_id}
    _report(json, result, f"Request for {role.value}/{subject_id} of federation {federation}")


def _serials(authority: "CertificateAuthority", text: str) -> list[int]:
    """Serial numbers that the operator means.

    Raises:
        NotFound: this CA issued nothing of that kind.
    """
    if Path(text).is_file():
        return [_identity(Path(text)).serial]
    known = [entry.identity for entry in authority.issued()]
    meant = [who.serial for who in known if text.lower() == f"{who.serial:x}" or text == who.name]
    if not meant:
        raise NotFound(
            "no such certificate was issued here",
            expected="a certificate file, a serial number or ROLE/ID",
            got=repr(text),
            fix="`tacit pki show` lists them",
        )
    return meant


def open_authority(folder: Path) -> "CertificateAuthority":
    """The CA in a folder; its passphrase is asked for when it has one."""
    from fl_core.transport.authority import CertificateAuthority, is_encrypted

    passphrase = os.environ.get(PASSPHRASE_VARIABLE)
    if passphrase is None and is_encrypted(folder):
        passphrase = typer.prompt("Passphrase of the CA", hide_input=True, err=True)
    return CertificateAuthority.load(folder, passphrase=passphrase)


def _new_passphrase() -> str:
    given = os.environ.get(PASSPHRASE_VARIABLE)
    chosen: str = given or typer.prompt("New passphrase of the CA", hide_input=True, confirmation_prompt=True, err=True)
    return chosen


def _role(text: str) -> "Role":
    from fl_core.transport.identity import Role

    try:
        return Role(text)
    except ValueError as error:
        raise ConfigError("there is no such role", expected=", ".join(Role), got=repr(text)) from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read", got=error.strerror) from error


def _identity(path: Path) -> "Identity":
    from fl_core.transport.identity import identity_of

    return identity_of(_read(path))


def _describe(identity: "Identity") -> dict[str, Any]:
    return {
        "federation": identity.federation,
        "role": identity.role.value,
        "id": identity.id,
        "serial": f"{identity.serial:x}",
        "not_after": identity.not_after.isoformat(),
        "certificate_sha256": identity.certificate_sha256.hex(),
    }


def _describe_issued(entry: "IssuedCertificate") -> dict[str, Any]:
    return {**_describe(entry.identity), "status": entry.status(datetime.now(UTC))}


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d}"


def _report(json: bool, result: dict[str, Any], line: str) -> None:
    if json:
        print_json(result)
    else:
        typer.echo(line)
