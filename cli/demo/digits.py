"""The data of the demo: the digits that ship with scikit-learn, held out once and split unevenly over the sites."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from fl_core.errors import ConfigError

CLASSES = 10
CONCENTRATION = 0.5
HELD_OUT = 0.2
SMALLEST_SHARE = 16
_TRIES = 10_000

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class DigitSet:
    """Images (n, 64) float32 in [0, 1], and their digits (n,)."""

    images: Images
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: npt.NDArray[np.int64]) -> "DigitSet":
        """The images at `indices`."""
        return DigitSet(self.images[indices], self.labels[indices])

    def save(self, path: Path) -> None:
        """Write it to a file of a site's own."""
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, images=self.images, labels=self.labels)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            return cls(arrays["images"], arrays["labels"])


def load_digit_sets(seed: int) -> tuple[DigitSet, DigitSet]:
    """The digits in an order drawn by `seed`: (for the sites, held out for measuring)."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    everything = DigitSet((pixels / 16).astype(np.float32), labels.astype(np.int64)).take(order)
    held_out = int(len(everything) * HELD_OUT)
    indices = np.arange(len(everything))
    return everything.take(indices[held_out:]), everything.take(indices[:held_out])


def split_unevenly(digits: DigitSet, sites: int, seed: int) -> list[DigitSet]:
    """Give each site its own mixture of classes, Dirichlet(0.5).

    Raises:
        ConfigError: no split leaves every site with enough to train on.

    Source: Hsu et al. 2019, Measuring the Effects of Non-Identical Data Distribution.
    """
    generator = np.random.default_rng([seed, sites])
    smallest = min(SMALLEST_SHARE, len(digits) // (4 * sites))
    for _ in range(_TRIES):
        shares = _draw_shares(digits.labels, sites, generator)
        if min(len(share) for share in shares) >= smallest:
            return [digits.take(share) for share in shares]
    raise ConfigError("the digits cannot be split so unevenly over so many sites", got=sites, fix="lower --sites")


def _draw_shares(labels: Labels, sites: int, generator: np.random.Generator) -> Sequence[npt.NDArray[np.int64]]:
    parts: list[list[npt.NDArray[np.int64]]] = [[] for _ in range(sites)]
    for digit in range(CLASSES):
        members = generator.permutation(np.flatnonzero(labels == digit))
        proportions = generator.dirichlet(np.full(sites, CONCENTRATION))
        cuts = (np.cumsum(proportions)[:-1] * len(members)).astype(np.int64)
        for part, piece in zip(parts, np.split(members, cuts), strict=True):
            part.append(piece)
    return [np.concatenate(part) for part in parts]
