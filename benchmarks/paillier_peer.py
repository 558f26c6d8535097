"""A program for the environment of the peers: times TenSEAL and sf-heu, and prints one JSON object.

Nothing of Tacit is imported here, and neither package anywhere else. What is not installed is left out.

    {"heu": {"encrypt": s, "add": s, "decrypt": s, "bytes": n, "values": n}, "ckks": {...}}

`values` are in one ciphertext; seconds are CPU seconds for one ciphertext, the best of several runs.
"""

import json
import sys
import time
from collections.abc import Callable

SLOTS = 85
SLOT_BITS = 24
KEY_BITS = 2048
RING_DIMENSION = 8192
"""Of CKKS: 128 bits of security with these moduli, 4096 numbers in a ciphertext."""

MODULUS_BITS = [60, 40, 40, 60]
SCALE = 2.0**40
TURNS = 5


def main() -> None:
    """Print what is installed."""
    count = int(sys.argv[1])
    found = {}
    for name, measure in (("heu", heu), ("ckks", ckks)):
        try:
            found[name] = measure(count)
        except ImportError:
            continue
    print(json.dumps(found))


def heu(count: int) -> dict[str, float]:
    """Packed integers under ZPaillier, as the caller of sf-heu would pack them."""
    from heu import phe

    kit = phe.setup(phe.SchemaType.ZPaillier, KEY_BITS)
    plaintext = sum((1 << SLOT_BITS // 2) << (SLOT_BITS * slot) for slot in range(SLOTS))
    encryptor, evaluator, decryptor = kit.encryptor(), kit.evaluator(), kit.decryptor()
    ciphertexts = [encryptor.encrypt_raw(plaintext) for _ in range(count)]
    return {
        "encrypt": best(lambda: [encryptor.encrypt_raw(plaintext) for _ in range(count)]) / count,
        "add": best(lambda: [evaluator.add(one, one) for one in ciphertexts]) / count,
        "decrypt": best(lambda: [decryptor.decrypt_raw(one) for one in ciphertexts]) / count,
        "bytes": len(ciphertexts[0].serialize()),
        "values": SLOTS,
    }


def ckks(count: int) -> dict[str, float]:
    """Vectors of floats, approximately."""
    import tenseal

    context = tenseal.context(tenseal.SCHEME_TYPE.CKKS, RING_DIMENSION, coeff_mod_bit_sizes=MODULUS_BITS)
    context.global_scale = SCALE
    vector = [0.5] * (RING_DIMENSION // 2)
    ciphertexts = [tenseal.ckks_vector(context, vector) for _ in range(count)]
    return {
        "encrypt": best(lambda: [tenseal.ckks_vector(context, vector) for _ in range(count)]) / count,
        "add": best(lambda: [one + one for one in ciphertexts]) / count,
        "decrypt": best(lambda: [one.decrypt() for one in ciphertexts]) / count,
        "bytes": len(ciphertexts[0].serialize()),
        "values": RING_DIMENSION // 2,
    }


def best(work: Callable[[], object]) -> float:
    """The least CPU seconds of several runs."""
    taken = []
    for _ in range(TURNS):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return min(taken)


if __name__ == "__main__":
    main()
