"""Bad input against a whole federation: one clear error for its author, and nothing for anybody else.

In round 1 everybody behaves; in round 2 one party does not. Each test looks at the error that this party gets, at what
was committed before, and at the sum of the others, which must be exact.
"""

import asyncio
import re
import sys
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from whole_federation import BAD, HONEST, Committed, Message, Steps, Tamper, WholeFederation, running_federation

from client_sdk import Array, Site, SiteConfig, reveal
from fl_core.errors import ConfigError, PeerLost, TacitError
from fl_core.rounds.machine import AbandonReason, DropoutReason, RoundState
from fl_core.rounds.plan import RoundPlan
from fl_core.rounds.report import RoundReport
from fl_core.secagg.directory import advertisement_statement
from fl_core.secagg.inclusion import UploadTree
from fl_core.secagg.messages import SurvivorSet
from fl_core.secagg.transcript import frozen_body, sign_part
from fl_core.transport.identity import Role
from fl_core.transport.true_status import call_errors
from fl_core.wire.convert import advertisement_from_proto, advertisement_to_proto, part_to_proto
from fl_core.wire.v1 import aggregator_pb2, coordinator_pb2, keyserver_pb2, round_pb2, tensors_pb2
from services.aggregator.session import AggregationSession
from services.keyserver.delivery import MaskDelivery
from services.keyserver.session import ExchangeSession

REPOSITORY = Path(__file__).parents[2]
UPLOAD_BYTES = 3 * (2 + 40 * 30 + 30)
LOW_ORDER = (1).to_bytes(32, "little")

Says = tuple[str, str, str, str]
"""What an error must say: what is wrong, what was expected, what was got, and what to do."""

Make = Callable[[Message], Iterable[Message]]
MakeKeys = Callable[[WholeFederation, RoundPlan, Message], Iterable[Message]]
Spoil = Callable[[dict[str, Array]], dict[str, Array]]


@pytest.fixture
async def whole(federation: Any, tmp_path: Path, free_port: Callable[[], int]) -> AsyncIterator[WholeFederation]:
    """Services that run, and nobody who joined."""
    async with running_federation(federation, tmp_path, free_port()) as running:
        yield running


@pytest.fixture
def gate() -> Iterable[threading.Event]:
    """Holds the honest sites back in their training of round 2."""
    gate = threading.Event()
    yield gate
    gate.set()


def check_says(error: TacitError, says: Says) -> None:
    """Check that an error is one sentence in which each of the four facts stands."""
    facts = (error.what, error.expected, error.got, error.fix)
    silent = [text for fact, text in zip(facts, says, strict=True) if fact is None or text not in str(fact)]
    assert not silent, error
    assert all(str(fact) in str(error) for fact in facts)
    assert "\n" not in str(error)


async def play(whole: WholeFederation, *honest: str, **fields: object) -> tuple[list[RoundReport], list[TacitError]]:
    """Let the honest sites join too and run two rounds; the reports of round 2, and what the bad site was told."""
    for name in (*HONEST, *honest):
        if name not in whole.witnesses:
            whole.join(name)
    reports = await whole.run_job(**fields)
    whole.check_kept(whole.witnesses[BAD].before)
    committed = [report for report in reports if report.state is RoundState.COMMITTED]
    assert [report.round_id for report in committed] == [1, 2]
    for report in committed:
        whole.check_exact(report)
    return [report for report in reports if report.round_id == 2], whole.errors_of(BAD)


async def play_undisturbed(whole: WholeFederation) -> tuple[RoundReport, TacitError]:
    """As `play`, when nobody else may notice: one attempt, and one error, which the bad site gets."""
    [report], [error] = await play(whole)
    for name in HONEST:
        assert not whole.errors_of(name)
    return report, error


def check_left_out(report: RoundReport, reason: DropoutReason) -> None:
    """Check that the bad site, and nobody else, is missing in the sum, for this reason."""
    assert report.survivors == tuple(sorted(HONEST))
    assert [(dropout.client_id, dropout.reason) for dropout in report.dropouts] == [(BAD, reason)]


def kind_of(message: Message) -> str:
    return f"{type(message).__name__}.{message.WhichOneof(message.DESCRIPTOR.oneofs[0].name)}"


