"""Shamir's secret sharing of 32-byte secrets, for any number of holders.

A secret is cut into five limbs of 52 bits, and each limb is shared by a polynomial of its own over the prime field of
2**61 - 1 elements. The holder with index i has the values at x = i + 1, so that x = 0, the secret, is nobody's. A share
is always 40 bytes: five field elements, little-endian.

Any t - 1 shares are independent of the secret: the other coefficients are uniform in the field, the highest one too.

Source: Shamir 1979, How to share a secret.
"""

import sys
from collections.abc import Callable, Sequence
from types import ModuleType

import numpy as np
import numpy.typing as npt

from fl_core.crypto import kernels_shamir_numpy
from fl_core.errors import BadShares, CryptoError

Words = npt.NDArray[np.uint64]

PRIME = (1 << 61) - 1
SECRET_BYTES = 32
LIMBS = 5
LIMB_BITS = 52
SHARE_BYTES = 8 * LIMBS
MAX_INDEX = 1 << 32
"""Indices of holders are below this; x = index + 1 is then far below the prime."""

COMPILED_FROM = 1 << 20
"""Multiplications in the field from which loading compiled code pays."""

_LAST_LIMB_BITS = 8 * SECRET_BYTES - LIMB_BITS * (LIMBS - 1)
_LITTLE_WORDS = np.dtype("<u8")


def split_secrets(
    secrets: Sequence[bytes], threshold: int, indices: Sequence[int], entropy: Callable[[int], bytes]
) -> list[list[bytes]]:
    """Share secrets among holders so that any `threshold` of these rebuild each, and fewer learn nothing.

    Args:
        secrets: k secrets of 32 bytes.
        threshold: 1 to the number of holders.
        indices: n distinct indices of holders, 0 to 2**32 - 1, in any order.
        entropy: source of uniform bytes.

    Returns:
        n lists, one for each holder in the order of `indices`, of k shares of 40 bytes in the order of `secrets`.

    Raises:
        CryptoError: a secret has the wrong length, the threshold or an index is out of range, an index stands twice,
            or the entropy source is broken.
    """
    points = _points(indices)
    if not 1 <= threshold <= points.size:
        raise CryptoError("the threshold is out of range", expected=f"1 to {points.size} holders", got=threshold)
    limbs = _limbs_of(secrets)
    coefficients = np.empty((threshold, limbs.size), np.uint64)
    coefficients[0] = limbs.ravel()
    coefficients[1:] = _random_elements((threshold - 1) * limbs.size, entropy).reshape(threshold - 1, limbs.size)
    values = np.empty((points.size, limbs.size), np.uint64)
    _kernels_for(points.size * coefficients.size).evaluate(coefficients, points, values)
    rows = (row.astype(_LITTLE_WORDS).tobytes() for row in values)
    return [[row[at : at + SHARE_BYTES] for at in range(0, len(row), SHARE_BYTES)] for row in rows]


def parse_shares(shares: Sequence[bytes]) -> Words:
    """Read shares from the bytes that a peer sent.

    Args:
        shares: k shares of 40 bytes.

    Returns:
        (k, 5) field elements, all below the prime.

    Raises:
        BadShares: a share has the wrong length or holds a number that is no field element.
    """
    for share in shares:
        if len(share) != SHARE_BYTES:
            raise BadShares("a share has the wrong length", expected=f"{SHARE_BYTES} bytes", got=f"{len(share)} bytes")
    limbs = np.frombuffer(b"".join(shares), _LITTLE_WORDS).astype(np.uint64).reshape(-1, LIMBS)
    if np.any(limbs >= np.uint64(PRIME)):
        raise BadShares("a share is out of range", expected="five numbers below 2**61 - 1")
    return limbs


def parse_share(share: bytes) -> Words:
    """Read one share, (5,); errors as in `parse_shares`."""
    row: Words = parse_shares([share])[0]
    return row


def lagrange_at_zero(indices: Sequence[int]) -> Words:
    """Coefficients by which the shares of these holders add up to the secret. They serve every secret of the holders.

    Args:
        indices: m distinct indices of holders, in the order in which their shares will come.

    Returns:
        (m,) field elements.

    Raises:
        CryptoError: there is no holder, an index is out of range, or stands twice.
    """
    coefficients: Words = lagrange_each([indices])[0]
    return coefficients


def lagrange_each(groups: Sequence[Sequence[int]]) -> Words:
    """`lagrange_at_zero` of several sets of holders that are equally large: where each secret has holders of its own.

    Args:
        groups: g sets of m distinct indices each, at least one.

    Returns:
        (g, m) field elements.

    Raises:
        CryptoError: as `lagrange_at_zero`, or the sets are not equally large.
    """
    if len({len(indices) for indices in groups}) != 1:
        raise CryptoError("sets of holders are not equally large", expected="one size", got=len(groups))
    points = np.stack([_points(indices) for indices in groups])
    numerators, denominators, coefficients = (np.empty_like(points) for _ in range(3))
    kernels = _kernels_for(points.size * points.shape[1])
    kernels.lagrange_fractions(points, numerators, denominators)
    kernels.divide(numerators.ravel(), denominators.ravel(), coefficients.ravel())
    return coefficients


