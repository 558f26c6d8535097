"""From a job and a cohort to a plan that can hold. What cannot hold is refused, and the message names the number."""

from fl_core.codec.spec import BITS, CodecSpec, smallest_ring
from fl_core.codec.tensors import TensorManifest
from fl_core.codec.update_codec import UpdateCodec
from fl_core.crypto import labels
from fl_core.crypto.mask_prg import MASK_KEY_BYTES
from fl_core.crypto.shamir import SHARE_BYTES
from fl_core.errors import PlanError
from fl_core.rounds.cohort import pool_bounds
from fl_core.rounds.job import CodecChoice, JobSpec
from fl_core.rounds.paillier_terms import PaillierTerms
from fl_core.rounds.plan import Aggregation, JobId, RosterEntry, RoundPlan, ServiceEndpoint, SparseGraph
from fl_core.rounds.privacy_choice import Draw
from fl_core.rounds.privacy_terms import PrivacyTerms, private_coordinates
from fl_core.rounds.private_codec import PrivateCodec
from fl_core.rounds.uploads import largest_upload
from fl_core.secagg.context import SMALLEST_COHORT
from fl_core.secagg.profiles import (
    GraphKind,
    GraphParameters,
    check_thresholds,
    choose_graph,
    default_threshold,
    most_dropouts,
)
from fl_core.secagg.sealing import SEALED_SHARE_BYTES

_CHUNK_FRAME_BYTES = 24
_ADVERTISEMENT_BYTES = 1_200
_SHARE_FRAME_BYTES = 16
_HELLOS_BYTES = 512


