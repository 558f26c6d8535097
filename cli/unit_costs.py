"""Measures the unit costs of `fl_core.rounds.costs` on this machine, by the code that a round runs."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from cli.machine import processor_name
from fl_core.codec.packing import pack, unpack
from fl_core.codec.spec import CodecSpec
from fl_core.codec.tensors import TensorManifest, TensorSpec
from fl_core.codec.update_codec import UpdateCodec
from fl_core.crypto.agreement import agree, agree_many, generate_key_pair
from fl_core.crypto.agreement_engine import COMPILED_FROM
from fl_core.crypto.mask_engine import best_engine
from fl_core.crypto.mask_prg import combine_masks
from fl_core.crypto.shamir import combine, lagrange_at_zero, parse_shares, split_secrets
from fl_core.rounds.costs import UnitCosts
from fl_core.secagg.directory import advertisement_statement
from fl_core.secagg.messages import KeyAdvertisement
from fl_core.secagg.phase import Turn
from fl_core.simulation import stages

SITES = 64
HOLDERS = 256
THRESHOLD = 171
SECRETS = 64
LENGTH = 1 << 19
RING_BITS = 24
BITS = 16
MASKS = 16
REPEATS = 5


def measure_unit_costs() -> UnitCosts:
    """Seconds of CPU of one thread for every unit, the best of several runs."""
    cohort = stages.make_cohort(SITES)
    message, signer, verifier = os.urandom(100), cohort.signers[0], cohort.verifier
    signature = signer.sign(message)
    return UnitCosts(
        machine=f"{processor_name()}, one core, masks by {best_engine().name}",
        key_pair=_best(lambda: generate_key_pair(os.urandom)),
        signature=_best(lambda: signer.sign(message)),
        verification=_best(lambda: verifier.verify(0, signer.certificate_der, message, signature)),
        **_session_costs(cohort),
        **_shamir_costs(),
        **_vector_costs(),
    )


def _session_costs(cohort: stages.Cohort) -> dict[str, float]:
    """What a pair of sites costs each of them, and a share the key server."""
    advertised = stages.advertise(cohort)
    directory, site = advertised.directory, advertised.sites[0]
    sharing = _best(lambda: replace(site, _turn=Turn()).step(directory))
    # Its checks of signatures are in this step too; they have a unit of their own.
    checking = _best(lambda: _check_signatures(cohort, directory.advertisements[1:]))
    stepped = {index: phase.step(directory) for index, phase in advertised.sites.items()}
    began = time.process_time()
    for index, (_, sealed) in stepped.items():
        advertised.server.receive(index, sealed)
    _, relayed = advertised.server.close()
    relaying = time.process_time() - began
    collecting = stepped[0][0]
    opening = _best(lambda: replace(collecting, _turn=Turn()).step(relayed[0]))
    ready = collecting.step(relayed[0])
    masking = _best(lambda: replace(ready, _turn=Turn()).step(cohort.vectors[0]))
    peers = SITES - 1
    ours, theirs = generate_key_pair(os.urandom), generate_key_pair(os.urandom)
    agreement = _best(lambda: agree(ours.secret_key, theirs.public_key))
    many = [theirs.public_key] * COMPILED_FROM
    return {
        "agreement": agreement,
        "agreement_in_numbers": _best(lambda: agree_many(ours.secret_key, many)) / COMPILED_FROM,
        "sealing": _without(agreement, (sharing - checking) / peers),
        "opening": opening / peers,
        "pair": _without(agreement, masking / peers),
        "share": relaying / (SITES * peers),
    }


def _without(part: float, whole: float) -> float:
    """The rest of a measurement; never nothing, whatever the noise of the other one was."""
    return max(whole - part, whole / 20)


def _check_signatures(cohort: stages.Cohort, messages: Sequence[KeyAdvertisement]) -> None:
    for message in messages:
        statement = advertisement_statement(cohort.context, message)
        cohort.verifier.verify(message.index, message.certificate_der, statement, message.signature)


def _shamir_costs() -> dict[str, float]:
    """For each pair of a holder and a coefficient, and for each share of a secret."""
    secrets = [os.urandom(32) for _ in range(SECRETS)]
    shares = split_secrets(secrets, THRESHOLD, range(HOLDERS), os.urandom)[:THRESHOLD]
    rows = np.stack([parse_shares(held) for held in shares])
    coefficients = lagrange_at_zero(range(THRESHOLD))
    split = _best(lambda: split_secrets(secrets[:2], THRESHOLD, range(HOLDERS), os.urandom))
    return {
        "split": split / (HOLDERS * THRESHOLD),
        "coefficient": _best(lambda: lagrange_at_zero(range(THRESHOLD))) / THRESHOLD**2,
        "rebuild": _best(lambda: combine(coefficients, rows)) / (SECRETS * THRESHOLD),
    }


def _vector_costs() -> dict[str, float]:
    """For each coordinate of an upload, and for each byte of a mask."""
    codec = UpdateCodec(
        CodecSpec(1.0, BITS, RING_BITS), TensorManifest((TensorSpec("model", "float32", (LENGTH,)),)), max_weight=100
    )
    update = np.random.default_rng(1).uniform(-1, 1, LENGTH).astype(np.float32)
    vector = codec.encode(update, 100, os.urandom)
    packed, total = pack(vector, RING_BITS), vector.copy()
    keys = [os.urandom(16) for _ in range(MASKS)]
    return {
        "mask_byte": _best(lambda: combine_masks(total, keys, [False] * MASKS)) / (MASKS * total.nbytes),
        "encode": _best(lambda: pack(codec.encode(update, 100, os.urandom), RING_BITS)) / LENGTH,
        "add": _best(lambda: np.add(total, unpack(packed, codec.length, RING_BITS), out=total)) / LENGTH,
        "decode": _best(lambda: codec.decode_sum(vector, 1)) / LENGTH,
    }


def _best(work: Callable[[], object]) -> float:
    """CPU seconds of one run; the first of all compiles and does not count."""
    work()
    return min(_seconds(work) for _ in range(REPEATS))


def _seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began
