"""The messages of secure aggregation as protobuf, and back. Only form is checked here: sizes, ranges, order.

What a message means in its session (who may send it, which signature must verify) is checked by `fl_core.secagg`.

The parts of a message are made inside of it: one that is made outside is written out and read in again to get there,
and protobuf asks the C library to tidy up all its memory after every 10,000 that were.
"""

from collections.abc import Iterable
from typing import Any

from fl_core.crypto import one_time
from fl_core.crypto.shamir import SHARE_BYTES
from fl_core.errors import BadKey, BadShares, BadSignature, RemoteProtocolError
from fl_core.rounds.plan import MAX_COHORT
from fl_core.secagg import messages
from fl_core.secagg.beacon import VALUE_BYTES
from fl_core.secagg.commitments import PAIR_BYTES
from fl_core.secagg.directory import COMMITMENT_BYTES
from fl_core.secagg.noise_seeds import SEED_BYTES
from fl_core.secagg.sealing import SEALED_SHARE_BYTES
from fl_core.wire.checks import check_size, digest_from_proto, index_from_proto, indices_from_proto
from fl_core.wire.v1 import secagg_pb2

KEY_BYTES = 32
MAX_CERTIFICATE_BYTES = 8192
MAX_SIGNATURE_BYTES = 128


def advertisement_to_proto(value: messages.KeyAdvertisement) -> secagg_pb2.KeyAdvertisement:
    """To the wire."""
    return secagg_pb2.KeyAdvertisement(**_advertisement_fields(value))


def advertisement_from_proto(message: secagg_pb2.KeyAdvertisement) -> messages.KeyAdvertisement:
    """From the wire.

    Raises:
        BadKey: a key has the wrong length.
        BadSignature: there is no signature, or one that is too long.
        RemoteProtocolError: index, certificate or commitment are out of range.
    """
    check_size("a cipher_public_key", message.cipher_public_key, KEY_BYTES, KEY_BYTES, BadKey)
    check_size("a mask_public_key", message.mask_public_key, KEY_BYTES, KEY_BYTES, BadKey)
    check_size("a certificate", message.certificate_der, 1, MAX_CERTIFICATE_BYTES)
    _check_signature("the keys of a site", message.signature)
    return messages.KeyAdvertisement(
        index=index_from_proto(message.index),
        cipher_public_key=message.cipher_public_key,
        mask_public_key=message.mask_public_key,
        self_seed_commitment=digest_from_proto("a self_seed_commitment", message.self_seed_commitment),
        certificate_der=message.certificate_der,
        signature=message.signature,
        noise_commitment=_optional("a noise_commitment", message.noise_commitment, COMMITMENT_BYTES),
    )


def directory_to_proto(value: messages.KeyDirectory) -> secagg_pb2.KeyDirectory:
    """To the wire."""
    message = secagg_pb2.KeyDirectory()
    for one in value.advertisements:
        message.advertisements.add(**_advertisement_fields(one))
    if value.excerpt is not None:
        message.excerpt.members.extend(value.excerpt.members)
        message.excerpt.proof.extend(value.excerpt.proof)
        message.excerpt.beacon.CopyFrom(beacon_to_proto(value.excerpt.beacon))
    return message


def directory_from_proto(message: secagg_pb2.KeyDirectory) -> messages.KeyDirectory:
    """From the wire.

    Raises:
        RemoteProtocolError: an advertisement or the excerpt has the wrong form, or the indices are not distinct and
            ascending.
    """
    check_size("a key directory", message.advertisements, 0, MAX_COHORT)
    indices_from_proto(one.index for one in message.advertisements)
    advertisements = tuple(advertisement_from_proto(one) for one in message.advertisements)
    excerpt = _excerpt_from_proto(message.excerpt) if message.HasField("excerpt") else None
    return messages.KeyDirectory(advertisements, excerpt)


def beacon_to_proto(value: messages.Beacon) -> secagg_pb2.Beacon:
    """To the wire."""
    return secagg_pb2.Beacon(value=value.value, verify_key=value.verify_key, signature=value.signature)


def beacon_from_proto(message: secagg_pb2.Beacon) -> messages.Beacon:
    """From the wire.

    Raises:
        RemoteProtocolError: a part has the wrong length.
    """
    check_size("the value of a beacon", message.value, VALUE_BYTES, VALUE_BYTES)
    check_size("the key of a beacon", message.verify_key, one_time.KEY_BYTES, one_time.KEY_BYTES)
    check_size("the signature of a beacon", message.signature, one_time.SIGNATURE_BYTES, one_time.SIGNATURE_BYTES)
    return messages.Beacon(message.value, message.verify_key, message.signature)


