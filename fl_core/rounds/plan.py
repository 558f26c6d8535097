"""The plan of one attempt: what the coordinator proposes and every other party checks before it takes part."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from math import isfinite
from types import MappingProxyType
from typing import NewType

from fl_core.codec.spec import CodecSpec
from fl_core.codec.tensors import TensorManifest
from fl_core.crypto import labels
from fl_core.errors import PlanError
from fl_core.rounds.paillier_terms import PaillierTerms
from fl_core.rounds.privacy_terms import PrivacyTerms, check_aggregation, private_coordinates, private_length
from fl_core.secagg.context import HararySpec, SessionContext
from fl_core.secagg.degrees import SMALLEST_DEGREE, Profile
from fl_core.secagg.profiles import check_sparse_graph

ClientId = NewType("ClientId", str)
JobId = NewType("JobId", str)
Scalar = bool | int | float | str

MAX_CHUNK_BYTES = 1 << 20
MAX_COHORT = 16_384
MAX_SITES = 131_072
"""Sites of one attempt, over all its sessions: its report still fits one message."""
MAX_ATTEMPT = (1 << 32) - 1
MAX_COUNT = (1 << 63) - 1
MAX_WEIGHT = (1 << 48) - 1
"""So that the weights of the largest cohort add up in 63 bits."""
MAX_TEXT_BYTES = 256
MAX_TRAINING_OPTIONS = 256
MAX_TRAINING_TEXT_BYTES = 4096
DIGEST_BYTES = 32


def check_text(what: str, text: str, limit: int = MAX_TEXT_BYTES) -> None:
    """Check that `text` is Unicode of 1 to `limit` bytes.

    Raises:
        PlanError: it is not.
    """
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise PlanError(f"{what} is no text", expected="Unicode without lone surrogates") from error
    if not 0 < size <= limit:
        raise PlanError(f"{what} has the wrong length", expected=f"1 to {limit} bytes", got=size)


def check_digest(what: str, digest: bytes) -> None:
    """Check that a digest has 32 bytes.

    Raises:
        PlanError: it has not.
    """
    if len(digest) != DIGEST_BYTES:
        raise PlanError(f"{what} has the wrong length", expected=f"{DIGEST_BYTES} bytes", got=len(digest))


class Aggregation(StrEnum):
    """How the updates of a cohort become their sum."""

    PLAIN = "plain"
    SECAGG = "secagg"
    PAILLIER = "paillier"


def check_training(training: Mapping[str, Scalar]) -> None:
    """Check the options for the trainer: few, named, and each a boolean, a 64-bit integer, a finite float or text.

    Raises:
        PlanError: they are something else; the message names the option.
    """
    if len(training) > MAX_TRAINING_OPTIONS:
        raise PlanError(
            "there are too many training options", expected=f"up to {MAX_TRAINING_OPTIONS}", got=len(training)
        )
    for name, value in training.items():
        check_text("the name of a training option", name)
        _check_scalar(name, value)


def _check_scalar(name: str, value: object) -> None:
    match value:
        case bool():
            return
        case str():
            if value:
                check_text(f"training option {name!r}", value, MAX_TRAINING_TEXT_BYTES)
            return
        case int() if -MAX_COUNT - 1 <= value <= MAX_COUNT:
            return
        case float() if isfinite(value):
            return
    raise PlanError(
        f"training option {name!r} cannot be carried",
        expected="a boolean, a 64-bit integer, a finite float or text",
        got=type(value).__name__,
    )


@dataclass(frozen=True, slots=True)
class RosterEntry:
    """A site of the cohort and the SHA-256 of its certificate (DER).

    Raises:
        PlanError: the id is empty or too long, or the digest has not 32 bytes.
    """

    client_id: ClientId
    certificate_sha256: bytes

    def __post_init__(self) -> None:
        check_text("a client_id", self.client_id)
        check_digest("a certificate digest", self.certificate_sha256)


@dataclass(frozen=True, slots=True)
class ServiceEndpoint:
    """Where a service listens (host:port), its id, and the SHA-256 of its certificate (DER).

    Raises:
        PlanError: id or address are empty or too long, or the digest has not 32 bytes.
    """

    service_id: str
    address: str
    certificate_sha256: bytes

    def __post_init__(self) -> None:
        check_text("a service_id", self.service_id)
        check_text("the address of a service", self.address)
        check_digest("a certificate digest", self.certificate_sha256)


@dataclass(frozen=True, slots=True)
class PhaseBounds:
    """A phase ends when everybody answered, or after `min_seconds` when enough did; it fails at `max_seconds`.

    Raises:
        PlanError: 0 <= min_seconds <= max_seconds does not hold.
    """

    min_seconds: float
    max_seconds: float

    def __post_init__(self) -> None:
        if not (isfinite(self.max_seconds) and 0 <= self.min_seconds <= self.max_seconds and self.max_seconds > 0):
            raise PlanError(
                "the bounds of a phase are out of range",
                expected="0 <= min_seconds <= max_seconds, finite",
                got=f"{self.min_seconds} and {self.max_seconds}",
            )


@dataclass(frozen=True, slots=True)
class PhaseSchedule:
    """The time bounds of every phase. The counts follow from cohort and threshold."""

    recruiting: PhaseBounds = PhaseBounds(1.0, 600.0)
    advertising: PhaseBounds = PhaseBounds(5.0, 60.0)
    sharing: PhaseBounds = PhaseBounds(5.0, 60.0)
    uploading: PhaseBounds = PhaseBounds(3600.0, 3600.0)
    signing: PhaseBounds = PhaseBounds(2.0, 60.0)
    revealing: PhaseBounds = PhaseBounds(2.0, 60.0)


@dataclass(frozen=True, slots=True)
class SparseGraph:
    """Neighbours instead of everybody: who they are follows from a beacon that is revealed once U1 is frozen.

    Args:
        degree: neighbours of each site, k, even.
        profile: what the graph holds against.
        commitment: 32 bytes, to the beacon, see `fl_core.secagg.beacon`.

    Raises:
        PlanError: the degree cannot be one, or the commitment has not 32 bytes.
    """

    degree: int
    profile: Profile
    commitment: bytes

    def __post_init__(self) -> None:
        check_digest("the commitment to the graph", self.commitment)
        if not SMALLEST_DEGREE <= self.degree < MAX_COHORT or self.degree % 2:
            raise PlanError(
                "the degree of the graph is out of range",
                expected=f"even, {SMALLEST_DEGREE} to {MAX_COHORT - 2}",
                got=self.degree,
            )


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """One attempt at one round.

    Args:
        job_id: the job.
        round_id: counts from 1.
        attempt: counts from 1 within the round.
        aggregation: masked, encrypted or plain.
        model_version: the version that the sites train from.
        model_digest: 32 bytes, see `fl_core.wire.chunks`.
        manifest: names, dtypes and shapes of the model.
        codec: how an update becomes integers.
        threshold: t; in a plain attempt the smallest cohort.
        min_survivors: smallest number of uploads that may be summed.
        max_dropout: fraction of sites that the attempt must survive losing.
        max_corrupt: fraction of sites assumed to collude with the servers.
        max_weight: largest weight of one site, a sample count.
        chunk_bytes: payload of one chunk of an upload.
        schedule: time bounds.
        aggregator: where updates go.
        keyserver: where keys are exchanged, or where the sum is decrypted; None in a plain attempt.
        training: options for the trainer.
        roster: the cohort, by ascending client_id.
        graph: the sparse graph of a masked attempt; complete when None. The threshold counts neighbours then.
        paillier: the key of an encrypted attempt.
        privacy: who adds which noise; nobody when None.

    Raises:
        PlanError: a value is out of range or the parts do not fit together.
    """

    job_id: JobId
    round_id: int
    attempt: int
    aggregation: Aggregation
    model_version: int
    model_digest: bytes
    manifest: TensorManifest
    codec: CodecSpec
    threshold: int
    min_survivors: int
    max_dropout: float
    max_corrupt: float
    max_weight: int
    chunk_bytes: int
    schedule: PhaseSchedule
    aggregator: ServiceEndpoint
    keyserver: ServiceEndpoint | None
    roster: tuple[RosterEntry, ...]
    training: Mapping[str, Scalar] = field(default_factory=lambda: MappingProxyType({}))
    graph: SparseGraph | None = None
    privacy: PrivacyTerms | None = None
    _binding: list[bytes] = field(default_factory=list, init=False, repr=False, compare=False)
    paillier: PaillierTerms | None = None

    def __post_init__(self) -> None:
        check_text("a job_id", self.job_id)
        check_digest("the model digest", self.model_digest)
        check_training(self.training)
        self._check_numbers()
        self._check_roster()
        self.codec.check_cohort(len(self.roster))
        if self.aggregation is not Aggregation.PLAIN:
            self.codec.check_maskable()
        if (self.keyserver is None) != (self.aggregation is Aggregation.PLAIN):
            raise PlanError("a key server belongs to a secure attempt and to no other", got=self.aggregation.value)
        if self.graph is not None and self.aggregation is not Aggregation.SECAGG:
            raise PlanError("a graph belongs to a masked attempt and to no other", got=self.aggregation.value)
        if (self.paillier is None) == (self.aggregation is Aggregation.PAILLIER):
            raise PlanError(
                "a Paillier key belongs to an encrypted attempt and to no other", got=self.aggregation.value
            )
        if self.privacy is not None:
            self._check_privacy(self.privacy)

    def _check_privacy(self, terms: PrivacyTerms) -> None:
        if self.max_weight != 1:
            raise PlanError("sites of a private attempt weigh the same", expected="max_weight 1", got=self.max_weight)
        check_aggregation(terms.mechanism, terms.both_servers, self.aggregation is Aggregation.SECAGG, self.aggregation)
        if terms.mechanism.is_in_ring:
            coordinates = private_coordinates(terms, self.manifest.size)
            terms.check_room(coordinates, len(self.roster), self.min_survivors, self.codec.ring_bits)

    def _check_numbers(self) -> None:
        if not (1 <= self.round_id <= MAX_COUNT and 1 <= self.attempt <= MAX_ATTEMPT):
            raise PlanError("round and attempt count from 1", got=f"round {self.round_id}, attempt {self.attempt}")
        if not 0 <= self.model_version <= MAX_COUNT:
            raise PlanError("model_version is out of range", expected=f"0 to {MAX_COUNT}", got=self.model_version)
        if not 1 <= self.threshold <= self.min_survivors <= len(self.roster):
            raise PlanError(
                "threshold and min_survivors are out of range",
                expected=f"1 <= threshold <= min_survivors <= {len(self.roster)}",
                got=f"{self.threshold} and {self.min_survivors}",
            )
        for name in ("max_dropout", "max_corrupt"):
            if not 0 <= getattr(self, name) < 1:
                raise PlanError(f"{name} is out of range", expected="0 <= x < 1", got=getattr(self, name))
        if not 1 <= self.max_weight <= MAX_WEIGHT:
            raise PlanError("max_weight is out of range", expected=f"1 to {MAX_WEIGHT}", got=self.max_weight)
        if not (0 < self.chunk_bytes <= MAX_CHUNK_BYTES and self.chunk_bytes % 8 == 0):
            raise PlanError(
                "chunk_bytes is out of range", expected=f"a multiple of 8 up to {MAX_CHUNK_BYTES}", got=self.chunk_bytes
            )

    def _check_roster(self) -> None:
        if not 0 < len(self.roster) <= MAX_COHORT:
            raise PlanError("the cohort is out of range", expected=f"1 to {MAX_COHORT} sites", got=len(self.roster))
        ids = [entry.client_id for entry in self.roster]
        if ids != sorted(set(ids)):
            raise PlanError("the roster is not in order", expected="distinct client_ids, ascending")
        if len({entry.certificate_sha256 for entry in self.roster}) != len(ids):
            raise PlanError("a certificate stands twice in the roster", expected="one site per certificate")

    @property
    def length(self) -> int:
        """Coordinates of an upload: the header and the levels of what travels."""
        if self.privacy is not None and self.privacy.mechanism.is_in_ring:
            return private_length(self.privacy, self.manifest.size)
        return self.codec.length(self.manifest.size, self.max_weight)

    @property
    def codec_seed(self) -> bytes:
        """32 public bytes from which the codec's rotation and support come: the same in all sessions of an attempt."""
        return labels.digest_fields(labels.CODEC, self.job_id, self.round_id, self.attempt, self.model_digest)

    @property
    def roster_digest(self) -> bytes:
        """32 bytes that stand for who may take part."""
        pairs = ((entry.client_id, entry.certificate_sha256) for entry in self.roster)
        return labels.digest_fields(labels.ROSTER, *(part for pair in pairs for part in pair))

    @property
    def plan_digest(self) -> bytes:
        """32 bytes that stand for everything but the roster."""
        return labels.digest_fields(
            labels.PLAN,
            *self._scalar_fields(),
            *self._graph_fields(),
            *([False] if self.paillier is None else self.paillier.fields()),
            *self._privacy_fields(),
            *self._endpoint_fields(),
            *self._training_fields(),
        )

    @property
    def binding(self) -> bytes:
        """The context to which everything of this attempt is bound, 32 bytes."""
        # A plan never changes, and every message of the attempt asks for this digest of its whole roster.
        if not self._binding:
            self._binding.append(self._bind())
        return self._binding[0]

    @property
    def session_id(self) -> bytes:
        """16 bytes that name this attempt on the wire and in logs."""
        return self.binding[:16]

    def session_context(self) -> SessionContext:
        """The facts that secure aggregation needs.

        Raises:
            PlanError: threshold, graph or cohort cannot hold a secure attempt.
        """
        return SessionContext(
            binding=self.binding,
            size=len(self.roster),
            threshold=self.threshold,
            min_survivors=self.min_survivors,
            ring_bits=self.codec.ring_bits,
            length=self.length,
            harary=None if self.graph is None else self._harary(self.graph),
            noise_tiers=() if self.privacy is None else self.privacy.noise_tiers(len(self.roster), self.min_survivors),
        )

    def index_of(self, client_id: str) -> int:
        """Place of a site in the roster.

        Raises:
            PlanError: the site is not in it.
        """
        for index, entry in enumerate(self.roster):
            if entry.client_id == client_id:
                return index
        raise PlanError(
            "the site is not in the roster of this attempt",
            expected="an invited site",
            got=client_id,
            fix="wait for an invitation",
        )

    def _bind(self) -> bytes:
        return labels.digest_fields(
            labels.CONTEXT,
            self.job_id,
            self.round_id,
            self.attempt,
            self.model_digest,
            self.plan_digest,
            self.roster_digest,
        )

    def _scalar_fields(self) -> list[labels.Field]:
        scalars: list[labels.Field] = [
            self.job_id,
            self.round_id,
            self.attempt,
            self.aggregation.value,
            self.model_version,
            self.model_digest,
            self.manifest.digest(),
            *_codec_fields(self.codec),
            self.threshold,
            self.min_survivors,
            float(self.max_dropout),
            float(self.max_corrupt),
            self.max_weight,
            self.chunk_bytes,
        ]
        for phase in fields(self.schedule):
            bounds: PhaseBounds = getattr(self.schedule, phase.name)
            scalars += [float(bounds.min_seconds), float(bounds.max_seconds)]
        return scalars

    def _privacy_fields(self) -> list[labels.Field]:
        if self.privacy is None:
            return [False]
        terms = self.privacy
        return [
            True,
            terms.mechanism.value,
            float(terms.budget.epsilon),
            float(terms.budget.delta),
            float(terms.clip),
            float(terms.noise_multiplier),
            terms.levels,
            terms.both_servers,
            terms.colluders,
            float(terms.sampling_rate),
            float(terms.exposed),
            terms.expected_sites,
            float(terms.quantile),
            terms.steps,
        ]

    def _harary(self, graph: SparseGraph) -> HararySpec:
        needs = check_sparse_graph(
            len(self.roster), graph.degree, self.threshold, self.max_corrupt, self.max_dropout, graph.profile
        )
        return HararySpec(graph.degree, graph.commitment, needs)

    def _graph_fields(self) -> list[labels.Field]:
        if self.graph is None:
            return [False]
        return [True, self.graph.degree, self.graph.profile.value, self.graph.commitment]

    def _endpoint_fields(self) -> list[labels.Field]:
        endpoints = [self.aggregator] if self.keyserver is None else [self.aggregator, self.keyserver]
        return [part for end in endpoints for part in (end.service_id, end.address, end.certificate_sha256)]

    def _training_fields(self) -> list[labels.Field]:
        return [part for name in sorted(self.training) for part in (name, self.training[name])]


def _codec_fields(codec: CodecSpec) -> list[labels.Field]:
    return [
        float(codec.clip),
        codec.bits,
        codec.ring_bits,
        float(codec.width),
        codec.selection.value,
        float(codec.density),
        codec.rotation,
        codec.levels.value,
        float(codec.feedback),
        codec.adaptive,
    ]
