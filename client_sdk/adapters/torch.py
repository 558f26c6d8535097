"""Trains a `torch.nn.Module` on a site's own loaders."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np
import torch

from client_sdk.trainer import Array, EvaluationResult, TrainingContext, TrainResult
from fl_core.errors import CodecError, ConfigError
from fl_core.rounds.privacy_terms import PrivacyTerms

Batches: TypeAlias = Iterable[tuple[torch.Tensor, torch.Tensor]]
Loss: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
OptimizerFactory: TypeAlias = Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]
Measure: TypeAlias = Callable[[torch.Tensor, torch.Tensor], float]


def initial_parameters(module: torch.nn.Module) -> dict[str, Array]:
    """The tensors of `module` that a federation can average, by their names in its state dict.

    Integer buffers (such as `num_batches_tracked` of BatchNorm) count what happened at one site; they stay there.
    bfloat16, which numpy lacks, travels as float32.
    """
    return {name: _to_array(tensor) for name, tensor in module.state_dict().items() if tensor.is_floating_point()}


def accuracy(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    """Fraction of a batch whose largest output is the target. outputs (b, classes), targets (b,)."""
    return float((outputs.argmax(dim=1) == targets).double().mean())


class TorchTrainer:
    """A trainer around a module, its loaders and a loss.

    A job with local noise trains by DP-SGD, see `client_sdk.adapters.torch_private`; `train_loader` must be a torch
    DataLoader then. The job may set `epochs` (1 without it) and `learning_rate` (the optimizer's own without it)
    under `training`.

    Args:
        module: what is trained, in place.
        train_loader: batches of (inputs, targets).
        evaluation_loader: the same, for `evaluate`.
        loss: mean over a batch of (outputs, targets).
        optimizer: makes a fresh optimizer for each round from the parameters: `partial(torch.optim.SGD, lr=0.1)`.
        measures: means over a batch of (outputs, targets), by the name under which they are reported.
        device: where to train.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        train_loader: Batches,
        evaluation_loader: Batches | None = None,
        *,
        loss: Loss,
        optimizer: OptimizerFactory,
        measures: Mapping[str, Measure] | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self._module = module.to(device)
        self._train_loader = train_loader
        self._evaluation_loader = evaluation_loader
        self._loss = loss
        self._optimizer = optimizer
        self._measures = dict(measures or {})
        self._device = device

    def initial_parameters(self) -> dict[str, Array]:
        """The module's own parameters, to start a job from."""
        return initial_parameters(self._module)

    def train(self, parameters: dict[str, Array], context: TrainingContext) -> TrainResult:
        """Train for the job's number of epochs. The same context and data give the same result on the same machine.

        Raises:
            CodecError: `parameters` are not those of the module.
            ConfigError: an option of the job makes no sense, or the loader is empty.
        """
        _load(self._module, parameters)
        epochs = _positive_whole(context, "epochs", 1)
        if context.privacy is not None:
            return self._train_with_noise(parameters, context, context.privacy, epochs)
        with _seeded(context.seed):
            optimizer = self._fresh_optimizer(context)
            self._module.train()
            for _ in range(epochs):
                mean_loss, num_samples = self._epoch(optimizer)
        return TrainResult(_dump(self._module, parameters), num_samples, {"loss": mean_loss})

    def evaluate(self, parameters: dict[str, Array], context: TrainingContext) -> EvaluationResult:  # noqa: ARG002
        """Mean loss and measures over the evaluation loader.

        Raises:
            CodecError: `parameters` are not those of the module.
            ConfigError: there is no evaluation loader, or it is empty.
        """
        if self._evaluation_loader is None:
            raise ConfigError("this site has no data to evaluate on", fix="give TorchTrainer an evaluation_loader")
        _load(self._module, parameters)
        self._module.eval()
        measures: dict[str, Measure] = {"loss": lambda outputs, targets: float(self._loss(outputs, targets))}
        measures |= self._measures
        sums = dict.fromkeys(measures, 0.0)
        num_samples = 0
        with torch.no_grad():
            for inputs, targets in self._batches(self._evaluation_loader):
                outputs = self._module(inputs)
                num_samples += len(targets)
                for name, measure in measures.items():
                    sums[name] += measure(outputs, targets) * len(targets)
        _check_samples(num_samples)
        means = {name: total / num_samples for name, total in sums.items()}
        return EvaluationResult(means.pop("loss"), num_samples, means)

    def _train_with_noise(
        self, parameters: dict[str, Array], context: TrainingContext, terms: PrivacyTerms, epochs: int
    ) -> TrainResult:
        from client_sdk.adapters.torch_private import PrivateTraining

        training = PrivateTraining(self._module, self._train_loader, self._loss, terms, epochs)
        # Noise and samples never come from the seed; dropout and the like do.
        with _seeded(context.seed):
            mean_loss = training.run(self._fresh_optimizer(context), self._device)
        dumped = _dump(self._module, parameters)
        return TrainResult(dumped, training.num_samples, {"loss": mean_loss}, training.event)

    def _fresh_optimizer(self, context: TrainingContext) -> torch.optim.Optimizer:
        optimizer = self._optimizer(parameter for parameter in self._module.parameters() if parameter.requires_grad)
        rate = context.training.get("learning_rate")
        if rate is None:
            return optimizer
        if isinstance(rate, (bool, str)) or rate <= 0:
            raise ConfigError("the job's learning_rate is out of range", expected="a number > 0", got=repr(rate))
        for group in optimizer.param_groups:
            group["lr"] = rate
        return optimizer

    def _epoch(self, optimizer: torch.optim.Optimizer) -> tuple[float, int]:
        total, num_samples = 0.0, 0
        for inputs, targets in self._batches(self._train_loader):
            optimizer.zero_grad()
            loss = self._loss(self._module(inputs), targets)
            loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
            optimizer.step()
            total += float(loss.detach()) * len(targets)
            num_samples += len(targets)
        _check_samples(num_samples)
        return total / num_samples, num_samples

    def _batches(self, loader: Batches) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for inputs, targets in loader:
            yield inputs.to(self._device), targets.to(self._device)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Shuffling and dropout draw from `seed`; the process's own generator is put back afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _load(module: torch.nn.Module, parameters: Mapping[str, Array]) -> None:
    """Copy the federation's tensors into the module. Its integer buffers stay as they are."""
    state = module.state_dict()
    floating = {name for name, tensor in state.items() if tensor.is_floating_point()}
    for name in sorted((floating - set(parameters)) | (set(parameters) - set(state))):
        where = "this site's module" if name in parameters else "the federation's model"
        raise CodecError(f"tensor {name!r} is not in {where}", fix="use the same module at every site")
    for name in sorted(floating):
        if tuple(state[name].shape) != parameters[name].shape:
            raise CodecError(
                f"tensor {name!r} has a wrong shape for this site's module",
                expected=tuple(state[name].shape),
                got=parameters[name].shape,
            )
    with torch.no_grad():
        for name in floating:
            state[name].copy_(torch.from_numpy(np.array(parameters[name])))


def _dump(module: torch.nn.Module, parameters: Mapping[str, Array]) -> dict[str, Array]:
    """The module's tensors under the names and dtypes of `parameters`.

    An integer tensor of the model is given back as it came: a mean over sites of a count means nothing.
    """
    state = module.state_dict()
    return {
        name: _to_array(state[name]).astype(model.dtype, copy=False) if state[name].is_floating_point() else model
        for name, model in parameters.items()
    }


def _to_array(tensor: torch.Tensor) -> Array:
    plain = tensor.detach().to("cpu")
    if plain.dtype is torch.bfloat16:
        plain = plain.float()
    array: Array = plain.clone().numpy()
    return array


def _positive_whole(context: TrainingContext, name: str, default: int) -> int:
    value = context.training.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"the job's {name} is out of range", expected="a whole number >= 1", got=repr(value))
    return value


def _check_samples(num_samples: int) -> None:
    if num_samples == 0:
        raise ConfigError("a loader of this site is empty", expected="at least one sample", got=0)
