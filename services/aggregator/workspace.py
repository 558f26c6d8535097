"""Where uploads are unpacked, one at a time whatever their session."""

import asyncio

import numpy as np

from fl_core.crypto.mask_prg import RingVector, lane_dtype


class Workspace:
    """One vector for all sessions, whose memory is taken once: that of a new one is cleared page by page.

    Whoever unpacks and adds holds `lock`, so that one unpacked vector exists in the whole service.
    """

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self._vector: RingVector = np.empty(0, np.uint8)

    def vector(self, length: int, ring_bits: int) -> RingVector:
        """(length,) in the lane of the ring, with anything in it. It is the caller's as long as `lock` is."""
        lane = lane_dtype(ring_bits)
        if len(self._vector) != length or self._vector.dtype != lane:
            self._vector = np.empty(0, lane)
            self._vector = np.empty(length, lane)
        return self._vector
