"""`tacit keys`: the Paillier key of a key server, sealed at rest."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.output import JsonOption, print_json
from fl_core.errors import ConfigError

if TYPE_CHECKING:
    from fl_core.crypto.paillier.key_files import UnlockSecret
    from fl_core.crypto.paillier.keys import PublicKey

PASSPHRASE_VARIABLE = "TACIT_PAILLIER_PASSPHRASE"  # noqa: S105 - the name of a variable, not a passphrase
DEFAULT_BITS = 2048

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
