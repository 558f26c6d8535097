"""One attempt at one round, from the invitation to the last share."""

import asyncio
import os
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import structlog

from client_sdk.audit import record_excess_noise, record_plain_update
from client_sdk.connections import Connections, Services
from client_sdk.download import ModelDownload, ModelReference
from client_sdk.exchange import KeyExchange
from client_sdk.feedback import Feedback
from client_sdk.journal import SiteJournal
from client_sdk.leaving import too_late_means
from client_sdk.observer import SiteObserver, tell
from client_sdk.policy import SitePolicy, check_invitation
from client_sdk.privacy import PrivacyLedger, event_for
from client_sdk.reveal import Unmasking
from client_sdk.trained import TrainedUpdate
from client_sdk.training import TrainerThread
from client_sdk.upload import Sending, Upload
from fl_core.codec.tensors import FloatVector
from fl_core.privacy.receipts import receipt_message
from fl_core.rounds.machine import DropoutReason
from fl_core.rounds.plan import Aggregation, RoundPlan
from fl_core.rounds.planner import codec_of, private_codec_of
from fl_core.secagg.client import AwaitingSurvivors, MaskExpanded
from fl_core.secagg.context import Entropy
from fl_core.secagg.messages import RingVector
from fl_core.transport.identity import RosterTrust
from fl_core.transport.peer import call_unary
from fl_core.transport.retry import retry
from fl_core.transport.tracing import traced
from fl_core.wire.v1 import coordinator_pb2

log = structlog.get_logger(__name__)

SLACK_S = 15.0
"""What a site waits longer than the schedule of a phase, so that the service is the one that ends it."""

First = TypeVar("First")
Second = TypeVar("Second")


@dataclass(frozen=True, slots=True)
class Workplace:
    """Everything of a site that outlives an attempt."""

    policy: SitePolicy
    connections: Connections
    journal: SiteJournal
    ledger: PrivacyLedger
    download: ModelDownload
    trainer: TrainerThread
    observer: SiteObserver
    record_plain_updates: Path | None
    feedback: Feedback


async def take_part(plan: RoundPlan, site: Workplace) -> None:
    """Do this site's part of an attempt.

    Raises:
        TacitError: why the site cannot, or may not, go on with this attempt.
    """
    index = check_invitation(plan, site.policy, site.connections.identity)
    await asyncio.to_thread(site.journal.record_attempt, plan.job_id, plan.round_id, plan.attempt)
    services = await retry(lambda: site.connections.services(plan), deadline_s=plan.schedule.advertising.max_seconds)
    tell(site.observer.invited, plan)
    match plan.aggregation:
        case Aggregation.PLAIN:
            await _take_plain_part(plan, index, site, services)
        case Aggregation.PAILLIER:
            await _take_encrypted_part(plan, index, site, services)
        case Aggregation.SECAGG:
            await _take_secure_part(plan, index, site, services)


async def _take_plain_part(plan: RoundPlan, index: int, site: Workplace, services: Services) -> None:
    update = await _train(plan, site)
    vector = await _encode(plan, index, update, site)
    await _upload(plan, index, vector, site, services)


async def _take_encrypted_part(plan: RoundPlan, index: int, site: Workplace, services: Services) -> None:
    # Here, so that a site without gmpy2 can take part in all other attempts.
    from client_sdk.encrypted_upload import encrypt_upload

    vector = await _encode(plan, index, await _train(plan, site), site)
    credentials = site.connections.credentials
    upload = await encrypt_upload(plan, index, vector, credentials, services.keyserver_certificate_der)
    await _send(plan, upload, site, services)


async def _take_secure_part(plan: RoundPlan, index: int, site: Workplace, services: Services) -> None:
    expanded, update = await _together(_exchange(plan, index, site, services), _train(plan, site))
    vector = await _encode(plan, index, update, site, expanded.noise_keys)
    following, upload_sha256 = await _mask_and_upload(plan, index, expanded, vector, site, services)
    await _reveal(plan, index, following, upload_sha256, site, services)
    tell(site.observer.revealed, plan)


@traced("exchange")
async def _exchange(plan: RoundPlan, index: int, site: Workplace, services: Services) -> MaskExpanded:
    credentials = site.connections.credentials
    verifier = RosterTrust(plan.roster, credentials.trust, datetime.now(UTC))
    exchange = KeyExchange(plan, index, credentials.signer(), verifier, os.urandom)
    seconds = plan.schedule.advertising.max_seconds + plan.schedule.sharing.max_seconds + SLACK_S
    with too_late_means(DropoutReason.SHARE_TIMEOUT):
        return await retry(
            lambda: exchange.run(services.keyserver, seconds, lambda: tell(site.observer.keys_shared, plan)),
            deadline_s=seconds,
        )


