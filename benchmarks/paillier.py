"""Paillier on one core beside others, and a whole encrypted sum on all cores; see benchmarks/README.md."""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import phe

from benchmarks.figures import Figure
from benchmarks.flower import INTERPRETER, ROOT, VARIABLE
from benchmarks.stopwatch import best_by_turns, cpu_seconds, one_core
from fl_core.crypto.mask_prg import RingVector
from fl_core.crypto.paillier.bignum import from_bytes
from fl_core.crypto.paillier.ciphertexts import add_ciphertexts, read_ciphertexts, read_plaintexts
from fl_core.crypto.paillier.engine import best_engine, load_engine
from fl_core.crypto.paillier.keys import PrivateKey, PublicKey, generate_private_key
from fl_core.encrypted.opening import SumOpening
from fl_core.encrypted.running_total import BlindedTotal, EncryptedTotal
from fl_core.encrypted.site import VectorEncryption
from fl_core.errors import BadAggregate
from fl_core.simulation.encrypted import EncryptedFederation

T = TypeVar("T")

PROGRAM = ROOT / "benchmarks" / "paillier_peer.py"
PEER_TIMEOUT_S = 600.0

KEY_BITS, BITS, COHORT = 2048, 16, 100
CIPHERTEXTS, PHE_VALUES, TURNS = 256, 8, 5
ROUND_PARAMETERS, ROUND_SITES, ROUND_BITS = 587_392, 10, 16
WANTED = {"encrypt": 800.0, "decrypt": 65.0}
"""How many times phe's values per second are wanted."""
WANTED_BYTES = 7.5
PART = 256
BLOCK_BYTES = 1 << 18
"""Of an upload, what one thread of the aggregator takes at a time; see `services.runtime.staging`."""


def measure(*, quick: bool = False) -> list[Figure]:
    """Values per second and core of each operation, bytes per value, and seconds of the steps of a round."""
    key = generate_private_key(KEY_BITS, os.urandom)
    # As in any process that has seen a model of some size.
    best_engine()
    with one_core():
        figures = _side_by_side(key, *((16, 2, 1) if quick else (CIPHERTEXTS, PHE_VALUES, TURNS)))
    cores = _all_cores(key, 64 if quick else CIPHERTEXTS, 1 if quick else TURNS)
    return [*figures, *cores, *_round(key, 20_000 if quick else ROUND_PARAMETERS)]


