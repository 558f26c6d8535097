"""Plans, manifests and codecs as protobuf, and back. What comes back has passed every check of its value."""

from collections.abc import Mapping, MutableMapping
from dataclasses import fields
from types import MappingProxyType

from fl_core.codec.spec import CodecSpec
from fl_core.codec.tensors import DTYPES, MAX_RANK, MAX_TENSORS, TensorManifest, TensorSpec
from fl_core.errors import CodecError, PlanError
from fl_core.privacy.budget import PrivacyBudget
from fl_core.rounds.paillier_terms import PaillierTerms
from fl_core.rounds.plan import (
    MAX_COHORT,
    MAX_TRAINING_OPTIONS,
    ClientId,
    JobId,
    PhaseBounds,
    PhaseSchedule,
    RosterEntry,
    RoundPlan,
    Scalar,
    ServiceEndpoint,
    SparseGraph,
    check_training,
)
from fl_core.rounds.privacy_terms import PrivacyTerms
from fl_core.wire.enums import (
    aggregation_from_proto,
    aggregation_to_proto,
    custody_from_proto,
    custody_to_proto,
    levels_from_proto,
    levels_to_proto,
    mechanism_from_proto,
    mechanism_to_proto,
    profile_from_proto,
    profile_to_proto,
    selection_from_proto,
    selection_to_proto,
)
from fl_core.wire.v1 import round_pb2, tensors_pb2

_DTYPE_NUMBERS = {dtype: tensors_pb2.DType.Value(f"DTYPE_{dtype.upper()}") for dtype in DTYPES}
_DTYPE_NAMES = {int(number): dtype for dtype, number in _DTYPE_NUMBERS.items()}


def manifest_to_proto(manifest: TensorManifest) -> tensors_pb2.TensorManifest:
    """To the wire."""
    return tensors_pb2.TensorManifest(
        tensors=[
            tensors_pb2.TensorSpec(name=spec.name, dtype=_DTYPE_NUMBERS[spec.dtype], shape=spec.shape)
            for spec in manifest.tensors
        ]
    )


def manifest_from_proto(message: tensors_pb2.TensorManifest) -> TensorManifest:
    """From the wire.

    Raises:
        CodecError: an unknown dtype, an impossible shape or name, no tensor, too many tensors or elements.
    """
    if len(message.tensors) > MAX_TENSORS:
        raise CodecError("a manifest has too many tensors", expected=f"up to {MAX_TENSORS}", got=len(message.tensors))
    return TensorManifest(tuple(_spec_from_proto(spec) for spec in message.tensors))


def codec_to_proto(codec: CodecSpec) -> round_pb2.CodecSpec:
    """To the wire."""
    return round_pb2.CodecSpec(
        clip=codec.clip,
        bits=codec.bits,
        ring_bits=codec.ring_bits,
        span=codec.span,
        selection=selection_to_proto(codec.selection),
        density=codec.density,
        rotation=codec.rotation,
        levels=levels_to_proto(codec.levels),
        feedback=codec.feedback,
        adaptive=codec.adaptive,
    )


def codec_from_proto(message: round_pb2.CodecSpec) -> CodecSpec:
    """From the wire.

    Raises:
        PlanError: a value is out of range or the stages do not fit together.
        RemoteProtocolError: an unknown selection or unknown levels.
    """
    return CodecSpec(
        clip=message.clip,
        bits=message.bits,
        ring_bits=message.ring_bits,
        span=message.span if message.HasField("span") else None,
        selection=selection_from_proto(message.selection),
        density=message.density,
        rotation=message.rotation,
        levels=levels_from_proto(message.levels),
        feedback=message.feedback,
        adaptive=message.adaptive,
    )


def training_to_proto(training: Mapping[str, Scalar], target: MutableMapping[str, round_pb2.Scalar]) -> None:
    """Write training options into a map field of a message."""
    for name, value in training.items():
        target[name].CopyFrom(_scalar_to_proto(value))


def training_from_proto(options: Mapping[str, round_pb2.Scalar]) -> Mapping[str, Scalar]:
    """Read training options from a map field.

    Raises:
        PlanError: too many, without a value, not finite, or too long.
    """
    if len(options) > MAX_TRAINING_OPTIONS:
        raise PlanError(
            "there are too many training options", expected=f"up to {MAX_TRAINING_OPTIONS}", got=len(options)
        )
    training = {name: _scalar_from_proto(name, options[name]) for name in options}
    check_training(training)
    return MappingProxyType(training)


