"""Decrypts blinded sums: for the aggregator of the plan, for sites that signed for it, once."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime

import structlog

from fl_core.crypto import labels
from fl_core.crypto.paillier.ciphertexts import read_ciphertexts, write_ciphertexts
from fl_core.crypto.paillier.engine import prepare_engine
from fl_core.crypto.paillier.threshold import KeyShare, decrypt_partially
from fl_core.crypto.paillier.threshold_proof import prove
from fl_core.encrypted.context import EncryptedContext
from fl_core.encrypted.opening import SumOpening, check_declared
from fl_core.encrypted.statement import UploadStatement
from fl_core.errors import NotFound, PlanError, RemoteProtocolError, StreamError
from fl_core.rounds.encryption import dealing_of, encrypted_context
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
from services.keyserver.shared_key import SharedCustody
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
        ring: the private keys that this service holds alone.
        shared: the key that is shared out; None when there is none.
        credentials: the certificate to which sites seal the seeds of their pads, and whom we trust.
        journal: of sessions whose sum was opened.
        threads: parts into which the work is cut.
        stall_timeout_s: longest pause between two messages.
    """

    def __init__(
        self,
        ring: PaillierKeyRing,
        shared: SharedCustody | None,
        credentials: LiveCredentials,
        journal: UnmaskJournal,
        threads: int,
        stall_timeout_s: float,
    ) -> None:
        self._ring = ring
        self._shared = shared
        self._credentials = credentials
        self._journal = journal
        self._threads = threads
        self._stall_timeout_s = stall_timeout_s

    async def terms(self, custody: Custody) -> PaillierTerms:
        """The key of the next attempt, endorsed by our certificate.

        Raises:
            NotFound: this key server has no key.
            ConfigError: it cannot be opened.
        """
        if custody is Custody.THRESHOLD:
            shared = self._shared_key()
            modulus, dealing, signature = (
                shared.dealing.key.public_key.to_bytes(),
                shared.dealing.to_bytes(),
                shared.signature,
            )
        else:
            modulus, dealing, signature = (await offload(self._ring.current)).public_key.to_bytes(), b"", b""
        endorsement = self._credentials.current.signer().sign(PaillierTerms.message(modulus, custody))
        return PaillierTerms(modulus, endorsement, custody, dealing, signature)

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
        decrypt = self._decryption(plan, opening)
        await offload(prepare_engine, opening.context.plaintexts)
        await self._journal.record(plan, opening.survivors)
        log.info("decryption_recorded", survivors=len(opening.survivors))
        width = opening.context.public_key.ciphertext_bytes
        async for first, data in self._parts(requests, width, opening.context.plaintexts):
            pieces = [
                (first + at // width, data[at : at + piece]) for at, piece in _cut(len(data), width, self._threads)
            ]
            yield b"".join(await asyncio.gather(*(offload(decrypt, *piece) for piece in pieces)))
        log.info("sum_opened", ciphertexts=opening.context.plaintexts)

    async def decrypt_partially(
        self, header: keyserver_pb2.DecryptionHeader, identity: Identity, requests: Requests
    ) -> AsyncIterator[keyserver_pb2.DecryptPartiallyResponse]:
        """What our share makes of one sum, part by part, and the proof of all of it. Recorded as `open` is.

        Raises:
            NotFound: this service holds no share.
            TacitError: as `open`.
        """
        plan = plan_from_proto(header.plan)
        structlog.contextvars.bind_contextvars(round_id=plan.round_id, session_id=plan.session_id.hex())
        shared, share = self._shared_key(), self._share()
        _check_encrypted(plan)
        check_service(plan.aggregator, identity)
        check_plan(plan)
        if dealing_of(plan) != shared.dealing:
            raise PlanError(
                "the plan's key is shared out by another dealing", expected=shared.dealing.digest.hex()[:16]
            )
        context, survivors = await offload(self._check_declared, plan, header)
        await offload(prepare_engine, context.plaintexts)
        # A service that takes pads away as well records that by the session's own id.
        await self._journal.record(plan, survivors, labels.digest_fields(labels.PAILLIER_PARTIAL, plan.binding)[:16])
        log.info("partial_decryption_recorded", survivors=len(survivors))
        key, asked, answered = shared.dealing.key, list[int](), list[int]()
        width = context.public_key.ciphertext_bytes
        async for _, data in self._parts(requests, width, context.plaintexts):
            ciphertexts = await offload(read_ciphertexts, context.public_key, data)
            step = -(-len(ciphertexts) // self._threads)
            pieces = [ciphertexts[at : at + step] for at in range(0, len(ciphertexts), step)]
            partials = await asyncio.gather(*(offload(decrypt_partially, key, share, piece) for piece in pieces))
            joined = [number for part in partials for number in part]
            asked += ciphertexts
            answered += joined
            yield keyserver_pb2.DecryptPartiallyResponse(partials=write_ciphertexts(context.public_key, joined))
        proof = await offload(prove, key, share, plan.binding, asked, answered, os.urandom)
        yield keyserver_pb2.DecryptPartiallyResponse(proof=proof.to_bytes(key))
        log.info("sum_decrypted_partially", ciphertexts=len(asked))

    def _decryption(self, plan: RoundPlan, opening: SumOpening) -> Callable[[int, bytes], bytes]:
        if plan.paillier is not None and plan.paillier.custody is Custody.THRESHOLD:
            width = opening.context.public_key.ciphertext_bytes
            return lambda first, data: opening.without_pads(first, [0] * (len(data) // width))
        key = self._ring.of_modulus(opening.context.public_key.to_bytes())
        return lambda first, data: opening.decrypt(key, first, data)

    def _shared_key(self) -> SharedCustody:
        if self._shared is None:
            raise NotFound(
                "this key server knows no shared key",
                expected="paillier_dealing in its configuration",
                fix="make one with `tacit keys deal`, or choose custody: keyserver",
            )
        return self._shared

    def _share(self) -> KeyShare:
        share = self._shared_key().share
        if share is None:
            raise NotFound("this key server holds no share", expected="paillier_share in its configuration")
        return share

    def _check_declared(
        self, plan: RoundPlan, header: keyserver_pb2.DecryptionHeader
    ) -> tuple[EncryptedContext, tuple[int, ...]]:
        context = encrypted_context(plan)
        return context, check_declared(context, _statements(plan, header), self._verifier(plan))

    def _verifier(self, plan: RoundPlan) -> RosterTrust:
        return RosterTrust(plan.roster, self._credentials.trust, datetime.now(UTC))

    def _check_plan(self, plan: RoundPlan, identity: Identity) -> None:
        _check_encrypted(plan)
        check_addressed(plan.keyserver, self._credentials.current.identity)
        check_service(plan.aggregator, identity)
        check_plan(plan)

    def _check(self, plan: RoundPlan, header: keyserver_pb2.DecryptionHeader) -> SumOpening:
        opener = self._credentials.current.opener()
        return SumOpening.check(encrypted_context(plan), _statements(plan, header), self._verifier(plan), opener)

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


def _check_encrypted(plan: RoundPlan) -> None:
    if plan.aggregation is not Aggregation.PAILLIER:
        raise PlanError("only encrypted sums are decrypted", expected=Aggregation.PAILLIER.value)


def _statements(plan: RoundPlan, header: keyserver_pb2.DecryptionHeader) -> list[UploadStatement]:
    size = len(plan.roster)
    if len(header.statements) > size:
        raise RemoteProtocolError("more sites are declared than were invited", expected=size)
    return [statement_from_proto(message, size) for message in header.statements]


def _cut(size: int, width: int, pieces: int) -> list[tuple[int, int]]:
    """Offset and length of about equal pieces of whole ciphertexts."""
    step = -(-size // width // pieces) * width
    return [(at, step) for at in range(0, size, step)]