def _side_by_side(key: PrivateKey, ciphertexts: int, phe_values: int, turns: int) -> list[Figure]:
    ours, theirs = _Ours.prepare(key, ciphertexts), _Phe.prepare(key, phe_values)
    ways: dict[str, tuple[Callable[[], object], int]] = {
        "ours_encrypt": (ours.encrypt, ours.values),
        "ours_add": (ours.add, ours.values),
        "ours_decrypt": (ours.decrypt, ours.values),
        "phe_encrypt": (theirs.encrypt, phe_values),
        "phe_add": (theirs.add, phe_values),
        "phe_decrypt": (theirs.decrypt, phe_values),
        "phe_packed_encrypt": (theirs.encrypt_packed, phe_values * ours.slots),
        "phe_packed_add": (theirs.add_packed, phe_values * ours.slots),
        "phe_packed_decrypt": (theirs.decrypt_packed, phe_values * ours.slots),
    }
    ours.decrypt()
    seconds = best_by_turns({name: partial(cpu_seconds, work) for name, (work, _) in ways.items()}, turns)
    speed = {name: count / seconds[name] for name, (_, count) in ways.items()} | _peers(max(4, ciphertexts // 8))
    figures = []
    for way in ("ours", "phe_packed", "heu_packed", "ckks"):
        for operation in ("encrypt", "add", "decrypt"):
            if f"{way}_{operation}" in speed:
                value, baseline = speed[f"{way}_{operation}"], speed[f"phe_{operation}"]
                figures.append(Figure(f"{way}_{operation}", value, "values/s", baseline=baseline))
    for operation, wanted in WANTED.items():
        times = speed[f"ours_{operation}"] / speed[f"phe_{operation}"]
        figures.append(Figure(f"{operation}_times_phe", times, "x", baseline=wanted))
    figures.append(Figure("ours_bytes", ours.bytes_per_value, "B/value", baseline=WANTED_BYTES))
    figures.append(Figure("phe_bytes", float(key.public_key.ciphertext_bytes), "B/value"))
    return [
        *figures,
        *(Figure(name, speed[name], "B/value") for name in ("heu_packed_bytes", "ckks_bytes") if name in speed),
    ]


class _Ours:
    """A site's and a key server's part of an attempt of a hundred sites, pads and packing included."""

    def __init__(self, federation: EncryptedFederation, encryption: VectorEncryption, opening: SumOpening) -> None:
        context = federation.context
        self._federation, self._encryption, self._opening = federation, encryption, opening
        self._vector = np.random.default_rng(1).integers(0, 1 << BITS, context.length, np.uint32)
        self._all = range(context.plaintexts)
        self._data = encryption.encrypt(self._vector, self._all, os.urandom)
        self._total = read_ciphertexts(context.public_key, self._data)
        self.values, self.slots = context.length, context.layout.slots
        self.bytes_per_value = context.upload_bytes / context.length

    @classmethod
    def prepare(cls, key: PrivateKey, ciphertexts: int) -> "_Ours":
        length = ciphertexts * 85
        federation = EncryptedFederation.make(
            key, os.urandom, sites=COHORT, length=length, bits=BITS, ring_bits=24, min_survivors=COHORT
        )
        seeds = tuple(os.urandom(32) for _ in range(COHORT))
        opening = SumOpening(federation.context, tuple(range(COHORT)), seeds)
        return cls(federation, VectorEncryption.begin(federation.context, os.urandom), opening)

    def encrypt(self) -> None:
        self._encryption.encrypt(self._vector, self._all, os.urandom)

    def add(self) -> None:
        add_ciphertexts(self._federation.context.public_key, self._total, self._total)

    def decrypt(self) -> None:
        self._opening.decrypt(self._federation.private_key, 0, self._data)


class _Phe:
    """phe as its documentation uses it, and on integers that its caller has packed."""

    def __init__(self, key: PrivateKey, count: int) -> None:
        self._public = phe.PaillierPublicKey(int(key.public_key.n))
        self._private = phe.PaillierPrivateKey(self._public, int(key.p), int(key.q))
        self._values = [1000 + number for number in range(count)]
        self._packed = [sum(value << (24 * slot) for slot in range(85)) for value in self._values]
        self._numbers = [self._public.encrypt(value) for value in self._values]
        self._raw = [self._public.raw_encrypt(packed) for packed in self._packed]

    @classmethod
    def prepare(cls, key: PrivateKey, count: int) -> "_Phe":
        return cls(key, count)

    def encrypt(self) -> None:
        for value in self._values:
            self._public.encrypt(value)

    def add(self) -> None:
        for number in self._numbers:
            _ = number + number

    def decrypt(self) -> None:
        for number in self._numbers:
            self._private.decrypt(number)

    def encrypt_packed(self) -> None:
        for packed in self._packed:
            self._public.raw_encrypt(packed)

    def add_packed(self) -> None:
        square = self._public.nsquare
        for raw in self._raw:
            _ = raw * raw % square

    def decrypt_packed(self) -> None:
        for raw in self._raw:
            self._private.raw_decrypt(raw)


def _peers(count: int) -> dict[str, float]:
    """Values per second of TenSEAL and sf-heu, as far as they are installed beside Tacit."""
    interpreter = Path(os.environ.get(VARIABLE, INTERPRETER))
    if not interpreter.exists():
        sys.stderr.write("note: the rows of TenSEAL and sf-heu are left out; `make bench-setup` installs them\n")
        return {}
    command = [str(interpreter), str(PROGRAM), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PEER_TIMEOUT_S, check=True)
    found: dict[str, dict[str, float]] = json.loads(done.stdout)
    names = {"heu": "heu_packed", "ckks": "ckks"}
    speed = {}
    for peer, facts in found.items():
        for operation in ("encrypt", "add", "decrypt"):
            speed[f"{names[peer]}_{operation}"] = facts["values"] / facts[operation]
        speed[f"{names[peer]}_bytes"] = facts["bytes"] / facts["values"]
    return speed


def _all_cores(key: PrivateKey, count: int, turns: int) -> list[Figure]:
    """What all cores give: wall seconds of one thread over those of as many threads, or processes, as cores."""
    cores = len(os.sched_getaffinity(0))
    exponents = [os.urandom(KEY_BITS // 16) for _ in range(count)]
    numbers = [from_bytes(os.urandom(KEY_BITS // 4)) % key.public_key.n_squared for _ in range(32 * count)]
    reduced = [number % key.halves[0].square for number in numbers[: count // 4]]
    kinds: dict[str, tuple[Callable[[list[Any]], int], list[Any]]] = {"add": (partial(_sums, key.public_key), numbers)}
    for engine in sorted({"gmpy2", best_engine().name}):
        kinds[f"encrypt_{engine}"] = partial(_table_powers, engine, key.public_key), exponents
        kinds[f"decrypt_{engine}"] = partial(_secret_powers, engine, key.halves[0].prime), reduced
    figures, spawned = [], multiprocessing.get_context("spawn")
    with ThreadPoolExecutor(cores) as threads, ProcessPoolExecutor(cores, mp_context=spawned) as processes:
        for kind, (work, operands) in kinds.items():
            step = -(-len(operands) // cores)
            parts = [operands[at : at + step] for at in range(0, len(operands), step)]
            ways: dict[str, Callable[[], object]] = {
                "alone": partial(work, operands),
                "threads": lambda work=work, parts=parts: list(threads.map(work, parts)),
                "processes": lambda work=work, parts=parts: list(processes.map(work, parts)),
            }
            # Tables are made and code is loaded once; that is no part of the steady state.
            for way in ways.values():
                way()
            seconds = best_by_turns({name: partial(_wall, way) for name, way in ways.items()}, turns)
            for way in ("threads", "processes"):
                figures.append(Figure(f"{way}_speedup_{kind}", seconds["alone"] / seconds[way], "x", float(cores)))
    return figures


def _table_powers(engine: str, public_key: PublicKey, exponents: list[bytes]) -> int:
    """Powers of the randomness, nearly all of an encryption; only their number comes back, as from those below."""
    return len(load_engine(engine).randomness_table(public_key, 10_000).powers(exponents))


def _secret_powers(engine: str, prime: int, numbers: list[int]) -> int:
    """Powers modulo the square of one prime, half of a decryption."""
    return len(load_engine(engine).secret_powers(numbers, prime - 1, int(prime).bit_length(), prime))


def _sums(public_key: PublicKey, numbers: list[int]) -> int:
    """Ciphertexts added up."""
    return len(add_ciphertexts(public_key, numbers, numbers))


def _round(key: PrivateKey, parameters: int) -> list[Figure]:
    """Wall seconds of each step of one attempt on all cores, its sum compared with the plain one."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        attempt = _Attempt(key, parameters, pool)
        attempt.run()
    figures = [Figure(f"round_{name}", seconds, "s") for name, seconds in attempt.seconds.items()]
    return [*figures, Figure("round_upload_bytes", float(attempt.context.upload_bytes), "B")]


class _Attempt:
    """Ten sites, an aggregator and a key server, one after the other, each on all cores."""

    def __init__(self, key: PrivateKey, parameters: int, pool: ThreadPoolExecutor) -> None:
        federation = EncryptedFederation.make(
            key, os.urandom, sites=ROUND_SITES, length=parameters + 2, bits=ROUND_BITS, ring_bits=20, min_survivors=7
        )
        self.context, self.seconds = federation.context, dict[str, float]()
        self._key, self._pool = key, pool
        self._parts = [
            range(at, min(at + PART, self.context.plaintexts)) for at in range(0, self.context.plaintexts, PART)
        ]
        self._vectors = np.random.default_rng(2).integers(
            0, 1 << ROUND_BITS, (ROUND_SITES, self.context.length), np.uint32
        )
        self._vectors[:, 1] = 1

    def run(self) -> None:
        """All steps.

        Raises:
            BadAggregate: the sum is not the plain one.
        """
        total, seeds = EncryptedTotal(self.context), []
        for index in range(ROUND_SITES):
            site, data = self._timed("site_encrypts", partial(self._encrypt, index))
            seeds.append(site.seed)
            parts = list(total.parts(data[at : at + BLOCK_BYTES] for at in range(0, len(data), BLOCK_BYTES)))
            self._timed("aggregator_checks", partial(self._each, total.check_part, parts))
            total.begin(index)
            self._timed("aggregator_adds", partial(self._each, total.add_part, parts))
        self.seconds["site_encrypts"] /= ROUND_SITES
        blinded = total.blind(os.urandom)
        asked = self._timed("aggregator_blinds", lambda: list(self._pool.map(blinded.ciphertexts, self._parts)))
        opening = SumOpening(self.context, tuple(range(ROUND_SITES)), tuple(seeds))
        answers = self._timed("key_server_decrypts", partial(self._decrypt, opening, asked))
        opened = self._timed("aggregator_opens", partial(self._open, blinded, answers))
        if not np.array_equal(opened, self._vectors.sum(axis=0)):
            raise BadAggregate("the benchmark's sum is not exact")

    def _timed(self, name: str, work: Callable[[], T]) -> T:
        began = time.perf_counter()
        result = work()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began
        return result

    def _each(self, work: Callable[[int, bytes], None], parts: list[tuple[int, bytes]]) -> None:
        list(self._pool.map(lambda part: work(*part), parts))

    def _encrypt(self, index: int) -> tuple[VectorEncryption, bytes]:
        site = VectorEncryption.begin(self.context, os.urandom)
        pieces = self._pool.map(lambda part: site.encrypt(self._vectors[index], part, os.urandom), self._parts)
        return site, b"".join(pieces)

    def _decrypt(self, opening: SumOpening, asked: list[bytes]) -> list[bytes]:
        firsts = [part.start for part in self._parts]
        return list(self._pool.map(partial(opening.decrypt, self._key), firsts, asked))

    def _open(self, blinded: BlindedTotal, answers: list[bytes]) -> RingVector:
        for part, answer in zip(self._parts, answers, strict=True):
            blinded.take(part, read_plaintexts(self.context.public_key, answer))
        return blinded.open()


def _wall(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
