"""The seed of a sparse graph, which nobody can choose.

    plan         coordinator -> everybody     commitment to a random value and to the key of one signature
    freeze       key server -> coordinator    digest of the directory of U1
    reveal       coordinator -> key server    the value, the key, and its signature over that digest
    directory    key server -> sites          the same, beside the keys

    seed = H(session, value, digest)

The coordinator fixes the value before anybody has advertised keys, so that it cannot fit the graph to U1. The key
server fixes U1 before it knows the value: it cannot try one U1 after the other. Nor can it exchange U1 afterwards,
because the coordinator signs one digest per session. A coordinator and a key server that work together can do all
of it; nothing of this is needed with a complete graph.
"""

from dataclasses import dataclass, field

from fl_core.crypto import labels
from fl_core.crypto.one_time import KEY_BYTES, sign_once, verify_key_of, verify_once
from fl_core.errors import BadSignature, RemoteProtocolError, StaleMessage
from fl_core.secagg.context import Entropy, HararySpec, SessionContext
from fl_core.secagg.messages import Beacon
from fl_core.secagg.phase import Turn

VALUE_BYTES = 32


@dataclass(frozen=True, slots=True)
class SecretBeacon:
    """What the coordinator keeps from the plan until U1 is frozen. It is revealed for one directory, once."""

    value: bytes = field(repr=False)
    signing_key: bytes = field(repr=False)
    _turn: Turn = field(default_factory=Turn, repr=False)

    @property
    def commitment(self) -> bytes:
        """32 bytes for the plan. They hide the value, which has 256 bits of entropy."""
        return commitment_of(self.value, verify_key_of(self.signing_key))

    def reveal(self, binding: bytes, directory_digest: bytes) -> Beacon:
        """Answer the key server that has frozen U1.

        Args:
            binding: of the session, 32 bytes.
            directory_digest: of its directory, 32 bytes.

        Raises:
            LocalProtocolError: it was revealed before, maybe for another directory.
        """
        with self._turn:
            statement = beacon_statement(binding, directory_digest)
            return Beacon(self.value, verify_key_of(self.signing_key), sign_once(self.signing_key, statement))


def make_beacon(entropy: Entropy) -> SecretBeacon:
    """Draw a beacon for one attempt."""
    return SecretBeacon(entropy(VALUE_BYTES), entropy(KEY_BYTES))


def commitment_of(value: bytes, verify_key: bytes) -> bytes:
    """The commitment to a value and to the key that will sign one digest, 32 bytes."""
    return labels.digest_fields(labels.BEACON_COMMITMENT, value, verify_key)


def beacon_statement(binding: bytes, directory_digest: bytes) -> bytes:
    """What the coordinator signs: the one directory of this session."""
    return labels.encode_fields(labels.BEACON_STATEMENT, binding, directory_digest)


def graph_seed(context: SessionContext, directory_digest: bytes, beacon: Beacon) -> bytes:
    """Check a beacon and make the seed of the graph, 32 bytes.

    Raises:
        RemoteProtocolError: the session has no sparse graph, or the plan committed to another beacon.
        BadSignature: the coordinator did not sign this directory.
    """
    if context.harary is None:
        raise RemoteProtocolError("the graph of this session is complete", expected="no beacon")
    _check_committed(context.harary, beacon)
    try:
        verify_once(beacon.verify_key, beacon_statement(context.binding, directory_digest), beacon.signature)
    except BadSignature as error:
        raise BadSignature(
            "the coordinator did not sign this directory",
            expected="the directory that was frozen before the beacon was revealed",
            fix="do not continue with this key server",
        ) from error
    return labels.digest_fields(labels.GRAPH_SEED, context.binding, directory_digest, beacon.value)


def _check_committed(spec: HararySpec, beacon: Beacon) -> None:
    if commitment_of(beacon.value, beacon.verify_key) != spec.commitment:
        raise StaleMessage(
            "a beacon is not the one of the plan",
            expected="what the coordinator committed to before anybody sent keys",
            fix="do not continue with this key server",
        )
