"""A repeatable source of uniform bytes for simulations, in the place of the operating system's."""

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from fl_core.crypto import labels
from fl_core.secagg.context import Entropy


def seeded_entropy(seed: int) -> Entropy:
    """The AES-256-CTR keystream of a seed. Whoever knows the seed knows every secret: for simulations only.

    Args:
        seed: any integer of 64 bits.
    """
    key = labels.digest_fields(labels.SIMULATION, seed)
    stream = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
    return lambda count: stream.update(bytes(count))
