"""A torch module trains on its own loaders."""

from functools import partial

import numpy as np
import pytest

from client_sdk import TrainingContext
from fl_core.codec.tensors import difference, manifest_of
from fl_core.errors import CodecError, ConfigError

torch = pytest.importorskip("torch")

from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

from client_sdk.adapters.torch import TorchTrainer, accuracy, initial_parameters  # noqa: E402


def module() -> "torch.nn.Module":
    torch.manual_seed(5)
    return torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Dropout(0.2), torch.nn.Linear(8, 3)
    )


def loader() -> "DataLoader[tuple[torch.Tensor, ...]]":
    generator = torch.Generator().manual_seed(1)
    targets = torch.randint(0, 3, (48,), generator=generator)
    inputs = torch.nn.functional.one_hot(targets, 4).float() + 0.1 * torch.randn(48, 4, generator=generator)
    return DataLoader(TensorDataset(inputs, targets), batch_size=16, shuffle=True)


def trainer(net: "torch.nn.Module | None" = None) -> TorchTrainer:
    return TorchTrainer(
        net or module(),
        loader(),
        loader(),
        loss=torch.nn.functional.cross_entropy,
        optimizer=partial(torch.optim.SGD, lr=0.1),
        measures={"accuracy": accuracy},
    )


def context(**training: float | int | str) -> TrainingContext:
    return TrainingContext("job", 1, 1, 0, "alpha", training)


def test_training_lowers_the_loss_that_evaluation_measures() -> None:
    site = trainer()
    model = site.initial_parameters()
    before = site.evaluate(model, context())
    result = site.train(model, context(epochs=20))
    after = site.evaluate(dict(result.parameters), context())
    assert result.num_samples == before.num_samples == 48
    assert after.loss < before.loss / 2
    assert after.metrics["accuracy"] > 0.9


def test_training_twice_gives_the_same_result_and_leaves_the_global_generator_alone() -> None:
    site = trainer()
    model = site.initial_parameters()
    torch.manual_seed(77)
    first = site.train(model, context(epochs=2))
    drawn = torch.rand(1)
    torch.manual_seed(77)
    assert torch.equal(drawn, torch.rand(1))
    second = trainer().train(model, context(epochs=2))
    assert all(np.array_equal(first.parameters[name], second.parameters[name]) for name in model)


def test_another_seed_gives_another_result() -> None:
    model = initial_parameters(module())
    first, second = (trainer().train(model, context(seed=seed)) for seed in (1, 2))
    assert not np.array_equal(first.parameters["0.weight"], second.parameters["0.weight"])


def test_integer_buffers_stay_at_the_site() -> None:
    assert "1.num_batches_tracked" in module().state_dict()
    assert "1.num_batches_tracked" not in initial_parameters(module())


def test_an_integer_buffer_of_the_global_model_comes_back_unchanged() -> None:
    model = {**initial_parameters(module()), "1.num_batches_tracked": np.array(41)}
    result = trainer().train(model, context())
    update = difference(result.parameters, model, manifest_of(model))
    assert result.parameters["1.num_batches_tracked"] == 41
    assert update[-1] == 0
    assert np.abs(update).max() > 0


def test_results_do_not_share_memory_with_the_module() -> None:
    net = module()
    result = trainer(net).train(initial_parameters(net), context())
    kept = result.parameters["0.weight"].copy()
    with torch.no_grad():
        net[0].weight.zero_()
    assert np.array_equal(result.parameters["0.weight"], kept)


def test_the_job_sets_epochs_and_learning_rate() -> None:
    model = initial_parameters(module())
    still = trainer().train(model, context(learning_rate=1e-12))
    assert np.allclose(still.parameters["0.weight"], model["0.weight"], atol=1e-6)
    moved = trainer().train(model, context(learning_rate=1.0))
    assert not np.allclose(moved.parameters["0.weight"], model["0.weight"], atol=1e-3)


def test_scalar_parameters_survive_the_round_trip() -> None:
    class Scaled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(2.0))
            self.linear = torch.nn.Linear(4, 3)

        def forward(self, inputs: "torch.Tensor") -> "torch.Tensor":
            return self.scale * self.linear(inputs)

    result = trainer(Scaled()).train(initial_parameters(Scaled()), context())
    assert result.parameters["scale"].shape == ()


def test_bfloat16_travels_as_float32() -> None:
    net = torch.nn.Linear(4, 3).to(torch.bfloat16)
    model = initial_parameters(net)
    assert model["weight"].dtype == np.float32
    assert np.array_equal(model["weight"], net.weight.detach().float().numpy())


@pytest.mark.parametrize("training", [{"epochs": 0}, {"epochs": "two"}, {"epochs": 1.5}, {"learning_rate": -1}])
def test_a_senseless_option_is_one_error(training: dict[str, float | int | str]) -> None:
    site = trainer()
    with pytest.raises(ConfigError, match="out of range"):
        site.train(site.initial_parameters(), context(**training))


def test_another_model_than_the_module_is_refused_by_tensor() -> None:
    site = trainer()
    model = site.initial_parameters()
    with pytest.raises(CodecError, match=r"'0.weight' is not in the federation's model"):
        site.train({name: model[name] for name in model if name != "0.weight"}, context())
    with pytest.raises(CodecError, match=r"'extra' is not in this site's module"):
        site.train({**model, "extra": np.zeros(1)}, context())
    with pytest.raises(CodecError, match=r"'0.weight' has a wrong shape"):
        site.train({**model, "0.weight": np.zeros((8, 5), np.float32)}, context())


def test_a_site_without_evaluation_data_says_so() -> None:
    site = TorchTrainer(
        module(), loader(), loss=torch.nn.functional.cross_entropy, optimizer=partial(torch.optim.SGD, lr=0.1)
    )
    with pytest.raises(ConfigError, match="no data to evaluate on"):
        site.evaluate(site.initial_parameters(), context())


def test_an_empty_loader_is_one_error() -> None:
    site = TorchTrainer(
        module(), [], loss=torch.nn.functional.cross_entropy, optimizer=partial(torch.optim.SGD, lr=0.1)
    )
    with pytest.raises(ConfigError, match="empty"):
        site.train(site.initial_parameters(), context())
