"""Every value passes the wire and comes back equal; what a peer could send instead is refused with an error of ours."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.codec.spec import CodecSpec
from fl_core.codec.tensors import DTYPES, TensorManifest, TensorSpec
from fl_core.crypto.shamir import SHARE_BYTES
from fl_core.errors import BadKey, BadShares, CodecError, PlanError, RemoteProtocolError, TacitError
from fl_core.privacy.budget import PrivacyBudget
from fl_core.rounds.machine import AbandonReason, DropoutReason, RoundState, SiteDropout
from fl_core.rounds.plan import (
    Aggregation,
    ClientId,
    JobId,
    PhaseBounds,
    PhaseSchedule,
    RosterEntry,
    RoundPlan,
    ServiceEndpoint,
    SparseGraph,
)
from fl_core.rounds.privacy_terms import Mechanism, PrivacyTerms
from fl_core.rounds.report import AggregateInfo, RoundReport, SiteEvaluation
from fl_core.secagg import messages as values
from fl_core.secagg.commitments import PAIR_BYTES
from fl_core.secagg.degrees import Profile
from fl_core.secagg.sealing import SEALED_SHARE_BYTES
from fl_core.wire import convert
from fl_core.wire.v1 import round_pb2, secagg_pb2, tensors_pb2

PLAN = RoundPlan(
    job_id=JobId("job"),
    round_id=3,
    attempt=2,
    aggregation=Aggregation.SECAGG,
    model_version=4,
    model_digest=b"m" * 32,
    manifest=TensorManifest(tuple(TensorSpec(f"t.{dtype}", dtype, (2, 0, 3)) for dtype in DTYPES)),
    codec=CodecSpec(0.1, 16, 24),
    threshold=3,
    min_survivors=4,
    max_dropout=0.2,
    max_corrupt=0.1,
    max_weight=500,
    chunk_bytes=4096,
    schedule=PhaseSchedule(signing=PhaseBounds(0.125, 2.5)),
    aggregator=ServiceEndpoint("agg", "host:1", b"a" * 32),
    keyserver=ServiceEndpoint("keys", "host:2", b"k" * 32),
    roster=tuple(RosterEntry(ClientId(f"site-{i}"), bytes([i]) * 32) for i in range(5)),
    training={"lr": 0.1, "epochs": -3, "shuffle": True, "optimizer": "sgd", "empty": ""},
)
ADVERTISEMENT = values.KeyAdvertisement(0, b"c" * 32, b"m" * 32, b"s" * 32, b"cert", b"sig")
BEACON = values.Beacon(b"v" * 32, b"k" * 32, b"s" * 64)
EXCERPT = values.DirectoryExcerpt((0, 1, 4), (b"h" * 32, b"i" * 32), BEACON)
SEALED = values.SealedShare(1, 2, b"x" * SEALED_SHARE_BYTES, b"c" * PAIR_BYTES)
SHARE = values.RevealedShare(3, b"y" * SHARE_BYTES)
SIGNATURE = values.SurvivorSignature(1, b"sig")
REPORT = RoundReport(
    job_id=JobId("job"),
    round_id=3,
    attempt=1,
    state=RoundState.ABANDONED,
    abandon_reason=AbandonReason.TOO_FEW_KEYS,
    model_version=7,
    invited=(ClientId("a"), ClientId("b")),
    survivors=(ClientId("a"),),
    dropouts=(SiteDropout(ClientId("b"), DropoutReason.SHARE_TIMEOUT, RoundState.EXCHANGING),),
    phase_seconds={"recruiting": 0.5},
    round_seconds=1.5,
    total_weight=99,
    aggregate_sha256=b"d" * 32,
    metrics={"accuracy": 0.75},
    bytes_up={"a": 2**40},
    bytes_down={"a": 5},
    detail="why",
    evaluations=(SiteEvaluation(ClientId("a"), 0.25, 10, {"accuracy": 0.5}),),
)

PAIRS: list[tuple[Any, Callable[[Any], Message], Callable[[Any], Any]]] = [
    (PLAN, convert.plan_to_proto, convert.plan_from_proto),
    (
        replace(PLAN, aggregation=Aggregation.PLAIN, keyserver=None, training={}),
        convert.plan_to_proto,
        convert.plan_from_proto,
    ),
    (
        replace(
            PLAN,
            max_weight=1,
            privacy=PrivacyTerms(Mechanism.CENTRAL, PrivacyBudget(2.0, 1e-6), 0.5, 1.25, 256, True, quantile=0.5),
        ),
        convert.plan_to_proto,
        convert.plan_from_proto,
    ),
    (
        replace(PLAN, graph=SparseGraph(2, Profile.HONEST_BUT_CURIOUS, b"g" * 32)),
        convert.plan_to_proto,
        convert.plan_from_proto,
    ),
    (BEACON, convert.beacon_to_proto, convert.beacon_from_proto),
    (values.KeyDirectory((ADVERTISEMENT,), EXCERPT), convert.directory_to_proto, convert.directory_from_proto),
    (PLAN.manifest, convert.manifest_to_proto, convert.manifest_from_proto),
    (PLAN.codec, convert.codec_to_proto, convert.codec_from_proto),
    (ADVERTISEMENT, convert.advertisement_to_proto, convert.advertisement_from_proto),
    (
        replace(ADVERTISEMENT, noise_commitment=b"n" * 32),
        convert.advertisement_to_proto,
        convert.advertisement_from_proto,
    ),
    (
        values.KeyDirectory((ADVERTISEMENT, replace(ADVERTISEMENT, index=4))),
        convert.directory_to_proto,
        convert.directory_from_proto,
    ),
    (
        values.SealedShares((SEALED, replace(SEALED, recipient=3)), b"o" * PAIR_BYTES),
        convert.sealed_shares_to_proto,
        convert.sealed_shares_from_proto,
    ),
    (
        values.RelayedShares((SEALED, replace(SEALED, sender=0))),
        convert.relayed_shares_to_proto,
        convert.relayed_shares_from_proto,
    ),
    (values.SurvivorSet((0, 2, 5), b"r" * 32), convert.survivors_to_proto, convert.survivors_from_proto),
    (SIGNATURE, convert.signature_to_proto, convert.signature_from_proto),
    (
        values.ConsistencyProof((SIGNATURE, replace(SIGNATURE, index=2))),
        convert.proof_to_proto,
        convert.proof_from_proto,
    ),
    (
        values.RevealedShares(1, (SHARE,), (replace(SHARE, owner=0), replace(SHARE, owner=4))),
        convert.revealed_to_proto,
        convert.revealed_from_proto,
    ),
    (values.RevealedShares(1, (), (), (2,), b"e" * 32), convert.revealed_to_proto, convert.revealed_from_proto),
    (AggregateInfo(b"i" * 16, (0, 1), 9, b"d" * 32), convert.aggregate_to_proto, convert.aggregate_from_proto),
    (REPORT.evaluations[0], convert.evaluation_to_proto, convert.evaluation_from_proto),
    (REPORT, convert.report_to_proto, convert.report_from_proto),
    (RoundReport(JobId("j"), 1, 1, RoundState.RECRUITING), convert.report_to_proto, convert.report_from_proto),
]


@pytest.mark.parametrize(("value", "to_proto", "from_proto"), PAIRS, ids=lambda part: type(part).__name__)
def test_a_value_comes_back_equal_from_its_bytes(
    value: Any, to_proto: Callable[[Any], Message], from_proto: Callable[[Any], Any]
) -> None:
    message = to_proto(value)
    back = from_proto(type(message).FromString(message.SerializeToString()))
    assert back == value


def test_a_plan_keeps_its_session_across_the_wire() -> None:
    message = convert.plan_to_proto(PLAN)
    back = convert.plan_from_proto(round_pb2.RoundPlan.FromString(message.SerializeToString()))
    assert (back.session_id, back.binding) == (PLAN.session_id, PLAN.binding)


@pytest.mark.parametrize(("value", "to_proto", "from_proto"), PAIRS, ids=lambda part: type(part).__name__)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_broken_bytes_give_a_value_or_one_of_our_errors(
    value: Any, to_proto: Callable[[Any], Message], from_proto: Callable[[Any], Any], data: st.DataObject
) -> None:
    message = to_proto(value)
    raw = bytearray(message.SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        if not raw:
            break
        place = data.draw(st.integers(0, len(raw) - 1))
        if data.draw(st.booleans()):
            raw[place] = data.draw(st.integers(0, 255))
        else:
            del raw[place : place + data.draw(st.integers(1, 9))]
    try:
        broken = type(message).FromString(bytes(raw))
    except DecodeError:
        # gRPC refuses bytes that are no message before we see them.
        return
    try:
        back = from_proto(broken)
    except TacitError:
        return
    if isinstance(back, RoundPlan):
        assert len(back.session_id) == 16
    to_proto(back)


def test_an_empty_message_is_refused_wherever_something_must_stand() -> None:
    for _, to_proto, from_proto in PAIRS:
        empty = type(to_proto(_))()
        if from_proto in (
            convert.directory_from_proto,
            convert.sealed_shares_from_proto,
            convert.relayed_shares_from_proto,
            convert.proof_from_proto,
            convert.revealed_from_proto,
            convert.evaluation_from_proto,
        ):
            from_proto(empty)
            continue
        with pytest.raises(TacitError):
            from_proto(empty)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"cipher_public_key": b"c" * 31}, BadKey),
        ({"mask_public_key": b"c" * 33}, BadKey),
        ({"self_seed_commitment": b""}, RemoteProtocolError),
        ({"noise_commitment": b"n" * 31}, RemoteProtocolError),
        ({"certificate_der": b""}, RemoteProtocolError),
        ({"certificate_der": b"c" * 8193}, RemoteProtocolError),
        ({"signature": b""}, RemoteProtocolError),
        ({"signature": b"s" * 129}, RemoteProtocolError),
        ({"index": 16_384}, RemoteProtocolError),
    ],
)
def test_an_advertisement_of_the_wrong_form_is_refused(change: dict[str, Any], error: type[TacitError]) -> None:
    with pytest.raises(error):
        convert.advertisement_from_proto(convert.advertisement_to_proto(replace(ADVERTISEMENT, **change)))


def test_shares_of_the_wrong_form_are_refused() -> None:
    def sealed(*shares: values.SealedShare) -> secagg_pb2.SealedShares:
        return convert.sealed_shares_to_proto(values.SealedShares(shares, b"o" * PAIR_BYTES))

    with pytest.raises(RemoteProtocolError, match="ciphertext"):
        convert.sealed_shares_from_proto(sealed(replace(SEALED, ciphertext=SEALED.ciphertext + b"x")))
    with pytest.raises(RemoteProtocolError, match="commitments"):
        convert.sealed_shares_from_proto(sealed(replace(SEALED, commitments=bytes(31))))
    with pytest.raises(RemoteProtocolError, match="commitments"):
        convert.sealed_shares_from_proto(convert.sealed_shares_to_proto(values.SealedShares((SEALED,), bytes(33))))
    with pytest.raises(RemoteProtocolError, match="twice"):
        convert.sealed_shares_from_proto(sealed(SEALED, SEALED))
    with pytest.raises(RemoteProtocolError, match="more than one sender"):
        convert.sealed_shares_from_proto(sealed(SEALED, replace(SEALED, sender=4)))
    with pytest.raises(RemoteProtocolError, match="more than one recipient"):
        convert.relayed_shares_from_proto(
            convert.relayed_shares_to_proto(values.RelayedShares((SEALED, replace(SEALED, recipient=4))))
        )
    with pytest.raises(BadShares):
        convert.revealed_from_proto(
            convert.revealed_to_proto(values.RevealedShares(0, (replace(SHARE, share=b"short"),), ()))
        )


def test_both_kinds_of_share_of_one_owner_are_refused() -> None:
    for both in (
        values.RevealedShares(0, (SHARE,), (SHARE,)),
        values.RevealedShares(0, (SHARE,), (), (SHARE.owner,)),
    ):
        with pytest.raises(RemoteProtocolError, match="one kind"):
            convert.revealed_from_proto(convert.revealed_to_proto(both))


@pytest.mark.parametrize("indices", [(1, 1), (2, 1), (0, 16_384)])
def test_indices_out_of_order_or_range_are_refused(indices: tuple[int, ...]) -> None:
    with pytest.raises(RemoteProtocolError):
        convert.survivors_from_proto(secagg_pb2.SurvivorSet(survivors=indices, uploads_root=bytes(32)))
    with pytest.raises(RemoteProtocolError):
        convert.indices_from_proto(indices)


def test_an_index_outside_the_roster_is_refused() -> None:
    assert convert.indices_from_proto([0, 4], 5) == (0, 4)
    with pytest.raises(RemoteProtocolError, match="below 5"):
        convert.index_from_proto(5, 5)


@pytest.mark.parametrize("size", [0, 15, 17, 32])
def test_a_session_id_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(RemoteProtocolError, match="16"):
        convert.session_id_from_proto(bytes(size))


def test_enums_that_are_unspecified_or_unknown_are_refused() -> None:
    for from_proto in (
        convert.aggregation_from_proto,
        convert.round_state_from_proto,
        convert.dropout_reason_from_proto,
    ):
        for number in (0, 99, -1):
            with pytest.raises(RemoteProtocolError):
                from_proto(number)
    assert convert.abandon_reason_from_proto(0) is None
    assert convert.abandon_reason_to_proto(None) == convert.dropout_reason_to_proto(None) == 0
    with pytest.raises(RemoteProtocolError):
        convert.abandon_reason_from_proto(99)


def test_every_member_of_every_enum_passes_the_wire() -> None:
    for kind, to_proto, from_proto in (
        (Aggregation, convert.aggregation_to_proto, convert.aggregation_from_proto),
        (RoundState, convert.round_state_to_proto, convert.round_state_from_proto),
        (DropoutReason, convert.dropout_reason_to_proto, convert.dropout_reason_from_proto),
        (AbandonReason, convert.abandon_reason_to_proto, convert.abandon_reason_from_proto),
    ):
        assert [from_proto(to_proto(member)) for member in kind] == list(kind)  # type: ignore[operator, var-annotated]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (tensors_pb2.TensorSpec(name="w", shape=[1]), "dtype"),
        (tensors_pb2.TensorSpec(name="w", dtype=77, shape=[1]), "dtype"),  # type: ignore[arg-type]
        (tensors_pb2.TensorSpec(name="", dtype=tensors_pb2.DTYPE_FLOAT32, shape=[1]), "name"),
        (tensors_pb2.TensorSpec(name="w", dtype=tensors_pb2.DTYPE_FLOAT32, shape=[1] * 1000), "shape"),
        (tensors_pb2.TensorSpec(name="w", dtype=tensors_pb2.DTYPE_FLOAT32, shape=[2**63, 2**63]), "too many elements"),
    ],
)
def test_a_manifest_of_the_wrong_form_is_refused(spec: tensors_pb2.TensorSpec, words: str) -> None:
    with pytest.raises(CodecError, match=words):
        convert.manifest_from_proto(tensors_pb2.TensorManifest(tensors=[spec]))


def test_a_plan_of_the_wrong_form_is_refused() -> None:
    def broken(**change: Any) -> round_pb2.RoundPlan:
        message = convert.plan_to_proto(PLAN)
        for name, value in change.items():
            setattr(message, name, value)
        return message

    for message in (broken(round_id=0), broken(model_digest=b"x"), broken(threshold=9), broken(max_weight=2**64 - 1)):
        with pytest.raises(PlanError):
            convert.plan_from_proto(message)
    without_value = broken()
    without_value.training["x"].CopyFrom(round_pb2.Scalar())
    with pytest.raises(PlanError, match="'x'"):
        convert.plan_from_proto(without_value)
    without_schedule = broken()
    without_schedule.ClearField("schedule")
    with pytest.raises(PlanError, match="phase"):
        convert.plan_from_proto(without_schedule)
    plain_with_keys = broken(aggregation=round_pb2.AGGREGATION_PLAIN)
    with pytest.raises(PlanError, match="key server"):
        convert.plan_from_proto(plain_with_keys)


def test_a_report_of_the_wrong_form_is_refused() -> None:
    for change in ({"job_id": ""}, {"aggregate_sha256": b"x"}, {"state": 0}, {"abandon_reason": 55}):
        message = convert.report_to_proto(REPORT)
        for name, value in change.items():
            setattr(message, name, value)
        with pytest.raises(RemoteProtocolError):
            convert.report_from_proto(message)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"members": (4, 1)}, "not in order"),
        ({"members": ()}, "the members of a directory"),
        ({"members": (1 << 20,)}, "out of range"),
        ({"proof": (b"h" * 31,)}, "a hash of a proof"),
        ({"beacon": replace(BEACON, value=b"v")}, "the value of a beacon"),
        ({"beacon": replace(BEACON, verify_key=b"")}, "the key of a beacon"),
        ({"beacon": replace(BEACON, signature=b"s" * 65)}, "the signature of a beacon"),
    ],
)
def test_an_excerpt_of_the_wrong_form_is_refused(change: dict[str, Any], text: str) -> None:
    message = convert.directory_to_proto(values.KeyDirectory((ADVERTISEMENT,), replace(EXCERPT, **change)))
    with pytest.raises(RemoteProtocolError, match=text):
        convert.directory_from_proto(message)


def test_a_graph_of_an_unknown_profile_is_refused() -> None:
    message = convert.plan_to_proto(replace(PLAN, graph=SparseGraph(2, Profile.HONEST_BUT_CURIOUS, b"g" * 32)))
    for number in (0, 99):
        message.graph.profile = number  # type: ignore[assignment]
        with pytest.raises(RemoteProtocolError, match="Profile"):
            convert.plan_from_proto(message)
