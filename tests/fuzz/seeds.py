"""One valid message of every kind that has a conversion, for the fuzzer to start from."""

from google.protobuf.message import Message

from fl_core.codec.tensors import TensorManifest, TensorSpec
from fl_core.crypto.shamir import SHARE_BYTES
from fl_core.rounds.job import JobSpec
from fl_core.rounds.machine import AbandonReason, DropoutReason, RoundState, SiteDropout
from fl_core.rounds.plan import ClientId, JobId, RosterEntry, RoundPlan, ServiceEndpoint
from fl_core.rounds.planner import build_plan
from fl_core.rounds.report import AggregateInfo, RoundReport, SiteEvaluation
from fl_core.secagg import messages
from fl_core.secagg.sealing import SEALED_SHARE_BYTES
from fl_core.wire import convert
from tests.fuzz.choices import is_map, is_repeated

MANIFEST = TensorManifest((TensorSpec("weight", "float32", (3, 5)), TensorSpec("bias", "float64", (5,))))
SITES = tuple(RosterEntry(ClientId(f"site-{number}"), bytes([number]) * 32) for number in range(5))
KEYS = messages.KeyAdvertisement(0, b"c" * 32, b"m" * 32, b"s" * 32, b"certificate", b"signature")
BEACON = messages.Beacon(b"v" * 32, b"k" * 32, b"s" * 64)
EXCERPT = messages.DirectoryExcerpt((0, 1, 4), (b"h" * 32,), BEACON)
SEALED = messages.SealedShare(1, 2, b"x" * SEALED_SHARE_BYTES)
SHARE = messages.RevealedShare(3, b"y" * SHARE_BYTES)
SIGNATURE = messages.SurvivorSignature(1, b"signature")
EVALUATION = SiteEvaluation(ClientId("site-1"), 0.25, 10, {"accuracy": 0.5})
REPORT = RoundReport(
    job_id=JobId("job"),
    round_id=3,
    attempt=1,
    state=RoundState.ABANDONED,
    abandon_reason=AbandonReason.TOO_FEW_KEYS,
    model_version=7,
    invited=(ClientId("site-1"), ClientId("site-2")),
    survivors=(ClientId("site-1"),),
    dropouts=(SiteDropout(ClientId("site-2"), DropoutReason.SHARE_TIMEOUT, RoundState.EXCHANGING),),
    phase_seconds={"recruiting": 0.5},
    round_seconds=1.5,
    total_weight=99,
    aggregate_sha256=b"d" * 32,
    metrics={"accuracy": 0.75},
    bytes_up={"site-1": 2**40},
    bytes_down={"site-1": 5},
    detail="why",
    evaluations=(EVALUATION,),
)


def plan() -> RoundPlan:
    """A plan of five sites."""
    return build_plan(
        JobSpec(name="fuzz", rounds=1),
        job_id=JobId("job"),
        round_id=3,
        attempt=2,
        model_version=4,
        model_digest=b"m" * 32,
        manifest=MANIFEST,
        roster=SITES,
        aggregator=ServiceEndpoint("aggregator-1", "host:1", b"a" * 32),
        keyserver=ServiceEndpoint("keyserver-1", "host:2", b"k" * 32),
        graph_commitment=b"g" * 32,
    )


def messages_by_name() -> dict[str, Message]:
    """Valid messages by the full name of their kind. Kinds that are parts of others are found in those."""
    whole = [
        convert.plan_to_proto(plan()),
        convert.report_to_proto(REPORT),
        convert.evaluation_to_proto(EVALUATION),
        convert.aggregate_to_proto(AggregateInfo(b"s" * 16, (0, 2), 5, b"d" * 32)),
        convert.advertisement_to_proto(KEYS),
        convert.directory_to_proto(messages.KeyDirectory((KEYS,), EXCERPT)),
        convert.beacon_to_proto(BEACON),
        convert.sealed_shares_to_proto(messages.SealedShares((SEALED,))),
        convert.relayed_shares_to_proto(messages.RelayedShares((SEALED,))),
        convert.survivors_to_proto(messages.SurvivorSet((0, 2, 4))),
        convert.signature_to_proto(SIGNATURE),
        convert.proof_to_proto(messages.ConsistencyProof((SIGNATURE,))),
        convert.revealed_to_proto(messages.RevealedShares(0, (SHARE,), ())),
    ]
    found: dict[str, Message] = {}
    for message in whole:
        _collect(message, found)
    return found


def _collect(message: Message, found: dict[str, Message]) -> None:
    found.setdefault(message.DESCRIPTOR.full_name, message)
    for field, value in message.ListFields():
        if field.message_type is None or is_map(field):
            continue
        for part in value if is_repeated(field) else [value]:
            _collect(part, found)
