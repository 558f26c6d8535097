"""Inversion of a distribution by table, in numpy: the definition of what the compiled twin does."""

import numpy as np
import numpy.typing as npt

WordVector = npt.NDArray[np.uint64]
RingVector = npt.NDArray[np.unsignedinteger]
TieVector = npt.NDArray[np.int64]


def add_samples(
    words: WordVector,
    cdf: WordVector,
    guide: npt.NDArray[np.uint32],  # noqa: ARG001 - the compiled twin begins its search there
    shift: int,  # noqa: ARG001
    out: RingVector,
    ties: TieVector,
) -> int:
    """Add one sample for each word to `out`, modulo its lane.

    Bit 0 of a word is the sign and the other 63 are the first bits of a uniform number. The magnitude is the first k
    whose cdf is above that number. Where they are equal, 63 bits do not decide: nothing is added, and the place is
    written to `ties`.

    Args:
        words: (n,) uniform.
        cdf: (m,) floors of P(|X| <= k) * 2**63, not decreasing; the last one is 2**63 - 1.
        guide: (g,) for the top bits of a number, a k that is not above its magnitude.
        shift: of a 63-bit number to its place in `guide`.
        out: (n,) in a lane.
        ties: (n,) written from the front.

    Returns:
        How many places were written to `ties`.
    """
    numbers = words >> np.uint64(1)
    magnitudes = np.searchsorted(cdf, numbers, side="left")
    is_tie = cdf[magnitudes] == numbers
    signs = 1 - 2 * (words & np.uint64(1)).astype(np.int64)
    samples = np.where(is_tie, 0, signs * magnitudes)
    np.add(out, samples.astype(out.dtype), out=out)
    found = np.flatnonzero(is_tie)
    ties[: len(found)] = found
    return len(found)
