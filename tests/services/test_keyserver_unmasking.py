"""Rounds 3 and 4 over mTLS: one unmasking of a session, recorded before anybody is asked, and nothing but the sum."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from secagg_cluster import RING_BITS, Cluster, FakeSite, digest, plain_sum, read, running_cluster, running_keyserver
from settling import settle

from fl_core.codec.packing import pack
from fl_core.errors import (
    NotEnough,
    PermissionRefused,
    RemoteProtocolError,
    SessionFrozen,
    StorageError,
    UnknownSession,
)
from fl_core.rounds.plan import RoundPlan
from fl_core.secagg.client import CollectingDirectory
from fl_core.secagg.inclusion import UploadTree
from fl_core.secagg.transcript import frozen_body, sign_part
from fl_core.transport.errors import rpc_errors
from fl_core.transport.identity import Role
from fl_core.transport.true_status import call_errors
from fl_core.wire import convert
from fl_core.wire.v1 import keyserver_pb2, round_pb2
from services.keyserver.journal import UnmaskJournal


@pytest.fixture
async def cluster(federation: Any) -> AsyncIterator[Cluster]:
    async with running_cluster(federation) as running:
        yield running


async def uploaded(cluster: Cluster, **changes: Any) -> tuple[RoundPlan, list[FakeSite]]:
    """A session of five sites that is frozen with all of them."""
    plan = cluster.plan(**changes)
    await cluster.open_plan(plan)
    sites = [await cluster.site(plan, index) for index in range(5)]
    await asyncio.gather(*(site.exchange() for site in sites))
    await asyncio.gather(*(site.upload() for site in sites))
    assert await cluster.freeze(plan, range(5)) == (0, 1, 2, 3, 4)
    return plan, sites


async def unmasked(cluster: Cluster, plan: RoundPlan, sites: list[FakeSite]) -> keyserver_pb2.UnmaskResponse:
    answer, *_ = await asyncio.gather(cluster.unmask(plan, range(5)), *(site.reveal() for site in sites))
    return answer


async def ask(site: FakeSite, *messages: Any) -> Any:
    """Send these messages of RevealShares over one stream and read a response after each."""
    call = site.keyserver.RevealShares(timeout=20)
    try:
        async with call_errors(call):
            for message in messages:
                await call.write(message)
                response = await read(call)
            return response
    finally:
        call.cancel()


@pytest.mark.parametrize("survivors", [[0, 1, 2, 3, 4], [0, 1, 2, 3]])
async def test_a_session_is_unmasked_once(cluster: Cluster, survivors: list[int]) -> None:
    plan, sites = await uploaded(cluster)
    assert not (await unmasked(cluster, plan, sites)).failure
    with pytest.raises(SessionFrozen, match="unmasked before"):
        await cluster.unmask(plan, survivors)
    assert len(cluster.coordinator.reports) == 1


async def test_a_second_unmasking_while_the_first_runs_is_refused(cluster: Cluster) -> None:
    plan, sites = await uploaded(cluster)
    first = asyncio.create_task(cluster.unmask(plan, range(5)))
    await settle()
    with pytest.raises(SessionFrozen):
        await cluster.unmask(plan, [0, 1, 2, 3])
    await asyncio.gather(first, *(site.reveal() for site in sites))
    np.testing.assert_array_equal(cluster.coordinator.reports[0].vector, plain_sum(plan, range(5)))


async def test_an_unmasked_session_stays_closed_after_a_restart(cluster: Cluster) -> None:
    plan, sites = await uploaded(cluster)
    await unmasked(cluster, plan, sites)
    async with running_keyserver(cluster.keyserver_settings) as address:
        cluster.addresses[Role.KEYSERVER] = address
        cluster.open.clear()
        with pytest.raises(SessionFrozen, match="unmasked before"):
            await cluster.unmask(plan, range(5))
        request = keyserver_pb2.OpenExchangeRequest(plan=convert.plan_to_proto(plan))
        with pytest.raises(SessionFrozen, match="unmasked before"), rpc_errors():
            await (await cluster.keyserver()).OpenExchange(request, timeout=30)


async def test_a_session_that_was_not_unmasked_is_unknown_after_a_restart(cluster: Cluster) -> None:
    plan, _ = await uploaded(cluster)
    async with running_keyserver(cluster.keyserver_settings) as address:
        cluster.addresses[Role.KEYSERVER] = address
        cluster.open.clear()
        with pytest.raises(UnknownSession):
            await cluster.unmask(plan, range(5))


async def test_nobody_is_asked_before_the_record_is_written(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, sites = await uploaded(cluster)

    async def fail(*_: object) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr(UnmaskJournal, "record", fail)
    waiting = asyncio.create_task(sites[0].reveal())
    await settle()
    with pytest.raises(StorageError, match="disk is full"):
        await cluster.unmask(plan, range(5))
    with pytest.raises(StorageError):
        await waiting
    assert cluster.coordinator.reports == []


@pytest.mark.parametrize(
    ("survivors", "error"),
    [
        ([0, 1, 2, 3, 5], RemoteProtocolError),
        ([1, 0, 2], RemoteProtocolError),
        ([0, 1], NotEnough),
        ([], RemoteProtocolError),
    ],
)
async def test_impossible_survivors_are_refused_and_the_session_can_still_be_unmasked(
    cluster: Cluster, survivors: list[int], error: type[Exception]
) -> None:
    plan, sites = await uploaded(cluster)
    with pytest.raises(error):
        await cluster.unmask(plan, survivors)
    assert not (await unmasked(cluster, plan, sites)).failure


async def test_survivors_outside_of_those_who_shared_are_refused(cluster: Cluster) -> None:
    plan = cluster.plan()
    await cluster.open_plan(plan)
    sites = [await cluster.site(plan, index) for index in range(5)]
    await asyncio.gather(*(site.exchange("keys" if site.index == 4 else "") for site in sites))
    await cluster.exchange_end(plan)
    with pytest.raises(RemoteProtocolError, match="outside U2"):
        await cluster.unmask(plan, range(5))


async def test_unmasking_before_the_exchange_is_over_is_refused(cluster: Cluster) -> None:
    plan = cluster.plan()
    await cluster.open_plan(plan)
    with pytest.raises(SessionFrozen, match="after the exchange of keys"):
        await cluster.unmask(plan, range(5))


async def test_a_site_that_did_not_survive_is_told_so(cluster: Cluster) -> None:
    plan = cluster.plan()
    await cluster.open_plan(plan)
    sites = [await cluster.site(plan, index) for index in range(5)]
    await asyncio.gather(*(site.exchange() for site in sites))
    await asyncio.gather(*(site.upload() for site in sites[:4]))
    survivors = await cluster.freeze(plan, range(5))
    unmasking = asyncio.create_task(cluster.unmask(plan, survivors))
    with pytest.raises(SessionFrozen, match="not among the survivors"):
        await sites[4].reveal()
    await asyncio.gather(unmasking, *(site.reveal() for site in sites[:4]))
    np.testing.assert_array_equal(cluster.coordinator.reports[0].vector, plain_sum(plan, range(4)))


async def test_a_signature_that_does_not_verify_drops_the_site_and_the_others_go_on(cluster: Cluster) -> None:
    plan, sites = await uploaded(cluster)
    unmasking = asyncio.create_task(cluster.unmask(plan, range(5)))
    bad = keyserver_pb2.RevealSharesRequest()
    bad.signature.index, bad.signature.signature = 4, bytes(70)
    with pytest.raises(RemoteProtocolError, match="signature"):
        await ask(sites[4], keyserver_pb2.RevealSharesRequest(hello=sites[4].hello), bad)
    await asyncio.gather(*(site.reveal() for site in sites[:4]))
    answer = await unmasking
    assert list(answer.signed) == [0, 1, 2, 3]
    assert [(drop.index, drop.reason) for drop in answer.dropouts] == [(4, round_pb2.DROPOUT_REASON_BAD_SIGNATURE)]
    np.testing.assert_array_equal(cluster.coordinator.reports[0].vector, plain_sum(plan, range(5)))


async def test_a_broken_stream_is_opened_again_with_the_same_messages(cluster: Cluster) -> None:
    plan, sites = await uploaded(cluster)
    unmasking = asyncio.create_task(cluster.unmask(plan, range(5)))
    others = [asyncio.create_task(site.reveal()) for site in sites[1:]]
    hello = keyserver_pb2.RevealSharesRequest(hello=sites[0].hello)
    told = await ask(sites[0], hello)
    phase, signature = sites[0].awaiting.step(convert.survivors_from_proto(told.survivors))
    signed = keyserver_pb2.RevealSharesRequest(signature=convert.signature_to_proto(signature))
    proof = convert.proof_from_proto((await ask(sites[0], hello, signed)).proof)
    _, revealed = phase.step(proof)
    shares = keyserver_pb2.RevealSharesRequest(shares=convert.revealed_to_proto(revealed))
    answer = await ask(sites[0], hello, signed, shares)
    assert answer.WhichOneof("message") == "done"
    await asyncio.gather(unmasking, *others)
    np.testing.assert_array_equal(cluster.coordinator.reports[0].vector, plain_sum(plan, range(5)))


async def test_a_holder_that_reveals_false_shares_is_blamed_and_the_sum_is_exact(cluster: Cluster) -> None:
    plan, sites = await uploaded(cluster)
    unmasking = asyncio.create_task(cluster.unmask(plan, range(5)))
    others = [asyncio.create_task(site.reveal()) for site in sites[1:]]
    hello = keyserver_pb2.RevealSharesRequest(hello=sites[0].hello)
    told = await ask(sites[0], hello)
    phase, signature = sites[0].awaiting.step(convert.survivors_from_proto(told.survivors))
    signed = keyserver_pb2.RevealSharesRequest(signature=convert.signature_to_proto(signature))
    _, revealed = phase.step(convert.proof_from_proto((await ask(sites[0], hello, signed)).proof))
    first, second, *rest = revealed.self_seed_shares
    swapped = (replace(first, share=second.share), replace(second, share=first.share), *rest)
    false = convert.revealed_to_proto(replace(revealed, self_seed_shares=swapped))
    await ask(sites[0], hello, signed, keyserver_pb2.RevealSharesRequest(shares=false))
    await asyncio.gather(*others)
    answer = await unmasking
    assert not answer.failure
    assert [(one.index, one.reason) for one in answer.dropouts] == [(0, round_pb2.DROPOUT_REASON_FALSE_REVEAL)]
    assert list(answer.revealed) == [1, 2, 3, 4]
    np.testing.assert_array_equal(cluster.coordinator.reports[0].vector, plain_sum(plan, range(5)))


async def test_a_dealer_of_false_shares_is_blamed_and_nothing_is_released(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = CollectingDirectory._split

    def split_something_else(phase: CollectingDirectory, directory: Any) -> Any:
        if phase.member.index != 3:
            return split(phase, directory)
        false = replace(phase.secrets, self_seed=bytes(32), mask_secret_key=bytes(32))
        return split(replace(phase, secrets=false), directory)

    monkeypatch.setattr(CollectingDirectory, "_split", split_something_else)
    plan, sites = await uploaded(cluster)
    answer = await unmasked(cluster, plan, sites)
    assert answer.failure == round_pb2.ABANDON_REASON_BAD_SHARES
    assert "site 3" in answer.detail
    assert [(one.index, one.reason) for one in answer.dropouts] == [(3, round_pb2.DROPOUT_REASON_FALSE_DEALING)]
    assert cluster.coordinator.reports == []
    with pytest.raises(SessionFrozen, match="unmasked before"):
        await cluster.unmask(plan, range(5))


async def test_uploads_that_the_aggregator_did_not_state_are_not_unmasked(cluster: Cluster) -> None:
    plan, sites = await uploaded(cluster)
    stated = cluster.frozen[plan.session_id]
    other = cluster.plan(attempt=2)
    for bent in (
        round_pb2.SignedPart(),
        round_pb2.SignedPart(kind="frozen", body=stated.body, certificate_der=stated.certificate_der, signature=b"x"),
        round_pb2.SignedPart(
            kind="frozen",
            body=stated.body,
            certificate_der=cluster.credentials(Role.COORDINATOR, "coord").signer().certificate_der,
            signature=stated.signature,
        ),
        cluster.state_uploads(other, tuple(range(5))),
        cluster.state_uploads(plan, (0, 1, 2, 3)),
    ):
        with pytest.raises(RemoteProtocolError):
            await cluster.unmask(plan, range(5), bent)
    assert not (await unmasked(cluster, plan, sites)).failure


async def test_a_site_whose_upload_is_not_proved_signs_and_reveals_nothing(cluster: Cluster) -> None:
    plan, sites = await uploaded(cluster)
    digests = {site.index: digest(pack(site.masked, plan.codec.ring_bits)) for site in sites}
    tree = UploadTree(plan.binding, {**digests, 2: digest(b"something else")})
    signer = cluster.credentials(Role.AGGREGATOR, "agg").signer()
    lie = convert.part_to_proto(sign_part("frozen", frozen_body(tree), signer))
    reveals = [site.reveal() for site in sites]
    answer, *said = await asyncio.gather(cluster.unmask(plan, range(5), lie), *reveals, return_exceptions=True)
    assert isinstance(said[2], RemoteProtocolError)
    assert "not among those that are summed" in str(said[2])
    assert 2 not in answer.signed


async def test_both_kinds_of_share_of_one_site_are_refused(cluster: Cluster) -> None:
    plan, sites = await uploaded(cluster)
    unmasking = asyncio.create_task(cluster.unmask(plan, range(5)))
    others = [asyncio.create_task(site.reveal()) for site in sites[1:]]
    hello = keyserver_pb2.RevealSharesRequest(hello=sites[0].hello)
    told = await ask(sites[0], hello)
    phase, signature = sites[0].awaiting.step(convert.survivors_from_proto(told.survivors))
    signed = keyserver_pb2.RevealSharesRequest(signature=convert.signature_to_proto(signature))
    _, revealed = phase.step(convert.proof_from_proto((await ask(sites[0], hello, signed)).proof))
    both = convert.revealed_to_proto(replace(revealed, mask_key_shares=revealed.self_seed_shares))
    with pytest.raises(RemoteProtocolError):
        await ask(sites[0], hello, signed, keyserver_pb2.RevealSharesRequest(shares=both))
    await asyncio.gather(*others)
    answer = await unmasking
    assert not answer.failure
    assert list(answer.revealed) == [1, 2, 3, 4]


async def test_too_few_signatures_release_nothing(cluster: Cluster) -> None:
    plan, sites = await uploaded(cluster)
    unmasking = asyncio.create_task(cluster.unmask(plan, range(5)))
    waiting = asyncio.gather(sites[0].reveal(), sites[1].reveal(), return_exceptions=True)
    await settle()
    await cluster.mark_lost(plan, 2, 3, 4)
    answer = await unmasking
    assert answer.failure == round_pb2.ABANDON_REASON_TOO_FEW_SIGNATURES
    assert all(isinstance(error, NotEnough) for error in await waiting)
    assert cluster.coordinator.reports == []


async def test_an_aggregator_that_is_gone_fails_the_unmasking(federation: Any) -> None:
    async with running_cluster(federation, keyserver={"delivery_timeout_seconds": 0.5}) as cluster:
        plan = cluster.plan()
        elsewhere = replace(plan.aggregator, address="127.0.0.1:1")
        plan = replace(plan, aggregator=elsewhere)
        await cluster.open_plan(plan)
        sites = [await cluster.site(plan, index) for index in range(5)]
        await asyncio.gather(*(site.exchange() for site in sites))
        tree = UploadTree(plan.binding, {site.index: digest(pack(site.masked, RING_BITS)) for site in sites})
        signer = cluster.credentials(Role.AGGREGATOR, "agg").signer()
        frozen = convert.part_to_proto(sign_part("frozen", frozen_body(tree), signer))
        answer, *_ = await asyncio.gather(cluster.unmask(plan, range(5), frozen), *(site.reveal() for site in sites))
        assert answer.failure == round_pb2.ABANDON_REASON_SERVICE_RESTARTED
        assert "127.0.0.1:1" in answer.detail


async def test_a_sum_that_fails_its_check_fails_the_unmasking(cluster: Cluster) -> None:
    plan = cluster.plan()
    await cluster.open_plan(plan)
    sites = [await cluster.site(plan, index) for index in range(5)]
    await asyncio.gather(*(site.exchange() for site in sites))
    sites[3].masked[1] += np.uint16(1)
    await asyncio.gather(*(site.upload() for site in sites))
    await cluster.freeze(plan, range(5))
    answer = await unmasked(cluster, plan, sites)
    assert answer.failure == round_pb2.ABANDON_REASON_BAD_AGGREGATE
    assert cluster.coordinator.reports == []


async def test_a_site_cannot_reveal_for_another_index(cluster: Cluster) -> None:
    _, sites = await uploaded(cluster)
    with pytest.raises(PermissionRefused, match="not the site at index 1"):
        await ask(sites[0], keyserver_pb2.RevealSharesRequest(hello=sites[1].hello))
