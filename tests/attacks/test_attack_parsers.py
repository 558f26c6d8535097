"""Attack: bytes that are no message, or a message that is too large: to crash a party, or to fill its memory.

What stops it: every field has a length or a bound that is checked before the field is kept, and nothing that a peer
sends is ever run. Whatever bytes come, a party raises an error of ours and stays as it was.
"""

import tracemalloc
from dataclasses import replace

import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.errors import BadShares, StreamError, TacitError
from fl_core.secagg import exchange
from fl_core.secagg.transcript import transcript_from_json, verify_transcript
from fl_core.simulation import stages
from fl_core.wire import convert
from fl_core.wire.chunks import ChunkReader
from fl_core.wire.v1 import round_pb2, secagg_pb2, tensors_pb2

PARSERS = (
    (secagg_pb2.KeyAdvertisement, convert.advertisement_from_proto),
    (secagg_pb2.KeyDirectory, convert.directory_from_proto),
    (secagg_pb2.SealedShares, convert.sealed_shares_from_proto),
    (secagg_pb2.RelayedShares, convert.relayed_shares_from_proto),
    (secagg_pb2.SurvivorSet, convert.survivors_from_proto),
    (secagg_pb2.SurvivorSet, convert.inclusion_path_from_proto),
    (secagg_pb2.SurvivorSignature, convert.signature_from_proto),
    (secagg_pb2.ConsistencyProof, convert.proof_from_proto),
    (secagg_pb2.RevealedShares, convert.revealed_from_proto),
    (round_pb2.RoundPlan, convert.plan_from_proto),
    (round_pb2.SignedPart, convert.part_from_proto),
)


@settings(max_examples=400, deadline=None)
@given(chosen=st.sampled_from(PARSERS), data=st.binary(max_size=300))
def test_any_bytes_are_a_message_or_an_error_of_ours(chosen: tuple[type[Message], object], data: bytes) -> None:
    kind, from_proto = chosen
    message = kind()
    try:
        message.ParseFromString(data)
    except DecodeError:
        return
    try:
        from_proto(message)  # type: ignore[operator]
    except TacitError:
        return


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_file_is_a_transcript_or_an_error_of_ours(content: bytes) -> None:
    with pytest.raises(TacitError):
        verify_transcript(transcript_from_json(content), lambda *_: None)


def test_a_megabyte_in_the_place_of_a_share_is_neither_kept_nor_relayed(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = stages.advertise(stages.make_cohort(5))
    _, sealed = stage.sites[0].step(stage.directory)
    flood = replace(sealed, shares=(replace(sealed.shares[0], ciphertext=bytes(1 << 20)), *sealed.shares[1:]))
    with pytest.raises(BadShares, match="96 bytes"):
        stage.server.receive(0, flood)
    assert stage.server.received == frozenset()
    monkeypatch.setattr(exchange, "check_sealed_length", lambda _: None)
    stage.server.receive(0, flood)
    assert stage.server.received == {0}


def test_a_stream_that_promises_a_terabyte_is_refused_before_a_byte_is_kept() -> None:
    tracemalloc.start()
    with pytest.raises(StreamError):
        ChunkReader(tensors_pb2.StreamHeader(total_bytes=1 << 40, chunk_bytes=1 << 18), max_bytes=1 << 20)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("share", [b"cos\nsystem\n(S'true'\ntR.", b"\x80\x04\x95", b"\xff" * 40, b"", bytes(41)])
def test_a_share_that_is_a_program_a_giant_or_nothing_is_refused(share: bytes) -> None:
    stage = stages.sign(stages.upload(stages.share(stages.advertise(stages.make_cohort(5)))))
    sent = stage.sites[0].step(stage.proof)[1]
    first, *rest = sent.self_seed_shares
    with pytest.raises(BadShares):
        stage.server.receive(replace(sent, self_seed_shares=(replace(first, share=share), *rest)))
    assert stage.server.received == frozenset()