def instead_of(kind: str, make: Make) -> Tamper:
    """Sends something else instead of the messages of one kind in round 2."""

    async def tamper(plan: RoundPlan, message: Message) -> Iterable[Message]:
        return make(message) if plan.round_id == 2 and kind_of(message) == kind else [message]

    return tamper


def edited(message: Message, edit: Callable[[Message], object]) -> list[Message]:
    copy = type(message)()
    copy.CopyFrom(message)
    edit(copy)
    return [copy]


# What the trainer of a site gives.


def transposed(parameters: dict[str, Array]) -> dict[str, Array]:
    return {**parameters, "weight": parameters["weight"].T}


def with_element(value: float) -> Spoil:
    def spoil(parameters: dict[str, Array]) -> dict[str, Array]:
        parameters["bias"][7] = value
        return parameters

    return spoil


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        pytest.param(
            transposed,
            ("'weight' has the wrong shape", "(40, 30)", "(30, 40)", "return each tensor of the global model"),
            id="wrong-shape",
        ),
        pytest.param(
            with_element(np.nan), ("'bias' holds a NaN", "finite float32", "nan at element 7", "the data"), id="nan"
        ),
        pytest.param(
            with_element(np.inf), ("'bias' holds a NaN", "finite float32", "inf at element 7", "the data"), id="inf"
        ),
    ],
)
async def test_an_impossible_update_never_leaves_its_site(whole: WholeFederation, spoil: Spoil, says: Says) -> None:
    whole.join(BAD, Steps(spoil=spoil))
    report, error = await play_undisturbed(whole)
    check_says(error, says)
    check_left_out(report, DropoutReason.INVALID_UPDATE)


# What a site uploads.


def other_version(request: Message) -> list[Message]:
    return edited(request, lambda copy: setattr(copy.header, "model_version", copy.header.model_version - 1))


def announcing(more: int) -> Make:
    total = UPLOAD_BYTES + more
    return lambda request: edited(request, lambda copy: setattr(copy.header.stream, "total_bytes", total))


def longer_by(count: int) -> Make:
    return lambda request: edited(request, lambda copy: setattr(copy.chunk, "data", copy.chunk.data + bytes(count)))


def one_chunk_more(request: Message) -> list[Message]:
    chunk = tensors_pb2.Chunk(index=request.trailer.chunk_count, data=b"more")
    return [aggregator_pb2.UpdateParametersRequest(chunk=chunk), request]


def nothing(request: Message) -> list[Message]:
    return []


def first_chunk_only(request: Message) -> list[Message]:
    return [request] if request.chunk.index == 0 else []


def another_digest(request: Message) -> list[Message]:
    return edited(request, lambda copy: setattr(copy.trailer, "sha256", bytes(32)))


@pytest.mark.parametrize(
    ("kind", "make", "says"),
    [
        pytest.param(
            "header", other_version, ("another version of the model", "2", "1", "train from"), id="wrong-version"
        ),
        pytest.param(
            "header", announcing(-3), ("wrong size", "3696 bytes", "3693 bytes", "shapes of the model"), id="wrong-size"
        ),
        pytest.param(
            "header", announcing(3), ("too large", "3696 bytes", "3699 bytes", "nothing more"), id="oversized"
        ),
        pytest.param(
            "chunk", longer_by(1), ("chunk 0 has the wrong size", "1024", "1025", "chunk_bytes"), id="oversized-chunk"
        ),
        pytest.param(
            "chunk", longer_by(5 << 20), ("message is too large", "4194304", "52439", "smaller"), id="oversized-message"
        ),
        pytest.param(
            "trailer", one_chunk_more, ("after the end", "4 chunks", "chunk 4", "the trailer"), id="a-chunk-too-many"
        ),
        pytest.param(
            "chunk", first_chunk_only, ("truncated", "3696 bytes", "1024 bytes", "send it again"), id="truncated"
        ),
        pytest.param(
            "trailer", nothing, ("truncated", "and a trailer", "3696 bytes", "send it again"), id="without-trailer"
        ),
        pytest.param(
            "trailer", another_digest, ("the digest of a stream", "", "000000", "send it again"), id="wrong-digest"
        ),
    ],
)
async def test_a_wrong_upload_is_refused_and_the_others_are_summed(
    whole: WholeFederation, kind: str, make: Make, says: Says
) -> None:
    whole.join(BAD, tamper=instead_of(f"UpdateParametersRequest.{kind}", make))
    report, error = await play_undisturbed(whole)
    check_says(error, says)
    check_left_out(report, DropoutReason.UPLOAD_REFUSED)