def combine(coefficients: Words, shares: Words) -> list[bytes]:
    """Rebuild secrets from the shares of one and the same set of holders.

    Args:
        coefficients: (m,) of `lagrange_at_zero`, for at least as many holders as the threshold.
        shares: (m, k, 5), shares[j] are those of holder j as `parse_shares` reads them.

    Returns:
        k secrets of 32 bytes.

    Raises:
        CryptoError: the shapes do not fit.
        BadShares: the shares do not lie on polynomials of any secret of 32 bytes. Shares that do may still be of
            another secret: compare with what the owner committed to.
    """
    if shares.ndim != 3 or shares.shape[0] != coefficients.size or shares.shape[2] != LIMBS:
        raise CryptoError(
            "shares and coefficients do not fit", expected=f"({coefficients.size}, k, {LIMBS})", got=shares.shape
        )
    rows = shares.reshape(1, coefficients.size, -1)
    return _secrets_of(_sums(coefficients[np.newaxis], rows).reshape(-1, LIMBS))


def combine_each(coefficients: Words, shares: Words) -> list[bytes]:
    """Rebuild secrets of which each has holders of its own.

    Args:
        coefficients: (g, m) of `lagrange_each`.
        shares: (g, m, 5), shares[i, j] is that of holder j of secret i.

    Returns:
        g secrets of 32 bytes.

    Raises:
        CryptoError, BadShares: as `combine`.
    """
    if coefficients.ndim != 2 or shares.shape != (*coefficients.shape, LIMBS):
        raise CryptoError("shares and coefficients do not fit", expected=(*coefficients.shape, LIMBS), got=shares.shape)
    return _secrets_of(_sums(coefficients, shares))


def _sums(coefficients: Words, rows: Words) -> Words:
    sums = np.empty((rows.shape[0], rows.shape[2]), np.uint64)
    _kernels_for(rows.size).weighted_sums(coefficients, np.ascontiguousarray(rows, np.uint64), sums)
    return sums


def _points(indices: Sequence[int]) -> Words:
    if not indices:
        raise CryptoError("there is nobody to hold a share", expected="at least one index")
    if min(indices) < 0 or max(indices) >= MAX_INDEX:
        raise CryptoError("the index of a holder is out of range", expected=f"0 to {MAX_INDEX - 1}")
    if len(set(indices)) != len(indices):
        raise CryptoError("the index of a holder stands twice", expected="distinct indices")
    return np.array(indices, np.uint64) + np.uint64(1)


def _limbs_of(secrets: Sequence[bytes]) -> Words:
    if any(len(secret) != SECRET_BYTES for secret in secrets):
        raise CryptoError("a secret has the wrong length", expected=f"{SECRET_BYTES} bytes")
    numbers = [int.from_bytes(secret, "little") for secret in secrets]
    mask = (1 << LIMB_BITS) - 1
    limbs = [[number >> (LIMB_BITS * place) & mask for place in range(LIMBS)] for number in numbers]
    return np.array(limbs, np.uint64).reshape(-1, LIMBS)


def _secrets_of(limbs: Words) -> list[bytes]:
    widths = np.array([LIMB_BITS] * (LIMBS - 1) + [_LAST_LIMB_BITS], np.uint64)
    if np.any(limbs >> widths):
        raise BadShares(
            "shares do not rebuild a secret",
            expected=f"the shares of one secret of {SECRET_BYTES} bytes",
            got="numbers that are larger than any such secret",
        )
    numbers = (sum(limb << (LIMB_BITS * place) for place, limb in enumerate(row)) for row in limbs.tolist())
    return [number.to_bytes(SECRET_BYTES, "little") for number in numbers]


def _random_elements(count: int, entropy: Callable[[int], bytes]) -> Words:
    """Uniform field elements: 61 random bits each, drawn again in the one case that is no element."""
    elements = _random_words(count, entropy)
    while np.any(outside := elements == np.uint64(PRIME)):
        elements[outside] = _random_words(int(outside.sum()), entropy)
    return elements


def _random_words(count: int, entropy: Callable[[int], bytes]) -> Words:
    drawn = entropy(8 * count)
    if len(drawn) != 8 * count:
        raise CryptoError("the entropy source is broken", expected=f"{8 * count} bytes", got=f"{len(drawn)} bytes")
    return np.frombuffer(drawn, _LITTLE_WORDS).astype(np.uint64) & np.uint64(PRIME)


def _kernels_for(multiplications: int) -> ModuleType:
    # numba takes most of a second to import; a small cohort never earns that back.
    if multiplications < COMPILED_FROM and "fl_core.crypto.kernels_shamir" not in sys.modules:
        return kernels_shamir_numpy
    from fl_core.crypto import kernels_shamir

    return kernels_shamir
