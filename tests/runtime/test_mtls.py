"""Real handshakes: who gets in, who does not, and what each is told."""

import asyncio
import dataclasses
import socket
import ssl
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from fl_core.errors import IdentityError, PeerLost, PermissionRefused
from fl_core.transport.channel import open_channel
from fl_core.transport.identity import Role
from fl_core.transport.peer import call_unary, read_stream
from fl_core.transport.preflight import check_service
from fl_core.transport.tls import Credentials
from fl_core.wire.v1 import aggregator_pb2, aggregator_pb2_grpc, status_pb2

STATUS = status_pb2.GetStatusRequest()


async def get_status(
    address: str, credentials: Credentials, role: Role = Role.AGGREGATOR, pinned_id: str | None = None
) -> str:
    async with open_channel(address, credentials, role, pinned_id) as channel:
        stub = aggregator_pb2_grpc.AggregatorServiceStub(channel)
        response = await call_unary(stub.GetStatus, STATUS, timeout_s=20)
        return str(response.service_id)


async def test_the_handler_knows_its_caller(serving: Any, federation: Any) -> None:
    async with serving() as address:
        assert await get_status(address, federation.credentials(Role.SITE, "a")) == "site/a"
        assert await get_status(address, federation.credentials(Role.OPERATOR, "o"), pinned_id="agg-1") == "operator/o"


async def test_nobody_without_a_certificate_gets_past_the_handshake(serving: Any, federation: Any) -> None:
    credentials = grpc.ssl_channel_credentials(federation.authority.ca_path.read_bytes())
    options = (("grpc.ssl_target_name_override", "aggregator.tacit"),)
    async with serving() as address, grpc.aio.secure_channel(address, credentials, options) as channel:
        with pytest.raises(PeerLost):
            await call_unary(aggregator_pb2_grpc.AggregatorServiceStub(channel).GetStatus, STATUS, timeout_s=20)


async def test_nobody_without_tls_gets_an_answer(serving: Any) -> None:
    async with serving() as address, grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(PeerLost):
            await call_unary(aggregator_pb2_grpc.AggregatorServiceStub(channel).GetStatus, STATUS, timeout_s=20)


async def test_a_wrong_role_is_refused_with_both_roles_named(serving: Any, connect: Any) -> None:
    async with serving() as address, connect(address, Role.SITE, "a") as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.FreezeSurvivors(aggregator_pb2.FreezeSurvivorsRequest(), timeout=20)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert "site/a may not call FreezeSurvivors" in caught.value.details()
        with pytest.raises(PermissionRefused, match="expected a certificate of role coordinator, got site"):
            await call_unary(stub.FreezeSurvivors, aggregator_pb2.FreezeSurvivorsRequest(), timeout_s=20)


async def test_a_revoked_site_is_refused_on_its_open_connection(serving: Any, connect: Any, federation: Any) -> None:
    credentials = federation.credentials(Role.SITE, "a")
    async with serving() as address, connect(address, Role.SITE, "a") as stub:
        await call_unary(stub.GetStatus, STATUS, timeout_s=20)
        federation.revoke(credentials)
        with pytest.raises(IdentityError, match=rf"site/a \(serial {credentials.identity.serial:x}\) was revoked on"):
            await call_unary(stub.GetStatus, STATUS, timeout_s=20)
        assert await get_status(address, federation.credentials(Role.SITE, "b")) == "site/b"


async def test_a_revocation_ends_a_stream_that_is_open(serving: Any, connect: Any, federation: Any) -> None:
    async with serving() as address, connect(address, Role.SITE, "a") as stub:
        events = read_stream(stub.WatchAggregation, aggregator_pb2.WatchAggregationRequest(), timeout_s=30)
        await anext(events)
        federation.revoke(federation.credentials(Role.SITE, "a"))
        with pytest.raises(IdentityError, match=r"site/a .*was revoked"):
            _ = [event async for event in events]


async def test_an_expired_certificate_gets_no_answer_and_the_preflight_says_why(serving: Any, federation: Any) -> None:
    a_minute_ago, before = datetime.now(UTC) - timedelta(minutes=1), datetime.now(UTC) - timedelta(minutes=2)
    files = federation.issue(Role.SITE, "old", days=1, now=a_minute_ago - timedelta(days=1))
    expired = Credentials.from_files(files.certificate, files.key, files.ca, now=before)
    async with serving() as address:
        with pytest.raises(PeerLost):
            await get_status(address, expired)
        with pytest.raises(IdentityError, match=rf"site/old \(serial {expired.identity.serial:x}\) expired on"):
            await check_service(address, expired, Role.AGGREGATOR)
        # The service refuses by itself, whatever the client believes about its own certificate.
        with pytest.raises(IdentityError, match=r"refuses our certificate site/old"):
            await check_service(address, expired, Role.AGGREGATOR, now=before)


