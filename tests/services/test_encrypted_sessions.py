"""Encrypted sessions over mTLS: uploads by the SDK's own code, the sum decrypted by the key server, once."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from secagg_cluster import Cluster, plain_sum, plain_vector, running_cluster, running_keyserver

from cli.keys import write_dealing, write_new_key
from client_sdk.encrypted_upload import encrypt_upload
from client_sdk.upload import Sending, Upload
from fl_core.crypto.paillier.engine import VARIABLE, supported_engines
from fl_core.crypto.paillier.key_files import UnlockSecret, open_private_key
from fl_core.encrypted.statement import state
from fl_core.errors import (
    BadSignature,
    ConfigError,
    NotEnough,
    NotFound,
    PermissionRefused,
    PlanError,
    SessionFrozen,
    StreamError,
    TacitError,
)
from fl_core.rounds.encryption import encrypted_context
from fl_core.rounds.paillier_terms import Custody, PaillierTerms
from fl_core.rounds.plan import Aggregation, RoundPlan
from fl_core.transport.errors import rpc_errors
from fl_core.transport.identity import Role
from fl_core.wire import convert
from fl_core.wire.statements import statement_to_proto
from fl_core.wire.v1 import aggregator_pb2, keyserver_pb2
from services.keyserver.paillier_keys import PaillierKeyRing, unlock_secret
from services.keyserver.settings import KeyServerSettings
from services.keyserver.shared_key import SharedCustody

UNLOCK = UnlockSecret(bytes(range(32)), is_passphrase=False)


@pytest.fixture(scope="session")
def key_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of a key server with a key of 2048 bits, made once."""
    folder = tmp_path_factory.mktemp("paillier")
    (folder / "unlock").write_bytes(UNLOCK.secret)
    write_new_key(folder / "key", 2048, UNLOCK)
    return {"paillier_key": folder / "key", "paillier_unlock_file": folder / "unlock"}


@pytest.fixture
async def cluster(federation: Any, key_files: dict[str, Any]) -> AsyncIterator[Cluster]:
    async with running_cluster(federation, keyserver=key_files) as running:
        yield running


async def terms_of(cluster: Cluster) -> PaillierTerms:
    request = keyserver_pb2.GetPaillierKeyRequest(custody=convert.custody_to_proto(Custody.KEYSERVER))
    with rpc_errors():
        response = await (await cluster.keyserver()).GetPaillierKey(request, timeout=30)
    return convert.paillier_terms_from_proto(response.terms)


async def opened_plan(cluster: Cluster, **changes: Any) -> RoundPlan:
    terms = await terms_of(cluster)
    plan = cluster.plan(aggregation=Aggregation.PAILLIER, paillier=terms, size=200, threshold=3, **changes)
    with rpc_errors():
        request = aggregator_pb2.OpenAggregationRequest(plan=convert.plan_to_proto(plan))
        await (await cluster.aggregator()).OpenAggregation(request, timeout=30)
    return plan


async def encrypted(cluster: Cluster, plan: RoundPlan, index: int) -> Upload:
    credentials = cluster.credentials(Role.SITE, plan.roster[index].client_id)
    keyserver = cluster.credentials(Role.KEYSERVER, "keys").certificate_der
    return await encrypt_upload(plan, index, plain_vector(plan, index), credentials, keyserver)


async def upload(cluster: Cluster, plan: RoundPlan, index: int, changed: Upload | None = None) -> Upload:
    sent = changed or await encrypted(cluster, plan, index)
    site = await cluster.site(plan, index)
    sending = Sending(site.aggregator, sent, 20.0, lambda *_: None)
    await sending.run()
    return sent


async def ask(cluster: Cluster, plan: RoundPlan, uploads: Sequence[Upload], data: Sequence[bytes] = ()) -> list[bytes]:
    """One call of DecryptSum by the aggregator of the plan."""
    header = keyserver_pb2.DecryptionHeader(
        plan=convert.plan_to_proto(plan), statements=[one.statement for one in uploads]
    )

    async def requests() -> AsyncIterator[keyserver_pb2.DecryptSumRequest]:
        yield keyserver_pb2.DecryptSumRequest(header=header)
        for part in data:
            yield keyserver_pb2.DecryptSumRequest(ciphertexts=part)

    stub = await cluster.keyserver(Role.AGGREGATOR, "agg")
    with rpc_errors():
        return [answer.plaintexts async for answer in stub.DecryptSum(requests(), timeout=20)]


