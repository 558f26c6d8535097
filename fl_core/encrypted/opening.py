"""The key server: check who is in a sum, decrypt it, and take away the pads of exactly these sites.

It sees a sum under the aggregator's pads, so it learns nothing. What the aggregator gets is the sum of the sites that
it declared, and noise if it encrypted anything else: each missing or repeated site leaves a pad behind.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fl_core.crypto.paillier.ciphertexts import read_ciphertexts, write_plaintexts
from fl_core.crypto.paillier.decryption import decrypt
from fl_core.crypto.paillier.keys import PrivateKey
from fl_core.crypto.paillier.pads import pads, subtract_pads
from fl_core.encrypted.context import EncryptedContext
from fl_core.encrypted.statement import UploadStatement, check_statement
from fl_core.errors import CryptoError, NotEnough, PlanError, RemoteProtocolError
from fl_core.secagg.context import RosterVerifier


class SeedOpener(Protocol):
    """The private key of the key server's certificate."""

    def open(self, sealed: bytes, context: bytes) -> bytes:
        """Open a sealed seed; CryptoError when it is none of this attempt."""


def check_declared(
    context: EncryptedContext, statements: Sequence[UploadStatement], verifier: RosterVerifier
) -> tuple[int, ...]:
    """Check that enough sites declared in their own words what is in a sum.

    Args:
        context: of the attempt.
        statements: of the sites in the sum, by ascending index.
        verifier: knows the roster.

    Returns:
        The survivors.

    Raises:
        NotEnough: there are fewer sites than `min_survivors`.
        RemoteProtocolError: a site stands twice, or out of order.
        BadSignature: a statement is not of its site, or of another attempt.
        IdentityError: a certificate is not the one of the roster.
    """
    survivors = tuple(statement.index for statement in statements)
    if len(survivors) < context.min_survivors:
        raise NotEnough(
            "a sum of so few sites is not opened", expected=f">= {context.min_survivors}", got=len(survivors)
        )
    if list(survivors) != sorted(set(survivors)):
        raise RemoteProtocolError("the survivors of a sum are not in order", expected="distinct, ascending")
    for statement in statements:
        check_statement(context, statement, verifier)
    return survivors


@dataclass(frozen=True, slots=True)
class SumOpening:
    """The right to open one sum, once. The caller records that it is used before it uses it.

    Args:
        context: of the attempt.
        survivors: the sites in the sum.
        seeds: of their pads.
    """

    context: EncryptedContext
    survivors: tuple[int, ...]
    seeds: tuple[bytes, ...] = field(repr=False)

    @classmethod
    def check(
        cls,
        context: EncryptedContext,
        statements: Sequence[UploadStatement],
        verifier: RosterVerifier,
        opener: SeedOpener,
    ) -> "SumOpening":
        """Check the declared survivors and open the seeds of their pads.

        Args:
            context: of the attempt.
            statements: of the sites in the sum, by ascending index.
            verifier: knows the roster.
            opener: the key server's private key.

        Raises:
            NotEnough: there are fewer sites than `min_survivors`.
            RemoteProtocolError: a site stands twice, or out of order.
            BadSignature: a statement is not of its site, or of another attempt.
            IdentityError: a certificate is not the one of the roster.
            CryptoError: a seed was sealed for another attempt, site or key server.
        """
        survivors = check_declared(context, statements, verifier)
        return cls(context, survivors, tuple(_seed(context, statement, opener) for statement in statements))

    def decrypt(self, private_key: PrivateKey, first: int, data: bytes) -> bytes:
        """Decrypt some ciphertexts of the sum and take the survivors' pads away. Takes a while: run it in a thread.

        Args:
            private_key: of the attempt's public key.
            first: place of the first ciphertext.
            data: the ciphertexts.

        Returns:
            As many plaintexts.

        Raises:
            PlanError: the key is another one.
            CryptoError: a number is no ciphertext.
        """
        if private_key.public_key != self.context.public_key:
            raise PlanError("the sum is under another key", expected=self.context.public_key.fingerprint.hex()[:16])
        return self.without_pads(first, decrypt(private_key, read_ciphertexts(private_key.public_key, data)))

    def without_pads(self, first: int, plaintexts: Sequence[int]) -> bytes:
        """Take the survivors' pads away from plaintexts."""
        key = self.context.public_key
        for seed in self.seeds:
            plaintexts = subtract_pads(plaintexts, pads(seed, key, first, len(plaintexts)), key.n)
        return write_plaintexts(key, plaintexts)


def _seed(context: EncryptedContext, statement: UploadStatement, opener: SeedOpener) -> bytes:
    try:
        return opener.open(statement.sealed_seed, context.seed_context(statement.index))
    except CryptoError as error:
        raise CryptoError(
            f"the sealed seed of site {statement.index} does not open",
            expected="a seed that the site sealed to this key server's certificate, for this attempt",
            fix="look at that site; the attempt cannot be finished with it",
        ) from error
