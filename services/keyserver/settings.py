"""Settings of the key server."""

import os
from pathlib import Path

from pydantic import Field, SecretStr

from services.runtime.database import sqlite_url, with_password
from services.runtime.settings import ServiceSettings


class KeyServerSettings(ServiceSettings):
    """What the key server needs beside the settings of every service.

    Args:
        database_url: a database of its own that records unmasked sessions; a SQLite file in state_dir when empty.
        database_password_file: a file that holds the password of `database_url`, instead of the URL itself.
        max_sessions: sessions that may be open at once.
        max_cohort: largest cohort; the messages of a session grow with its square.
        streams_per_caller: streams that one site or service may hold open at once.
        message_timeout_seconds: how long a site may take for a message that needs no work.
        delivery_timeout_seconds: how long the aggregator is tried before a combined mask is given up.
        mask_threads: threads that rebuild secrets and expand masks, and that decrypt sums.
        paillier_key: sealed key of encrypted jobs, made by `tacit keys make`; none when empty.
        paillier_unlock_file: key file that opens it; without one the passphrase does.
        paillier_dealing: who holds the shares of a shared key, made by `tacit keys deal`; none when empty.
        paillier_share: this service's share of it, when it is one of the decryptors.
        paillier_passphrase: opens it; for the environment, not for the file.
    """

    database_url: str = ""
    database_password_file: Path | None = None
    max_sessions: int = Field(default=16, ge=1)
    max_cohort: int = Field(default=4096, ge=3)
    streams_per_caller: int = Field(default=4, ge=1)
    message_timeout_seconds: float = Field(default=30.0, gt=0)
    delivery_timeout_seconds: float = Field(default=120.0, gt=0)
    paillier_key: Path | None = None
    paillier_unlock_file: Path | None = None
    paillier_dealing: Path | None = None
    paillier_share: Path | None = None
    paillier_passphrase: SecretStr = SecretStr("")
    mask_threads: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)

    @property
    def journal_url(self) -> str:
        """The database of the journal."""
        given = with_password(self.database_url, self.database_password_file)
        return given or sqlite_url(self.state_dir / "keyserver.db")
