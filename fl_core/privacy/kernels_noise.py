"""Compiled twin of `kernels_noise_numpy`, where the docstrings are. Importing this module imports numba."""

from typing import Any

import numpy as np
from numba import njit


@njit(nogil=True, cache=True)
def add_samples(words: Any, cdf: Any, guide: Any, shift: Any, out: Any, ties: Any) -> Any:
    lane = out.dtype.type
    count = 0
    for i in range(words.size):
        number = words[i] >> np.uint64(1)
        k = np.int64(guide[number >> np.uint64(shift)])
        while cdf[k] < number:
            k += 1
        if cdf[k] == number:
            ties[count] = i
            count += 1
            continue
        # The lane wraps around, so that a negative sample is its complement.
        sign = -np.int64(words[i] & np.uint64(1))
        out[i] += lane((k ^ sign) - sign)
    return count