# Its round keys.


def signed_by(name: str, whole: WholeFederation, plan: RoundPlan, request: Message, **keys: bytes) -> list[Message]:
    """The advertisement with other keys, under a signature of the named site."""
    changed = replace(advertisement_from_proto(request.advertisement), **keys)
    signer = whole.federation.credentials(Role.SITE, name).signer()
    signature = signer.sign(advertisement_statement(plan.session_context(), changed))
    advertisement = advertisement_to_proto(replace(changed, signature=signature))
    return [keyserver_pb2.ExchangeKeysRequest(advertisement=advertisement)]


def without_signature(request: Message) -> list[Message]:
    return edited(request, lambda copy: copy.advertisement.ClearField("signature"))


def unsigned(whole: WholeFederation, plan: RoundPlan, request: Message) -> list[Message]:
    return without_signature(request)


def signed_by_another_site(whole: WholeFederation, plan: RoundPlan, request: Message) -> list[Message]:
    return signed_by("alpha", whole, plan, request)


def under_another_certificate(whole: WholeFederation, plan: RoundPlan, request: Message) -> list[Message]:
    certificate = whole.federation.credentials(Role.SITE, "alpha").certificate_der
    return signed_by("alpha", whole, plan, request, certificate_der=certificate)


def changed_after_signing(whole: WholeFederation, plan: RoundPlan, request: Message) -> list[Message]:
    other = bytes(31) + b"\x09"
    return edited(request, lambda copy: setattr(copy.advertisement, "mask_public_key", other))


def of_low_order(whole: WholeFederation, plan: RoundPlan, request: Message) -> list[Message]:
    return signed_by(BAD, whole, plan, request, mask_public_key=LOW_ORDER)


def one_key_for_two_purposes(whole: WholeFederation, plan: RoundPlan, request: Message) -> list[Message]:
    return signed_by(BAD, whole, plan, request, mask_public_key=request.advertisement.cipher_public_key)


NOT_VERIFIED = ("does not verify", "by the key of the certificate", "bytes that fail", "sign this very message")
TWICE = ("a public key stands twice", "fresh and different", "one key of site", "draw a fresh key pair")


@pytest.mark.parametrize(
    ("make", "says", "reason"),
    [
        pytest.param(
            unsigned,
            ("the keys of a site are not signed", "a signature of 1 to 128 bytes", "0 bytes", "sign with the key"),
            DropoutReason.BAD_SIGNATURE,
            id="unsigned",
        ),
        pytest.param(signed_by_another_site, NOT_VERIFIED, DropoutReason.BAD_SIGNATURE, id="signed-by-another"),
        pytest.param(changed_after_signing, NOT_VERIFIED, DropoutReason.BAD_SIGNATURE, id="changed-after-signing"),
        pytest.param(
            under_another_certificate,
            ("is not the one of the roster", "aaron with fingerprint", "fingerprint", "that the plan names"),
            DropoutReason.BAD_SIGNATURE,
            id="another-certificate",
        ),
        pytest.param(
            of_low_order,
            ("a low order", "a point of prime order", LOW_ORDER.hex(), "draw a fresh key pair"),
            DropoutReason.BAD_KEY,
            id="low-order",
        ),
        pytest.param(one_key_for_two_purposes, TWICE, DropoutReason.BAD_KEY, id="one-key-for-two-purposes"),
    ],
)
async def test_wrong_round_keys_are_refused_and_the_others_go_on(
    whole: WholeFederation, make: MakeKeys, says: Says, reason: DropoutReason
) -> None:
    async def tamper(plan: RoundPlan, message: Message) -> Iterable[Message]:
        is_wrong = plan.round_id == 2 and kind_of(message) == "ExchangeKeysRequest.advertisement"
        return make(whole, plan, message) if is_wrong else [message]

    whole.join(BAD, tamper=tamper)
    report, error = await play_undisturbed(whole)
    check_says(error, says)
    check_left_out(report, reason)


