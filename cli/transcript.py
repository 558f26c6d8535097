"""`tacit transcript`: the signed record of an attempt, fetched from the coordinator and checked without it."""

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import DEFAULT_CONFIG, ConfigOption
from cli.output import JsonOption, print_json

if TYPE_CHECKING:
    from fl_core.secagg.transcript import Verified

transcript_app = typer.Typer(help="Signed records of attempts: fetch them, check them offline.", no_args_is_help=True)


@transcript_app.command()
def get(
    job_id: Annotated[str, typer.Argument(help="The job.")],
    round_id: Annotated[int, typer.Argument(help="The round; rounds count from 1.", min=1)],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.", show_default=False)],
    attempt: Annotated[int, typer.Option("--attempt", help="Which attempt at the round; 0 is the last.", min=0)] = 0,
    session: Annotated[int, typer.Option("--session", help="Which session of the attempt.", min=1)] = 1,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Fetch the transcript of an attempt that has ended, or of one of its sessions."""
    content = asyncio.run(_fetch(config, job_id, round_id, attempt, session))
    _write(out, content)
    if as_json:
        print_json({"path": str(out), "bytes": len(content)})
    else:
        typer.echo(f"{len(content)} bytes in {out}")


@transcript_app.command()
def verify(
    files: Annotated[list[Path], typer.Argument(help="Transcripts; several of one job must follow one another.")],
    ca: Annotated[Path, typer.Option("--ca", help="The certificate of the federation's CA (PEM).", show_default=False)],
    upload_sha256: Annotated[
        str, typer.Option("--upload-sha256", help="Also check that this upload is in the sum (hex; one file).")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Check transcripts offline: signatures, certificates, sets, the chain, and that nothing is missing."""
    verified = _verify(files, ca)
    owner = _owner_of(upload_sha256, verified) if upload_sha256 else None
    if as_json:
        print_json({"transcripts": [_facts(one) for one in verified], "upload_of": owner})
        return
    for one in verified:
        typer.echo(
            f"round {one.round_id}, attempt {one.attempt} of {one.job_id}: {one.outcome}, "
            f"{len(one.survivors)} of {len(one.sites)} sites in the sum, head {one.head.hex()[:16]}"
        )
    if owner is not None:
        typer.echo(f"the upload is in the sum, as that of {owner}")


async def _fetch(config: Path, job_id: str, round_id: int, attempt: int, session: int) -> bytes:
    from cli.operator import Operator, OperatorConfig

    async with Operator.connect(OperatorConfig.from_file(config)) as operator:
        return await operator.get_transcript(job_id, round_id, attempt, session)


def _verify(files: list[Path], ca: Path) -> "list[Verified]":
    from datetime import UTC, datetime

    from fl_core.errors import IdentityError
    from fl_core.secagg.transcript import transcript_from_json, verify_sequence, verify_transcript
    from fl_core.transport.tls import load_trust
    from fl_core.wire.transcripts import check_plan

    trust = load_trust(ca)

    def check_certificate(certificate_der: bytes, role: str, at: int) -> None:
        identity = trust.check(certificate_der, datetime.fromtimestamp(at, UTC))
        if identity.role.value != role:
            raise IdentityError("a part is signed by a certificate of another role", expected=role, got=identity)

    transcripts = [transcript_from_json(_read(file)) for file in files]
    verified = [verify_transcript(transcript, check_certificate) for transcript in transcripts]
    for transcript in transcripts:
        check_plan(transcript)
    verify_sequence(verified)
    return verified


def _owner_of(upload_sha256: str, verified: "list[Verified]") -> str:
    from fl_core.errors import NotFound

    for one in verified:
        for client_id, digest in one.uploads.items():
            if digest.hex() == upload_sha256.lower():
                return client_id
    raise NotFound("the upload is in none of these sums", got=upload_sha256[:64])


def _facts(one: "Verified") -> dict[str, object]:
    return {
        name: value.hex() if isinstance(value, bytes) else value
        for name, value in asdict(one).items()
        if name != "uploads"
    }


def _read(file: Path) -> bytes:
    from fl_core.errors import ConfigError

    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file} cannot be read", got=error.strerror) from error


def _write(out: Path, content: bytes) -> None:
    from fl_core.errors import ConfigError

    try:
        out.write_bytes(content)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written", got=error.strerror) from error
