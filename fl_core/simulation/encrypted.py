"""A session of encrypted aggregation in one process: the code of production without a network. Needs gmpy2."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fl_core.crypto.mask_prg import RingVector
from fl_core.crypto.paillier.ciphertexts import read_plaintexts
from fl_core.crypto.paillier.keys import PrivateKey
from fl_core.crypto.paillier.slots import SlotLayout
from fl_core.crypto.sealed_box import CertificateOpener
from fl_core.crypto.signing import CertificateSigner
from fl_core.encrypted.context import EncryptedContext
from fl_core.encrypted.opening import SumOpening
from fl_core.encrypted.running_total import EncryptedTotal
from fl_core.encrypted.site import VectorEncryption
from fl_core.encrypted.statement import UploadStatement, state
from fl_core.secagg.context import Entropy
from fl_core.simulation.identity import FingerprintVerifier, simulated_opener, simulated_signers, verifier_of


@dataclass(frozen=True, slots=True)
class EncryptedUpload:
    """What one site sends: ciphertexts, and what it states about them."""

    data: bytes = field(repr=False)
    statement: UploadStatement


@dataclass(frozen=True, slots=True)
class EncryptedFederation:
    """Sites, an aggregator and a key server.

    Args:
        context: of the one attempt.
        private_key: of the key server.
        signers: of the sites.
        verifier: knows the sites.
        keyserver_certificate_der: to which sites seal their seeds.
        opener: opens what was sealed to it.
        entropy: source of everybody's uniform bytes.
    """

    context: EncryptedContext
    private_key: PrivateKey
    signers: tuple[CertificateSigner, ...]
    verifier: FingerprintVerifier
    keyserver_certificate_der: bytes
    opener: CertificateOpener
    entropy: Entropy

    @classmethod
    def make(
        cls,
        private_key: PrivateKey,
        entropy: Entropy,
        *,
        sites: int,
        length: int,
        bits: int,
        ring_bits: int,
        min_survivors: int,
    ) -> "EncryptedFederation":
        """A federation for one attempt.

        Args:
            private_key: of the key server, of any size.
            entropy: source of uniform bytes.
            sites: in the roster.
            length: coordinates of a vector.
            bits: of one coordinate of one site.
            ring_bits: of a coordinate of the sum.
            min_survivors: fewest sites in the sum.

        Raises:
            PlanError: the numbers cannot hold together.
        """
        key = private_key.public_key
        layout = SlotLayout((1 << bits) - 1, sites, key.bits)
        context = EncryptedContext(entropy(32), sites, min_survivors, length, ring_bits, key, layout)
        signers = tuple(simulated_signers(sites, entropy))
        certificate_der, opener = simulated_opener(entropy)
        return cls(context, private_key, signers, verifier_of(signers), certificate_der, opener, entropy)

    def upload(self, index: int, vector: RingVector) -> EncryptedUpload:
        """The upload of one site."""
        encryption = VectorEncryption.begin(self.context, self.entropy)
        data = encryption.encrypt(vector, range(self.context.plaintexts), self.entropy)
        sealed_seed = encryption.sealed_seed(index, self.keyserver_certificate_der)
        digest = hashlib.sha256(data).digest()
        return EncryptedUpload(data, state(self.context, index, sealed_seed, digest, self.signers[index]))

    def add_up(self, uploads: Mapping[int, bytes]) -> EncryptedTotal:
        """The aggregator's part before it freezes the survivors.

        Raises:
            CryptoError, RemoteProtocolError: an upload is malformed.
        """
        total = EncryptedTotal(self.context)
        for index, data in uploads.items():
            total.take(index, data)
        return total

    def opening(self, statements: Sequence[UploadStatement]) -> SumOpening:
        """The key server's part before it decrypts; errors as `SumOpening.check`."""
        return SumOpening.check(self.context, statements, self.verifier, self.opener)

    def open(self, total: EncryptedTotal, statements: Sequence[UploadStatement]) -> RingVector:
        """Blind the sum, decrypt it in two parts, take the blinding away.

        Raises:
            BadAggregate: it is no sum of the declared sites.
        """
        opening, blinded = self.opening(statements), total.blind(self.entropy)
        middle = self.context.plaintexts // 2
        for part in (range(middle), range(middle, self.context.plaintexts)):
            answer = opening.decrypt(self.private_key, part.start, blinded.ciphertexts(part))
            blinded.take(part, read_plaintexts(self.context.public_key, answer))
        return blinded.open()
