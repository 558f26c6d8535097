"""A key that is shared out: the dealing that everybody knows, and this service's share of it, if it holds one."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fl_core.crypto.paillier.bignum import from_bytes
from fl_core.crypto.paillier.threshold import KeyShare
from fl_core.encrypted.dealing import Dealing, dealing_message
from fl_core.errors import BadSignature, ConfigError, CryptoError, TacitError
from fl_core.transport.tls import Credentials
from services.keyserver.settings import KeyServerSettings

SHARE_FORMAT = "tacit-paillier-share/1"
_LONGEST_FILE = 1 << 18


@dataclass(frozen=True, slots=True)
class SharedCustody:
    """What this service knows of a shared key.

    Args:
        dealing: who holds shares.
        signature: of the federation CA over it.
        share: of this service; None when it only takes pads away.
    """

    dealing: Dealing
    signature: bytes
    share: KeyShare | None = field(default=None, repr=False)

    @classmethod
    def from_settings(cls, settings: KeyServerSettings, credentials: Credentials) -> "SharedCustody | None":
        """Read the files that the dealer made; None when none are configured.

        Raises:
            ConfigError: a file cannot be read, is not of this federation, or was not sealed to this service.
        """
        if settings.paillier_dealing is None:
            if settings.paillier_share is not None:
                raise ConfigError("a share without its dealing is of no use", fix="set paillier_dealing as well")
            return None
        content = _read(settings.paillier_dealing)
        try:
            raw, signature = str(content["dealing"]).encode(), bytes.fromhex(content["signature"])
            credentials.trust.check_signed(dealing_message(raw), signature)
            dealing = Dealing.from_bytes(raw)
        except (KeyError, ValueError, TypeError, BadSignature, TacitError) as error:
            raise ConfigError(
                f"the dealing {settings.paillier_dealing} is none of this federation",
                expected="what `tacit keys deal` made with the federation's CA",
            ) from error
        share = None if settings.paillier_share is None else _open_share(settings.paillier_share, dealing, credentials)
        return cls(dealing, signature, share)


def _open_share(path: Path, dealing: Dealing, credentials: Credentials) -> KeyShare:
    content = _read(path)
    try:
        index = dealing.index_of(credentials.identity.certificate_sha256)
        if content["format"] != SHARE_FORMAT or content["index"] != index:
            raise ValueError("index")
        secret = credentials.opener().open(bytes.fromhex(content["sealed"]), dealing.share_context(index))
    except (KeyError, ValueError, TypeError, CryptoError, TacitError) as error:
        raise ConfigError(
            f"the share {path} cannot be opened",
            expected="the share that was sealed to this service's certificate, of this dealing",
            fix="deal again after the key of a certificate was renewed",
        ) from error
    return KeyShare(index, from_bytes(secret))


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text()
        content = json.loads(text) if len(text) <= _LONGEST_FILE else None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read", got=type(error).__name__) from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} has the wrong form", expected="one JSON object")
    return content
