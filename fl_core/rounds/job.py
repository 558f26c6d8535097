"""A job: what an operator asks for. It comes from YAML or JSON as a mapping and is checked name by name."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from enum import StrEnum
from types import MappingProxyType
from typing import TypeVar, cast

from fl_core.codec.model_format import ModelFormat
from fl_core.codec.presets import PRESETS
from fl_core.codec.spec import Levels, Selection, check_feedback, check_stages
from fl_core.errors import PlanError
from fl_core.rounds.cohort import CohortBounds
from fl_core.rounds.optimizer import OptimizerName, OptimizerSpec
from fl_core.rounds.paillier_terms import Custody
from fl_core.rounds.plan import (
    MAX_CHUNK_BYTES,
    MAX_WEIGHT,
    Aggregation,
    PhaseBounds,
    PhaseSchedule,
    Scalar,
    check_text,
    check_training,
)
from fl_core.rounds.privacy_choice import Evaluations, NoiseBy, PrivacyChoice
from fl_core.rounds.privacy_terms import Mechanism, check_aggregation
from fl_core.secagg.context import SMALLEST_COHORT
from fl_core.secagg.degrees import Profile

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)

MAX_ROUNDS = 1_000_000
MAX_ATTEMPTS = 1_000
MAX_ABSENCES = 1_000_000
MAX_JSON_CHARACTERS = 4 << 20


@dataclass(frozen=True, slots=True)
class CodecChoice:
    """What a job says about its codec; see `fl_core.codec.spec.CodecSpec` for the stages.

    Args:
        clip: largest magnitude of a coordinate of an update that is kept, model units, > 0.
        ring_bits: bits per coordinate of an upload, 8 to 32; when None the fewest that hold the sum of `bits`, and 24
            when `bits` is None too.
        bits: bits of one site's coordinate; as many as the cohort leaves room for when None.
        selection: which coordinates travel.
        density: the part of them that does.
        rotation: whether a random rotation comes before the rounding.
        levels: what a coordinate is rounded to.
        feedback: the part of what did not travel that a site keeps for its next round.
        adaptive: whether the levels follow the width of the updates from round to round.

    Raises:
        PlanError: a number is out of range or the stages do not fit together.
    """

    clip: float = 1.0
    ring_bits: int | None = None
    bits: int | None = None
    selection: Selection = Selection.ALL
    density: float = 1.0
    rotation: bool = False
    levels: Levels = Levels.UNIFORM
    feedback: float = 0.0
    adaptive: bool = False

    @property
    def is_simple(self) -> bool:
        """Whether no stage but clip and levels was asked for."""
        return replace(self, clip=1.0, bits=None, ring_bits=None) == CodecChoice()

    def __post_init__(self) -> None:
        check_stages(self.clip, self.bits, self.ring_bits, self.selection, self.density, self.rotation, self.levels)
        check_feedback(self.feedback)


@dataclass(frozen=True, slots=True)
class PaillierChoice:
    """What a job says about Paillier encryption.

    Args:
        custody: who can decrypt.
    """

    custody: Custody = Custody.KEYSERVER


@dataclass(frozen=True, slots=True)
class JobSpec:
    """One training job.

    Args:
        name: for people.
        rounds: rounds to commit.
        aggregation: masked unless the job says encrypted or plain.
        codec: how updates become integers.
        cohort: fewest and most sites of an attempt, and how it is split into sessions.
        threshold: t of a complete graph; when None floor(2n/3) + 1 of the cohort, or a sparse graph with its own.
        min_survivors: fewest uploads that are summed; the threshold when None. With a sparse graph never fewer than
            `max_dropout` leaves.
        max_dropout: fraction of sites that an attempt must survive losing.
        max_corrupt: fraction of sites assumed to collude with the servers.
        profile: what a sparse graph must hold against, where the cohort is large enough for one.
        max_weight: largest sample count of one site. With a codec that is not adaptive close to the truth is best:
            a site's update is scaled by its samples / max_weight before it is rounded.
        chunk_bytes: payload of one chunk of an upload.
        max_attempts: attempts at one round before the job fails.
        max_absences: attempts at one round that may fail only because sites are away, before the job fails.
        quarantine_rounds: rounds for which a site that was caught lying is not invited, after the round in which it
            was and the rest of that round, as long as `cohort.min` others are there.
        phases: time bounds.
        optimizer: how the mean update moves the model.
        training: options for the sites' trainers.
        paillier: of an encrypted job.
        evaluate_every: rounds between evaluations; 0 is never.
        model_format: what the 32-bit floats of a released model are rounded to.
        privacy: mechanism and budget; no differential privacy when None.

    Raises:
        PlanError: a value is out of range or the parts do not fit together.
    """

    name: str
    rounds: int
    aggregation: Aggregation = Aggregation.SECAGG
    codec: CodecChoice = field(default_factory=CodecChoice)
    cohort: CohortBounds = field(default_factory=CohortBounds)
    threshold: int | None = None
    min_survivors: int | None = None
    max_dropout: float = 0.3
    max_corrupt: float = 0.3
    profile: Profile = Profile.EQUIVOCATION_SAFE
    max_weight: int = 10_000
    chunk_bytes: int = 1 << 18
    max_attempts: int = 3
    max_absences: int = 1_000
    quarantine_rounds: int = 10
    phases: PhaseSchedule = field(default_factory=PhaseSchedule)
    optimizer: OptimizerSpec = field(default_factory=OptimizerSpec)
    training: Mapping[str, Scalar] = field(default_factory=lambda: MappingProxyType({}))
    paillier: PaillierChoice = field(default_factory=PaillierChoice)
    evaluate_every: int = 1
    model_format: ModelFormat = ModelFormat.EXACT
    privacy: PrivacyChoice | None = None

    def __post_init__(self) -> None:
        check_text("the name of a job", self.name)
        check_training(self.training)
        _check_range("rounds", self.rounds, 1, MAX_ROUNDS)
        _check_range("max_attempts", self.max_attempts, 1, MAX_ATTEMPTS)
        _check_range("max_absences", self.max_absences, 1, MAX_ABSENCES)
        _check_range("quarantine_rounds", self.quarantine_rounds, 0, MAX_ROUNDS)
        _check_range("evaluate_every", self.evaluate_every, 0, MAX_ROUNDS)
        _check_range("max_weight", self.max_weight, 1, MAX_WEIGHT)
        for name in ("threshold", "min_survivors"):
            if getattr(self, name) is not None:
                _check_range(name, getattr(self, name), 1, self.cohort.largest_session)
        for name in ("max_dropout", "max_corrupt"):
            if not 0 <= getattr(self, name) < 1:
                raise PlanError(f"{name} is out of range", expected="0 <= x < 1", got=getattr(self, name))
        if not (0 < self.chunk_bytes <= MAX_CHUNK_BYTES and self.chunk_bytes % 8 == 0):
            raise PlanError(
                "chunk_bytes is out of range", expected=f"a multiple of 8 up to {MAX_CHUNK_BYTES}", got=self.chunk_bytes
            )
        if self.aggregation is not Aggregation.PLAIN and self.cohort.smallest_session < SMALLEST_COHORT:
            raise PlanError(
                "the cohort is too small to hide a site",
                expected=f"cohort.min and cohort.split >= {SMALLEST_COHORT}",
                got=self.cohort.smallest_session,
                fix="raise cohort.min and cohort.split, or say aggregation: plain",
            )

        if self.privacy is not None:
            self._check_privacy(self.privacy)

    def _check_privacy(self, privacy: PrivacyChoice) -> None:
        check_aggregation(
            privacy.mechanism,
            privacy.noise is NoiseBy.BOTH,
            self.aggregation is Aggregation.SECAGG,
            self.aggregation,
        )
        if privacy.mechanism.is_in_ring and not self.codec.is_simple:
            raise PlanError(
                "a private job rounds updates in its own way",
                expected="a codec section with ring_bits alone",
                got="a codec with stages or a preset",
                fix="leave the codec section out, or take local noise",
            )
        if self.evaluate_every and privacy.evaluations is Evaluations.REFUSED:
            raise PlanError(
                "no noise covers what sites measure",
                expected="evaluate_every: 0 in a private job",
                got=self.evaluate_every,
                fix="set evaluate_every: 0, or say privacy.evaluations: outside if the sites' test data need no cover",
            )

    def to_json(self) -> str:
        """The job as JSON; `job_from_json` reads it back."""
        return json.dumps(self.to_mapping(), allow_nan=False)

    def to_mapping(self) -> dict[str, object]:
        """The job as nested dictionaries of JSON's types; `job_from_mapping` reads it back."""
        mapping: dict[str, object] = {}
        for part in fields(self):
            value = getattr(self, part.name)
            mapping[part.name] = _plain(value)
        return {name: value for name, value in mapping.items() if value is not None}


