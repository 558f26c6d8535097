"""Decrypts blinded sums: for the aggregator of the plan, for sites that signed for it, once."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import structlog

from fl_core.encrypted.opening import SumOpening
from fl_core.errors import PlanError, RemoteProtocolError, StreamError
from fl_core.rounds.encryption import encrypted_context
from fl_core.rounds.paillier_terms import Custody, PaillierTerms
from fl_core.rounds.plan import Aggregation, RoundPlan
from fl_core.rounds.planner import check_plan
from fl_core.transport.identity import Identity, RosterTrust
from fl_core.transport.tls import LiveCredentials
from fl_core.wire.convert import plan_from_proto
from fl_core.wire.statements import statement_from_proto
from fl_core.wire.v1 import keyserver_pb2
from services.keyserver.journal import UnmaskJournal
from services.keyserver.paillier_keys import PaillierKeyRing
from services.runtime.membership import check_addressed, check_service
from services.runtime.offload import offload
from services.runtime.streams import next_message

log = structlog.get_logger(__name__)

LARGEST_PART = 2048
"""Ciphertexts of one message, at most."""

Requests = AsyncIterator[keyserver_pb2.DecryptSumRequest]


class DecryptionDesk:
    """Gives out the public key and opens sums under it.

    Args:
        ring: the private keys.
        credentials: the certificate to which sites seal the seeds of their pads, and whom we trust.
        journal: of sessions whose sum was opened.
        threads: parts into which the work is cut.
        stall_timeout_s: longest pause between two messages.
    """

    def __init__(
        self,
        ring: PaillierKeyRing,
        credentials: LiveCredentials,
        journal: UnmaskJournal,
        threads: int,
        stall_timeout_s: float,
    ) -> None:
        self._ring = ring
        self._credentials = credentials
        self._journal = journal
        self._threads = threads
        self._stall_timeout_s = stall_timeout_s

    async def terms(self, custody: Custody) -> PaillierTerms:
        """The key of the next attempt, endorsed by our certificate.

        Raises:
            NotFound: this key server has no key.
            PlanError: it is not in this custody.
        """
        if custody is not Custody.KEYSERVER:
            raise PlanError("this key server holds its key alone", expected=Custody.KEYSERVER.value, got=custody.value)
        key = await offload(self._ring.current)
        modulus = key.public_key.to_bytes()
        message = PaillierTerms.message(modulus, custody)
        return PaillierTerms(modulus, self._credentials.current.signer().sign(message), custody)

    async def open(
        self, header: keyserver_pb2.DecryptionHeader, identity: Identity, requests: Requests
    ) -> AsyncIterator[bytes]:
        """Open one sum: plaintexts for ciphertexts, part by part.

        It is recorded before the first answer, so that there is never a second one.

        Raises:
            PlanError: the plan is not for this key server, cannot hold, or has another key.
            PermissionRefused: the caller is not the aggregator of the plan.
            NotEnough, RemoteProtocolError, BadSignature, IdentityError, CryptoError: see `SumOpening.check`.
            SessionFrozen: the sum of this session was opened before.
            StreamError: there are more or fewer ciphertexts than the plan has.
        """
        plan = plan_from_proto(header.plan)
        structlog.contextvars.bind_contextvars(round_id=plan.round_id, session_id=plan.session_id.hex())
        self._check_plan(plan, identity)
        opening = await offload(self._check, plan, header)
        key = self._ring.of_modulus(opening.context.public_key.to_bytes())
        await self._journal.record(plan, opening.survivors)
        log.info("decryption_recorded", survivors=len(opening.survivors))

        def decrypt(first: int, data: bytes) -> bytes:
            return opening.decrypt(key, first, data)

        width = opening.context.public_key.ciphertext_bytes
        async for first, data in self._parts(requests, width, opening.context.plaintexts):
            pieces = [
                (first + at // width, data[at : at + piece]) for at, piece in _cut(len(data), width, self._threads)
            ]
            yield b"".join(await asyncio.gather(*(offload(decrypt, *piece) for piece in pieces)))
        log.info("sum_opened", ciphertexts=opening.context.plaintexts)

    def _check_plan(self, plan: RoundPlan, identity: Identity) -> None:
        if plan.aggregation is not Aggregation.PAILLIER:
            raise PlanError("only encrypted sums are decrypted", expected=Aggregation.PAILLIER.value)
        check_addressed(plan.keyserver, self._credentials.current.identity)
        check_service(plan.aggregator, identity)
        check_plan(plan)

    def _check(self, plan: RoundPlan, header: keyserver_pb2.DecryptionHeader) -> SumOpening:
        size = len(plan.roster)
        if len(header.statements) > size:
            raise RemoteProtocolError("more sites are declared than were invited", expected=size)
        statements = [statement_from_proto(message, size) for message in header.statements]
        verifier = RosterTrust(plan.roster, self._credentials.trust, datetime.now(UTC))
        return SumOpening.check(encrypted_context(plan), statements, verifier, self._credentials.current.opener())

    async def _parts(self, requests: Requests, width: int, count: int) -> AsyncIterator[tuple[int, bytes]]:
        first = 0
        while (message := await next_message(requests, self._stall_timeout_s, "a sum")) is not None:
            data = message.ciphertexts
            size = len(data) // width
            if len(data) % width or not 0 < size <= min(LARGEST_PART, count - first):
                raise StreamError(
                    "a part of a sum has the wrong size",
                    expected=f"whole ciphertexts, at most {min(LARGEST_PART, count - first)}",
                    got=f"{len(data)} bytes",
                )
            yield first, data
            first += size
        if first != count:
            raise StreamError("a sum is truncated", expected=f"{count} ciphertexts", got=first)


def _cut(size: int, width: int, pieces: int) -> list[tuple[int, int]]:
    """Offset and length of about equal pieces of whole ciphertexts."""
    step = -(-size // width // pieces) * width
    return [(at, step) for at in range(0, size, step)]
