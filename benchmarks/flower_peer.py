"""A program for the environment of Flower: times Flower's own secure-aggregation functions, one question at a time.

It reads one JSON object per line, `{"task": NAME, ...arguments}`, and answers `{"seconds": ...}`: CPU seconds of one
run. Nothing of Tacit is imported here, and nothing of Flower anywhere else. The functions are called as Flower's client
mod and its workflow call them.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.client.mod.secure_aggregation.secaggplus_mod import SecAggPlusState, _collect_masked_vectors
from flwr.common import ndarrays_to_parameters
from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import encrypt, generate_shared_key
from flwr.common.secure_aggregation.ndarrays_arithmetic import parameters_addition
from flwr.common.secure_aggregation.quantization import quantize
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen, share_keys_plaintext_concat
from flwr.server.compat.legacy_context import LegacyContext
from flwr.server.strategy import FedAvg
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD
from flwr.server.workflow.constant import Key as WorkflowKey
from flwr.server.workflow.secure_aggregation.secaggplus_workflow import SecAggPlusWorkflow, WorkflowState
from flwr.supercore.primitives.asymmetric import generate_key_pairs, private_key_to_bytes, public_key_to_bytes
from flwr.supercore.task_identity import TaskIdentity

CLIPPING_RANGE = 8.0
TARGET_RANGE = 1 << 22
MOD_RANGE = 1 << 32
MAX_WEIGHT = 1000.0
WEIGHT = 500
SEED_BYTES = 32


def main() -> None:
    """Answer questions until the input ends."""
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    for line in sys.stdin:
        question = json.loads(line)
        seconds = TASKS[question.pop("task")](**question)
        sys.stdout.write(json.dumps({"seconds": seconds}) + "\n")
        sys.stdout.flush()


def mask_and_add(length: int) -> float:
    """One mask drawn and added to a vector."""
    vector, seed = [np.zeros(length, np.int64)], os.urandom(SEED_BYTES)
    return _cpu_seconds(lambda: parameters_addition(vector, pseudo_rand_gen(seed, MOD_RANGE, [(length,)])))


def quantise(length: int) -> float:
    """A float32 vector onto levels."""
    update = [_update(length)]
    return _cpu_seconds(lambda: quantize(update, CLIPPING_RANGE, TARGET_RANGE))


def masked_input(length: int, neighbours: int) -> float:
    """`_collect_masked_vectors` of a site that shared its keys with so many neighbours."""
    stored, configs = _site(neighbours)
    parameters = ndarrays_to_parameters([_update(length)])
    state = SecAggPlusState(**stored)
    return _cpu_seconds(lambda: _collect_masked_vectors(state, configs, WEIGHT, parameters))


def split(size: int, threshold: int) -> float:
    """The two secrets of one site shared: its seed and its secret key."""
    secrets = [os.urandom(SEED_BYTES), _key_pair()[0]]
    return _cpu_seconds(lambda: [create_shares(secret, threshold, size) for secret in secrets])


def combine(size: int, threshold: int) -> float:
    """The two secrets of one site rebuilt from as many shares as the threshold."""
    shares = _shares_of_one_site(size, threshold)
    return _cpu_seconds(lambda: [combine_shares(list(held[:threshold])) for held in shares])


def unmask(size: int, threshold: int, dropped: int, length: int) -> float:
    """The workflow's unmask stage without the time that the sites need to answer."""
    workflow = SecAggPlusWorkflow(1.0, threshold / size, max_weight=MAX_WEIGHT)
    grid, state = _session_to_unmask(size, threshold, dropped, length)
    began = time.process_time()
    done = workflow.unmask_stage(grid, _server_context(), state)
    seconds = time.process_time() - began - grid.seconds
    if not done:
        raise RuntimeError("the unmask stage did not end well")
    return seconds


TASKS: dict[str, Callable[..., float]] = {
    task.__name__: task for task in (mask_and_add, quantise, masked_input, split, combine, unmask)
}


def _cpu_seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def _update(length: int) -> "np.ndarray[tuple[int], np.dtype[np.float32]]":
    return np.random.default_rng(1).standard_normal(length, np.float32)


def _key_pair() -> tuple[bytes, bytes]:
    secret, public = generate_key_pairs()
    return private_key_to_bytes(secret), public_key_to_bytes(public)