@traced("train")
async def _train(plan: RoundPlan, site: Workplace) -> TrainedUpdate:
    wanted = ModelReference(plan.job_id, plan.model_version, plan.model_digest, plan.manifest)
    seconds = plan.schedule.uploading.max_seconds
    # Asked for at each try: meanwhile another replica of the coordinator may have taken over.
    model = await retry(
        lambda: site.download.get(site.connections.coordinator, wanted, seconds),
        deadline_s=seconds,
        backoff=site.download.backoff,
    )
    update = await site.trainer.update_for(plan, model)
    tell(site.observer.trained, plan, update.num_samples, update.metrics)
    return update


async def _countersign(plan: RoundPlan, update: TrainedUpdate, site: Workplace) -> None:
    """Count a private attempt in this site's ledger, and sign for it, before anything of the update leaves."""
    if plan.privacy is None:
        return
    event = event_for(plan, update.privacy)
    await asyncio.to_thread(site.ledger.count, plan, event, site.policy)
    signer = site.connections.credentials.signer()
    request = coordinator_pb2.CountersignReleaseRequest(
        session_id=plan.session_id,
        event_json=event.to_json(),
        signature=signer.sign(receipt_message(plan.binding, event)),
        certificate_der=signer.certificate_der,
    )
    coordinator = site.connections.coordinator
    seconds = plan.schedule.uploading.max_seconds
    await retry(lambda: call_unary(coordinator.CountersignRelease, request, timeout_s=SLACK_S), deadline_s=seconds)


@traced("encode")
async def _encode(
    plan: RoundPlan, index: int, update: TrainedUpdate, site: Workplace, noise_keys: Sequence[bytes] = ()
) -> RingVector:
    await _countersign(plan, update, site)
    weight = update.num_samples if plan.privacy is None else 1
    encode = _encoder(plan, site, noise_keys)
    vector = await asyncio.to_thread(encode, update.update, weight, os.urandom)
    tell(site.observer.encoded, plan, index, vector)
    if site.record_plain_updates is not None:
        await asyncio.to_thread(record_plain_update, site.record_plain_updates, plan, index, vector)
    return vector


def _encoder(
    plan: RoundPlan, site: Workplace, noise_keys: Sequence[bytes]
) -> Callable[[FloatVector, int, Entropy], RingVector]:
    private = private_codec_of(plan)
    if private is not None:
        return partial(private.encode, noise_keys=noise_keys)
    if plan.codec.feedback and plan.privacy is None:
        return partial(site.feedback.encode, plan)
    return codec_of(plan).encode


async def _mask_and_upload(
    plan: RoundPlan, index: int, expanded: MaskExpanded, vector: RingVector, site: Workplace, services: Services
) -> tuple[AwaitingSurvivors, bytes]:
    following, masked = await asyncio.to_thread(expanded.step, vector)
    return following, await _upload(plan, index, masked.vector, site, services)


@traced("upload")
async def _upload(plan: RoundPlan, index: int, vector: RingVector, site: Workplace, services: Services) -> bytes:
    upload = await asyncio.to_thread(Upload.of, plan, index, vector)
    await _send(plan, upload, site, services)
    return upload.digest


async def _send(plan: RoundPlan, upload: Upload, site: Workplace, services: Services) -> None:
    seconds = plan.schedule.uploading.max_seconds

    def on_chunk(chunk: int, count: int) -> None:
        tell(site.observer.upload_chunk_sent, plan, chunk, count)

    sending = Sending(services.aggregator, upload, seconds, on_chunk)
    with too_late_means(DropoutReason.UPLOAD_TIMEOUT):
        await retry(sending.run, deadline_s=seconds, backoff=sending.backoff)
    site.feedback.delivered(plan)
    tell(site.observer.uploaded, plan)


@traced("reveal")
async def _reveal(
    plan: RoundPlan,
    index: int,
    following: AwaitingSurvivors,
    upload_sha256: bytes,
    site: Workplace,
    services: Services,
) -> None:
    unmasking = Unmasking(plan, index, following, upload_sha256, site.journal, site.policy)
    schedule = plan.schedule
    seconds = schedule.uploading.max_seconds + schedule.signing.max_seconds + schedule.revealing.max_seconds + SLACK_S
    with too_late_means(DropoutReason.UNMASK_TIMEOUT):
        await retry(lambda: unmasking.run(services.keyserver, seconds), deadline_s=seconds)
    if site.record_plain_updates is not None:
        await asyncio.to_thread(record_excess_noise, site.record_plain_updates, plan, index, unmasking.excess_keys)


async def _together(first: Coroutine[Any, Any, First], second: Coroutine[Any, Any, Second]) -> tuple[First, Second]:
    """Wait for both; when one fails the other is cancelled, and its error is the one that is raised."""
    try:
        async with asyncio.TaskGroup() as tasks:
            one, other = tasks.create_task(first), tasks.create_task(second)
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
    return one.result(), other.result()