async def test_a_copied_key_is_refused_and_its_owner_takes_part(whole: WholeFederation) -> None:
    keys: dict[int, bytes] = {}

    async def overheard(plan: RoundPlan, message: Message) -> Iterable[Message]:
        if kind_of(message) == "ExchangeKeysRequest.advertisement":
            keys[plan.round_id] = message.advertisement.cipher_public_key
        return [message]

    async def tamper(plan: RoundPlan, message: Message) -> Iterable[Message]:
        if plan.round_id != 2 or kind_of(message) != "ExchangeKeysRequest.advertisement":
            return [message]
        await whole.until_answered(plan, len(HONEST))
        return signed_by(BAD, whole, plan, message, cipher_public_key=keys[2])

    whole.join(BAD, tamper=tamper)
    whole.join("alpha", tamper=overheard)
    report, error = await play_undisturbed(whole)
    check_says(error, TWICE)
    assert error.got == "one key of site 1 and site 0"
    check_left_out(report, DropoutReason.BAD_KEY)


# Its messages of an earlier attempt.


@dataclass
class Replay:
    """Records everything, and says it again.

    Args:
        recorded: round and attempt whose messages are said again.
        scenes: by round and attempt, which kinds of message are replaced then.
    """

    recorded: tuple[int, int]
    scenes: dict[tuple[int, int], str]
    heard: dict[str, list[Message]] = field(default_factory=lambda: defaultdict(list))

    async def __call__(self, plan: RoundPlan, message: Message) -> Iterable[Message]:
        moment, kind = (plan.round_id, plan.attempt), kind_of(message)
        scene = self.scenes.get(moment)
        if scene is not None and re.fullmatch(scene, kind):
            said = self.heard[kind]
            return [said[message.chunk.index] if kind.endswith("chunk") else said[0]]
        if moment == self.recorded:
            self.heard[kind].append(message)
        return [message]


KEYS, UPLOAD, REVEAL = "ExchangeKeysRequest", "UpdateParametersRequest", "RevealSharesRequest"


async def test_an_advertisement_of_an_earlier_attempt_does_not_verify(whole: WholeFederation) -> None:
    whole.join(BAD, tamper=Replay((1, 1), {(2, 1): rf"{KEYS}\.advertisement"}))
    report, error = await play_undisturbed(whole)
    check_says(error, NOT_VERIFIED)
    check_left_out(report, DropoutReason.BAD_SIGNATURE)


async def test_a_survivor_signature_of_an_earlier_attempt_does_not_verify(whole: WholeFederation) -> None:
    whole.join(BAD, tamper=Replay((1, 1), {(2, 1): rf"{REVEAL}\.signature"}))
    report, error = await play_undisturbed(whole)
    check_says(error, NOT_VERIFIED)
    # Its update was in the sum before, and the others suffice to unmask it.
    assert report.survivors == tuple(sorted((*HONEST, BAD)))
    assert [(one.client_id, one.reason) for one in report.dropouts] == [(BAD, DropoutReason.BAD_SIGNATURE)]


async def test_revealed_shares_of_an_earlier_attempt_are_left_out(whole: WholeFederation) -> None:
    whole.join(BAD, tamper=Replay((1, 1), {(2, 1): rf"{REVEAL}\.shares"}))
    [report], errors = await play(whole)
    # Only all shares together show which are false, when the site has its answer: it is the report that says so.
    assert not errors
    assert report.survivors == tuple(sorted((*HONEST, BAD)))
    assert [(one.client_id, one.reason) for one in report.dropouts] == [(BAD, DropoutReason.FALSE_REVEAL)]


async def test_an_upload_of_an_earlier_attempt_spoils_its_attempt_and_nothing_else(whole: WholeFederation) -> None:
    # A masked vector looks like any other, so that only the sum can tell: it is thrown away, and the round run again.
    whole.join(BAD, tamper=Replay((1, 1), {(2, 1): rf"{UPLOAD}\.(chunk|trailer)"}))
    [spoiled, report], [error] = await play(whole)
    says = ("acknowledged something else than was sent", "", "", "wait for the next attempt")
    check_says(error, says)
    assert spoiled.abandon_reason is AbandonReason.BAD_AGGREGATE
    assert "the sum does not count its survivors: expected 5 uploads, got" in spoiled.detail
    assert report.survivors == tuple(sorted((*HONEST, BAD)))