@pytest.mark.parametrize("engine", supported_engines())
async def test_the_sum_of_whoever_uploaded_is_exact_and_is_opened_once(
    cluster: Cluster, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, engine)
    plan = await opened_plan(cluster)
    sent = [await upload(cluster, plan, index) for index in (0, 2, 3)]
    # The same bytes again change nothing.
    await upload(cluster, plan, 3, sent[2])
    assert await cluster.freeze(plan, range(5)) == (0, 2, 3)
    (report,) = cluster.coordinator.reports
    np.testing.assert_array_equal(report.vector, plain_sum(plan, [0, 2, 3]))
    assert await cluster.freeze(plan, range(5)) == (0, 2, 3)
    with pytest.raises(SessionFrozen, match="before"):
        await ask(cluster, plan, sent, [sent[0].payload.tobytes()])


async def test_a_session_whose_sum_was_asked_for_is_never_opened_again(cluster: Cluster) -> None:
    plan = await opened_plan(cluster)
    sent = [await upload(cluster, plan, index) for index in range(3)]
    # The aggregator asks for a lone upload and breaks off: that was its one question.
    with pytest.raises(StreamError, match="truncated"):
        await ask(cluster, plan, sent, [])
    with pytest.raises(TacitError, match="before"):
        await cluster.freeze(plan, range(5))
    assert cluster.coordinator.reports == []


async def test_too_few_uploads_are_not_opened(cluster: Cluster) -> None:
    plan = await opened_plan(cluster)
    sent = [await upload(cluster, plan, index) for index in range(2)]
    with pytest.raises(NotEnough):
        await cluster.freeze(plan, range(5))
    with pytest.raises(NotEnough, match="so few"):
        await ask(cluster, plan, sent)


async def test_statements_of_another_plan_open_nothing(cluster: Cluster) -> None:
    plan = await opened_plan(cluster)
    sent = [await encrypted(cluster, plan, index) for index in range(3)]
    with pytest.raises(BadSignature):
        await ask(cluster, replace(plan, attempt=2), sent)
    with pytest.raises(PlanError):
        await ask(cluster, replace(plan, min_survivors=2, threshold=1), sent[:2])


async def test_only_the_aggregator_of_the_plan_may_ask(cluster: Cluster) -> None:
    plan = await opened_plan(cluster)
    sent = [await encrypted(cluster, plan, index) for index in range(3)]
    other = replace(plan, aggregator=replace(plan.aggregator, service_id="other"))
    with pytest.raises(PermissionRefused):
        await ask(cluster, other, sent)
    site = await cluster.keyserver(Role.SITE, "site-0")
    with pytest.raises(PermissionRefused), rpc_errors():
        await site.GetPaillierKey(keyserver_pb2.GetPaillierKeyRequest(), timeout=30)


async def test_an_upload_that_is_not_what_its_site_signed_is_refused_for_good(cluster: Cluster) -> None:
    plan = await opened_plan(cluster)
    good = await encrypted(cluster, plan, 0)
    other = await encrypted(cluster, plan, 0)
    with pytest.raises(TacitError, match="signed"):
        await upload(cluster, plan, 0, replace(good, statement=other.statement))
    stranger = await encrypted(cluster, plan, 2)
    with pytest.raises(TacitError, match="speaks for another"):
        await upload(cluster, plan, 1, replace(stranger, index=1))
    with pytest.raises(TacitError):
        await upload(cluster, plan, 3, replace(await encrypted(cluster, plan, 3), statement=None))


