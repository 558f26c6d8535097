"""Custody of the Paillier key: read from its sealed file, read again when the file changes, never shown."""

import os
from collections import OrderedDict
from pathlib import Path

import structlog

from fl_core.crypto.paillier.key_files import UnlockSecret, open_private_key
from fl_core.crypto.paillier.keys import PrivateKey
from fl_core.encrypted.context import check_key
from fl_core.errors import ConfigError, NotFound, TacitError
from services.keyserver.settings import KeyServerSettings

log = structlog.get_logger(__name__)

REMEMBERED = 4
"""Keys that still decrypt after a rotation, for the attempts that began before it."""


class PaillierKeyRing:
    """The key of the next attempts, and those of attempts that still run.

    Args:
        path: of the sealed key; None when this key server serves no encrypted jobs.
        unlock: what opens it.
    """

    def __init__(self, path: Path | None, unlock: UnlockSecret | None) -> None:
        self._path = path
        self._unlock = unlock
        self._stamp: tuple[int, int, int] | None = None
        self._keys: OrderedDict[bytes, PrivateKey] = OrderedDict()

    @classmethod
    def from_settings(cls, settings: KeyServerSettings) -> "PaillierKeyRing":
        """The ring of a configuration.

        Raises:
            ConfigError: a key is configured and cannot be opened.
        """
        ring = cls(settings.paillier_key, unlock_secret(settings))
        if settings.paillier_key is not None:
            ring.current()
        return ring

    def current(self) -> PrivateKey:
        """The key of the next attempts. Reading a new one takes a while: run it in a thread.

        Raises:
            NotFound: this key server has none.
            ConfigError: it cannot be opened.
        """
        if self._path is None or self._unlock is None:
            raise NotFound(
                "this key server has no Paillier key",
                expected="paillier_key in its configuration",
                fix="make one with `tacit keys make`, or choose aggregation: secagg",
            )
        try:
            self._follow(self._path, self._unlock)
        except TacitError as error:
            if not self._keys:
                raise
            # A file that is broken later must not end the attempts of the key that is known.
            log.error("paillier_key_not_reloaded", error=str(error))
        return next(reversed(self._keys.values()))

    def of_modulus(self, modulus: bytes) -> PrivateKey:
        """The key of an attempt.

        Raises:
            NotFound: it is not, or no longer, of this key server.
        """
        key = self._keys.get(modulus)
        if key is None:
            raise NotFound(
                "this key server does not have the Paillier key of the plan",
                expected="a key that it gave out since it was started",
                fix="run the round again as the next attempt",
            )
        return key

    def _follow(self, path: Path, unlock: UnlockSecret) -> None:
        stamp, text = _read(path)
        if stamp == self._stamp:
            return
        key = open_private_key(text, unlock)
        check_key(key.public_key)
        modulus = key.public_key.to_bytes()
        self._keys[modulus] = key
        self._keys.move_to_end(modulus)
        while len(self._keys) > REMEMBERED:
            self._keys.popitem(last=False)
        self._stamp = stamp
        log.info("paillier_key_loaded", bits=key.public_key.bits, fingerprint=key.public_key.fingerprint.hex()[:16])


def unlock_secret(settings: KeyServerSettings) -> UnlockSecret | None:
    """What opens the key: a passphrase from the environment, or a key file.

    Raises:
        ConfigError: a key is configured without either of them, or with both.
    """
    if settings.paillier_key is None:
        return None
    passphrase, path = settings.paillier_passphrase.get_secret_value(), settings.paillier_unlock_file
    if bool(passphrase) == (path is not None):
        raise ConfigError(
            "the Paillier key needs one thing that opens it",
            expected="paillier_unlock_file, or a passphrase in TACIT_PAILLIER_PASSPHRASE",
            got="both" if passphrase else "neither",
        )
    if path is None:
        return UnlockSecret(passphrase.encode(), is_passphrase=True)
    return UnlockSecret(_read_bytes(path), is_passphrase=False)


def _read(path: Path) -> tuple[tuple[int, int, int], str]:
    try:
        with path.open() as file:
            facts = os.fstat(file.fileno())
            return (facts.st_ino, facts.st_mtime_ns, facts.st_size), file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the Paillier key {path} cannot be read", got=type(error).__name__) from error


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"the key file {path} cannot be read", got=error.strerror) from error
