"""A site of the federation: the object that a program embeds."""

import asyncio
import signal
import threading

from client_sdk.config import SiteConfig
from client_sdk.journal import SiteJournal
from client_sdk.logs import set_up_logs
from client_sdk.network import Network
from client_sdk.observer import SiteObserver
from client_sdk.participation import Participation
from client_sdk.trainer import Trainer
from fl_core.errors import ConfigError
from fl_core.transport.identity import Role
from fl_core.transport.tls import Credentials, check_role
from fl_core.transport.tracing import tracing


class Site:
    """Takes part in the rounds of a federation with its own trainer.

    Args:
        config: who the site is and what it insists on.
        observer: watches what happens.
        network: the way to the services; straight to their addresses when None.
    """

    def __init__(
        self, config: SiteConfig, observer: SiteObserver | None = None, network: Network | None = None
    ) -> None:
        self._config = config
        self._network = network
        self._observer = observer or SiteObserver()
        self._participation: Participation | None = None

    @property
    def config(self) -> SiteConfig:
        """The configuration."""
        return self._config

    def run(self, trainer: Trainer) -> None:
        """Take part in every round until SIGINT, SIGTERM or `stop`. Blocks; sets logging up if nobody did.

        Raises:
            ConfigError: the configuration cannot be used, or the state folder belongs to another running site.
            IdentityError: the federation does not accept this site's certificate, or the coordinator is not of it.
            StorageError: the state folder cannot be read or written.
        """
        set_up_logs(self._config.log)
        asyncio.run(self._run(trainer))

    async def participate(self, trainer: Trainer) -> None:
        """As `run`, inside a running event loop. Ends when it is cancelled or stopped.

        Raises:
            ConfigError, IdentityError, StorageError: as `run`.
        """
        config = self._config
        credentials = Credentials.from_files(config.certificate, config.key, config.ca, config.crl)
        check_role(credentials, Role.SITE)
        if config.client_id not in (None, credentials.identity.id):
            raise ConfigError(
                f"the certificate {config.certificate} is of another site",
                expected=config.client_id,
                got=credentials.identity.id,
                fix="correct client_id or the path of the certificate",
            )
        traces = tracing(config.tracing_endpoint, credentials.identity.name)
        with traces, SiteJournal(config.state_dir) as journal:
            self._participation = Participation(config, credentials, trainer, journal, self._observer, self._network)
            try:
                await self._participation.run()
            finally:
                self._participation = None

    def stop(self) -> None:
        """End `participate` soon. Call it on the site's event loop, where observers are called too."""
        if self._participation is not None:
            self._participation.stop()

    async def _run(self, trainer: Trainer) -> None:
        handled = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
        loop = asyncio.get_running_loop()
        for number in handled:
            loop.add_signal_handler(number, self.stop)
        try:
            await self.participate(trainer)
        finally:
            for number in handled:
                loop.remove_signal_handler(number)
