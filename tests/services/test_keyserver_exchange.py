"""Rounds 0 and 1 over mTLS: who may speak, what is refused, and when the phases close."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from secagg_cluster import Cluster, FakeSite, read, running_cluster
from settling import settle

import services.runtime.sessions
from fl_core.errors import (
    BadKey,
    BadSignature,
    NotEnough,
    Overloaded,
    PeerLost,
    PermissionRefused,
    PlanError,
    RemoteProtocolError,
    SessionFrozen,
    TacitError,
    UnknownSession,
)
from fl_core.rounds.plan import PhaseBounds, PhaseSchedule, RoundPlan
from fl_core.secagg.directory import advertisement_statement
from fl_core.transport.errors import rpc_errors
from fl_core.transport.identity import Role
from fl_core.transport.true_status import call_errors
from fl_core.wire import convert
from fl_core.wire.v1 import keyserver_pb2, round_pb2, status_pb2

UNHURRIED = PhaseSchedule(advertising=PhaseBounds(60.0, 120.0), sharing=PhaseBounds(60.0, 120.0))
"""Whatever ends before a minute is over did not wait for anybody."""


@pytest.fixture
async def cluster(federation: Any) -> AsyncIterator[Cluster]:
    async with running_cluster(federation) as running:
        yield running


async def opened(cluster: Cluster, **changes: Any) -> tuple[RoundPlan, list[FakeSite]]:
    plan = cluster.plan(**changes)
    await cluster.open_plan(plan)
    return plan, [await cluster.site(plan, index) for index in range(len(plan.roster))]


async def say(site: FakeSite, *messages: keyserver_pb2.ExchangeKeysRequest) -> Any:
    """Send these messages over one stream and read one response."""
    call = site.keyserver.ExchangeKeys(timeout=20)
    try:
        async with call_errors(call):
            for message in messages:
                await call.write(message)
            return await read(call)
    finally:
        call.cancel()


def hello(site: FakeSite, **changes: Any) -> keyserver_pb2.ExchangeKeysRequest:
    message = keyserver_pb2.SessionHello(session_id=site.plan.session_id, index=site.index)
    for name, value in changes.items():
        setattr(message, name, value)
    return keyserver_pb2.ExchangeKeysRequest(hello=message)


def keys(advertisement: Any) -> keyserver_pb2.ExchangeKeysRequest:
    return keyserver_pb2.ExchangeKeysRequest(advertisement=convert.advertisement_to_proto(advertisement))


async def dropouts(cluster: Cluster, plan: RoundPlan) -> dict[int, int]:
    events = await cluster.exchange_end(plan)
    return {event.dropout.index: event.dropout.reason for event in events if event.WhichOneof("event") == "dropout"}


async def test_the_exchange_closes_early_when_everybody_answered(cluster: Cluster) -> None:
    plan, sites = await opened(cluster, schedule=UNHURRIED)
    async with asyncio.timeout(40):
        await asyncio.gather(*(site.exchange() for site in sites))
        (event,) = await cluster.exchange_end(plan)
    assert list(event.closed.advertised) == list(event.closed.shared) == [0, 1, 2, 3, 4]
    assert all(event.closed.bytes_up[index] > 500 for index in range(5))
    assert all(event.closed.bytes_down[index] > 2500 for index in range(5))


async def test_lost_sites_are_not_waited_for(cluster: Cluster) -> None:
    plan, sites = await opened(cluster, schedule=UNHURRIED)
    running = asyncio.gather(*(site.exchange() for site in sites[:3]))
    await cluster.mark_lost(plan, 3, 4)
    async with asyncio.timeout(40):
        await running
        events = await cluster.exchange_end(plan)
    # The coordinator knows who is lost; only the end is news to it.
    assert [event.WhichOneof("event") for event in events] == ["closed"]


async def test_a_silent_site_drops_out_after_the_minimum_time(cluster: Cluster) -> None:
    plan, sites = await opened(cluster)
    await asyncio.gather(*(site.exchange() for site in sites[:4]))
    assert await dropouts(cluster, plan) == {4: round_pb2.DROPOUT_REASON_ADVERTISE_TIMEOUT}
    with pytest.raises(SessionFrozen, match="come too late"):
        await sites[4].exchange()


async def test_a_site_that_stops_after_its_keys_drops_out_in_sharing(cluster: Cluster) -> None:
    plan, sites = await opened(cluster)
    await asyncio.gather(*(site.exchange("keys" if site.index == 2 else "") for site in sites))
    assert await dropouts(cluster, plan) == {2: round_pb2.DROPOUT_REASON_SHARE_TIMEOUT}


async def test_too_few_keys_fail_the_exchange_for_everybody(cluster: Cluster) -> None:
    plan, sites = await opened(cluster)
    running = asyncio.gather(sites[0].exchange(), sites[1].exchange(), return_exceptions=True)
    await settle()
    await cluster.mark_lost(plan, 2, 3, 4)
    *_, last = await cluster.exchange_end(plan)
    assert last.failed.reason == round_pb2.ABANDON_REASON_TOO_FEW_KEYS
    assert "expected at least 3, got 2" in last.failed.detail
    for error in await running:
        assert isinstance(error, NotEnough)


async def test_too_few_keys_by_the_deadline_fail_the_exchange(cluster: Cluster) -> None:
    schedule = replace(cluster.plan().schedule, advertising=PhaseBounds(0.1, 0.5))
    plan, _ = await opened(cluster, schedule=schedule)
    *drops, last = await cluster.exchange_end(plan)
    assert last.failed.reason == round_pb2.ABANDON_REASON_TOO_FEW_KEYS
    assert [event.dropout.index for event in drops] == [0, 1, 2, 3, 4]


async def test_too_few_shares_fail_the_exchange(cluster: Cluster) -> None:
    schedule = replace(cluster.plan().schedule, sharing=PhaseBounds(0.1, 0.5))
    plan, sites = await opened(cluster, schedule=schedule)
    await asyncio.gather(*(site.exchange("keys") for site in sites))
    *_, last = await cluster.exchange_end(plan)
    assert last.failed.reason == round_pb2.ABANDON_REASON_TOO_FEW_SHARES


async def test_a_broken_stream_is_opened_again_with_the_same_messages(cluster: Cluster) -> None:
    _, sites = await opened(cluster)
    mine = sites[0].advertised()
    others = [asyncio.create_task(site.exchange()) for site in sites[1:]]
    call = sites[0].keyserver.ExchangeKeys(timeout=30)
    await call.write(hello(sites[0]))
    await call.write(keys(mine[1]))
    await settle()
    call.cancel()
    await sites[0].exchange(advertised=mine)
    await asyncio.gather(*others)


async def test_other_keys_of_a_site_that_sent_some_are_refused_and_change_nothing(cluster: Cluster) -> None:
    plan, sites = await opened(cluster)
    mine = sites[0].advertised()
    first = asyncio.create_task(sites[0].exchange(advertised=mine))
    await settle()
    with pytest.raises(RemoteProtocolError, match="sent different keys before"):
        await sites[0].exchange()
    await asyncio.gather(first, *(site.exchange() for site in sites[1:]))
    assert await dropouts(cluster, plan) == {}


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [
        (lambda adv: replace(adv, signature=bytes(70)), BadSignature, round_pb2.DROPOUT_REASON_BAD_SIGNATURE),
        (lambda adv: replace(adv, mask_public_key=bytes(32)), BadKey, round_pb2.DROPOUT_REASON_BAD_KEY),
        (lambda adv: replace(adv, index=1), RemoteProtocolError, round_pb2.DROPOUT_REASON_PROTOCOL_VIOLATION),
    ],
    ids=["unsigned", "low-order", "of-another-site"],
)
async def test_wrong_keys_refuse_the_site_and_nobody_waits_for_it(
    cluster: Cluster, change: Any, error: type[TacitError], reason: int
) -> None:
    plan, sites = await opened(cluster, schedule=UNHURRIED)
    advertisement = change(sites[0].advertised()[1])
    with pytest.raises(error):
        await say(sites[0], hello(sites[0]), keys(advertisement))
    with pytest.raises(error):
        await sites[0].exchange()
    async with asyncio.timeout(40):
        await asyncio.gather(*(site.exchange() for site in sites[1:]))
        assert await dropouts(cluster, plan) == {0: reason}


async def test_a_key_of_another_site_is_refused_even_when_it_is_signed(cluster: Cluster) -> None:
    plan, sites = await opened(cluster)
    mine, theirs = sites[0].advertised(), sites[1].advertised()
    others = [asyncio.create_task(sites[1].exchange(advertised=theirs))]
    others += [asyncio.create_task(site.exchange()) for site in sites[2:]]
    await settle()
    copied = replace(mine[1], mask_public_key=theirs[1].mask_public_key)
    statement = advertisement_statement(plan.session_context(), copied)
    with pytest.raises(BadKey):
        await say(
            sites[0], hello(sites[0]), keys(replace(copied, signature=sites[0].credentials.signer().sign(statement)))
        )
    await asyncio.gather(*others)
    assert await dropouts(cluster, plan) == {0: round_pb2.DROPOUT_REASON_BAD_KEY}


async def test_keys_of_an_earlier_attempt_are_refused(cluster: Cluster) -> None:
    plan, sites = await opened(cluster)
    replayed = sites[0].advertised()[1]
    newer = replace(plan, attempt=2)
    await cluster.open_plan(newer)
    with pytest.raises(BadSignature):
        await say(await cluster.site(newer, 0), hello(await cluster.site(newer, 0)), keys(replayed))


async def test_shares_of_the_wrong_length_refuse_the_site(cluster: Cluster) -> None:
    plan, sites = await opened(cluster)
    others = [asyncio.create_task(site.exchange()) for site in sites[1:]]
    collecting, advertisement = sites[0].advertised()
    call = sites[0].keyserver.ExchangeKeys(timeout=20)

    async def deal_too_little() -> None:
        async with call_errors(call):
            await call.write(hello(sites[0]))
            await call.write(keys(advertisement))
            _, sealed = collecting.step(convert.directory_from_proto((await read(call)).directory))
            short = replace(sealed, shares=(replace(sealed.shares[0], ciphertext=b"x" * 40), *sealed.shares[1:]))
            await call.write(keyserver_pb2.ExchangeKeysRequest(shares=convert.sealed_shares_to_proto(short)))
            await read(call)

    with pytest.raises(RemoteProtocolError, match="sealed share has the wrong size"):
        await deal_too_little()
    await asyncio.gather(*others)
    assert await dropouts(cluster, plan) == {0: round_pb2.DROPOUT_REASON_PROTOCOL_VIOLATION}


async def test_a_site_cannot_speak_for_another_index(cluster: Cluster) -> None:
    _, sites = await opened(cluster)
    with pytest.raises(PermissionRefused, match="not the site at index 1"):
        await say(sites[0], hello(sites[0], index=1))
    with pytest.raises(RemoteProtocolError, match="no site of the roster"):
        await say(sites[0], hello(sites[0], index=5))


@pytest.mark.parametrize("role", [Role.COORDINATOR, Role.AGGREGATOR, Role.OPERATOR])
@pytest.mark.parametrize("method", ["ExchangeKeys", "RevealShares"])
async def test_only_sites_exchange_and_reveal(cluster: Cluster, role: Role, method: str) -> None:
    stub = await cluster.keyserver(role, "site-0")
    call = getattr(stub, method)(timeout=30)
    with pytest.raises(PermissionRefused, match=f"may not call {method}"), rpc_errors():
        await read(call)


@pytest.mark.parametrize("method", ["OpenExchange", "MarkLost", "Unmask", "AbandonExchange"])
@pytest.mark.parametrize("role", [Role.SITE, Role.AGGREGATOR])
async def test_only_the_coordinator_commands(cluster: Cluster, role: Role, method: str) -> None:
    stub = await cluster.keyserver(role, "site-0")
    request = getattr(keyserver_pb2, f"{method}Request")()
    with pytest.raises(PermissionRefused, match=f"may not call {method}"), rpc_errors():
        await getattr(stub, method)(request, timeout=30)


async def test_an_unknown_session_is_refused(cluster: Cluster) -> None:
    _, sites = await opened(cluster)
    with pytest.raises(UnknownSession):
        await say(sites[0], hello(sites[0], session_id=bytes(16)))


async def test_messages_out_of_turn_are_refused(cluster: Cluster) -> None:
    _, sites = await opened(cluster)
    with pytest.raises(RemoteProtocolError, match="expected hello, got advertisement"):
        await say(sites[0], keys(sites[0].advertised()[1]))
    with pytest.raises(RemoteProtocolError, match="expected advertisement, got hello"):
        await say(sites[0], hello(sites[0]), hello(sites[0]))


async def test_a_site_that_says_nothing_is_let_go(federation: Any) -> None:
    async with running_cluster(federation, keyserver={"message_timeout_seconds": 0.2}) as cluster:
        _, sites = await opened(cluster)
        with pytest.raises(PeerLost, match="silent"):
            await say(sites[0], hello(sites[0]))


async def test_the_streams_of_one_site_are_bounded(federation: Any) -> None:
    async with running_cluster(federation, keyserver={"streams_per_caller": 1}) as cluster:
        _, sites = await opened(cluster)
        held = sites[0].keyserver.ExchangeKeys(timeout=30)
        await held.write(hello(sites[0]))
        await settle()
        with pytest.raises(Overloaded, match="too many streams"):
            await say(sites[0], hello(sites[0]))
        held.cancel()


async def test_a_revoked_certificate_gets_nowhere(cluster: Cluster, federation: Any) -> None:
    _, sites = await opened(cluster)
    federation.revoke(sites[0].credentials)
    with pytest.raises(TacitError, match="revoked"):
        await say(sites[0], hello(sites[0]))


async def test_a_plain_plan_and_a_plan_for_another_key_server_are_refused(cluster: Cluster) -> None:
    stub = await cluster.keyserver()
    elsewhere = replace(cluster.plan(), keyserver=cluster.endpoint(Role.AGGREGATOR, "agg"))
    for plan in (cluster.plain_plan(), elsewhere):
        request = keyserver_pb2.OpenExchangeRequest(plan=convert.plan_to_proto(plan))
        with pytest.raises(PlanError), rpc_errors():
            await stub.OpenExchange(request, timeout=30)


async def test_sessions_and_cohorts_are_bounded(federation: Any) -> None:
    async with running_cluster(federation, keyserver={"max_sessions": 1, "max_cohort": 5}) as cluster:
        plan, _ = await opened(cluster)
        with pytest.raises(Overloaded, match="no room for another session"):
            await cluster.open_plan(replace(plan, job_id="other"))
        with pytest.raises(PlanError, match="larger than this key server takes"):
            await cluster.open_plan(cluster.plan(sites=6))


async def test_an_abandoned_session_lets_everybody_go(cluster: Cluster) -> None:
    plan, sites = await opened(cluster, schedule=UNHURRIED)
    waiting = asyncio.gather(
        cluster.exchange_end(plan), *(site.exchange() for site in sites[:2]), return_exceptions=True
    )
    await settle()
    request = keyserver_pb2.AbandonExchangeRequest(session_id=plan.session_id)
    for _ in range(2):
        await (await cluster.keyserver()).AbandonExchange(request, timeout=30)
    for error in await waiting:
        assert isinstance(error, UnknownSession)
        assert "abandoned" in str(error)


async def test_a_session_expires_by_its_schedule(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services.runtime.sessions, "SESSION_GRACE_S", 0.0)
    brief, enough = PhaseBounds(0.0, 0.05), PhaseBounds(1.0, 1.0)
    plan, sites = await opened(cluster, schedule=PhaseSchedule(brief, enough, enough, brief, brief, brief))
    await asyncio.gather(*(site.exchange() for site in sites))
    with pytest.raises(UnknownSession, match="expired"):
        await sites[0].reveal()
    with pytest.raises(UnknownSession, match="expired"):
        await cluster.unmask(plan, range(5))
    status = await (await cluster.keyserver()).GetStatus(status_pb2.GetStatusRequest(), timeout=30)
    assert not status.sessions


async def test_another_coordinator_has_no_say(cluster: Cluster) -> None:
    plan, _ = await opened(cluster)
    stub = await cluster.keyserver(Role.COORDINATOR, "other-coord")
    with pytest.raises(PermissionRefused, match="belongs to another coordinator"), rpc_errors():
        await stub.MarkLost(keyserver_pb2.MarkLostRequest(session_id=plan.session_id, indices=[0]), timeout=30)


async def test_the_status_tells_the_phase(cluster: Cluster) -> None:
    await opened(cluster, schedule=UNHURRIED)
    stub = await cluster.keyserver(Role.OPERATOR, "op")
    status = await stub.GetStatus(status_pb2.GetStatusRequest(), timeout=30)
    assert (status.role, status.sessions[0].phase) == ("keyserver", "advertising")
    assert status.sessions[0].counts["invited"] == 5