def job_from_mapping(mapping: Mapping[str, object]) -> JobSpec:
    """Read a job as YAML or JSON give it.

    Args:
        mapping: `name` and `rounds`, and any of the other fields of `JobSpec`.

    Raises:
        PlanError: a key is unknown (the message names the nearest), missing or of the wrong type, or a value is
            out of range.
    """
    return _read(JobSpec, _JOB, mapping, "the job", required=("name", "rounds"))


def job_from_json(text: str) -> JobSpec:
    """Read a job as it travels and is stored: the JSON form of `JobSpec.to_mapping`.

    Raises:
        PlanError: the text is no JSON, or as `job_from_mapping`.
    """
    if len(text) > MAX_JSON_CHARACTERS:
        raise PlanError("a job is too long", expected=f"up to {MAX_JSON_CHARACTERS} characters", got=len(text))
    try:
        mapping = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PlanError(
            "a job is no JSON", expected="the JSON form of a job", fix="submit it with tacit train"
        ) from error
    return job_from_mapping(mapping)


def _plain(value: object) -> object:
    match value:
        case StrEnum():
            return value.value
        case Mapping():
            return dict(value)
        case CodecChoice() | CohortBounds() | OptimizerSpec() | PaillierChoice() | PhaseSchedule() | PrivacyChoice():
            return {name: _plain(part) for name, part in asdict(value).items() if part is not None}
        case _:
            return value


