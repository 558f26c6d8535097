"""A Flower client runs as it is, without Flower."""

from typing import Any

import numpy as np
import pytest

from client_sdk import TrainingContext
from client_sdk.adapters.flower import FlowerTrainer
from fl_core.errors import CodecError, ConfigError

CONTEXT = TrainingContext("job", 3, 1, 2, "alpha", {"local-epochs": 2})


class Client:
    """What users write below `NumPyClient`; it keeps and changes the very arrays that it gets."""

    def __init__(self) -> None:
        self.configs: list[dict[str, Any]] = []

    def get_parameters(self, config: dict[str, Any]) -> list[Any]:
        return [np.zeros((2, 3), np.float32), np.zeros(3)]

    def fit(self, parameters: list[Any], config: dict[str, Any]) -> tuple[Any, ...]:
        self.configs.append(config)
        parameters[0] += 1
        parameters[1] -= 1
        return parameters, 20, {"loss": np.float32(0.5), "note": "text", "ok": True}

    def evaluate(self, parameters: list[Any], config: dict[str, Any]) -> tuple[Any, ...]:
        self.configs.append(config)
        return np.float32(parameters[0].mean()), np.int64(4), {"accuracy": np.float64(0.75)}


def test_a_client_object_trains_on_arrays_in_order() -> None:
    trainer = FlowerTrainer(Client())
    before = trainer.initial_parameters()
    result = trainer.train(before, CONTEXT)
    assert list(before) == list(result.parameters) == ["0", "1"]
    assert np.array_equal(result.parameters["0"], before["0"] + 1)
    assert np.array_equal(result.parameters["1"], before["1"] - 1)
    assert result.num_samples == 20
    assert dict(result.metrics) == {"loss": 0.5, "ok": 1.0}


def test_the_order_is_numeric_beyond_ten_arrays() -> None:
    class Wide(Client):
        def fit(self, parameters: list[Any], config: dict[str, Any]) -> tuple[Any, ...]:
            assert [int(array[0]) for array in parameters] == list(range(12))
            return parameters, 1, {}

    model = {str(place): np.array([place], np.float32) for place in reversed(range(12))}
    result = FlowerTrainer(Wide()).train(model, CONTEXT)
    assert all(np.array_equal(result.parameters[name], model[name]) for name in model)


def test_the_config_holds_the_options_of_the_job_and_the_round_in_both_spellings() -> None:
    client = Client()
    trainer = FlowerTrainer(client)
    trainer.train(trainer.initial_parameters(), CONTEXT)
    trainer.evaluate(trainer.initial_parameters(), CONTEXT)
    assert client.configs == [{"local-epochs": 2, "server_round": 3, "server-round": 3}] * 2


def test_numpy_scalars_are_accepted_where_flower_raises() -> None:
    result = FlowerTrainer(Client()).evaluate({"0": np.ones((2, 3), np.float32), "1": np.ones(3)}, CONTEXT)
    assert (result.loss, result.num_samples, dict(result.metrics)) == (1.0, 4, {"accuracy": 0.75})


def test_arrays_of_a_narrower_model_are_cast_back_to_it() -> None:
    class Double(Client):
        def fit(self, parameters: list[Any], config: dict[str, Any]) -> tuple[Any, ...]:
            return [np.asarray(array, np.float64) for array in parameters], 1, {}

    result = FlowerTrainer(Double()).train({"0": np.ones((2, 3), np.float32)}, CONTEXT)
    assert result.parameters["0"].dtype == np.float32


def test_client_fn_gets_a_context_whose_state_lives_from_task_to_task() -> None:
    seen: list[Any] = []

    def client_fn(context: Any) -> Client:
        context.state.config_records.setdefault("calls", []).append(1)
        seen.append(
            (context.node_config["partition-id"], dict(context.run_config), len(context.state.config_records["calls"]))
        )
        return Client()

    trainer = FlowerTrainer(client_fn, {"partition-id": 2})
    model = trainer.initial_parameters()
    trainer.train(model, CONTEXT)
    trainer.evaluate(model, CONTEXT)
    assert seen == [(2, {}, 1), (2, {"local-epochs": 2}, 2), (2, {"local-epochs": 2}, 3)]


def test_the_older_client_fn_gets_its_cid_as_text() -> None:
    cids: list[str] = []

    def client_fn(cid: str) -> Client:
        cids.append(cid)
        return Client()

    FlowerTrainer(client_fn, {"partition-id": 7}).initial_parameters()
    assert cids == ["7"]


def test_a_client_that_to_client_has_wrapped_is_unwrapped() -> None:
    class Wrapper:
        def __init__(self, numpy_client: Client) -> None:
            self.numpy_client = numpy_client

        def fit(self, ins: Any) -> Any:
            raise AssertionError("the message form of fit")

    result = FlowerTrainer(lambda context: Wrapper(Client())).train({"0": np.zeros(1), "1": np.zeros(1)}, CONTEXT)
    assert result.num_samples == 20


@pytest.mark.parametrize(
    ("result", "says"),
    [
        (None, "expected a tuple of three"),
        (([], 3), "got a tuple of 2"),
        (([np.zeros(1)], 3, None), "the last a dict"),
        ((np.zeros(1), 3, {}), "a list of numpy arrays"),
        (([np.zeros(1)] * 2, 3, {}), "expected 1, got 2"),
        (([np.zeros(1, complex)], 3, {}), "tensor '0' has a wrong dtype"),
        (([np.zeros(1)], 0, {}), "num_samples"),
    ],
)
def test_a_wrong_result_of_fit_is_one_clear_error(result: Any, says: str) -> None:
    class Wrong(Client):
        def fit(self, parameters: list[Any], config: dict[str, Any]) -> Any:
            return result

    with pytest.raises(CodecError) as caught:
        FlowerTrainer(Wrong()).train({"0": np.zeros(1)}, CONTEXT)
    assert says in str(caught.value)


def test_a_method_that_only_flowers_base_class_has_counts_as_missing() -> None:
    def fit(self: Any, parameters: Any, config: Any) -> Any:
        return [], 0, {}

    fit.__module__ = "flwr.client.numpy_client"
    base = type("NumPyClient", (), {"fit": fit})
    with pytest.raises(ConfigError, match="has no fit"):
        FlowerTrainer(base()).train({"0": np.zeros(1)}, CONTEXT)


def test_a_model_without_an_order_is_refused() -> None:
    with pytest.raises(ConfigError, match="no order"):
        FlowerTrainer(Client()).train({"weight": np.zeros(1)}, CONTEXT)


def test_what_is_no_client_is_refused() -> None:
    with pytest.raises(ConfigError, match="no Flower client"):
        FlowerTrainer(3)
