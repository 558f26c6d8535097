"""The enums of the core as enums of the wire, and back. A wire name is the core's value behind its prefix."""

from collections.abc import Callable
from enum import StrEnum
from typing import TypeVar

from fl_core.codec.spec import Levels, Selection
from fl_core.errors import RemoteProtocolError
from fl_core.rounds.machine import AbandonReason, DropoutReason, RoundState
from fl_core.rounds.paillier_terms import Custody
from fl_core.rounds.plan import Aggregation
from fl_core.rounds.privacy_terms import Mechanism
from fl_core.secagg.degrees import Profile
from fl_core.wire.v1 import round_pb2

E = TypeVar("E", bound=StrEnum)


def aggregation_to_proto(value: Aggregation) -> round_pb2.Aggregation.ValueType:
    """To the wire."""
    return round_pb2.Aggregation.Value(f"AGGREGATION_{value.name}")


def aggregation_from_proto(number: int) -> Aggregation:
    """From the wire.

    Raises:
        RemoteProtocolError: unspecified or unknown.
    """
    return _named(Aggregation, round_pb2.Aggregation.Value, "AGGREGATION_", number)


def custody_to_proto(value: Custody) -> round_pb2.PaillierCustody.ValueType:
    """To the wire."""
    return round_pb2.PaillierCustody.Value(f"PAILLIER_CUSTODY_{value.name}")


def custody_from_proto(number: int) -> Custody:
    """From the wire.

    Raises:
        RemoteProtocolError: unspecified or unknown.
    """
    return _named(Custody, round_pb2.PaillierCustody.Value, "PAILLIER_CUSTODY_", number)


def mechanism_to_proto(value: Mechanism) -> round_pb2.PrivacyMechanism.ValueType:
    """To the wire."""
    return round_pb2.PrivacyMechanism.Value(f"PRIVACY_MECHANISM_{value.name}")


def mechanism_from_proto(number: int) -> Mechanism:
    """From the wire.

    Raises:
        RemoteProtocolError: unspecified or unknown.
    """
    return _named(Mechanism, round_pb2.PrivacyMechanism.Value, "PRIVACY_MECHANISM_", number)


def profile_to_proto(value: Profile) -> round_pb2.GraphProfile.ValueType:
    """To the wire."""
    return round_pb2.GraphProfile.Value(f"GRAPH_PROFILE_{value.name}")


def profile_from_proto(number: int) -> Profile:
    """From the wire.

    Raises:
        RemoteProtocolError: unspecified or unknown.
    """
    return _named(Profile, round_pb2.GraphProfile.Value, "GRAPH_PROFILE_", number)


def selection_to_proto(value: Selection) -> round_pb2.CodecSelection.ValueType:
    """To the wire."""
    return round_pb2.CodecSelection.Value(f"CODEC_SELECTION_{value.name}")


def selection_from_proto(number: int) -> Selection:
    """From the wire.

    Raises:
        RemoteProtocolError: unspecified or unknown.
    """
    return _named(Selection, round_pb2.CodecSelection.Value, "CODEC_SELECTION_", number)


def levels_to_proto(value: Levels) -> round_pb2.CodecLevels.ValueType:
    """To the wire."""
    return round_pb2.CodecLevels.Value(f"CODEC_LEVELS_{value.name}")


def levels_from_proto(number: int) -> Levels:
    """From the wire.

    Raises:
        RemoteProtocolError: unspecified or unknown.
    """
    return _named(Levels, round_pb2.CodecLevels.Value, "CODEC_LEVELS_", number)


def round_state_to_proto(value: RoundState) -> round_pb2.RoundState.ValueType:
    """To the wire."""
    return round_pb2.RoundState.Value(f"ROUND_STATE_{value.name}")


def round_state_from_proto(number: int) -> RoundState:
    """From the wire.

    Raises:
        RemoteProtocolError: unspecified or unknown.
    """
    return _named(RoundState, round_pb2.RoundState.Value, "ROUND_STATE_", number)


def dropout_reason_to_proto(value: DropoutReason | None) -> round_pb2.DropoutReason.ValueType:
    """To the wire; None is unspecified."""
    return round_pb2.DropoutReason.Value(f"DROPOUT_REASON_{value.name if value else 'UNSPECIFIED'}")


def dropout_reason_from_proto(number: int) -> DropoutReason:
    """From the wire.

    Raises:
        RemoteProtocolError: unspecified or unknown.
    """
    return _named(DropoutReason, round_pb2.DropoutReason.Value, "DROPOUT_REASON_", number)


def abandon_reason_to_proto(value: AbandonReason | None) -> round_pb2.AbandonReason.ValueType:
    """To the wire; None is unspecified."""
    return round_pb2.AbandonReason.Value(f"ABANDON_REASON_{value.name if value else 'UNSPECIFIED'}")


def abandon_reason_from_proto(number: int) -> AbandonReason | None:
    """From the wire; unspecified is None.

    Raises:
        RemoteProtocolError: unknown.
    """
    return _named(AbandonReason, round_pb2.AbandonReason.Value, "ABANDON_REASON_", number) if number else None


def _named(kind: type[E], number_of: Callable[[str], int], prefix: str, number: int) -> E:
    # Enums of proto3 are open: a peer can send any number.
    known = {number_of(prefix + member.name): member for member in kind}
    if number not in known:
        raise RemoteProtocolError(f"an unknown {kind.__name__}", expected=f"one of {sorted(known)}", got=number)
    return known[number]