@pytest.mark.parametrize("first", [bytes(512), b"\xff" * 512])
async def test_a_malformed_ciphertext_refuses_its_site_and_spoils_nothing(cluster: Cluster, first: bytes) -> None:
    plan = await opened_plan(cluster)
    good = await encrypted(cluster, plan, 0)
    spoilt = np.frombuffer(first + good.payload.tobytes()[512:], np.uint8)
    site = await cluster.site(plan, 0)
    digest = sha256(spoilt.data).digest()
    assert good.statement is not None
    signed = state(encrypted_context(plan), 0, good.statement.sealed_seed, digest, site.credentials.signer())
    with pytest.raises(TacitError, match="out of range"):
        await upload(cluster, plan, 0, Upload(plan, 0, spoilt, digest, statement_to_proto(signed)))
    for index in (1, 2, 3):
        await upload(cluster, plan, index)
    assert await cluster.freeze(plan, range(5)) == (1, 2, 3)
    np.testing.assert_array_equal(cluster.coordinator.reports[0].vector, plain_sum(plan, [1, 2, 3]))


async def test_a_statement_that_comes_after_its_upload_changes_nothing(cluster: Cluster) -> None:
    plan = await opened_plan(cluster)
    sent = [await upload(cluster, plan, index) for index in range(3)]
    site = await cluster.site(plan, 0)
    other = state(encrypted_context(plan), 0, bytes(113), sent[0].digest, site.credentials.signer())
    await upload(cluster, plan, 0, replace(sent[0], statement=statement_to_proto(other)))
    assert await cluster.freeze(plan, range(5)) == (0, 1, 2)
    np.testing.assert_array_equal(cluster.coordinator.reports[0].vector, plain_sum(plan, [0, 1, 2]))


async def test_a_key_that_the_key_server_does_not_stand_for_is_not_encrypted_under(cluster: Cluster) -> None:
    plan = await opened_plan(cluster)
    assert plan.paillier is not None
    forged = replace(plan, paillier=replace(plan.paillier, modulus=plan.paillier.modulus[:-1] + b"\x01"))
    with pytest.raises(BadSignature):
        await encrypted(cluster, forged, 0)


async def test_a_key_server_without_a_key_says_so(federation: Any) -> None:
    async with running_cluster(federation) as cluster:
        with pytest.raises(NotFound, match="tacit keys make"):
            await terms_of(cluster)


