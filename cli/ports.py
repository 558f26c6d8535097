"""Ports of this machine: find free ones, or check that given ones are."""

import socket
from collections.abc import Sequence
from contextlib import ExitStack

from fl_core.errors import ConfigError

LOOPBACK = "127.0.0.1"


def free_ports(count: int) -> list[int]:
    """`count` distinct ports of the loopback interface that nobody listens on now."""
    with ExitStack() as stack:
        # All are held until the last one is found, so that none comes twice.
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in sockets:
            listener.bind((LOOPBACK, 0))
        return [listener.getsockname()[1] for listener in sockets]


def check_free(ports: Sequence[int]) -> None:
    """Check that nobody listens on any of `ports`.

    Raises:
        ConfigError: somebody does, or a port may not be used.
    """
    for port in ports:
        with socket.socket() as listener:
            # What the services themselves do: a port whose last connection is still closing down is free.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((LOOPBACK, port))
            except (OSError, OverflowError) as error:
                raise ConfigError(
                    f"port {port} cannot be used",
                    got=getattr(error, "strerror", None) or str(error),
                    fix="stop what listens there, or choose another with --port; --port 0 takes free ones",
                ) from error
