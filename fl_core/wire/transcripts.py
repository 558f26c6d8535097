"""Parts of a transcript as protobuf, and back; and a transcript held against the plan that stands in it."""

from typing import Any

from google.protobuf.message import DecodeError

from fl_core.errors import TacitError
from fl_core.rounds.plan import Aggregation, RoundPlan
from fl_core.secagg.recheck import check_enough_answered, check_survivors, graph_of
from fl_core.secagg.transcript import MAX_BODY_BYTES, ROLES, BadTranscript, Part, Transcript, beacon_from
from fl_core.wire.checks import check_size
from fl_core.wire.plans import plan_from_proto
from fl_core.wire.secagg_messages import MAX_CERTIFICATE_BYTES, MAX_SIGNATURE_BYTES
from fl_core.wire.v1 import round_pb2


def part_to_proto(value: Part) -> round_pb2.SignedPart:
    """To the wire."""
    return round_pb2.SignedPart(
        kind=value.kind, body=value.body, certificate_der=value.certificate_der, signature=value.signature
    )


def part_from_proto(message: round_pb2.SignedPart) -> Part:
    """From the wire. Whether it is signed, and says what it should, is checked by `fl_core.secagg.transcript`.

    Raises:
        RemoteProtocolError: a size is wrong.
    """
    check_size("the kind of a part", message.kind, 1, max(map(len, ROLES)))
    check_size("the body of a part", message.body, 2, MAX_BODY_BYTES)
    check_size("a certificate", message.certificate_der, 1, MAX_CERTIFICATE_BYTES)
    check_size("a signature", message.signature, 1, MAX_SIGNATURE_BYTES)
    return Part(message.kind, message.body, message.certificate_der, message.signature)


def check_plan(transcript: Transcript) -> RoundPlan:
    """Hold a transcript that `verify_transcript` accepts against its plan, and a masked session against its graph.

    Whatever the coordinator opened must follow from the plan, and the plan from the session to which all parts belong.
    Of a masked session the graph is made again: it must be the one that the plan committed to, U3 must be one that
    sites sign, and so many witnesses and holders of shares must have answered that every mask can have been taken off.

    Returns:
        The plan.

    Raises:
        BadTranscript: something else is stated.
    """
    bodies = {part.kind: part.read() for part in transcript.parts}
    try:
        plan = plan_from_proto(round_pb2.RoundPlan.FromString(bytes.fromhex(bodies["opened"]["plan"])))
        _check_opened(plan, bodies["opened"])
        if plan.aggregation is Aggregation.SECAGG:
            _check_session(plan, bodies)
    except BadTranscript:
        raise
    except (TacitError, DecodeError, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = str(error) if isinstance(error, TacitError) else type(error).__name__
        raise BadTranscript(
            "the transcript does not follow from its plan",
            expected="a session that the plan allows",
            got=reason,
            fix="do not rely on this attempt; ask who runs the services",
        ) from error
    return plan


def _check_opened(plan: RoundPlan, opened: dict[str, Any]) -> None:
    stated = {
        "session": plan.binding.hex(),
        "aggregation": plan.aggregation.value,
        "model_version": plan.model_version,
        "threshold": plan.threshold,
        "neighbours": plan.graph.degree if plan.graph else 0,
        "min_survivors": plan.min_survivors,
        "aggregator": plan.aggregator.certificate_sha256.hex(),
        "keyserver": plan.keyserver.certificate_sha256.hex() if plan.keyserver else "",
    }
    for name, value in stated.items():
        if opened[name] != value:
            raise BadTranscript(f"{name} is not that of the plan", expected=value, got=str(opened[name])[:64])


def _check_session(plan: RoundPlan, bodies: dict[str, dict[str, Any]]) -> None:
    if "exchanged" not in bodies:
        return
    context, exchanged = plan.session_context(), bodies["exchanged"]
    members, beacon = exchanged["advertised"], beacon_from(exchanged["beacon"])
    graph = graph_of(context, members, bytes.fromhex(exchanged["directory"]), beacon)
    if "frozen" in bodies and "unmasked" in bodies and bodies["closed"]["outcome"] == "committed":
        unmasked = bodies["unmasked"]
        check_survivors(context, graph, members, bodies["frozen"]["survivors"])
        check_enough_answered(context, graph, exchanged["shared"], unmasked["signed"], unmasked["revealed"])
