"""Channels and their measured options: pinned role, keepalive that works, fixed windows, no compression, no proxy."""

import grpc

from fl_core.transport.identity import Role, pinned_name
from fl_core.transport.tls import Credentials
from fl_core.transport.tracing import client_interceptors

MAX_REQUEST_BYTES = 4 << 20
"""Largest message that a service takes. Tensors come in chunks far below; sealed shares of 16,384 sites fit."""

MAX_RESPONSE_BYTES = 32 << 20
"""Largest message that a client takes: the key directory of 16,384 sites, each with its certificate."""

Option = tuple[str, int | str]

# keepalive_timeout_ms does not fire in current gRPC, ping_timeout_ms does; it still sets TCP_USER_TIMEOUT.
_KEEPALIVE: tuple[Option, ...] = (
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
)

CHANNEL_OPTIONS: tuple[Option, ...] = (
    *_KEEPALIVE,
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.max_receive_message_length", MAX_RESPONSE_BYTES),
    # The sender learns why: a refusal by the receiver arrives as a connection that broke, which one tries again.
    ("grpc.max_send_message_length", MAX_REQUEST_BYTES),
    # A fixed window bounds what gRPC buffers of a download that is read slowly.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 1 << 20),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.enable_http_proxy", 0),
    # We try again ourselves, with pauses and an end. gRPC's own retries have neither: against a server that closes
    # connections as calls begin they took gigabytes in seconds.
    ("grpc.enable_retries", 0),
)

SERVER_OPTIONS: tuple[Option, ...] = (
    *_KEEPALIVE,
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    ("grpc.max_send_message_length", MAX_RESPONSE_BYTES),
    # With automatic windows gRPC buffers whole updates of sites that wait for their turn.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 1 << 18),
    # gRPC keeps room to read ahead on each connection, also on one that is silent: by default up to 4 MiB.
    ("grpc.experimental.tcp_max_read_chunk_size", 1 << 16),
    ("grpc.experimental.tcp_max_read_buffer_size", 1 << 13),
    # Only the identity encoding: masked updates do not compress, and compressed bombs stay out.
    ("grpc.compression_enabled_algorithms_bitset", 1),
    # A second server on the same port must fail instead of taking half of the connections.
    ("grpc.so_reuseport", 0),
    # Open connections outlive a rotated CA, so they are renewed.
    ("grpc.max_connection_age_ms", 3_600_000),
    ("grpc.max_connection_age_grace_ms", 600_000),
    # Whoever connects and shows no certificate in this time is cut off.
    ("grpc.server_handshake_timeout_ms", 10_000),
    # Far more than a party needs; without it one connection could hold any number of calls open.
    ("grpc.max_concurrent_streams", 1_000),
)


def open_channel(address: str, credentials: Credentials, role: Role, pinned_id: str | None = None) -> grpc.aio.Channel:
    """Open a channel to a service that must hold a certificate of `role` from the pinned CA.

    The channel connects when it is first used. Revocation is not checked here: see `preflight.check_service`.

    Args:
        address: host:port.
        credentials: our own certificate and the pinned CA.
        role: a service role.
        pinned_id: the id that the service must have; any of that role when None.
    """
    options = (*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", pinned_name(role, pinned_id)))
    return grpc.aio.secure_channel(
        address, credentials.channel_credentials(), options, interceptors=client_interceptors()
    )