def sealed_shares_to_proto(value: messages.SealedShares) -> secagg_pb2.SealedShares:
    """To the wire."""
    message = secagg_pb2.SealedShares(own_commitments=value.own_commitments)
    for share in value.shares:
        message.shares.add(**_sealed_fields(share))
    return message


def sealed_shares_from_proto(message: secagg_pb2.SealedShares) -> messages.SealedShares:
    """From the wire.

    Raises:
        RemoteProtocolError: a ciphertext or index is out of range, or the message has more than one sender.
    """
    shares = _sealed_from_proto(message.shares)
    if len({share.sender for share in shares}) > 1:
        raise RemoteProtocolError("sealed shares have more than one sender", expected="the sending site")
    # With a sparse graph a site keeps no share of its own.
    if message.own_commitments:
        check_size("the commitments of a site", message.own_commitments, PAIR_BYTES, PAIR_BYTES)
    return messages.SealedShares(shares, message.own_commitments)


def relayed_shares_to_proto(value: messages.RelayedShares) -> secagg_pb2.RelayedShares:
    """To the wire."""
    message = secagg_pb2.RelayedShares()
    for share in value.shares:
        message.shares.add(**_sealed_fields(share))
    return message


def relayed_shares_from_proto(message: secagg_pb2.RelayedShares) -> messages.RelayedShares:
    """From the wire.

    Raises:
        RemoteProtocolError: a ciphertext or index is out of range, or the message has more than one recipient.
    """
    shares = _sealed_from_proto(message.shares)
    if len({share.recipient for share in shares}) > 1:
        raise RemoteProtocolError("relayed shares have more than one recipient", expected="the receiving site")
    return messages.RelayedShares(shares)


def survivors_to_proto(value: messages.SurvivorSet) -> secagg_pb2.SurvivorSet:
    """To the wire."""
    return secagg_pb2.SurvivorSet(survivors=value.survivors, uploads_root=value.uploads_root)


def survivors_from_proto(message: secagg_pb2.SurvivorSet) -> messages.SurvivorSet:
    """From the wire.

    Raises:
        RemoteProtocolError: the indices are not distinct, ascending and in range, or the root is no digest.
    """
    root = digest_from_proto("the root of the uploads", message.uploads_root)
    return messages.SurvivorSet(indices_from_proto(message.survivors), root)


def inclusion_path_from_proto(message: secagg_pb2.SurvivorSet) -> tuple[bytes, ...]:
    """The path that comes with the survivors, from the wire.

    Raises:
        RemoteProtocolError: it is longer than that of the largest cohort, or an element is no digest.
    """
    check_size("an inclusion path", message.inclusion_path, 0, MAX_COHORT.bit_length())
    return tuple(digest_from_proto("an element of an inclusion path", element) for element in message.inclusion_path)


def signature_to_proto(value: messages.SurvivorSignature) -> secagg_pb2.SurvivorSignature:
    """To the wire."""
    return secagg_pb2.SurvivorSignature(index=value.index, signature=value.signature)


def signature_from_proto(message: secagg_pb2.SurvivorSignature) -> messages.SurvivorSignature:
    """From the wire.

    Raises:
        BadSignature: there is none, or one that is too long.
        RemoteProtocolError: the index is out of range.
    """
    _check_signature("the survivors", message.signature)
    return messages.SurvivorSignature(index_from_proto(message.index), message.signature)


def proof_to_proto(value: messages.ConsistencyProof) -> secagg_pb2.ConsistencyProof:
    """To the wire."""
    message = secagg_pb2.ConsistencyProof()
    for one in value.signatures:
        message.signatures.add(index=one.index, signature=one.signature)
    return message


def proof_from_proto(message: secagg_pb2.ConsistencyProof) -> messages.ConsistencyProof:
    """From the wire.

    Raises:
        RemoteProtocolError: a signature is out of range, or the indices are not distinct and ascending.
    """
    check_size("a consistency proof", message.signatures, 0, MAX_COHORT)
    indices_from_proto(one.index for one in message.signatures)
    return messages.ConsistencyProof(tuple(signature_from_proto(one) for one in message.signatures))