Reader = Callable[[object, str], object]


def _read(
    kind: Callable[..., T], readers: Mapping[str, Reader], value: object, where: str, required: tuple[str, ...] = ()
) -> T:
    """Build a value of `kind` from a mapping whose keys are all known to `readers`."""
    given = _mapping(value, where)
    for key in given:
        if key not in readers:
            near = get_close_matches(key, readers, n=1)
            raise PlanError(
                f"{where} has an unknown key {key[:64]!r}",
                expected=" | ".join(readers),
                fix=f"did you mean {near[0]!r}?" if near else "remove it",
            )
    for key in required:
        if key not in given:
            raise PlanError(f"{where} lacks {key!r}", fix=f"add {key}")
    return kind(**{key: readers[key](given[key], key) for key in given})


def _mapping(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise PlanError(f"{where} is no mapping", expected="names and values", got=type(value).__name__)
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise PlanError(f"{where} is no text", expected="text", got=type(value).__name__)
    return value


def _integer(value: object, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise PlanError(f"{where} is no integer", expected="an integer", got=type(value).__name__)
    return value


def _boolean(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise PlanError(f"{where} is no boolean", expected="true or false", got=type(value).__name__)
    return value


def _number(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        # YAML 1.1 reads 1e-3 as text.
        raise PlanError(
            f"{where} is no number", expected="a number", got=type(value).__name__, fix="write it as 1.0e-3 or 0.001"
        )
    try:
        return float(value)
    except OverflowError as error:
        raise PlanError(f"{where} is out of range", expected="a 64-bit float") from error


def _optional(reader: Reader) -> Reader:
    return lambda value, where: None if value is None else reader(value, where)


def _member(kind: type[E]) -> Reader:
    def read(value: object, where: str) -> E:
        for member in kind:
            if value == member.value:
                return member
        raise PlanError(f"{where} is unknown", expected=" | ".join(kind), got=str(value)[:64])

    return read


def _section(kind: Callable[..., T], readers: Mapping[str, Reader]) -> Reader:
    return lambda value, where: _read(kind, readers, value, where)


def read_codec(value: object, where: str = "codec") -> CodecChoice:
    """Read what a job says about its codec: a preset by its name, or settings, which may name a preset they change.

    Raises:
        PlanError: there is no such preset or key, or a value is out of range.
    """
    given = {"preset": value} if isinstance(value, str) else dict(_mapping(value, where))
    name = given.pop("preset", None)
    if name is None:
        return _read(CodecChoice, _CODEC, given, where)
    if not isinstance(name, str) or name not in PRESETS:
        raise PlanError("the codec has no such preset", expected=" | ".join(PRESETS), got=str(name)[:64])
    return _read(CodecChoice, _CODEC, {**PRESETS[name].settings, **given}, where)


def _options(value: object, where: str) -> Mapping[str, Scalar]:
    # JobSpec checks the values; whatever they are, they are not called Scalar before.
    return MappingProxyType(dict(cast("Mapping[str, Scalar]", _mapping(value, where))))


def _bounds(value: object, where: str) -> PhaseBounds:
    given = {"min_seconds": 0.0, **_mapping(value, where)}
    return _read(PhaseBounds, {"min_seconds": _number, "max_seconds": _number}, given, where, ("max_seconds",))


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise PlanError(f"{name} is out of range", expected=f"{low} to {high}", got=value)


_CODEC: Mapping[str, Reader] = {
    "clip": _number,
    "ring_bits": _optional(_integer),
    "bits": _optional(_integer),
    "selection": _member(Selection),
    "density": _number,
    "rotation": _boolean,
    "levels": _member(Levels),
    "feedback": _number,
    "adaptive": _boolean,
}
_COHORT: Mapping[str, Reader] = {
    "min": _integer,
    "max": _integer,
    "split": _optional(_integer),
    "min_sessions": _number,
}
_PAILLIER: Mapping[str, Reader] = {"custody": _member(Custody)}
_PHASES: Mapping[str, Reader] = {phase.name: _bounds for phase in fields(PhaseSchedule)}
_OPTIMIZER: Mapping[str, Reader] = {
    "name": _member(OptimizerName),
    "lr": _number,
    "momentum": _number,
    "beta1": _number,
    "beta2": _number,
    "tau": _number,
}
_PRIVACY: Mapping[str, Reader] = {
    "mechanism": _member(Mechanism),
    "epsilon": _number,
    "delta": _number,
    "clip": _number,
    "noise_multiplier": _optional(_number),
    "releases": _optional(_integer),
    "levels": _optional(_integer),
    "noise": _member(NoiseBy),
    "colluders": _integer,
    "sampling_rate": _number,
    "quantile": _number,
    "steps": _integer,
    "evaluations": _member(Evaluations),
}


def read_privacy(value: object, where: str = "privacy") -> PrivacyChoice | None:
    """Read the privacy section of a job; `mechanism: none` is the same as no section.

    Raises:
        PlanError: a key is unknown or missing, or a value is out of range.
    """
    if value is None or _mapping(value, where).get("mechanism") == "none":
        return None
    return _read(PrivacyChoice, _PRIVACY, value, where, ("mechanism", "epsilon", "delta", "clip"))


_JOB: Mapping[str, Reader] = {
    "name": _text,
    "rounds": _integer,
    "aggregation": _member(Aggregation),
    "codec": read_codec,
    "cohort": _section(CohortBounds, _COHORT),
    "threshold": _optional(_integer),
    "min_survivors": _optional(_integer),
    "max_dropout": _number,
    "max_corrupt": _number,
    "profile": _member(Profile),
    "max_weight": _integer,
    "chunk_bytes": _integer,
    "max_attempts": _integer,
    "max_absences": _integer,
    "quarantine_rounds": _integer,
    "phases": _section(PhaseSchedule, _PHASES),
    "optimizer": _section(OptimizerSpec, _OPTIMIZER),
    "training": _options,
    "paillier": _section(PaillierChoice, _PAILLIER),
    "evaluate_every": _integer,
    "model_format": _member(ModelFormat),
    "privacy": read_privacy,
}
