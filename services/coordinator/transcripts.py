"""The transcripts of attempts: collected part by part while an attempt runs, closed and stored when it has ended.

A transcript is evidence and no gate: a part that a service does not give is missing in the file, and whoever verifies
the file sees that. A part that is wrong on its face is a lie, and ends the attempt.
"""

from collections.abc import Callable

import structlog

from fl_core.errors import NotFound, RemoteProtocolError
from fl_core.rounds.machine import RoundRecord, RoundState
from fl_core.rounds.plan import JobId, RoundPlan
from fl_core.secagg.transcript import FIRST_LINK, ROLES, BadTranscript, Part, Transcript, chain, sign_part
from fl_core.transport.tls import Credentials
from fl_core.wire.convert import part_from_proto, plan_to_proto
from fl_core.wire.v1 import round_pb2
from services.coordinator.records import AttemptKey, ModelRecord
from services.runtime.blobs import BlobStore

log = structlog.get_logger(__name__)


class AttemptTranscript:
    """The parts of one attempt so far.

    Args:
        plan: of the attempt.
        opened: our own first part.
    """

    def __init__(self, plan: RoundPlan, opened: Part) -> None:
        self._plan = plan
        self._parts = [opened]

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts, in the order of the protocol."""
        return tuple(sorted(self._parts, key=lambda part: list(ROLES).index(part.kind)))

    def take(self, kind: str, message: round_pb2.SignedPart) -> None:
        """Take the part of a service; the same kind again changes nothing.

        Raises:
            RemoteProtocolError: it is not what it should be, not of the service of the plan, or not signed by it.
        """
        if not message.kind:
            log.warning("transcript_part_missing", kind=kind)
            return
        part = part_from_proto(message)
        if any(known.kind == part.kind for known in self._parts):
            return
        self._check(kind, part)
        self._parts.append(part)

    def _check(self, kind: str, part: Part) -> None:
        plan = self._plan
        service = plan.keyserver if ROLES[kind] == "keyserver" else plan.aggregator
        if part.kind != kind or service is None or part.certificate_sha256 != service.certificate_sha256:
            raise RemoteProtocolError(
                "a part of the transcript is not of the service that the plan names", expected=kind, got=part.kind
            )
        try:
            part.check_signature()
            session = part.read().get("session")
        except BadTranscript as error:
            raise RemoteProtocolError(error.what, expected=error.expected, got=error.got) from error
        if session != plan.binding.hex():
            raise RemoteProtocolError("a part of the transcript is of another session", expected=plan.binding.hex())


class TranscriptStore:
    """Transcripts in the blob store.

    Args:
        blobs: the store.
        credentials: gives our certificate as it is now.
        clock: seconds since the epoch.
    """

    def __init__(self, blobs: BlobStore, credentials: Callable[[], Credentials], clock: Callable[[], float]) -> None:
        self._blobs = blobs
        self._credentials = credentials
        self._clock = clock

    async def begin(self, plan: RoundPlan, number: int = 1) -> AttemptTranscript:
        """Open the transcript of a session. It names the last link of the session of this number before it.

        Raises:
            StorageError: the blob store failed.
        """
        body = {
            "session": plan.binding.hex(),
            "job_id": plan.job_id,
            "round_id": plan.round_id,
            "attempt": plan.attempt,
            "aggregation": plan.aggregation.value,
            "model_version": plan.model_version,
            "model_digest": plan.model_digest.hex(),
            "plan_digest": plan.plan_digest.hex(),
            "plan": plan_to_proto(plan).SerializeToString(deterministic=True).hex(),
            "roster": [[entry.client_id, entry.certificate_sha256.hex()] for entry in plan.roster],
            "threshold": plan.threshold,
            "neighbours": plan.graph.degree if plan.graph else 0,
            "min_survivors": plan.min_survivors,
            "aggregator": plan.aggregator.certificate_sha256.hex(),
            "keyserver": plan.keyserver.certificate_sha256.hex() if plan.keyserver else "",
            "previous": (await self._head(plan.job_id, number)).hex(),
            "opened_at": int(self._clock()),
        }
        return AttemptTranscript(plan, sign_part("opened", body, self._credentials().signer()))

    async def close(
        self,
        transcript: AttemptTranscript,
        key: AttemptKey,
        number: int,
        record: RoundRecord,
        model: ModelRecord | None,
        aggregate_sha256: bytes,
    ) -> None:
        """Sign the end of an attempt and store the whole.

        Args:
            transcript: of the attempt.
            key: names it.
            number: of the session.
            record: what became of it.
            model: what it committed, if it did.
            aggregate_sha256: of the sum that was applied; empty when none was.

        Raises:
            StorageError: the blob store failed.
        """
        parts = transcript.parts
        opened = parts[0].read()
        committed = record.state is RoundState.COMMITTED
        body = {
            "session": opened["session"],
            "chain": chain(parts).hex(),
            "outcome": "committed" if committed or record.abandon_reason is None else record.abandon_reason.value,
            "detail": record.detail,
            "dropouts": [[dropout.client_id, dropout.reason.value] for dropout in record.dropouts],
            "aggregate_sha256": aggregate_sha256.hex(),
            "model_version": model.version if model else 0,
            "model_digest": model.model_digest.hex() if model else "",
            "closed_at": max(int(self._clock()), opened["opened_at"]),
        }
        whole = Transcript((*parts, sign_part("closed", body, self._credentials().signer())))
        await self._blobs.put_bytes(_name(key, number), whole.to_json())
        await self._blobs.put_bytes(_head_name(key.job_id, number), whole.head)

    async def read(self, key: AttemptKey, number: int = 1) -> bytes:
        """The file of one session of an attempt.

        Raises:
            NotFound: there is none.
            StorageError: the blob store failed.
        """
        try:
            return b"".join([piece async for piece in self._blobs.get(_name(key, number))])
        except NotFound as error:
            raise NotFound(
                "there is no transcript of this session",
                expected="a session that was invited and has ended",
                got=f"round {key.round_id}, attempt {key.attempt}, session {number}",
            ) from error

    async def _head(self, job_id: JobId, number: int) -> bytes:
        try:
            return b"".join([piece async for piece in self._blobs.get(_head_name(job_id, number))])
        except NotFound:
            return FIRST_LINK


def _name(key: AttemptKey, number: int) -> str:
    return f"transcripts/{key.job_id}/r{key.round_id}a{key.attempt}s{number}.json"


def _head_name(job_id: JobId, number: int) -> str:
    return f"transcripts/{job_id}/head-{number}"