def plan_to_proto(plan: RoundPlan) -> round_pb2.RoundPlan:
    """To the wire."""
    message = round_pb2.RoundPlan(
        job_id=plan.job_id,
        round_id=plan.round_id,
        attempt=plan.attempt,
        aggregation=aggregation_to_proto(plan.aggregation),
        model_version=plan.model_version,
        model_digest=plan.model_digest,
        manifest=manifest_to_proto(plan.manifest),
        codec=codec_to_proto(plan.codec),
        threshold=plan.threshold,
        min_survivors=plan.min_survivors,
        max_dropout=plan.max_dropout,
        max_corrupt=plan.max_corrupt,
        max_weight=plan.max_weight,
        chunk_bytes=plan.chunk_bytes,
        schedule=_schedule_to_proto(plan.schedule),
        aggregator=_endpoint_to_proto(plan.aggregator),
        keyserver=None if plan.keyserver is None else _endpoint_to_proto(plan.keyserver),
    )
    for entry in plan.roster:
        message.roster.add(client_id=entry.client_id, certificate_sha256=entry.certificate_sha256)
    if plan.paillier is not None:
        message.paillier.CopyFrom(paillier_terms_to_proto(plan.paillier))
    if plan.graph is not None:
        message.graph.CopyFrom(_graph_to_proto(plan.graph))
    if plan.privacy is not None:
        message.privacy.CopyFrom(_terms_to_proto(plan.privacy))
    training_to_proto(plan.training, message.training)
    return message


def plan_from_proto(message: round_pb2.RoundPlan) -> RoundPlan:
    """From the wire. Whether the plan is acceptable is checked by `fl_core.rounds.planner.check_plan`.

    Raises:
        PlanError: a value is out of range or the parts do not fit together.
        CodecError: the manifest cannot be one.
        RemoteProtocolError: an unknown kind of aggregation or of graph.
    """
    if len(message.roster) > MAX_COHORT:
        raise PlanError("the cohort is out of range", expected=f"1 to {MAX_COHORT} sites", got=len(message.roster))
    return RoundPlan(
        job_id=JobId(message.job_id),
        round_id=message.round_id,
        attempt=message.attempt,
        aggregation=aggregation_from_proto(message.aggregation),
        model_version=message.model_version,
        model_digest=message.model_digest,
        manifest=manifest_from_proto(message.manifest),
        codec=codec_from_proto(message.codec),
        threshold=message.threshold,
        min_survivors=message.min_survivors,
        max_dropout=message.max_dropout,
        max_corrupt=message.max_corrupt,
        max_weight=message.max_weight,
        chunk_bytes=message.chunk_bytes,
        schedule=_schedule_from_proto(message.schedule),
        aggregator=_endpoint_from_proto(message.aggregator),
        keyserver=_endpoint_from_proto(message.keyserver) if message.HasField("keyserver") else None,
        roster=tuple(RosterEntry(ClientId(entry.client_id), entry.certificate_sha256) for entry in message.roster),
        training=training_from_proto(message.training),
        graph=_graph_from_proto(message.graph) if message.HasField("graph") else None,
        paillier=paillier_terms_from_proto(message.paillier) if message.HasField("paillier") else None,
        privacy=_terms_from_proto(message.privacy) if message.HasField("privacy") else None,
    )


def paillier_terms_to_proto(terms: PaillierTerms) -> round_pb2.PaillierTerms:
    """To the wire."""
    return round_pb2.PaillierTerms(
        modulus=terms.modulus,
        endorsement=terms.endorsement,
        custody=custody_to_proto(terms.custody),
        dealing=terms.dealing,
        dealing_signature=terms.dealing_signature,
    )


def paillier_terms_from_proto(message: round_pb2.PaillierTerms) -> PaillierTerms:
    """From the wire.

    Raises:
        PlanError: a size is impossible.
        RemoteProtocolError: an unknown custody.
    """
    custody = custody_from_proto(message.custody)
    return PaillierTerms(message.modulus, message.endorsement, custody, message.dealing, message.dealing_signature)