async def test_sealed_shares_of_an_earlier_attempt_open_nowhere_and_their_dealer_is_blamed(
    whole: WholeFederation,
) -> None:
    whole.join(BAD, tamper=Replay((1, 1), {(2, 1): rf"{KEYS}\.shares"}))
    [spoiled, report], _ = await play(whole)
    # Its seed cannot be rebuilt, so that nothing is released; its own share of it is not what it committed to either.
    assert spoiled.abandon_reason is AbandonReason.TOO_FEW_REVEALS
    assert [(one.client_id, one.reason) for one in spoiled.dropouts] == [(BAD, DropoutReason.FALSE_REVEAL)]
    # Without the liar the cohort would be smaller than the job allows: its quarantine gives way, and nobody waits.
    assert report.survivors == tuple(sorted((*HONEST, BAD)))


async def test_a_dealer_of_stale_shares_is_not_invited_again_when_there_are_enough_others(
    whole: WholeFederation,
) -> None:
    whole.join(BAD, tamper=Replay((1, 1), {(2, 1): rf"{KEYS}\.shares"}))
    [_, report], _ = await play(whole, cohort={"min": len(HONEST), "max": len(HONEST) + 1})
    assert report.invited == report.survivors == tuple(sorted(HONEST))


OVER = ("the session is over", "a message before", "one after", "wait for the next attempt")
GONE = ("no such session", "an open attempt", "which is abandoned", "wait for the next attempt")
ECHO = ("acknowledged something else than was sent", "", "", "wait for the next attempt")


@pytest.mark.parametrize(
    ("stream", "says"),
    [
        pytest.param(KEYS, OVER, id="keys"),
        pytest.param(UPLOAD, ECHO, id="upload"),
        pytest.param(REVEAL, OVER, id="reveal"),
    ],
)
async def test_a_stream_of_a_committed_round_changes_nothing_word_for_word(
    whole: WholeFederation, stream: str, says: Says
) -> None:
    whole.join(BAD, tamper=Replay((1, 1), {(2, 1): rf"{stream}\..*"}))
    report, error = await play_undisturbed(whole)
    check_says(error, says)
    assert (BAD in report.survivors) == (stream == REVEAL)