def revealed_to_proto(value: messages.RevealedShares) -> secagg_pb2.RevealedShares:
    """To the wire."""
    message = secagg_pb2.RevealedShares(index=value.index, complaints=value.complaints, excess_seed=value.excess_seed)
    for share in value.self_seed_shares:
        message.self_seed_shares.add(owner=share.owner, share=share.share)
    for share in value.mask_key_shares:
        message.mask_key_shares.add(owner=share.owner, share=share.share)
    return message


def revealed_from_proto(message: secagg_pb2.RevealedShares) -> messages.RevealedShares:
    """From the wire.

    Raises:
        BadShares: a share or the noise seed has the wrong length.
        RemoteProtocolError: an owner is out of range or stands twice, in one list or in both.
    """
    named = [share.owner for shares in (message.self_seed_shares, message.mask_key_shares) for share in shares]
    named += message.complaints
    check_size("a list of revealed shares", named, 0, MAX_COHORT)
    if len({index_from_proto(owner) for owner in named}) != len(named):
        raise RemoteProtocolError("a site has two shares of one owner in its reveal", expected="one kind of share each")
    return messages.RevealedShares(
        index_from_proto(message.index),
        tuple(_share_from_proto(share) for share in message.self_seed_shares),
        tuple(_share_from_proto(share) for share in message.mask_key_shares),
        indices_from_proto(message.complaints),
        _optional("a noise seed", message.excess_seed, SEED_BYTES, BadShares),
    )


def _excerpt_from_proto(message: secagg_pb2.DirectoryExcerpt) -> messages.DirectoryExcerpt:
    check_size("the members of a directory", message.members, 1, MAX_COHORT)
    check_size("the proof of a directory", message.proof, 0, MAX_COHORT)
    proof = tuple(digest_from_proto("a hash of a proof", node) for node in message.proof)
    return messages.DirectoryExcerpt(indices_from_proto(message.members), proof, beacon_from_proto(message.beacon))


def _optional(what: str, value: bytes, size: int, error: type[RemoteProtocolError] = RemoteProtocolError) -> bytes:
    """Bytes of one length, or none at all: whether they are due depends on the session."""
    if value:
        check_size(what, value, size, size, error)
    return value


def _check_signature(what: str, signature: bytes) -> None:
    if not 0 < len(signature) <= MAX_SIGNATURE_BYTES:
        raise BadSignature(
            f"{what} are not signed",
            expected=f"a signature of 1 to {MAX_SIGNATURE_BYTES} bytes",
            got=f"{len(signature)} bytes",
            fix="sign with the key of the site's certificate",
        )


def _advertisement_fields(value: messages.KeyAdvertisement) -> dict[str, Any]:
    return {
        "index": value.index,
        "cipher_public_key": value.cipher_public_key,
        "mask_public_key": value.mask_public_key,
        "self_seed_commitment": value.self_seed_commitment,
        "certificate_der": value.certificate_der,
        "signature": value.signature,
        "noise_commitment": value.noise_commitment,
    }


def _sealed_fields(value: messages.SealedShare) -> dict[str, Any]:
    return {
        "sender": value.sender,
        "recipient": value.recipient,
        "ciphertext": value.ciphertext,
        "commitments": value.commitments,
    }


def _sealed_from_proto(shares: Iterable[secagg_pb2.SealedShare]) -> tuple[messages.SealedShare, ...]:
    checked: dict[tuple[int, int], messages.SealedShare] = {}
    for share in shares:
        check_size("the ciphertext of a sealed share", share.ciphertext, SEALED_SHARE_BYTES, SEALED_SHARE_BYTES)
        check_size("the commitments of a sealed share", share.commitments, PAIR_BYTES, PAIR_BYTES)
        pair = index_from_proto(share.sender), index_from_proto(share.recipient)
        if pair in checked:
            raise RemoteProtocolError("a sealed share comes twice", got=f"from {pair[0]} to {pair[1]}")
        if len(checked) >= MAX_COHORT:
            raise RemoteProtocolError("there are too many sealed shares", expected=f"up to {MAX_COHORT}")
        checked[pair] = messages.SealedShare(*pair, share.ciphertext, share.commitments)
    return tuple(checked.values())


def _share_from_proto(message: secagg_pb2.RevealedShare) -> messages.RevealedShare:
    check_size("a share", message.share, SHARE_BYTES, SHARE_BYTES, BadShares)
    return messages.RevealedShare(message.owner, message.share)