def _spec_from_proto(message: tensors_pb2.TensorSpec) -> TensorSpec:
    if message.dtype not in _DTYPE_NAMES:
        raise CodecError(
            "a tensor has an unknown dtype", expected=f"one of {sorted(_DTYPE_NAMES)}", got=int(message.dtype)
        )
    # One side more than is allowed is enough to be refused.
    return TensorSpec(message.name, _DTYPE_NAMES[message.dtype], tuple(message.shape[: MAX_RANK + 1]))


def _scalar_to_proto(value: Scalar) -> round_pb2.Scalar:
    match value:
        case bool():
            return round_pb2.Scalar(bool_value=value)
        case int():
            return round_pb2.Scalar(int_value=value)
        case float():
            return round_pb2.Scalar(float_value=value)
        case str():
            return round_pb2.Scalar(string_value=value)


def _scalar_from_proto(name: str, message: round_pb2.Scalar) -> Scalar:
    kind = message.WhichOneof("kind")
    if kind is None:
        raise PlanError(f"training option {name!r} has no value", expected="a boolean, integer, float or text")
    value: Scalar = getattr(message, kind)
    return value


def _schedule_to_proto(schedule: PhaseSchedule) -> round_pb2.PhaseSchedule:
    message = round_pb2.PhaseSchedule()
    for phase in fields(schedule):
        bounds: PhaseBounds = getattr(schedule, phase.name)
        target: round_pb2.PhaseBounds = getattr(message, phase.name)
        target.min_seconds, target.max_seconds = bounds.min_seconds, bounds.max_seconds
    return message


def _schedule_from_proto(message: round_pb2.PhaseSchedule) -> PhaseSchedule:
    def bounds(phase: round_pb2.PhaseBounds) -> PhaseBounds:
        return PhaseBounds(phase.min_seconds, phase.max_seconds)

    return PhaseSchedule(
        recruiting=bounds(message.recruiting),
        advertising=bounds(message.advertising),
        sharing=bounds(message.sharing),
        uploading=bounds(message.uploading),
        signing=bounds(message.signing),
        revealing=bounds(message.revealing),
    )


def _graph_to_proto(graph: SparseGraph) -> round_pb2.SparseGraph:
    return round_pb2.SparseGraph(
        degree=graph.degree, profile=profile_to_proto(graph.profile), commitment=graph.commitment
    )


def _graph_from_proto(message: round_pb2.SparseGraph) -> SparseGraph:
    return SparseGraph(message.degree, profile_from_proto(message.profile), message.commitment)


def _terms_to_proto(terms: PrivacyTerms) -> round_pb2.PrivacyTerms:
    return round_pb2.PrivacyTerms(
        mechanism=mechanism_to_proto(terms.mechanism),
        epsilon=terms.budget.epsilon,
        delta=terms.budget.delta,
        clip=terms.clip,
        noise_multiplier=terms.noise_multiplier,
        levels=terms.levels,
        both_servers=terms.both_servers,
        colluders=terms.colluders,
        sampling_rate=terms.sampling_rate,
        exposed=terms.exposed,
        expected_sites=terms.expected_sites,
        quantile=terms.quantile,
        steps=terms.steps,
    )


def _terms_from_proto(message: round_pb2.PrivacyTerms) -> PrivacyTerms:
    return PrivacyTerms(
        mechanism=mechanism_from_proto(message.mechanism),
        budget=PrivacyBudget(message.epsilon, message.delta),
        clip=message.clip,
        noise_multiplier=message.noise_multiplier,
        levels=message.levels,
        both_servers=message.both_servers,
        colluders=message.colluders,
        sampling_rate=message.sampling_rate,
        exposed=message.exposed,
        expected_sites=message.expected_sites,
        quantile=message.quantile,
        steps=message.steps,
    )


def _endpoint_to_proto(endpoint: ServiceEndpoint) -> round_pb2.ServiceEndpoint:
    return round_pb2.ServiceEndpoint(
        service_id=endpoint.service_id, address=endpoint.address, certificate_sha256=endpoint.certificate_sha256
    )


def _endpoint_from_proto(message: round_pb2.ServiceEndpoint) -> ServiceEndpoint:
    return ServiceEndpoint(message.service_id, message.address, message.certificate_sha256)