@pytest.mark.parametrize("stream", [KEYS, UPLOAD, REVEAL])
async def test_a_stream_of_an_abandoned_attempt_finds_no_session(
    whole: WholeFederation, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver = MaskDelivery.deliver

    async def lost_once(self: MaskDelivery, plan: RoundPlan, *rest: Any) -> None:
        if (plan.round_id, plan.attempt) == (2, 1):
            raise PeerLost("the aggregator is out of reach")
        await deliver(self, plan, *rest)

    monkeypatch.setattr(MaskDelivery, "deliver", lost_once)
    whole.join(BAD, tamper=Replay((2, 1), {(2, 2): rf"{stream}\..*"}))
    [spoiled, report], [error] = await play(whole)
    assert spoiled.abandon_reason is AbandonReason.SERVICE_RESTARTED
    check_says(error, GONE)
    assert (BAD in report.survivors) == (stream == REVEAL)


# Somebody who was not invited.


async def header_only(plan: RoundPlan, index: int) -> AsyncIterator[Message]:
    stream = tensors_pb2.StreamHeader(total_bytes=UPLOAD_BYTES, chunk_bytes=plan.chunk_bytes)
    header = aggregator_pb2.UpdateHeader(
        session_id=plan.session_id, index=index, model_version=plan.model_version, stream=stream
    )
    yield aggregator_pb2.UpdateParametersRequest(header=header)


async def hello(kind: Any, plan: RoundPlan, index: int) -> AsyncIterator[Message]:
    yield kind(hello=keyserver_pb2.SessionHello(session_id=plan.session_id, index=index))


async def refusal(call: Any) -> TacitError:
    """The error of a call, of either kind."""
    try:
        async with call_errors(call):
            # A stream whose reader finds the end has its status for those who read on.
            await (anext(aiter(call)) if hasattr(call, "__aiter__") else call)
    except TacitError as error:
        return error
    raise AssertionError("the call was answered")


async def test_a_site_that_was_not_invited_is_refused_everywhere(whole: WholeFederation, gate: threading.Event) -> None:
    for name in HONEST:
        whole.join(name, Steps(gate=gate))
    job_id = await whole.submit()
    plan, before = await whole.until_gated(), whole.committed()
    stranger = whole.federation.credentials(Role.SITE, "stranger")
    stubs = {role: whole.stub(role, stranger) for role in Role if role in whole.addresses}
    aggregator, keyserver = stubs[Role.AGGREGATOR], stubs[Role.KEYSERVER]
    question = aggregator_pb2.GetUploadRequest(session_id=plan.session_id, index=0)
    leaving = coordinator_pb2.LeaveRoundRequest(
        session_id=plan.session_id, reason=round_pb2.DROPOUT_REASON_TRAINING_FAILED
    )
    not_at_0 = ("not the site at index 0 of the roster", "alpha", "stranger", "waits for an invitation")
    no_such = ("no site of the roster has this index", "0 to 3", "4", "use the index of your own certificate")
    not_invited = ("is not in the roster", "an invited site", "stranger", "wait for an invitation")
    for call, says in (
        (aggregator.UpdateParameters(header_only(plan, 0)), not_at_0),
        (aggregator.UpdateParameters(header_only(plan, 4)), no_such),
        (aggregator.GetUpload(question), not_at_0),
        (keyserver.ExchangeKeys(hello(keyserver_pb2.ExchangeKeysRequest, plan, 0)), not_at_0),
        (keyserver.ExchangeKeys(hello(keyserver_pb2.ExchangeKeysRequest, plan, 4)), no_such),
        (keyserver.RevealShares(hello(keyserver_pb2.RevealSharesRequest, plan, 0)), not_at_0),
        (stubs[Role.COORDINATOR].LeaveRound(leaving), not_invited),
    ):
        check_says(await refusal(call), says)
    gate.set()
    await check_committed_by_all(whole, await whole.watch(job_id), before)


async def check_committed_by_all(whole: WholeFederation, reports: list[RoundReport], before: Committed) -> None:
    """Check that two rounds were committed at the first attempt, by every honest site, whatever else went on."""
    whole.check_kept(before)
    assert [(report.round_id, report.attempt) for report in reports] == [(1, 1), (2, 1)]
    for report in reports:
        assert (report.survivors, report.dropouts) == (tuple(sorted(HONEST)), ())
        whole.check_exact(report)
    for name in HONEST:
        assert not whole.errors_of(name)


# Survivors who are none.


def with_outsider(plan: RoundPlan, survivors: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted((*survivors, plan.index_of(BAD))))


def without_victim(plan: RoundPlan, survivors: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(index for index in survivors if index != plan.index_of("alpha"))


def with_nobody_known(plan: RoundPlan, survivors: tuple[int, ...]) -> tuple[int, ...]:
    return (*survivors, len(plan.roster))


@pytest.mark.parametrize(
    ("lie", "says"),
    [
        pytest.param(
            with_outsider, ("a site outside U2", "which has 6 sites", "site 0", "do not go on"), id="not-in-u2"
        ),
        pytest.param(
            with_nobody_known, ("a site outside U2", "which has 6 sites", "site 7", "do not go on"), id="not-in-roster"
        ),
        pytest.param(
            without_victim,
            ("leave this site out", "1 among the survivors", "5 others", "do not go on"),
            id="not-itself",
        ),
    ],
)
async def test_a_site_signs_no_survivors_that_cannot_be(
    whole: WholeFederation,
    lie: Callable[[RoundPlan, tuple[int, ...]], tuple[int, ...]],
    says: Says,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    truth = ExchangeSession.survivors

    async def told(self: ExchangeSession, index: int) -> SurvivorSet:
        survivors = await truth(self, index)
        is_victim = self.plan.round_id == 2 and self.plan.roster[index].client_id == "alpha"
        return replace(survivors, survivors=lie(self.plan, survivors.survivors)) if is_victim else survivors

    monkeypatch.setattr(ExchangeSession, "survivors", told)
    whole.join(BAD, tamper=instead_of(f"{KEYS}.advertisement", without_signature))
    [report], _ = await play(whole, "epsilon", "zeta")
    [error] = whole.errors_of("alpha")
    check_says(error, says)
    # The victim's update is in the sum, the others are enough to unmask it, and the victim revealed nothing.
    assert report.survivors == tuple(sorted((*HONEST, "epsilon", "zeta")))
    assert not any(whole.errors_of(name) for name in whole.witnesses if name not in ("alpha", BAD))


@pytest.mark.parametrize("is_checked", [True, False], ids=["checked", "without-the-check"])
async def test_a_site_signs_no_uploads_among_which_its_own_is_not(
    whole: WholeFederation, is_checked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = AggregationSession.upload_tree

    def stated(self: AggregationSession) -> UploadTree:
        tree = truth(self)
        if self.plan.round_id != 2:
            return tree
        return UploadTree(tree.binding, {**tree.digests, self.plan.index_of("alpha"): bytes(32)})

    monkeypatch.setattr(AggregationSession, "upload_tree", stated)
    if not is_checked:
        monkeypatch.setattr(reveal, "check_included", lambda *_: None)
    whole.join(BAD)
    [report], _ = await play(whole)
    errors = whole.errors_of("alpha")
    assert len(errors) == is_checked
    for error in errors:
        says = ("our own upload is not among those", "a proof for the upload", "leads elsewhere", "do not go on")
        check_says(error, says)
    # The others are enough to unmask; the victim that checks revealed nothing and is told about.
    assert [one.client_id for one in report.dropouts] == ["alpha"] * is_checked


def unmask_request(
    whole: WholeFederation, plan: RoundPlan, survivors: Iterable[int], *, stated: Iterable[int]
) -> keyserver_pb2.UnmaskRequest:
    """What a coordinator asks that has the aggregator on its side, which states whatever it likes."""
    signer = whole.federation.credentials(Role.AGGREGATOR, "agg-1").signer()
    tree = UploadTree(plan.binding, dict.fromkeys(stated, bytes(32)))
    frozen = part_to_proto(sign_part("frozen", frozen_body(tree), signer))
    return keyserver_pb2.UnmaskRequest(session_id=plan.session_id, survivors=survivors, frozen=frozen)


async def test_the_services_take_no_survivors_that_cannot_be(whole: WholeFederation, gate: threading.Event) -> None:
    for name in HONEST:
        whole.join(name, Steps(gate=gate))
    whole.join(BAD, tamper=instead_of(f"{KEYS}.advertisement", without_signature))
    job_id = await whole.submit()
    plan, before = await whole.until_gated(), whole.committed()
    liar = whole.federation.credentials(Role.COORDINATOR, "coord-1")
    aggregator, keyserver = whole.stub(Role.AGGREGATOR, liar), whole.stub(Role.KEYSERVER, liar)
    session = plan.session_id
    outside = ("the survivors name a site outside U2", "which has 4 sites", "site 0", "do not go on")
    unstated = ("not stated by the aggregator", "its signed part", "no part", "FreezeSurvivors")
    others = ("the uploads of other survivors", "4 sites", "5 sites", "FreezeSurvivors")
    no_place = ("the index of a site is out of range", "below 5", "7", "the plan's roster")
    for call, says in (
        (keyserver.Unmask(keyserver_pb2.UnmaskRequest(session_id=session, survivors=range(5))), unstated),
        (keyserver.Unmask(unmask_request(whole, plan, range(5), stated=range(5))), outside),
        (keyserver.Unmask(unmask_request(whole, plan, range(4), stated=range(5))), others),
        (keyserver.Unmask(keyserver_pb2.UnmaskRequest(session_id=session, survivors=[1, 2, 3, 7])), no_place),
        (
            aggregator.FreezeSurvivors(
                aggregator_pb2.FreezeSurvivorsRequest(session_id=session, eligible=[1, 2, 3, 7])
            ),
            no_place,
        ),
    ):
        check_says(await refusal(call), says)
    gate.set()
    reports = await whole.watch(job_id)
    whole.check_kept(before)
    assert [(report.round_id, report.attempt) for report in reports] == [(1, 1), (2, 1)]
    check_left_out(reports[-1], DropoutReason.BAD_SIGNATURE)
    whole.check_exact(reports[-1])


# Parties that cannot start.


def service_config(whole: WholeFederation, folder: Path, **changes: object) -> Path:
    files = whole.federation.issue(Role.AGGREGATOR, "agg-2")
    settings = {
        "service_id": "agg-2",
        "listen": "127.0.0.1:0",
        "certificate": str(files.certificate),
        "key": str(files.key),
        "ca": str(files.ca),
        "state_dir": str(folder / "state-agg-2"),
        "coordinator": whole.addresses[Role.COORDINATOR],
        **changes,
    }
    path = folder / f"{len(list(folder.glob('*.yaml')))}.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


async def complaint_of(config: Path) -> str:
    """The one line in which the aggregator says why it does not start."""
    command = (sys.executable, "-m", "services.aggregator", "--config", str(config))
    process = await asyncio.create_subprocess_exec(*command, cwd=REPOSITORY, stderr=asyncio.subprocess.PIPE)
    _, stderr = await process.communicate()
    [line] = [line for line in stderr.decode().splitlines() if line.startswith("error: ")]
    assert process.returncode == 2
    assert "Traceback" not in stderr.decode()
    return line


@pytest.mark.e2e
async def test_a_service_that_cannot_start_says_why_and_disturbs_nobody(
    whole: WholeFederation, gate: threading.Event, tmp_path: Path
) -> None:
    for name in HONEST:
        whole.join(name, Steps(gate=gate))
    job_id = await whole.submit()
    await whole.until_gated()
    before = whole.committed()
    missing, scribbled = tmp_path / "nowhere.yaml", tmp_path / "scribbled.yaml"
    scribbled.write_text("service_id: agg-2\nlisten: [127.0.0.1\n")
    address = whole.addresses[Role.AGGREGATOR]
    taken = service_config(whole, tmp_path, listen=address)
    uncertified = service_config(whole, tmp_path, certificate=str(tmp_path / "lost.pem"))
    complaints = await asyncio.gather(*map(complaint_of, (missing, scribbled, taken, uncertified)))
    port = address.rpartition(":")[2]
    assert complaints == [
        f"error: the config {missing} cannot be read: expected a readable YAML file, got No such file or directory;"
        " check the path and its permissions",
        f"error: the config {scribbled} is not valid YAML: expected lines of `key: value`, got an error at line 3;"
        " correct that line",
        f"error: port {port} is in use on 127.0.0.1: expected a free port, got one that another program listens on;"
        " stop that program or choose another port in `listen`",
        f"error: the certificate {tmp_path / 'lost.pem'} cannot be read: expected a readable PEM file,"
        " got No such file or directory; make it with `tacit pki` or correct the path",
    ]
    gate.set()
    await check_committed_by_all(whole, await whole.watch(job_id), before)


async def test_a_site_that_cannot_start_says_why_and_disturbs_nobody(
    whole: WholeFederation, gate: threading.Event, tmp_path: Path
) -> None:
    for name in HONEST:
        whole.join(name, Steps(gate=gate))
    job_id = await whole.submit()
    await whole.until_gated()
    before = whole.committed()
    scribbled = tmp_path / "site.yaml"
    scribbled.write_text("coordinator: {fl.example.org\n")
    for path, says in (
        (tmp_path / "no.yaml", ("the file cannot be read", "a readable YAML file", "No such file", "check the path")),
        (scribbled, ("the file is no YAML", "lines of `key: value`", "a mistake in line 2", "correct that line")),
    ):
        with pytest.raises(ConfigError) as unreadable:
            SiteConfig.from_file(path)
        assert str(path) in unreadable.value.what
        check_says(unreadable.value, says)
    lost = replace(whole.config("epsilon"), certificate=tmp_path / "lost.pem")
    with pytest.raises(ConfigError) as uncertified:
        await Site(lost).participate(Steps())
    says = ("lost.pem cannot be read", "a readable PEM file", "No such file", "`tacit pki`")
    check_says(uncertified.value, says)
    gate.set()
    await check_committed_by_all(whole, await whole.watch(job_id), before)