@lru_cache(maxsize=1)
def _site(neighbours: int) -> tuple[dict[str, object], ConfigRecord]:
    """The state of a site after its keys are shared, and what it is told before it masks."""
    own_secret, own_public = _key_pair()
    # What is shared is only stored in this stage, so that bytes of the right length stand for it.
    seed_share, key_share = os.urandom(4 + 48), os.urandom(4 + 16 * 20)
    cipher_secret, _ = generate_key_pairs()
    state = SecAggPlusState(nid=1, threshold=neighbours // 2 + 1, share_num=neighbours + 1)
    state.clipping_range, state.target_range, state.mod_range = CLIPPING_RANGE, TARGET_RANGE, MOD_RANGE
    state.max_weight, state.sk1, state.pk1, state.rd_seed = MAX_WEIGHT, own_secret, own_public, os.urandom(SEED_BYTES)
    state.ss2_dict, state.public_keys_dict = {}, {1: (own_public, own_public)}
    state.rd_seed_share_dict, state.sk1_share_dict = {1: seed_share}, {1: key_share}
    sources, ciphertexts = [], []
    for peer in range(2, neighbours + 2):
        state.public_keys_dict[peer] = (_key_pair()[1], own_public)
        state.ss2_dict[peer] = generate_shared_key(cipher_secret, generate_key_pairs()[1])
        sources.append(peer)
        plaintext = share_keys_plaintext_concat(peer, 1, seed_share, key_share)
        ciphertexts.append(encrypt(state.ss2_dict[peer], plaintext))
    return state.to_dict(), ConfigRecord({Key.CIPHERTEXT_LIST: ciphertexts, Key.SOURCE_LIST: sources})


@lru_cache(maxsize=1)
def _shares_of_one_site(size: int, threshold: int) -> tuple[list[bytes], list[bytes]]:
    return create_shares(os.urandom(SEED_BYTES), threshold, size), create_shares(_key_pair()[0], threshold, size)


class _Grid:
    """The sites of an unmask stage: each answers with the shares that it is asked for."""

    def __init__(self, shares: dict[int, list[bytes]]) -> None:
        self._shares = shares
        self.seconds = 0.0

    def send_and_receive(self, messages: list[Message], *, timeout: float | None = None) -> list[Message]:  # noqa: ARG002
        began = time.process_time()
        replies = [self._reply(message) for message in messages]
        self.seconds += time.process_time() - began
        return replies

    def _reply(self, message: Message) -> Message:
        configs = message.content.config_records[RECORD_KEY_CONFIGS]
        owners = [*configs[Key.ACTIVE_NODE_ID_LIST], *configs[Key.DEAD_NODE_ID_LIST]]
        holder = message.metadata.dst_node_id
        shares = [self._shares[owner][holder - 1] for owner in owners]
        answer = ConfigRecord({Key.NODE_ID_LIST: owners, Key.SHARE_LIST: shares})
        return Message(RecordDict({RECORD_KEY_CONFIGS: answer}), reply_to=message)


def _session_to_unmask(size: int, threshold: int, dropped: int, length: int) -> tuple[_Grid, WorkflowState]:
    nodes, gone = range(1, size + 1), range(1, dropped + 1)
    keys = {node: _key_pair() for node in nodes}
    secrets = {node: keys[node][0] if node in gone else os.urandom(SEED_BYTES) for node in nodes}
    shares = {node: create_shares(secrets[node], threshold, size) for node in nodes}
    state = WorkflowState(
        sampled_node_ids=set(nodes),
        active_node_ids=set(nodes) - set(gone),
        num_shares=size,
        threshold=threshold,
        clipping_range=CLIPPING_RANGE,
        quantization_range=TARGET_RANGE,
        mod_range=MOD_RANGE,
        max_weight=MAX_WEIGHT,
        nid_to_neighbours={node: set(nodes) for node in nodes},
        nid_to_publickeys={node: [keys[node][1], keys[node][1]] for node in nodes},
        aggregate_ndarrays=[np.ones(1, np.int64), np.zeros(length, np.int64)],
    )
    return _Grid(shares), state


class _NoStrategy(FedAvg):  # type: ignore[misc]
    """Keeps the stage from averaging once more: that is no part of unmasking."""

    def aggregate_fit(self, *_arguments: object) -> tuple[None, dict[str, bool]]:
        return None, {}


def _server_context() -> LegacyContext:
    context = LegacyContext(Context(1, 0, {}, RecordDict(), {}), strategy=_NoStrategy())
    context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({WorkflowKey.CURRENT_ROUND: 1})
    return context


if __name__ == "__main__":
    main()
