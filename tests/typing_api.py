"""The API as users write it. mypy --strict checks this file; nothing runs it."""

from functools import partial
from typing import Any

import numpy as np

from client_sdk import (
    Array,
    EvaluationResult,
    Site,
    SiteConfig,
    SiteObserver,
    SitePolicy,
    Trainer,
    TrainingContext,
    TrainResult,
)
from client_sdk.adapters.flower import FlowerTrainer
from fl_core.rounds.plan import RoundPlan


class MeanTrainer:
    """A trainer is any class with these two methods."""

    def __init__(self, data: Array) -> None:
        self.data = data

    def train(self, parameters: dict[str, Array], context: TrainingContext) -> TrainResult:
        rate = float(context.training.get("learning_rate", 0.1))
        mean = parameters["mean"] + rate * (self.data.mean(axis=0) - parameters["mean"])
        return TrainResult({"mean": mean.astype(np.float32)}, num_samples=len(self.data), metrics={"rate": rate})

    def evaluate(self, parameters: dict[str, Array], context: TrainingContext) -> EvaluationResult:
        loss = float(np.square(self.data - parameters["mean"]).mean())
        return EvaluationResult(loss=loss, num_samples=len(self.data), metrics={"rmse": loss**0.5})


class Progress(SiteObserver):
    """An observer overrides what it wants to see."""

    def uploaded(self, plan: RoundPlan) -> None:
        print(plan.round_id, plan.attempt)


class NumPyClient:
    """A Flower client; its own base class has no types either."""

    def get_parameters(self, config: dict[str, Any]) -> list[Array]:
        return [np.zeros(3)]

    def fit(self, parameters: list[Array], config: dict[str, Any]) -> tuple[list[Array], int, dict[str, float]]:
        return parameters, 1, {}

    def evaluate(self, parameters: list[Array], config: dict[str, Any]) -> tuple[float, int, dict[str, float]]:
        return 0.0, 1, {}


def run_from_file() -> None:
    trainer: Trainer = MeanTrainer(np.ones((10, 3)))
    Site(SiteConfig.from_file("site.yaml")).run(trainer)


def run_flower() -> None:
    trainer = FlowerTrainer(NumPyClient(), node_config={"partition-id": 0})
    print(trainer.initial_parameters()["0"].shape)
    Site(SiteConfig.from_file("site.yaml")).run(trainer)


def run_torch() -> None:
    import torch

    from client_sdk.adapters.torch import TorchTrainer, accuracy, initial_parameters

    module = torch.nn.Linear(4, 2)
    batches = [(torch.zeros(8, 4), torch.zeros(8, dtype=torch.long))]
    trainer = TorchTrainer(
        module,
        batches,
        batches,
        loss=torch.nn.functional.cross_entropy,
        optimizer=partial(torch.optim.SGD, lr=0.1),
        measures={"accuracy": accuracy},
    )
    print(sorted(initial_parameters(module)))
    Site(SiteConfig.from_file("site.yaml"), observer=Progress()).run(trainer)


async def embed(config: SiteConfig) -> None:
    site = Site(config)
    await site.participate(MeanTrainer(np.ones((10, 3))))
    site.stop()


def strict(policy: SitePolicy) -> bool:
    return policy.require_secure_aggregation and policy.min_cohort >= 3
