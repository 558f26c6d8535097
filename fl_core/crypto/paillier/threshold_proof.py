"""One proof that all partial decryptions of a holder are right, however many there are.

The holder folds its ciphertexts, and its answers, into one number each by random 128-bit exponents that follow from
all of them, and shows that both have the same discrete logarithm as its verification key. Everything is squared, which
takes the elements of order two out; the other orders have no small divisor, so a wrong answer survives the fold with a
chance of 2**-128.

Source: Damgård and Jurik 2001, section 4.1 (equality of logarithms, made non-interactive by a hash); Bellare, Garay
and Rabin 1998, Fast batch verification for modular exponentiation (small exponents).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from fl_core.crypto import labels
from fl_core.crypto.paillier.bignum import Entropy, from_bytes, gil_released, integer, power, random_bits, secret_power
from fl_core.crypto.paillier.ciphertexts import check_ciphertexts, write_ciphertexts
from fl_core.crypto.paillier.threshold import KeyShare, SharedKey
from fl_core.errors import BadShares, CryptoError

CHALLENGE_BITS = 128
HIDING_BITS = 128
_FOLD_BYTES = 16
_DIGIT_BITS = 8


@dataclass(frozen=True, slots=True)
class PartialProof:
    """Challenge and answer.

    Args:
        challenge: e, 128 bits.
        response: z = r + e delta s_i.
    """

    challenge: int
    response: int

    def to_bytes(self, key: SharedKey) -> bytes:
        """Fixed length."""
        width = response_bytes(key)
        return int(self.challenge).to_bytes(CHALLENGE_BITS // 8, "big") + int(self.response).to_bytes(width, "big")

    @classmethod
    def from_bytes(cls, key: SharedKey, data: bytes) -> "PartialProof":
        """Read what `to_bytes` wrote.

        Raises:
            BadShares: it has another length.
        """
        if len(data) != CHALLENGE_BITS // 8 + response_bytes(key):
            raise BadShares("a proof of decryption has the wrong length", got=f"{len(data)} bytes")
        return cls(from_bytes(data[: CHALLENGE_BITS // 8]), from_bytes(data[CHALLENGE_BITS // 8 :]))


def response_bytes(key: SharedKey) -> int:
    """Bytes of a response: an exponent, the challenge and what hides it."""
    return (_blinding_bits(key) + 8) // 8


@gil_released()
def prove(
    key: SharedKey,
    share: KeyShare,
    context: bytes,
    ciphertexts: Sequence[int],
    partials: Sequence[int],
    entropy: Entropy,
) -> PartialProof:
    """Prove that each partial decryption is ciphertext**(2 delta s_i).

    Args:
        key: what everybody knows.
        share: of this holder.
        context: what the proof belongs to.
        ciphertexts: that were decrypted.
        partials: what came of it.
        entropy: source of uniform bytes.
    """
    square = key.public_key.n_squared
    folded, answered, transcript = _fold(key, share.index, context, ciphertexts, partials)
    blinding = random_bits(_blinding_bits(key) - 1, entropy) | 1
    commitments = secret_power(folded, blinding, square), secret_power(key.base, blinding, square)
    challenge = _challenge(key, transcript, folded, answered, *commitments)
    return PartialProof(challenge, blinding + challenge * key.delta * share.secret)


@gil_released()
def check_proof(
    key: SharedKey,
    index: int,
    context: bytes,
    ciphertexts: Sequence[int],
    partials: Sequence[int],
    proof: PartialProof,
) -> None:
    """Check the proof of the holder `index`.

    Raises:
        BadShares: a partial decryption is wrong, or the proof is of something else.
    """
    square = key.public_key.n_squared
    if not 1 <= index <= key.holders or len(ciphertexts) != len(partials):
        raise BadShares("a proof of decryption is of other numbers", expected=f"{len(ciphertexts)} by a known holder")
    try:
        check_ciphertexts(key.public_key, partials)
    except CryptoError as error:
        raise BadShares(f"a partial decryption of holder {index} is none", expected=error.expected) from error
    folded, answered, transcript = _fold(key, index, context, ciphertexts, partials)
    # The negative exponent takes the holder's part out, which leaves the commitments.
    first = power(folded, proof.response, square) * power(answered, -proof.challenge, square) % square
    verification = key.verification[index - 1]
    second = power(key.base, proof.response, square) * power(verification, -proof.challenge, square) % square
    if _challenge(key, transcript, folded, answered, first, second) != proof.challenge:
        raise BadShares(
            f"the partial decryptions of holder {index} are not proved",
            expected="powers of these ciphertexts by its share",
            fix="ask other decryptors, and look at this one",
        )


def _fold(
    key: SharedKey, index: int, context: bytes, ciphertexts: Sequence[int], partials: Sequence[int]
) -> tuple[int, int, bytes]:
    """The product of the ciphertexts, to the fourth power, and of the answers, squared, by the same exponents."""
    both = write_ciphertexts(key.public_key, [*ciphertexts, *partials])
    facts = (key.public_key.to_bytes(), index, context, hashlib.sha256(both).digest())
    transcript = labels.digest_fields(labels.PAILLIER_PROOF, *facts)
    stream = hashlib.shake_256(transcript).digest(_FOLD_BYTES * len(ciphertexts))
    square = key.public_key.n_squared
    folded, answered = _multi_power(ciphertexts, stream, square), _multi_power(partials, stream, square)
    return power(folded, 4, square), power(answered, 2, square), transcript


def _multi_power(bases: Sequence[int], exponents: bytes, modulus: int) -> int:
    """The product of base_j**e_j, the exponents being rows of 16 bytes: digit by digit, bases of one digit together.

    Source: Pippenger 1976, On the evaluation of powers and related problems.
    """
    result = integer(1)
    for place in range(_FOLD_BYTES):
        result = power(result, 1 << _DIGIT_BITS, modulus)
        buckets = [integer(1)] * (1 << _DIGIT_BITS)
        for base, digit in zip(bases, exponents[place::_FOLD_BYTES], strict=True):
            buckets[digit] = buckets[digit] * base % modulus
        running, total = integer(1), integer(1)
        for bucket in reversed(buckets[1:]):
            running = running * bucket % modulus
            total = total * running % modulus
        result = result * total % modulus
    return result


def _challenge(key: SharedKey, transcript: bytes, *numbers: int) -> int:
    hashed = labels.digest_fields(
        labels.PAILLIER_VERIFICATION, transcript, write_ciphertexts(key.public_key, [key.base, *numbers])
    )
    return from_bytes(hashed[: CHALLENGE_BITS // 8])


def _blinding_bits(key: SharedKey) -> int:
    return key.share_bits + key.delta.bit_length() + CHALLENGE_BITS + HIDING_BITS
