"""Every domain-separation label, and the one way in which fields are joined under a label.

Each field is length-prefixed, so that no two different lists of fields give the same bytes.
"""

import hashlib
import struct

from fl_core.errors import CryptoError

CODEC = b"tacit/codec/v1"
ROTATION = b"tacit/rotation/v1"
ROSTER = b"tacit/roster/v1"
PLAN = b"tacit/plan/v1"
MANIFEST = b"tacit/manifest/v1"
MODEL = b"tacit/model/v1"
CONTEXT = b"tacit/context/v1"
CODEC = b"tacit/codec/v1"
ROTATION = b"tacit/rotation/v1"
SUPPORT = b"tacit/support/v1"
INDEX_SET = b"tacit/set/v1"
ADVERTISEMENT = b"tacit/advertisement/v1"
DIRECTORY = b"tacit/directory/v1"
DIRECTORY_LEAF = b"tacit/directory-leaf/v1"
DIRECTORY_NODE = b"tacit/directory-node/v1"
BEACON_COMMITMENT = b"tacit/beacon-commitment/v1"
BEACON_STATEMENT = b"tacit/beacon-statement/v1"
GRAPH_SEED = b"tacit/graph-seed/v1"
SEED_COMMITMENT = b"tacit/seed-commitment/v1"
SHARE_COMMITMENT = b"tacit/share-commitment/v1"
SHARE_KEY = b"tacit/share-key/v1"
SHARE_DATA = b"tacit/share-data/v1"
PAIR_MASK = b"tacit/pair-mask/v1"
SELF_MASK = b"tacit/self-mask/v1"
SURVIVORS = b"tacit/survivors/v1"
UPLOAD_LEAF = b"tacit/upload-leaf/v1"
DEALING_LEAF = b"tacit/dealing-leaf/v1"
TRANSCRIPT_PART = b"tacit/transcript-part/v1"
TRANSCRIPT_LINK = b"tacit/transcript-link/v1"
AGGREGATE = b"tacit/aggregate/v1"
NOISE_TIE = b"tacit/noise-tie/v1"
NOISE_SEED = b"tacit/noise-seed/v1"
NOISE_KEY = b"tacit/noise-key/v1"
NOISE_COMMITMENT = b"tacit/noise-commitment/v1"
PRIVACY_RELEASE = b"tacit/privacy-release/v1"
SIMULATION = b"tacit/simulation/v1"
SEALED_BOX = b"tacit/sealed-box/v1"
PAILLIER_ENDORSEMENT = b"tacit/paillier/endorsement/v1"
PAILLIER_UPLOAD = b"tacit/paillier/upload/v1"
PAILLIER_SEED = b"tacit/paillier/seed/v1"
PAILLIER_KEY = b"tacit/paillier/key/v1"
PAILLIER_BASE = b"tacit/paillier/base/v1"
PAILLIER_KEY_FILE = b"tacit/paillier/key-file/v1"
PAILLIER_DEALING = b"tacit/paillier/dealing/v1"
PAILLIER_SHARE = b"tacit/paillier/share/v1"
PAILLIER_PARTIAL = b"tacit/paillier/partial/v1"
PAILLIER_PROOF = b"tacit/paillier/proof/v1"
PAILLIER_VERIFICATION = b"tacit/paillier/verification/v1"
STORAGE = b"tacit/storage/v1"
SPOOL = b"tacit/spool/v1"

Field = bytes | str | int | float | bool


_bytes_head = struct.Struct(">cQ")
_integer = struct.Struct(">cQq")


def encode_fields(label: bytes, *fields: Field) -> bytes:
    """Join `fields` under `label`, each with its type and its length in front.

    Args:
        label: a constant of this module.
        fields: bytes, text (UTF-8), integers (signed, 64 bits), floats (IEEE 754, 64 bits) or booleans.

    Returns:
        The unambiguous encoding, as it is hashed, signed or given to HKDF.

    Raises:
        CryptoError: an integer does not fit 64 bits.
    """
    return b"".join((struct.pack(">I", len(label)), label, *(_encode(field) for field in fields)))


def digest_fields(label: bytes, *fields: Field) -> bytes:
    """SHA-256 of `encode_fields`, 32 bytes."""
    return hashlib.sha256(encode_fields(label, *fields)).digest()


def _encode(field: Field) -> bytes:
    # Nearly every field is one of these two, and a session of a thousand sites encodes millions.
    if type(field) is bytes:
        return _bytes_head.pack(b"b", len(field)) + field
    if type(field) is int and -(1 << 63) <= field < 1 << 63:
        return _integer.pack(b"i", 8, field)
    tag, body = _tagged(field)
    return tag + struct.pack(">Q", len(body)) + body


def _tagged(field: Field) -> tuple[bytes, bytes]:
    match field:
        case bool():
            return b"?", bytes([field])
        case bytes():
            return b"b", field
        case str():
            return b"s", field.encode()
        case float():
            return b"d", struct.pack(">d", field)
        case _:
            return b"i", _encode_integer(field)


def _encode_integer(field: int) -> bytes:
    try:
        return struct.pack(">q", field)
    except struct.error as error:
        raise CryptoError("a field does not fit its encoding", expected="a 64-bit integer", got=field) from error
