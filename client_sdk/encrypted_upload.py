"""The update of an encrypted attempt: encrypted on all cores, under pads whose seed only the key server can open.

Importing this module needs gmpy2.
"""

import asyncio
import os
from hashlib import sha256

import numpy as np

from client_sdk.upload import Upload
from fl_core.encrypted.site import VectorEncryption
from fl_core.encrypted.statement import state
from fl_core.rounds.encryption import check_endorsement, encrypted_context
from fl_core.rounds.plan import RoundPlan
from fl_core.secagg.messages import RingVector
from fl_core.transport.tls import Credentials
from fl_core.wire.statements import statement_to_proto

PART = 256
"""Plaintexts that one thread encrypts at a time."""


async def encrypt_upload(
    plan: RoundPlan, index: int, vector: RingVector, credentials: Credentials, keyserver_certificate_der: bytes
) -> Upload:
    """Encrypt a vector and sign what it is.

    Args:
        plan: of the attempt.
        index: this site's place in the roster.
        vector: (plan.length,) the encoded update.
        credentials: of this site.
        keyserver_certificate_der: what the key server showed, checked to be the one of the plan.

    Raises:
        BadSignature: the key server does not stand for the key of the plan.
        PlanError, BadKey: the key is none that this site encrypts under.
    """
    check_endorsement(plan, keyserver_certificate_der, credentials.trust)
    context = await asyncio.to_thread(encrypted_context, plan)
    encryption = await asyncio.to_thread(VectorEncryption.begin, context, os.urandom)
    parts = [range(first, min(first + PART, context.plaintexts)) for first in range(0, context.plaintexts, PART)]
    free = asyncio.Semaphore(len(os.sched_getaffinity(0)))

    async def encrypt(part: range) -> bytes:
        async with free:
            return await asyncio.to_thread(encryption.encrypt, vector, part, os.urandom)

    pieces = await asyncio.gather(*(encrypt(part) for part in parts))
    payload = np.frombuffer(b"".join(pieces), np.uint8)
    digest = await asyncio.to_thread(lambda: sha256(payload.data).digest())
    sealed_seed = encryption.sealed_seed(index, keyserver_certificate_der)
    statement = state(context, index, sealed_seed, digest, credentials.signer())
    return Upload(plan, index, payload, digest, statement_to_proto(statement))
