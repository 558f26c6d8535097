"""`tacit keys`: the Paillier key of a key server, sealed at rest."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.output import JsonOption, print_json
from fl_core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fl_core.crypto.paillier.key_files import UnlockSecret
    from fl_core.crypto.paillier.keys import PublicKey
    from fl_core.transport.authority import CertificateAuthority
    from fl_core.transport.identity import Identity

PASSPHRASE_VARIABLE = "TACIT_PAILLIER_PASSPHRASE"  # noqa: S105 - the name of a variable, not a passphrase
DEFAULT_BITS = 2048
DEALING_NAME = "dealing.json"
SHARE_FORMAT = "tacit-paillier-share/1"

keys_app = typer.Typer(help="The Paillier key of encrypted jobs, sealed at rest.", no_args_is_help=True)

KeyArgument = Annotated[Path, typer.Argument(metavar="FILE", help="The sealed key, paillier_key of the key server.")]
BitsOption = Annotated[int, typer.Option("--bits", help="2048, 3072 or 4096.")]
UnlockOption = Annotated[
    Path | None,
    typer.Option(
        "--unlock-file",
        help=f"Key file that seals it; without one a passphrase is asked for, or taken from {PASSPHRASE_VARIABLE}.",
        show_default=False,
    ),
]


@keys_app.command()
def make(
    key: KeyArgument, bits: BitsOption = DEFAULT_BITS, unlock_file: UnlockOption = None, json: JsonOption = False
) -> None:
    """Make a key. A key file that does not exist is made too."""
    if key.exists():
        raise ConfigError(f"{key} exists", fix="replace it with `tacit keys rotate`, or name another file")
    unlock = _unlock(unlock_file, is_new=True)
    _report(json, "made", key, write_new_key(key, bits, unlock))


@keys_app.command()
def rotate(
    key: KeyArgument, bits: BitsOption = DEFAULT_BITS, unlock_file: UnlockOption = None, json: JsonOption = False
) -> None:
    """Replace a key by a new one, sealed in the same way.

    A running key server takes the new one for its next attempt, without a restart, and finishes the attempts that
    began under the old one. The old key is not kept on disk.
    """
    unlock = _unlock(unlock_file, is_new=False)
    # Whoever cannot open the old key is not the one who may replace it.
    read_key(key, unlock)
    _report(json, "rotated", key, write_new_key(key, bits, unlock))


@keys_app.command()
def show(key: KeyArgument, unlock_file: UnlockOption = None, json: JsonOption = False) -> None:
    """Open a key and say which one it is; its primes are not shown."""
    _report(json, "opened", key, read_key(key, _unlock(unlock_file, is_new=False)))


@keys_app.command()
def deal(
    decryptor: Annotated[
        list[str],
        typer.Option(
            "--decryptor", help="ID=HOST:PORT of a key server that gets a share; one for each.", metavar="ID=HOST:PORT"
        ),
    ],
    threshold: Annotated[int, typer.Option("--threshold", min=2, help="How many of them decrypt together.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the dealing and the shares.")],
    ca: Annotated[Path, typer.Option("--ca", help="Folder of the federation CA.", show_default=True)] = Path("ca"),
    bits: BitsOption = DEFAULT_BITS,
    json: JsonOption = False,
) -> None:
    """Make a key that nobody holds, and share it out: beside the CA, offline.

    dealing.json goes to every key server, ID.share to the one that it names. Each share is sealed to the certificate
    of its decryptor; the primes are not kept.
    """
    from cli.pki import open_authority

    key = write_dealing(open_authority(ca), dict(_named(one) for one in decryptor), threshold, bits, out)
    _report(json, "dealt", out / DEALING_NAME, key)


def write_dealing(
    authority: "CertificateAuthority", addresses: "Mapping[str, str]", threshold: int, bits: int, out: Path
) -> "PublicKey":
    """Deal a key and write what comes of it.

    Args:
        authority: the federation CA, which knows and signs the decryptors.
        addresses: host:port of each decryptor, by its id.
        threshold: how many decrypt together.
        bits: of the modulus.
        out: folder for `dealing.json` and one `ID.share` for each.

    Raises:
        ConfigError: a decryptor has no valid certificate of a key server, or a file cannot be written.
        CryptoError: the threshold is out of range.
    """
    from json import dumps

    from fl_core.crypto.paillier.keys import KEY_BITS
    from fl_core.crypto.paillier.threshold import generate_shared_key
    from fl_core.crypto.sealed_box import seal_to
    from fl_core.encrypted.dealing import Dealing, Decryptor, dealing_message
    from fl_core.transport.authority import write_atomically

    if bits not in KEY_BITS:
        raise ConfigError(
            "the size of a Paillier key is not offered", expected=" | ".join(map(str, KEY_BITS)), got=bits
        )
    identities = [_keyserver_of(authority, name) for name in addresses]
    shared, shares = generate_shared_key(bits, threshold, len(identities), os.urandom)
    decryptors = tuple(Decryptor(one.id, addresses[one.id], one.certificate_sha256) for one in identities)
    dealing = Dealing(shared, decryptors)
    raw = dealing.to_bytes()
    signature = authority.signer().sign(dealing_message(raw))
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    for identity, share in zip(identities, shares, strict=True):
        secret = int(share.secret).to_bytes(shared.share_bits // 8, "big")
        sealed = seal_to(authority.certificate_der(identity), secret, dealing.share_context(share.index))
        content = {"format": SHARE_FORMAT, "index": share.index, "sealed": sealed.hex()}
        write_atomically(out / f"{identity.id}.share", dumps(content).encode())
    write_atomically(out / DEALING_NAME, dumps({"dealing": raw.decode(), "signature": signature.hex()}).encode())
    return shared.public_key


def _named(option: str) -> tuple[str, str]:
    name, found, address = option.partition("=")
    if not (found and name and address):
        raise ConfigError("a decryptor cannot be read", expected="ID=HOST:PORT", got=option)
    return name, address


def _keyserver_of(authority: "CertificateAuthority", name: str) -> "Identity":
    from datetime import UTC, datetime

    from fl_core.transport.identity import Role

    valid = [
        issued.identity
        for issued in authority.issued()
        if issued.identity.role is Role.KEYSERVER
        and issued.identity.id == name
        and issued.status(datetime.now(UTC)) == "valid"
    ]
    if not valid:
        raise ConfigError(
            f"{name!r} has no valid certificate of a key server",
            expected="a certificate of this CA in that role",
            fix=f"tacit pki issue keyserver {name}",
        )
    return valid[-1]


def write_new_key(path: Path, bits: int, unlock: "UnlockSecret") -> "PublicKey":
    """Generate a key and write it, whole or not at all.

    Raises:
        ConfigError: the size is not offered, or the file cannot be written.
    """
    from fl_core.crypto.paillier.key_files import seal_private_key
    from fl_core.crypto.paillier.keys import KEY_BITS, generate_private_key
    from fl_core.transport.authority import write_atomically

    if bits not in KEY_BITS:
        raise ConfigError(
            "the size of a Paillier key is not offered", expected=" | ".join(map(str, KEY_BITS)), got=bits
        )
    private_key = generate_private_key(bits, os.urandom)
    write_atomically(path, seal_private_key(private_key, unlock, os.urandom).encode())
    return private_key.public_key


def read_key(path: Path, unlock: "UnlockSecret") -> "PublicKey":
    """Open a key.

    Raises:
        ConfigError: it cannot be read or opened.
    """
    from fl_core.crypto.paillier.key_files import open_private_key

    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the key {path} cannot be read", got=type(error).__name__) from error
    return open_private_key(text, unlock).public_key


def write_unlock_file(path: Path) -> None:
    """Make a key file that only its owner can read.

    Raises:
        ConfigError: it exists, or cannot be written.
    """
    from fl_core.crypto.paillier.key_files import UNLOCK_BYTES

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(os.urandom(UNLOCK_BYTES))
    except OSError as error:
        raise ConfigError(f"the key file {path} cannot be written", got=error.strerror) from error


def _unlock(path: Path | None, *, is_new: bool) -> "UnlockSecret":
    from fl_core.crypto.paillier.key_files import UnlockSecret

    if path is None:
        return UnlockSecret(_passphrase(is_new=is_new).encode(), is_passphrase=True)
    if is_new and not path.exists():
        write_unlock_file(path)
    try:
        return UnlockSecret(path.read_bytes(), is_passphrase=False)
    except OSError as error:
        raise ConfigError(f"the key file {path} cannot be read", got=error.strerror) from error


def _passphrase(*, is_new: bool) -> str:
    given = os.environ.get(PASSPHRASE_VARIABLE)
    if given is not None:
        return given
    answer: str = typer.prompt("Passphrase of the Paillier key", hide_input=True, confirmation_prompt=is_new)
    return answer


def _report(as_json: bool, what: str, path: Path, key: "PublicKey") -> None:
    facts = {"file": str(path), "bits": key.bits, "fingerprint": key.fingerprint.hex()}
    if as_json:
        print_json(facts)
        return
    typer.echo(f"{what} {path}: {key.bits} bits, fingerprint {key.fingerprint.hex()[:32]}")
