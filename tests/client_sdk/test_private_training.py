"""DP-SGD at a site: one sample moves the gradient by the clip at most, and the noise is as large as it says."""

from functools import partial

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from client_sdk import TrainingContext
from client_sdk.adapters.torch import TorchTrainer
from client_sdk.adapters.torch_private import PrivateTraining, SecureStream
from fl_core.errors import ConfigError
from fl_core.privacy.budget import PrivacyBudget
from fl_core.rounds.privacy_terms import Mechanism, PrivacyTerms


def _terms(multiplier: float = 1.0, clip: float = 1.0) -> PrivacyTerms:
    return PrivacyTerms(Mechanism.LOCAL, PrivacyBudget(8.0, 1e-5), clip, multiplier, sampling_rate=0.5)


def _loader(count: int, batch_size: int, value: float = 1.0) -> DataLoader:
    inputs = torch.full((count, 3), value)
    return DataLoader(TensorDataset(inputs, torch.zeros(count, dtype=torch.long)), batch_size=batch_size)


def _trainer(loader: DataLoader, lr: float = 1.0) -> TorchTrainer:
    loss, optimizer = torch.nn.functional.cross_entropy, partial(torch.optim.SGD, lr=lr)
    return TorchTrainer(torch.nn.Linear(3, 2), loader, loss=loss, optimizer=optimizer)


def _context(terms: PrivacyTerms | None) -> TrainingContext:
    return TrainingContext("job", 1, 1, 1, "site", {}, terms)


def test_the_event_has_the_chance_and_the_steps_of_this_site() -> None:
    trainer = _trainer(_loader(40, 10))
    result = trainer.train(trainer.initial_parameters(), _context(_terms()))
    assert result.privacy is not None
    assert (result.privacy.sampling_rate, result.privacy.steps) == (0.25, 4)
    assert result.privacy.noise_multiplier == pytest.approx(1.0)
    fewer = _trainer(_loader(20, 10))
    smaller = fewer.train(fewer.initial_parameters(), _context(_terms()))
    assert smaller.privacy is not None
    assert smaller.privacy.sampling_rate == 0.5


def test_one_sample_moves_the_model_by_the_clip_at_most() -> None:
    # One sample of a huge gradient, all samples in each step, next to no noise: a step of norm clip / n.
    trainer = _trainer(_loader(1, 1, value=1e4))
    before = trainer.initial_parameters()
    after = trainer.train({name: value.copy() for name, value in before.items()}, _context(_terms(1e-6, 0.25)))
    moved = np.concatenate([(after.parameters[name] - before[name]).ravel() for name in before])
    assert np.linalg.norm(moved) <= 0.25 * (1 + 1e-4)


def test_the_noise_has_the_planned_width() -> None:
    # Inputs of zero and equal classes leave a gradient of the bias alone: the weights show the noise.
    dataset = TensorDataset(torch.zeros(10, 3), torch.zeros(10, dtype=torch.long))
    module = torch.nn.Linear(3, 2000)
    training = PrivateTraining(
        module, DataLoader(dataset, batch_size=10), torch.nn.functional.cross_entropy, _terms(3.0, 0.5), 1
    )
    before = module.weight.detach().clone()
    training.run(torch.optim.SGD(module.parameters(), lr=1.0), "cpu")
    # 6,000 values: a standard error of 0.9%.
    assert float((module.weight.detach() - before).std()) == pytest.approx(3.0 * 0.5 / 10, rel=0.05)


def test_two_trainings_of_the_same_seed_have_different_noise() -> None:
    trainer = _trainer(_loader(10, 5))
    start = trainer.initial_parameters()
    one, two = (trainer.train({k: v.copy() for k, v in start.items()}, _context(_terms())) for _ in range(2))
    assert not np.array_equal(one.parameters["weight"], two.parameters["weight"])


def test_the_stream_is_normal_and_its_samples_are_poisson() -> None:
    # 200,000 values: standard errors of 0.2% (mean), 0.3% (variance); the kurtosis tells four from one.
    stream = SecureStream()
    values = stream.normal(200_000)
    assert values.mean() == pytest.approx(0.0, abs=0.012)
    assert values.var() == pytest.approx(1.0, rel=0.02)
    assert (values**4).mean() == pytest.approx(3.0, rel=0.05)
    assert len(stream.chosen(100_000, 0.2)) == pytest.approx(20_000, rel=0.04)


def test_layers_and_loaders_that_cannot_are_refused() -> None:
    with pytest.raises(ConfigError, match="DataLoader"):
        PrivateTraining(torch.nn.Linear(1, 1), [(1, 2)], torch.nn.functional.mse_loss, _terms(), 1)
    with pytest.raises(ConfigError, match="GroupNorm"):
        PrivateTraining(torch.nn.BatchNorm1d(3), _loader(4, 2), torch.nn.functional.mse_loss, _terms(), 1)
