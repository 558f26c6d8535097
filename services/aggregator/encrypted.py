"""The sum of an encrypted attempt: added up as uploads are proved, and opened once with the key server's help."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, cast

import grpc
import structlog

from fl_core.crypto.mask_prg import RingVector
from fl_core.crypto.paillier.ciphertexts import read_ciphertexts, read_plaintexts
from fl_core.crypto.paillier.threshold import combine_partials
from fl_core.crypto.paillier.threshold_proof import PartialProof, check_proof
from fl_core.encrypted.context import EncryptedContext
from fl_core.encrypted.dealing import Dealing
from fl_core.encrypted.running_total import BlindedTotal, EncryptedTotal
from fl_core.encrypted.statement import UploadStatement, check_statement
from fl_core.errors import (
    BadAggregate,
    BadShares,
    CodecError,
    CryptoError,
    NotEnough,
    PermissionRefused,
    RemoteProtocolError,
    StreamError,
    TacitError,
)
from fl_core.rounds.encryption import dealing_of, encrypted_context
from fl_core.rounds.paillier_terms import Custody
from fl_core.rounds.plan import RoundPlan, ServiceEndpoint
from fl_core.transport.channel import open_channel
from fl_core.transport.identity import Role, RosterTrust, TrustStore
from fl_core.transport.peer import converse
from fl_core.transport.preflight import check_service
from fl_core.transport.tls import Credentials
from fl_core.wire.convert import plan_to_proto
from fl_core.wire.statements import statement_from_proto, statement_to_proto
from fl_core.wire.v1 import keyserver_pb2, keyserver_pb2_grpc, round_pb2
from services.runtime.offload import offload
from services.runtime.staging import StagedStream

if TYPE_CHECKING:
    from fl_core.wire.v1.keyserver_pb2_grpc import KeyServerServiceAsyncStub

log = structlog.get_logger(__name__)

PART = 512
"""Ciphertexts that are blinded, sent and decrypted at a time."""

_BYTE_BITS = 8


class EncryptedSum:
    """Encrypted uploads of one session, and what their sites stated about them.

    Args:
        plan: of the session.
        threads: parts of an upload that are checked and added at a time.
    """

    def __init__(self, plan: RoundPlan, threads: int) -> None:
        self._plan = plan
        self._threads = threads
        self._total = EncryptedTotal(encrypted_context(plan))
        self._announced: dict[int, UploadStatement] = {}
        self._statements: dict[int, UploadStatement] = {}
        self._survivors: tuple[int, ...] = ()
        self._vector: RingVector | None = None

    def expect(self, index: int, message: round_pb2.UploadStatement, trust: TrustStore) -> None:
        """Take what a site states about the upload that follows.

        Raises:
            RemoteProtocolError: it is malformed or speaks for another site.
            BadSignature: it is not the site's, or of another attempt.
            IdentityError: its certificate is not the one of the roster.
        """
        statement = statement_from_proto(message, len(self._plan.roster))
        if statement.index != index:
            raise RemoteProtocolError("a site speaks for another one", expected=index, got=statement.index)
        check_statement(self._total.context, statement, RosterTrust(self._plan.roster, trust, datetime.now(UTC)))
        self._announced[index] = statement

    async def take(self, index: int, staged: StagedStream, sha256: bytes) -> None:
        """Check a whole upload, then add it, on all threads.

        Raises:
            StreamError: it is not what its site signed.
            CodecError: a number in it is no ciphertext.
        """
        statement = self._announced[index]
        if statement.upload_sha256 != sha256:
            raise StreamError("an upload is not the one that its site signed", expected="the digest of the statement")
        try:
            await self._in_parts(staged, self._total.check_part)
        except CryptoError as error:
            raise CodecError(error.what, expected=error.expected, got=error.got) from error
        self._total.begin(index)
        await self._in_parts(staged, self._total.add_part)
        # What a site says later, with another seed, is not about the upload that is in the sum.
        self._statements[index] = statement

    def admit(self, eligible: Iterable[int]) -> None:
        """See `RunningSum`. The whole roster may be in an encrypted sum."""

    def freeze(self, eligible: Iterable[int]) -> tuple[int, ...]:
        """See `RunningSum`."""
        self._survivors = self._total.freeze(eligible)
        return self._survivors

    def blind(self) -> BlindedTotal:
        """The sum as the key server may see it."""
        return self._total.blind(os.urandom)

    def statements(self) -> list[UploadStatement]:
        """Of the survivors, ascending."""
        return [self._statements[index] for index in self._survivors]

    def take_opened(self, vector: RingVector) -> None:
        """Keep what the blinded sum was opened to."""
        self._vector = vector

    def release(self, mask: RingVector | None) -> RingVector:
        """The sum in the clear."""
        if mask is not None or self._vector is None:
            raise BadAggregate("an encrypted sum is released once it was decrypted")
        return self._vector

    async def _in_parts(self, staged: StagedStream, work: Callable[[int, bytes], None]) -> None:
        # What is in memory of an upload on disk is as many parts as threads.
        parts = self._total.parts(staged.read_blocks(self._total.context.upload_bytes, _BYTE_BITS))
        while some := await offload(lambda: list(islice(parts, self._threads))):
            await asyncio.gather(*(offload(work, *part) for part in some))


class SumDecryption:
    """Client of `DecryptSum`.

    Args:
        credentials: gives our certificate as it is now.
        timeout_s: how long one sum may take.
        threads: parts into which the work is cut.
    """

    def __init__(self, credentials: Callable[[], Credentials], timeout_s: float, threads: int) -> None:
        self._credentials = credentials
        self._timeout_s = timeout_s
        self._threads = threads

    async def open(self, plan: RoundPlan, encrypted: EncryptedSum) -> None:
        """Have the sum decrypted, blinded, and keep what comes out of it. There is no second try.

        Raises:
            PeerLost: the key server cannot be reached, or is lost in the middle.
            BadAggregate: what comes out is no sum of the survivors.
            TacitError: the key server refuses.
        """
        assert plan.keyserver is not None
        blinded = await offload(encrypted.blind)
        if plan.paillier is not None and plan.paillier.custody is Custody.THRESHOLD:
            await self._open_shared(plan, encrypted, blinded)
        else:
            asked = self._blinded_parts(blinded)
            async for part, plaintexts in self._answers(plan, plan.keyserver, encrypted, asked, blinded.context):
                blinded.take(part, plaintexts)
        encrypted.take_opened(await offload(blinded.open))
        log.info("sum_decrypted", survivors=len(encrypted.statements()), ciphertexts=blinded.context.plaintexts)

    async def _connect(self, keyserver: ServiceEndpoint) -> grpc.aio.Channel:
        credentials, name = self._credentials(), keyserver.service_id
        shown = await check_service(keyserver.address, credentials, Role.KEYSERVER, pinned_id=name)
        if shown.identity.certificate_sha256 != keyserver.certificate_sha256:
            raise PermissionRefused(
                "the key server shows another certificate than the plan names",
                expected=keyserver.certificate_sha256.hex()[:16],
                got=shown.identity.certificate_sha256.hex()[:16],
            )
        return open_channel(keyserver.address, credentials, Role.KEYSERVER, name)

    async def _open_shared(self, plan: RoundPlan, encrypted: EncryptedSum, blinded: BlindedTotal) -> None:
        """The decryptors see the sum under both kinds of pads; the key server says what the sites' add up to."""
        assert plan.keyserver is not None
        asked = [data async for data in self._blinded_parts(blinded)]
        context, dealing = blinded.context, dealing_of(plan)
        partials = await self._partials(plan, encrypted, dealing, asked, context)
        padded = await offload(combine_partials, dealing.key, partials)
        async for part, minus_pads in self._answers(plan, plan.keyserver, encrypted, _again(asked), context):
            here = padded[part.start : part.stop]
            blinded.take(
                part, [(one + other) % context.public_key.n for one, other in zip(here, minus_pads, strict=True)]
            )

    async def _partials(
        self, plan: RoundPlan, encrypted: EncryptedSum, dealing: Dealing, asked: list[bytes], context: EncryptedContext
    ) -> dict[int, list[int]]:
        """Of as many decryptors as are needed; one that is away, or answers wrongly, is replaced by the next one."""
        waiting = list(enumerate(dealing.decryptors, start=1))
        partials: dict[int, list[int]] = {}
        while len(partials) < dealing.key.threshold:
            missing = dealing.key.threshold - len(partials)
            chosen, waiting = waiting[:missing], waiting[missing:]
            if len(chosen) < missing:
                raise NotEnough("too few decryptors answered", expected=dealing.key.threshold, got=len(partials))
            answers = await asyncio.gather(
                *(self._partials_of(plan, encrypted, dealing, index, asked, context) for index, _ in chosen),
                return_exceptions=True,
            )
            for (index, decryptor), answer in zip(chosen, answers, strict=True):
                if isinstance(answer, TacitError):
                    log.warning("decryptor_failed", decryptor=decryptor.service_id, error=str(answer))
                elif isinstance(answer, BaseException):
                    raise answer
                else:
                    partials[index] = answer
        return partials

    async def _partials_of(
        self,
        plan: RoundPlan,
        encrypted: EncryptedSum,
        dealing: Dealing,
        index: int,
        asked: list[bytes],
        context: EncryptedContext,
    ) -> list[int]:
        decryptor = dealing.decryptors[index - 1]
        endpoint = ServiceEndpoint(decryptor.service_id, decryptor.address, decryptor.certificate_sha256)
        partials, proof = list[int](), b""
        async with await self._connect(endpoint) as channel:
            stub = cast("KeyServerServiceAsyncStub", keyserver_pb2_grpc.KeyServerServiceStub(channel))
            requests = _requests(plan, encrypted, _again(asked))
            async for response in converse(stub.DecryptPartially, requests, timeout_s=self._timeout_s):
                if response.WhichOneof("part") == "proof":
                    proof = response.proof
                    continue
                if len(partials) >= context.plaintexts:
                    raise BadShares("a decryptor answered more than it was asked", got=decryptor.service_id)
                partials += await offload(read_ciphertexts, context.public_key, response.partials)
        ciphertexts = await offload(read_ciphertexts, context.public_key, b"".join(asked))
        parsed = PartialProof.from_bytes(dealing.key, proof)
        await offload(check_proof, dealing.key, index, plan.binding, ciphertexts, partials, parsed)
        return partials

    async def _answers(
        self,
        plan: RoundPlan,
        keyserver: ServiceEndpoint,
        encrypted: EncryptedSum,
        asked: AsyncIterator[bytes],
        context: EncryptedContext,
    ) -> AsyncIterator[tuple[range, list[int]]]:
        """What the key server says to each part of a sum."""
        async with await self._connect(keyserver) as channel:
            stub = cast("KeyServerServiceAsyncStub", keyserver_pb2_grpc.KeyServerServiceStub(channel))
            parts = iter(list(_parts(context.plaintexts)))
            requests = _requests(plan, encrypted, asked)
            async for response in converse(stub.DecryptSum, requests, timeout_s=self._timeout_s):
                part = next(parts, None)
                if part is None:
                    raise BadAggregate("the key server answered more than it was asked")
                yield part, await offload(read_plaintexts, context.public_key, response.plaintexts)

    async def _blinded_parts(self, blinded: BlindedTotal) -> AsyncIterator[bytes]:
        for part in _parts(blinded.context.plaintexts):
            pieces = await asyncio.gather(
                *(offload(blinded.ciphertexts, piece) for piece in _split(part, self._threads))
            )
            yield b"".join(pieces)


async def _requests(
    plan: RoundPlan, encrypted: EncryptedSum, parts: AsyncIterator[bytes]
) -> AsyncIterator[keyserver_pb2.DecryptSumRequest]:
    statements = [statement_to_proto(stated) for stated in encrypted.statements()]
    header = keyserver_pb2.DecryptionHeader(plan=plan_to_proto(plan), statements=statements)
    yield keyserver_pb2.DecryptSumRequest(header=header)
    async for data in parts:
        yield keyserver_pb2.DecryptSumRequest(ciphertexts=data)


async def _again(parts: list[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def _parts(count: int) -> Iterator[range]:
    return (range(first, min(first + PART, count)) for first in range(0, count, PART))


def _split(part: range, pieces: int) -> list[range]:
    width = -(-len(part) // pieces)
    return [part[at : at + width] for at in range(0, len(part), width)]