async def test_a_site_of_another_federation_is_refused_by_both_ends(
    serving: Any, federation: Any, make_federation: Any
) -> None:
    foreign = make_federation("other").credentials(Role.SITE, "a")
    pinned = dataclasses.replace(foreign, _ca_pem=federation.authority.ca_path.read_bytes())
    async with serving() as address:
        with pytest.raises(IdentityError, match=r"aggregator/agg-1 .*is not of this federation"):
            await check_service(address, foreign, Role.AGGREGATOR)
        with pytest.raises(IdentityError, match="does not hold the certificate that we expect"):
            await get_status(address, foreign)
        with pytest.raises(PeerLost):
            await get_status(address, pinned)


async def test_a_client_pins_role_and_id_of_the_service(serving: Any, federation: Any) -> None:
    site = federation.credentials(Role.SITE, "a")
    async with serving() as address:
        with pytest.raises(IdentityError, match="does not hold the certificate"):
            await get_status(address, site, Role.KEYSERVER)
        with pytest.raises(IdentityError, match="does not hold the certificate"):
            await get_status(address, site, pinned_id="agg-2")
        with pytest.raises(IdentityError, match=r"wrong role: expected keyserver, got aggregator/agg-1"):
            await check_service(address, site, Role.KEYSERVER)
        with pytest.raises(IdentityError, match=r"is another one: expected agg-2, got aggregator/agg-1"):
            await check_service(address, site, Role.AGGREGATOR, pinned_id="agg-2")


async def test_the_preflight_shows_the_certificate_of_the_service(serving: Any, federation: Any) -> None:
    async with serving() as address:
        seen = await check_service(address, federation.credentials(Role.SITE, "a"), Role.AGGREGATOR)
    assert seen.certificate_der == federation.credentials(Role.AGGREGATOR, "agg-1").certificate_der
    assert seen.identity.name == "aggregator/agg-1"


async def test_a_revoked_service_is_refused_by_the_preflight(serving: Any, federation: Any) -> None:
    async with serving() as address:
        federation.revoke(federation.credentials(Role.AGGREGATOR, "agg-1"))
        with pytest.raises(IdentityError, match=r"aggregator/agg-1 .*was revoked"):
            await check_service(address, federation.credentials(Role.SITE, "a"), Role.AGGREGATOR)


async def test_nobody_listening_is_worth_trying_again(federation: Any, free_port: Any) -> None:
    with pytest.raises(PeerLost, match="no aggregator can be reached"):
        await check_service(f"127.0.0.1:{free_port()}", federation.credentials(Role.SITE, "a"), Role.AGGREGATOR)


async def test_a_peer_that_never_answers_is_given_up(federation: Any) -> None:
    async def hang(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with await asyncio.start_server(hang, "127.0.0.1", 0) as silent:
        address = f"127.0.0.1:{silent.sockets[0].getsockname()[1]}"
        with pytest.raises(PeerLost, match=r"did not answer: expected within 0.2 s"):
            await check_service(address, federation.credentials(Role.SITE, "a"), Role.AGGREGATOR, timeout_s=0.2)


async def test_what_does_not_speak_tls_is_named(federation: Any) -> None:
    async def talk(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 10)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as plain:
        address = f"127.0.0.1:{plain.sockets[0].getsockname()[1]}"
        with pytest.raises(IdentityError, match="does not speak TLS"):
            await check_service(address, federation.credentials(Role.SITE, "a"), Role.AGGREGATOR)


def old_tls(context: ssl.SSLContext, files: Any) -> ssl.SSLContext:
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(files.certificate, files.key)
    return context


async def test_a_client_of_tls_1_2_is_refused(serving: Any, federation: Any) -> None:
    files = federation.issue(Role.SITE, "a")
    context = old_tls(ssl.create_default_context(cafile=files.ca), files)
    async with serving() as address:
        host, port = address.rsplit(":", 1)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection(host, int(port), ssl=context, server_hostname="aggregator.tacit")
        context.maximum_version = ssl.TLSVersion.TLSv1_3
        _, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname="aggregator.tacit")
        writer.transport.abort()


async def test_a_server_of_tls_1_2_is_refused_by_the_preflight(federation: Any) -> None:
    files = federation.issue(Role.AGGREGATOR, "agg-1")
    context = old_tls(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), files)

    def serve_once(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            context.wrap_socket(connection, server_side=True)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(asyncio.to_thread(serve_once, listener))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(IdentityError, match=r"does not speak TLS 1.3"):
            await check_service(address, federation.credentials(Role.SITE, "a"), Role.AGGREGATOR)
        await serving


async def test_a_renewed_certificate_is_served_without_a_restart(serving: Any, federation: Any, tmp_path: Path) -> None:
    site = federation.credentials(Role.SITE, "a")
    async with serving() as address:
        before = await check_service(address, site, Role.AGGREGATOR)
        files = federation.issue(Role.AGGREGATOR, "agg-1")
        renewed = federation.authority.issue(Role.AGGREGATOR, "agg-1", tmp_path / "renewed")
        renewed.key.replace(files.key)
        renewed.certificate.replace(files.certificate)
        after = await check_service(address, site, Role.AGGREGATOR)
        assert after.identity.serial != before.identity.serial
        assert await get_status(address, site) == "site/a"