def choose_bits(cohort: int, ring_bits: int) -> int:
    """The most bits that each of `cohort` sites may use without the sum wrapping around.

    Raises:
        PlanError: not even one bit fits.
    """
    bits = (((1 << ring_bits) - 1) // cohort + 1).bit_length() - 1
    if bits < BITS[0]:
        raise PlanError(
            "the ring is too small for the cohort",
            expected=f"2**ring_bits > {cohort}",
            got=f"ring_bits {ring_bits}",
            fix="raise codec.ring_bits or lower cohort.max",
        )
    return min(bits, BITS[-1])


RING_BITS_DEFAULT = 24
CALIBRATION_BITS = 16
"""Bits of the first round of an adaptive job that has fewer than `CALIBRATED_FROM`: nobody knows the span yet."""
CALIBRATED_FROM = 8


def choose_codec(choice: CodecChoice, cohort: int, span: float | None = None) -> CodecSpec:
    """The codec of a cohort: bits and ring that the job asks for, or as many bits as fit and the smallest ring.

    Args:
        choice: of the job.
        cohort: sites in the roster.
        span: of the levels, model units, when it is known from the round before; used by an adaptive codec only.

    Raises:
        PlanError: the sum could wrap around.
    """
    known = min(span, choice.clip) if choice.adaptive and span is not None else None
    bits = choice.bits
    if bits is not None and bits < CALIBRATED_FROM and choice.adaptive and known is None:
        bits = CALIBRATION_BITS if choice.ring_bits is None else bits
    ring_bits = choice.ring_bits or (RING_BITS_DEFAULT if bits is None else smallest_ring(bits, cohort))
    codec = CodecSpec(
        clip=choice.clip,
        bits=choose_bits(cohort, ring_bits) if bits is None else bits,
        ring_bits=ring_bits,
        span=known,
        selection=choice.selection,
        density=choice.density,
        rotation=choice.rotation,
        levels=choice.levels,
        feedback=choice.feedback,
        adaptive=choice.adaptive,
    )
    codec.check_cohort(cohort)
    return codec


def build_plan(
    job: JobSpec,
    *,
    job_id: JobId,
    round_id: int,
    attempt: int,
    model_version: int,
    model_digest: bytes,
    manifest: TensorManifest,
    roster: tuple[RosterEntry, ...],
    aggregator: ServiceEndpoint,
    keyserver: ServiceEndpoint | None,
    graph_commitment: bytes | None = None,
    span: float | None = None,
    paillier: PaillierTerms | None = None,
    privacy: PrivacyTerms | None = None,
) -> RoundPlan:
    """Write the plan of one attempt.

    Args:
        job: what the operator asked for.
        job_id: its id.
        round_id: counts from 1.
        attempt: counts from 1 within the round.
        model_version: the version that the sites train from.
        model_digest: its digest, 32 bytes.
        manifest: its form.
        roster: the cohort, in any order.
        aggregator: where updates go.
        keyserver: where keys are exchanged; not used by a plain job.
        graph_commitment: to the coordinator's beacon, for a sparse graph. Without one the graph is complete.
        span: of the levels, as the round before asks for it; see `fl_core.codec.span`.
        paillier: the key of an encrypted job.
        privacy: the terms of a private job, see `PrivacyChoice.terms`.

    Returns:
        A plan that passed `check_plan`.

    Raises:
        PlanError: it cannot hold; the message names the number to change.
    """
    size = len(roster)
    _check_size(job, size)
    graph, threshold, fewest = _graph_terms(job, size, graph_commitment)
    plan = RoundPlan(
        job_id=job_id,
        round_id=round_id,
        attempt=attempt,
        aggregation=job.aggregation,
        model_version=model_version,
        model_digest=model_digest,
        manifest=manifest,
        codec=choose_codec(job.codec, size, span),
        threshold=threshold,
        min_survivors=max(job.min_survivors or 0, fewest),
        max_dropout=job.max_dropout,
        max_corrupt=job.max_corrupt,
        max_weight=weight_bound(job),
        chunk_bytes=job.chunk_bytes,
        schedule=job.phases,
        aggregator=aggregator,
        keyserver=None if job.aggregation is Aggregation.PLAIN else keyserver,
        roster=tuple(sorted(roster, key=lambda entry: entry.client_id)),
        training=job.training,
        graph=graph,
        paillier=paillier,
        privacy=privacy,
    )
    if (job.privacy is None) != (privacy is None):
        raise PlanError("the privacy of job and plan differ", expected="terms for a private job, and for no other")
    check_plan(plan)
    return plan


def _check_size(job: JobSpec, size: int) -> None:
    fewest, most = job.cohort.smallest_session, job.cohort.largest_session
    if not fewest <= size <= most:
        raise PlanError("the cohort is out of range", expected=f"{fewest} to {most} sites", got=size)


def _graph_terms(job: JobSpec, size: int, commitment: bytes | None) -> tuple[SparseGraph | None, int, int]:
    """The graph of a cohort, none where it is complete; the threshold; and the fewest survivors that both allow."""
    sparse = None if commitment is None else choose_sparse_graph(job, size)
    if sparse is None or commitment is None:
        threshold = job.threshold or _threshold(job, size)
        return None, threshold, threshold
    graph = SparseGraph(sparse.degree, job.profile, commitment)
    return graph, job.threshold or sparse.threshold, size - most_dropouts(size, job.max_dropout)


def weight_bound(job: JobSpec) -> int:
    """The largest weight of one site: one in a private job, where numbers of samples are nobody's business."""
    return 1 if job.privacy is not None else job.max_weight


def choose_sparse_graph(job: JobSpec, size: int) -> GraphParameters | None:
    """The sparse graph of a cohort, or None when a complete one is right.

    A job that names a threshold means that of a complete graph.

    Args:
        job: what the operator asked for.
        size: sites in the roster.

    Raises:
        PlanError: no graph holds; the message names the number to change.
    """
    if job.aggregation is not Aggregation.SECAGG or job.threshold is not None:
        return None
    chosen = choose_graph(size, job.max_corrupt, job.max_dropout, job.profile)
    return chosen if chosen.kind is GraphKind.HARARY else None


def check_plan(plan: RoundPlan) -> None:
    """Prove that a plan can hold: every party does this before it takes part.

    That its numbers are in range and that its sum cannot wrap around was checked when it was built.

    Raises:
        PlanError: threshold, graph, drop-outs, corruption or survivors cannot hold, or two parties share a certificate.
    """
    size = len(plan.roster)
    if plan.aggregation is Aggregation.SECAGG:
        if plan.graph is None:
            check_thresholds(size, plan.threshold, plan.max_dropout, plan.max_corrupt)
        elif plan.min_survivors < size - most_dropouts(size, plan.max_dropout):
            raise PlanError(
                "min_survivors is too low for a sparse graph",
                expected=f">= {size - most_dropouts(size, plan.max_dropout)}, what max_dropout leaves of {size} sites",
                got=plan.min_survivors,
                fix="raise min_survivors or max_dropout",
            )
        plan.session_context()
    if plan.aggregation is Aggregation.PAILLIER:
        _check_encryption(plan)
    most = size - most_dropouts(size, plan.max_dropout)
    if plan.min_survivors > most:
        raise PlanError(
            "min_survivors leaves no room for the drop-outs",
            expected=f"at most {most} of {size} sites",
            got=plan.min_survivors,
            fix="lower min_survivors or max_dropout",
        )
    _check_endpoints(plan)


def check_job(job: JobSpec) -> None:
    """Prove that a job can hold for every cohort that it allows, before it is accepted.

    Raises:
        PlanError: it cannot hold for a cohort; the message names the number to change.
    """
    codec = choose_codec(job.codec, job.cohort.largest_session)
    if job.aggregation is not Aggregation.PLAIN:
        codec.check_maskable()
    for size in range(job.cohort.smallest_session, job.cohort.largest_session + 1):
        threshold = job.threshold or _threshold(job, size)
        survivors = max(job.min_survivors or threshold, threshold)
        if job.aggregation is Aggregation.SECAGG:
            check_thresholds(size, threshold, job.max_dropout, job.max_corrupt)
        if job.aggregation is Aggregation.PAILLIER:
            _check_smallest_sum(survivors)
        if survivors > size - most_dropouts(size, job.max_dropout):
            raise PlanError(
                f"the job cannot hold for a cohort of {size}",
                expected=f"min_survivors at most {size - most_dropouts(size, job.max_dropout)}",
                got=survivors,
                fix="lower min_survivors, threshold or max_dropout, or raise cohort.min",
            )


def check_private_job(job: JobSpec, size: int) -> None:
    """Prove that a private job can hold for a model of `size`: budget, noise, ring.

    Raises:
        PlanError: it cannot; the message names the number to change.
    """
    if job.privacy is None:
        return
    for cohort in {job.cohort.min, job.cohort.max}:
        draw = Draw(_drawn_from(job, cohort), job.cohort.min, job.cohort.max)
        job.privacy.check_rounds(job.rounds, size, draw)
        terms = job.privacy.terms(job.rounds, size, draw)
        threshold = job.threshold or _threshold(job, cohort)
        survivors = max(job.min_survivors or threshold, threshold)
        ring_bits = choose_codec(job.codec, cohort).ring_bits
        if terms.mechanism.is_in_ring:
            terms.check_room(private_coordinates(terms, size), cohort, survivors, ring_bits)


def _drawn_from(job: JobSpec, cohort: int) -> int:
    """How many sites are connected when a cohort has this size; where it is drawn by coins, so many as fit its bounds
    best. What is reserved later follows from those that are connected then.
    """
    rate = None if job.privacy is None else job.privacy.drawing_rate
    return cohort if rate is None else pool_bounds(job.cohort, rate)[1]


def private_codec_of(plan: RoundPlan) -> PrivateCodec | None:
    """The codec of an attempt whose noise is added in the ring; None for any other."""
    if plan.privacy is None or not plan.privacy.mechanism.is_in_ring:
        return None
    key = labels.digest_fields(labels.ROTATION, plan.codec_seed)[:MASK_KEY_BYTES]
    return PrivateCodec(plan.privacy, plan.manifest, plan.codec.ring_bits, len(plan.roster), plan.min_survivors, key)


def codec_of(plan: RoundPlan) -> UpdateCodec:
    """The codec that encodes and decodes updates of this attempt, unless `private_codec_of` gives another."""
    return UpdateCodec(plan.codec, plan.manifest, plan.max_weight, plan.codec_seed)


def upload_bytes(plan: RoundPlan) -> int:
    """Payload of one upload: the packed vector, or its ciphertexts; of a plain one the most that it can be."""
    if plan.aggregation is Aggregation.PAILLIER:
        from fl_core.rounds.encryption import encrypted_context

        return encrypted_context(plan).upload_bytes
    return largest_upload(plan)


def bytes_up_per_site(plan: RoundPlan) -> int:
    """An upper estimate of the message bytes that one site sends in this attempt, on all its streams."""
    payload = upload_bytes(plan)
    upload = payload + (payload // plan.chunk_bytes + 3) * _CHUNK_FRAME_BYTES + _HELLOS_BYTES
    if plan.aggregation is not Aggregation.SECAGG:
        return upload
    holders = len(plan.roster) if plan.graph is None else plan.graph.degree
    shares = holders * (SEALED_SHARE_BYTES + SHARE_BYTES + 2 * _SHARE_FRAME_BYTES)
    return upload + _ADVERTISEMENT_BYTES + shares


def _threshold(job: JobSpec, size: int) -> int:
    if job.aggregation is Aggregation.SECAGG:
        return default_threshold(size)
    return max(1, size - most_dropouts(size, job.max_dropout))


def _check_encryption(plan: RoundPlan) -> None:
    # Here, so that a site without gmpy2 can read every plan and take part in the others.
    from fl_core.rounds.encryption import encrypted_context

    _check_smallest_sum(plan.min_survivors)
    encrypted_context(plan)


def _check_smallest_sum(survivors: int) -> None:
    if survivors < SMALLEST_COHORT:
        raise PlanError(
            "an encrypted sum of so few sites hides none of them",
            expected=f"min_survivors >= {SMALLEST_COHORT}",
            got=survivors,
            fix="raise min_survivors or cohort.min, or lower max_dropout",
        )


def _check_endpoints(plan: RoundPlan) -> None:
    services = [end for end in (plan.aggregator, plan.keyserver) if end is not None]
    certificates = {end.certificate_sha256 for end in services}
    if len({end.service_id for end in services}) != len(services) or len(certificates) != len(services):
        raise PlanError("aggregator and key server are one", expected="two services with certificates of their own")
    if certificates & {entry.certificate_sha256 for entry in plan.roster}:
        raise PlanError("a service stands in the roster", expected="sites only")
