"""The model of the demo: a small convolutional network for images of 8 x 8 pixels, 10,026 parameters."""

import torch

from cli.demo.digits import DigitSet

Parameters = dict[str, torch.Tensor]


def build_network(seed: int) -> torch.nn.Sequential:
    """The network with the initial weights of `seed`.

    Group normalisation keeps no running statistics, so that averaging the parameters averages the whole model.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.nn.Sequential(
            torch.nn.Unflatten(1, (1, 8, 8)),
            torch.nn.Conv2d(1, 16, 3, padding=1),
            torch.nn.GroupNorm(4, 16),
            torch.nn.ReLU(),
            torch.nn.Conv2d(16, 32, 3, padding=1),
            torch.nn.GroupNorm(4, 32),
            torch.nn.ReLU(),
            torch.nn.MaxPool2d(2),
            torch.nn.Flatten(),
            torch.nn.Linear(32 * 4 * 4, 10),
        )


def dataset(digits: DigitSet) -> torch.utils.data.TensorDataset:
    """The digits as torch takes them."""
    return torch.utils.data.TensorDataset(torch.from_numpy(digits.images), torch.from_numpy(digits.labels))


def accuracy(network: torch.nn.Module, digits: DigitSet) -> float:
    """Share of digits that are named rightly."""
    network.eval()
    with torch.no_grad():
        named = network(torch.from_numpy(digits.images)).argmax(dim=1)
    return float((named == torch.from_numpy(digits.labels)).float().mean())