def test_a_rotated_key_is_taken_and_the_old_one_still_decrypts(key_files: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(key_files["paillier_key"].read_bytes())
    ring = PaillierKeyRing(path, UNLOCK)
    old = ring.current()
    write_new_key(path, 2048, UNLOCK)
    new = ring.current()
    assert new.public_key != old.public_key
    assert ring.of_modulus(old.public_key.to_bytes()) == old
    assert ring.of_modulus(new.public_key.to_bytes()) == open_private_key(path.read_text(), UNLOCK)
    with pytest.raises(NotFound, match="next attempt"):
        ring.of_modulus(b"\x01")
    path.write_text("damaged")
    assert ring.current() == new


def test_a_key_needs_one_thing_that_opens_it(federation: Any, key_files: dict[str, Any]) -> None:
    def settings(**fields: Any) -> KeyServerSettings:
        made: KeyServerSettings = federation.settings(KeyServerSettings, Role.KEYSERVER, "keys", **fields)
        return made

    assert unlock_secret(settings()) is None
    assert unlock_secret(settings(**key_files)) == UNLOCK
    for fields in ({"paillier_unlock_file": None}, {"paillier_passphrase": "both"}):
        with pytest.raises(ConfigError, match="one thing"):
            unlock_secret(settings(**{**key_files, **fields}))
    phrase = settings(paillier_key=key_files["paillier_key"], paillier_passphrase="open sesame")
    assert "sesame" not in repr(phrase)
    with pytest.raises(ConfigError):
        PaillierKeyRing.from_settings(phrase)


@pytest.fixture
async def shared_cluster(federation: Any, free_port: Any, tmp_path: Path) -> AsyncIterator[Cluster]:
    """A key server without a private key, and three decryptors, of which the last one does not run."""
    addresses = {f"holder-{number}": f"127.0.0.1:{free_port()}" for number in range(3)}
    for name in addresses:
        federation.issue(Role.KEYSERVER, name)
    write_dealing(federation.authority, addresses, 2, 2048, tmp_path)
    dealing = tmp_path / "dealing.json"
    async with AsyncExitStack() as stack:
        for name in list(addresses)[:2]:
            settings = federation.settings(
                KeyServerSettings,
                Role.KEYSERVER,
                name,
                listen=addresses[name],
                paillier_dealing=dealing,
                paillier_share=tmp_path / f"{name}.share",
            )
            await stack.enter_async_context(running_keyserver(settings))
        cluster = await stack.enter_async_context(running_cluster(federation, keyserver={"paillier_dealing": dealing}))
        yield cluster


async def shared_plan(cluster: Cluster) -> RoundPlan:
    request = keyserver_pb2.GetPaillierKeyRequest(custody=convert.custody_to_proto(Custody.THRESHOLD))
    with rpc_errors():
        response = await (await cluster.keyserver()).GetPaillierKey(request, timeout=30)
    terms = convert.paillier_terms_from_proto(response.terms)
    plan = cluster.plan(aggregation=Aggregation.PAILLIER, paillier=terms, size=200, threshold=3)
    with rpc_errors():
        opening = aggregator_pb2.OpenAggregationRequest(plan=convert.plan_to_proto(plan))
        await (await cluster.aggregator()).OpenAggregation(opening, timeout=30)
    return plan


async def test_a_shared_key_opens_the_exact_sum_by_two_of_three_holders(shared_cluster: Cluster) -> None:
    plan = await shared_plan(shared_cluster)
    sent = [await upload(shared_cluster, plan, index) for index in (0, 1, 4)]
    assert await shared_cluster.freeze(plan, range(5)) == (0, 1, 4)
    np.testing.assert_array_equal(shared_cluster.coordinator.reports[0].vector, plain_sum(plan, [0, 1, 4]))
    with pytest.raises(SessionFrozen, match="before"):
        await ask(shared_cluster, plan, sent, [sent[0].payload.tobytes()])


async def test_a_dealing_that_the_federation_did_not_sign_is_not_encrypted_under(shared_cluster: Cluster) -> None:
    plan = await shared_plan(shared_cluster)
    assert plan.paillier is not None
    forged = plan.paillier.dealing.replace(b"holder-2", b"holder-9")
    lie = replace(plan, paillier=replace(plan.paillier, dealing=forged))
    with pytest.raises(BadSignature):
        await encrypted(shared_cluster, lie, 0)
    assert await encrypted(shared_cluster, plan, 0)


async def test_too_few_holders_open_nothing(federation: Any, free_port: Any, tmp_path: Path) -> None:
    addresses = {name: f"127.0.0.1:{free_port()}" for name in ("away-1", "away-2")}
    for name in addresses:
        federation.issue(Role.KEYSERVER, name)
    write_dealing(federation.authority, addresses, 2, 2048, tmp_path)
    keyserver = {"paillier_dealing": tmp_path / "dealing.json"}
    async with running_cluster(federation, keyserver=keyserver) as cluster:
        plan = await shared_plan(cluster)
        for index in range(3):
            await upload(cluster, plan, index)
        with pytest.raises(NotEnough, match="decryptors"):
            await cluster.freeze(plan, range(5))
        assert cluster.coordinator.reports == []


def test_a_share_opens_for_its_holder_alone(federation: Any, tmp_path: Path) -> None:
    addresses = {"holder-a": "127.0.0.1:1", "holder-b": "127.0.0.1:2"}
    for name in addresses:
        federation.issue(Role.KEYSERVER, name)
    write_dealing(federation.authority, addresses, 2, 2048, tmp_path)

    def custody(name: str, share: str) -> SharedCustody | None:
        files = {"paillier_dealing": tmp_path / "dealing.json", "paillier_share": tmp_path / f"{share}.share"}
        settings = federation.settings(KeyServerSettings, Role.KEYSERVER, name, **files)
        return SharedCustody.from_settings(settings, settings.credentials())

    own = custody("holder-a", "holder-a")
    assert own is not None
    assert own.share is not None
    assert own.share.index == 1
    assert str(own.share.secret) not in repr(own)
    with pytest.raises(ConfigError, match="cannot be opened"):
        custody("holder-a", "holder-b")
    with pytest.raises(ConfigError, match="no valid certificate"):
        write_dealing(federation.authority, {"stranger": "127.0.0.1:3", "holder-a": "127.0.0.1:1"}, 2, 2048, tmp_path)
