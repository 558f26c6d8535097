"""What the sites' data would give in one place: the same model, trainer and number of epochs."""

from collections.abc import Iterator

import torch

from cli.demo.digits import DigitSet
from cli.demo.network import accuracy, build_network
from cli.demo.options import DemoOptions
from cli.demo.site_process import digits_trainer
from cli.model_files import Arrays
from client_sdk import TrainingContext

CLIENT_ID = "everybody"


def centralised_accuracies(options: DemoOptions, training: DigitSet, held_out: DigitSet) -> Iterator[float]:
    """Accuracy on held-out digits each time that as many epochs have passed as a round has."""
    trainer = digits_trainer(training, options.seed)
    parameters = trainer.initial_parameters()
    for round_id in range(1, options.rounds + 1):
        context = TrainingContext("centralised", round_id, 1, round_id, CLIENT_ID, options.training)
        parameters = dict(trainer.train(parameters, context).parameters)
        yield measure(parameters, held_out)


def measure(parameters: Arrays, held_out: DigitSet) -> float:
    """Accuracy of the demo's network with these parameters."""
    network = build_network(seed=0)
    network.load_state_dict({name: torch.from_numpy(array) for name, array in parameters.items()})
    return accuracy(network, held_out)
