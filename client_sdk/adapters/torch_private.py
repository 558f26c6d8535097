"""DP-SGD at a site: per-sample gradients by opacus, samples and noise from a cryptographic stream.

opacus' own secure mode needs a package that no longer installs. Here every draw, of samples and of noise, comes from an
AES-CTR keystream whose key the operating system gives for this training alone: nobody who sees a model can predict or
rebuild it. Each noise value is made of four Gaussians, so that the gaps between floats, by which the value of a single
one can give its input away, do not show.

Source: Abadi et al. 2016, Deep Learning with Differential Privacy, algorithm 1; Holohan, Braghin 2021, Secure Random
Sampling in Differential Privacy, for the four.
"""

import os
from collections.abc import Callable, Iterator
from math import ceil, floor, pi
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fl_core.crypto.mask_prg import MASK_KEY_BYTES, add_mask
from fl_core.errors import ConfigError
from fl_core.privacy.events import Noise, PrivacyEvent
from fl_core.rounds.privacy_terms import PrivacyTerms

GAUSSIANS = 4
_UNIT = 2.0**-53
_SMALLEST_NORM = 1e-12


class SecureStream:
    """Random numbers from the keystream of one fresh key."""

    def __init__(self) -> None:
        self._key = os.urandom(MASK_KEY_BYTES)
        self._drawn = 0

    def words(self, count: int) -> npt.NDArray[np.uint64]:
        """(count,) uniform words of 64 bits that were never drawn before."""
        out = np.zeros(count, np.uint64)
        add_mask(out, self._key, self._drawn)
        self._drawn += count
        return out

    def chosen(self, count: int, rate: float) -> npt.NDArray[np.int64]:
        """Places below `count`, each taken alone with the chance `rate` (Poisson sampling)."""
        if rate >= 1:
            return np.arange(count)
        return np.flatnonzero(self.words(count) < np.uint64(floor(rate * 2**64)))

    def normal(self, count: int) -> npt.NDArray[np.float64]:
        """(count,) standard normal values, each half the sum of four (Box and Muller)."""
        uniform = (self.words(2 * GAUSSIANS * count) >> np.uint64(11)).astype(np.float64) * _UNIT
        radius = np.sqrt(-2 * np.log(1.0 - uniform[: GAUSSIANS * count]))
        values = radius * np.cos(2 * pi * uniform[GAUSSIANS * count :])
        halved: npt.NDArray[np.float64] = values.reshape(GAUSSIANS, count).sum(axis=0) / np.sqrt(GAUSSIANS)
        return halved


class PrivateTraining:
    """One training of a module with noise.

    Args:
        module: what is trained, in place.
        loader: a torch DataLoader over a dataset with a length: its batch size is the expected one.
        loss: mean over a batch of (outputs, targets).
        terms: clip and noise multiplier.
        epochs: passes over the data, in expectation.

    Raises:
        ConfigError: opacus is missing, the loader has no dataset or batch size, or a layer has no per-sample gradient.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        loader: Any,
        loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        terms: PrivacyTerms,
        epochs: int,
    ) -> None:
        self._data, self._batch_size, self._collate = _parts_of(loader)
        self._terms = terms
        self._loss = loss
        self._stream = SecureStream()
        self._rate = min(1.0, self._batch_size / len(self._data))
        self._steps = epochs * ceil(1 / self._rate)
        self._module = _with_sample_gradients(module)

    @property
    def event(self) -> PrivacyEvent:
        """What this training costs: with the chance and the steps of this site."""
        return PrivacyEvent(Noise.GAUSSIAN, 1.0, self._terms.noise_multiplier**2, self._rate, self._steps)

    @property
    def num_samples(self) -> int:
        """Samples of this site."""
        return len(self._data)

    def run(self, optimizer: torch.optim.Optimizer, device: str | torch.device) -> float:
        """Train; returns the mean loss over the batches, which stays at the site."""
        total, counted = 0.0, 0
        self._module.train()
        try:
            for batch in self._batches():
                optimizer.zero_grad()
                if batch:
                    inputs, targets = self._collate([self._data[int(place)] for place in batch])
                    loss = self._loss(self._module(inputs.to(device)), targets.to(device))
                    loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
                    total, counted = total + float(loss.detach()) * len(batch), counted + len(batch)
                self._set_noised_gradients(bool(batch))
                optimizer.step()
        finally:
            self._module.remove_hooks()
        return total / counted if counted else 0.0

    def _batches(self) -> Iterator[list[int]]:
        for _ in range(self._steps):
            yield self._stream.chosen(len(self._data), self._rate).tolist()

    def _set_noised_gradients(self, has_samples: bool) -> None:
        trained = [parameter for parameter in self._module.parameters() if parameter.requires_grad]
        expected = self._rate * len(self._data)
        scale = self._factors(trained) if has_samples else None
        for parameter in trained:
            summed = torch.zeros_like(parameter)
            if scale is not None:
                summed = torch.einsum("i,i...", scale, parameter.grad_sample)
            noise = torch.from_numpy(self._stream.normal(parameter.numel())).reshape(parameter.shape).to(summed)
            parameter.grad = (summed + noise * self._terms.noise_multiplier * self._terms.clip) / expected
            parameter.grad_sample = None  # type: ignore[attr-defined, unused-ignore]

    def _factors(self, trained: list[Any]) -> torch.Tensor:
        """(batch,) by what each sample's gradient is multiplied, so that its L2 norm is the clip at most."""
        squares = sum(parameter.grad_sample.flatten(1).double().square().sum(dim=1) for parameter in trained)
        norms = torch.as_tensor(squares).sqrt().clamp(min=_SMALLEST_NORM)
        # A little less than the clip, so that float32 cannot round the norm above it.
        return (self._terms.clip * (1 - 1e-6) / norms).clamp(max=1.0).to(trained[0].dtype)


def _parts_of(loader: Any) -> tuple[Any, int, Any]:
    dataset, batch_size = getattr(loader, "dataset", None), getattr(loader, "batch_size", None)
    if dataset is None or not batch_size or not hasattr(dataset, "__len__") or len(dataset) == 0:
        raise ConfigError(
            "training with noise draws samples one by one",
            expected="a torch DataLoader with a batch_size over a dataset that has samples and a length",
            got=type(loader).__name__,
        )
    return dataset, batch_size, loader.collate_fn


def _with_sample_gradients(module: torch.nn.Module) -> Any:
    try:
        from opacus import GradSampleModule
    except ModuleNotFoundError as error:
        raise ConfigError("training with noise needs opacus", fix="pip install 'tacit[torch]'") from error
    try:
        return GradSampleModule(module, loss_reduction="mean")
    except NotImplementedError as error:
        raise ConfigError(
            "a layer of this model has no gradient of a single sample",
            got=str(error)[:200],
            fix="put GroupNorm in the place of BatchNorm, see opacus.validators.ModuleValidator",
        ) from error
