"""Every preset: unbiased or contractive as it says, exact under masks, as long as planned, never overflowing."""

import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.codec.header import UploadHeader, check_sum, read_header, write_header
from fl_core.codec.packing import packed_bytes
from fl_core.codec.plain_payload import PayloadKind, largest_payload, read_payload, write_payload
from fl_core.codec.presets import PRESETS
from fl_core.codec.rotation import padded_length
from fl_core.codec.span import MARGIN_FIRST, Span, next_span, reach_of
from fl_core.codec.spec import CodecSpec, Levels, Selection, smallest_ring
from fl_core.codec.support import shared_support
from fl_core.codec.tensors import TensorManifest, TensorSpec
from fl_core.codec.update_codec import UpdateCodec
from fl_core.crypto.mask_prg import add_mask, reduce_ring, subtract_mask
from fl_core.errors import BadAggregate, CodecError, PlanError
from fl_core.rounds.job import read_codec
from fl_core.rounds.planner import choose_codec

MASKABLE = [name for name, preset in PRESETS.items() if preset.is_maskable]
SITES = 10


def codec_named(
    name: str, size: int, sites: int = SITES, max_weight: int = 1000, seed: int = 0, span: float | None = None
) -> UpdateCodec:
    spec = choose_codec(read_codec(name), sites, span)
    return UpdateCodec(
        spec, TensorManifest((TensorSpec("w", "float32", (size,)),)), max_weight, seed.to_bytes(32, "big")
    )


def normal(size: int, seed: int = 0, width: float = 0.1) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(size) * width).astype(np.float32)


@pytest.mark.parametrize("name", MASKABLE)
@pytest.mark.parametrize("size", [0, 1, 17, 1000, 5003])
def test_the_masked_aggregate_is_the_plain_one_bit_for_bit(name: str, size: int) -> None:
    codec = codec_named(name, size, span=0.5)
    uploads = [codec.encode(normal(size, site), 100 * site + 1, os.urandom) for site in range(SITES)]
    plain, masked = np.zeros_like(uploads[0]), np.zeros_like(uploads[0])
    keys = [bytes([site]) * 16 for site in range(SITES)]
    for upload, key in zip(uploads, keys, strict=True):
        plain += upload
        hidden = upload.copy()
        add_mask(hidden, key)
        reduce_ring(hidden, codec.spec.ring_bits)
        masked += hidden
    for key in keys:
        subtract_mask(masked, key)
    reduce_ring(masked, codec.spec.ring_bits)
    exact = np.sum([upload.astype(np.uint64) for upload in uploads], axis=0)
    assert masked.tobytes() == plain.tobytes()
    np.testing.assert_array_equal(exact, plain)
    ours, theirs = codec.decode_sum(masked, SITES), codec.decode_sum(exact, SITES)
    assert ours.mean_update.tobytes() == theirs.mean_update.tobytes()
    assert ours.total_weight == sum(100 * site + 1 for site in range(SITES))


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("size", [0, 1, 17, 1000, 5003])
def test_the_payload_of_a_plain_round_is_the_upload_bit_for_bit(name: str, size: int) -> None:
    codec = codec_named(name, size, span=0.5)
    upload = codec.encode(normal(size), 999, os.urandom)
    payload = write_payload(codec.spec, 1000, upload)
    back = read_payload(codec.spec, size, 1000, payload)
    assert (back.tobytes(), back.dtype) == (upload.tobytes(), upload.dtype)
    assert len(payload) <= largest_payload(codec.spec, size, 1000)


@pytest.mark.parametrize("name", ["exact32", "int16", "int8", "int8-rotated", "int4-rotated", "one-bit"])
def test_the_mean_over_seeds_and_coins_is_the_update(name: str) -> None:
    # 400 draws; the deviation of the mean of each of 256 coordinates is a twentieth of that of one draw. Six of them:
    # the chance that a correct codec fails is below 1 in 10**6, and the seeds of supports and rotations are fixed.
    size, draws = 256, 400
    update = normal(size, 5)
    total, squares = np.zeros(size), np.zeros(size)
    for seed in range(draws):
        codec = codec_named(name, size, seed=seed, span=1.0)
        coins = np.random.default_rng(seed).bytes
        decoded = codec.decode_sum(codec.encode(update, 500, coins), 1).mean_update.astype(np.float64)
        total, squares = total + decoded, squares + decoded**2
    mean = total / draws
    deviation = np.sqrt(np.maximum(squares / draws - mean**2, 0) / draws)
    # A level that is seldom taken may not have been taken at all: the width of a level bounds what that hides.
    level = 2 * codec.spec.width / codec.spec.top * 1000 / 500
    assert (np.abs(mean - update) <= 6 * (deviation + level / 2 / np.sqrt(draws))).all()


@pytest.mark.parametrize("selection", ["random", "blocks"])
@pytest.mark.parametrize("rotation", [False, True])
def test_a_support_without_feedback_is_unbiased(selection: str, rotation: bool) -> None:
    size, draws = 300, 3000
    choice = read_codec({"bits": 12, "selection": selection, "density": 0.25, "rotation": rotation})
    spec = choose_codec(choice, SITES)
    manifest = TensorManifest((TensorSpec("w", "float32", (size,)),))
    update = normal(size, 5)
    total = np.zeros(size)
    for seed in range(draws):
        codec = UpdateCodec(spec, manifest, 10, seed.to_bytes(32, "big"))
        total += codec.decode_sum(codec.encode(update, 10, np.random.default_rng(seed).bytes), 1).mean_update
    # A draw deviates by at most sqrt(4) times the norm in one coordinate; six deviations of the mean of 3000.
    bound = 6 * 2 * (np.linalg.norm(update) if rotation else np.abs(update).max()) / np.sqrt(draws)
    assert np.abs(total / draws - update).max() < bound


@pytest.mark.parametrize("name", [name for name in PRESETS if dict(PRESETS[name].settings).get("feedback")])
def test_what_travels_and_what_is_left_are_the_update(name: str) -> None:
    codec = codec_named(name, 2000, span=1.0)
    update = normal(2000)
    upload = codec.encode(update, 1000, os.urandom)
    rest = codec.rest_of(update, upload)
    decoder = codec.open_sum(upload[: codec.header_length], 1)
    np.testing.assert_allclose(rest + decoder.restore(decoder.decode(upload[codec.header_length :])), update, atol=1e-6)
    assert np.linalg.norm(rest) < np.linalg.norm(update)


@settings(deadline=None)
@given(st.integers(1, 24), st.integers(1, 2**48 - 1), st.data())
def test_headers_add_up(bits: int, max_weight: int, data: st.DataObject) -> None:
    adaptive = data.draw(st.booleans())
    sites = data.draw(st.integers(1, min(100, (1 << 32) // (1 << bits))))
    spec = CodecSpec(1.0, bits, smallest_ring(bits, sites), adaptive=adaptive)
    total = np.zeros(spec.header(max_weight), np.uint64)
    told = []
    for _ in range(sites):
        reach, clamped = (data.draw(st.integers(0, 255)), data.draw(st.integers(0, 1))) if adaptive else (0, 0)
        header = UploadHeader(data.draw(st.integers(1, max_weight)), 1, reach, clamped)
        words = np.zeros(spec.header(max_weight), np.uint32)
        write_header(spec, max_weight, header, words)
        assert read_header(spec, max_weight, words) == header
        assert words.max() < 1 << bits
        total += words
        told.append(header)
    assert total.max() < 1 << spec.ring_bits
    summed = read_header(spec, max_weight, total)
    assert summed.weight == sum(header.weight for header in told)
    assert (summed.count, summed.reach) == (sites, sum(header.reach for header in told))
    check_sum(summed, sites, max_weight)


def test_an_impossible_header_is_refused() -> None:
    for header in (
        UploadHeader(0, 2),
        UploadHeader(21, 2),
        UploadHeader(5, 3),
        UploadHeader(5, 2, 511),
        UploadHeader(5, 2, 0, 3),
    ):
        with pytest.raises(BadAggregate):
            check_sum(header, 2, 10)
    with pytest.raises(CodecError, match="wrong length"):
        read_header(CodecSpec(1.0, 8, 12), 10, np.zeros(3, np.uint16))


def test_int8_of_ten_sites_needs_twelve_bits_for_each_parameter() -> None:
    size = 1_000_000
    codec = codec_named("int8", size)
    assert codec.spec.ring_bits == 12
    assert packed_bytes(codec.length, codec.spec.ring_bits) * 8 / size < 12.001


def test_one_per_cent_is_less_than_a_two_hundredth_of_floats() -> None:
    for size in (10_026, 587_392, 1_000_000):
        codec = codec_named("sparse-1pct-int8", size)
        assert packed_bytes(codec.length, codec.spec.ring_bits) < 4 * size / 200


@pytest.mark.parametrize("selection", [Selection.RANDOM, Selection.BLOCKS])
def test_of_a_tiny_model_so_much_travels_that_it_learns(selection: Selection) -> None:
    spec = CodecSpec(1.0, 8, 12, selection=selection, density=0.01)
    for size in (0, 1, 62, 120):
        assert spec.kept(size) == size
    assert 120 <= spec.kept(10_000) < 200
    assert 900 <= spec.kept(100_000) < 1100


@pytest.mark.parametrize(("size", "factor"), [(10_000, 1e4 / 120 * 120 / 520), (1_000_000, 100 * 1e4 / 10_400)])
def test_with_feedback_few_coordinates_count_for_less_than_their_rarity(size: int, factor: float) -> None:
    choice = read_codec({"bits": 12, "selection": "random", "density": 0.01, "feedback": 0.3})
    codec = UpdateCodec(choose_codec(choice, SITES), TensorManifest((TensorSpec("w", "float32", (size,)),)), 10)
    decoder = codec.open_sum(codec.encode(np.zeros(size, np.float32), 10, os.urandom)[: codec.header_length], 1)
    mean = decoder.expand(np.ones(codec.length - codec.header_length, np.float32))
    assert mean[mean != 0].mean() == pytest.approx(factor, rel=0.02)


@pytest.mark.parametrize("name", PRESETS)
def test_the_length_is_what_the_plan_says(name: str) -> None:
    for size in (0, 1, 63, 64, 65, 1000, 100_000):
        codec = codec_named(name, size)
        assert len(codec.encode(np.zeros(size, np.float32), 1, os.urandom)) == codec.length


@settings(deadline=None)
@given(
    st.integers(1, 5000), st.floats(1e-3, 1), st.sampled_from([Selection.RANDOM, Selection.BLOCKS]), st.integers(0, 99)
)
def test_a_support_is_a_set_in_order(size: int, density: float, selection: Selection, seed: int) -> None:
    spec = CodecSpec(1.0, 8, 12, selection=selection, density=density)
    support = shared_support(spec, size, seed.to_bytes(16, "big"))
    assert len(support.places) == len(support.rarity) == spec.kept(size)
    assert (np.diff(support.places) > 0).all()
    assert support.places[0] >= 0
    assert support.places[-1] < size
    np.testing.assert_array_equal(support.places, shared_support(spec, size, seed.to_bytes(16, "big")).places)


def test_every_coordinate_has_its_turn_in_a_support() -> None:
    spec = CodecSpec(1.0, 8, 12, selection=Selection.RANDOM, density=0.1)
    seen = {int(place) for seed in range(200) for place in shared_support(spec, 200, seed.to_bytes(16, "big")).places}
    assert seen == set(range(200))


def test_the_span_finds_the_updates_and_widens_when_a_site_is_clamped() -> None:
    reach = sum(reach_of(width, 1.0) for width in (0.01, 0.02, 0.04))
    span = next_span(reach, 0, 3, 1.0)
    assert 0.02 * 2**0.8 < span.width < 0.02 * 2**1.3
    assert next_span(reach, 1, 3, 1.0, span.margin).width > span.width
    assert next_span(reach, 0, 3, 1.0, span.margin).width < span.width
    assert next_span(3 * 255, 3, 3, 1.0).width == 1.0, "never wider than the clip"
    assert next_span(0, 0, 3, 1.0).width > 0
    assert reach_of(0.0, 1.0) == 0
    assert reach_of(1.0, 1.0) == 252
    assert Span(1.0).margin == MARGIN_FIRST
    for wrong in ((0.0, 1.0), (float("nan"), 1.0), (1.0, 0.0), (1.0, 9.0)):
        with pytest.raises(CodecError, match="span"):
            Span(*wrong)


def test_an_adaptive_upload_says_how_wide_it_is_and_whether_it_was_clamped() -> None:
    codec = codec_named("int8", 100, span=0.25)
    for width, clamped in ((0.125, 0), (0.5, 1)):
        upload = codec.encode(np.full(100, width, np.float32), 1000, os.urandom)
        header = read_header(codec.spec, 1000, upload[: codec.header_length])
        assert (header.reach, header.clamped) == (reach_of(width, 1.0), clamped)


def test_few_bits_are_calibrated_in_their_first_round() -> None:
    assert choose_codec(read_codec("int4-rotated"), SITES).bits == 16
    known = choose_codec(read_codec("int4-rotated"), SITES, 0.01)
    assert (known.bits, known.ring_bits, known.width) == (4, 8, 0.01)
    assert choose_codec(read_codec("int8"), SITES).bits == 8
    assert choose_codec(read_codec("int16"), SITES, 0.01).span is None, "a codec that is not adaptive keeps its clip"


def test_the_largest_coordinates_travel_exactly_where_they_are() -> None:
    codec = codec_named("top-1pct-int8", 1000, span=1.0)
    update = np.zeros(1000, np.float32)
    update[[3, 700]] = 0.5, -0.25
    decoded = codec.decode_sum(codec.encode(update, 1000, os.urandom), 1).mean_update
    assert np.flatnonzero(np.abs(decoded) > 0.02).tolist() == [3, 700]
    assert np.count_nonzero(decoded) <= 10


def test_one_bit_keeps_the_direction() -> None:
    codec = codec_named("one-bit", 4096, span=1.0)
    update = normal(4096)
    decoded = codec.decode_sum(codec.encode(update, 1000, os.urandom), 1).mean_update
    cosine = decoded @ update / np.linalg.norm(decoded) / np.linalg.norm(update)
    assert abs(cosine - np.sqrt(2 / np.pi)) < 0.03
    assert len(write_payload(codec.spec, 1000, codec.encode(update, 1000, os.urandom))) < 4096 / 8 + 40


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_no_preset_encodes_what_is_not_finite(name: str, wrong: float) -> None:
    update = np.zeros(500, np.float32)
    update[321] = wrong
    with pytest.raises(CodecError, match="NaN or infinite"):
        codec_named(name, 500).encode(update, 1, os.urandom)


@pytest.mark.parametrize("name", ["int8", "top-1pct-int8", "one-bit"])
def test_a_damaged_payload_is_refused_or_another_upload(name: str) -> None:
    codec = codec_named(name, 3000, span=0.5)
    payload = write_payload(codec.spec, 1000, codec.encode(normal(3000), 999, os.urandom)).tobytes()
    for wrong in (b"", payload[:1], payload[:-1], payload + b"\0", b"\x09" + payload[1:]):
        with pytest.raises(CodecError):
            read_payload(codec.spec, 3000, 1000, wrong)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(PRESETS)), st.binary(max_size=60), st.integers(0, 3))
def test_any_bytes_are_an_upload_or_refused(name: str, data: bytes, kind: int) -> None:
    codec = codec_named(name, 40)
    try:
        upload = read_payload(codec.spec, 40, 1000, bytes([kind]) + data)
    except CodecError:
        return
    assert len(upload) == codec.length
    assert upload[codec.header_length :].max(initial=0) <= codec.spec.top or kind in (
        PayloadKind.PACKED,
        PayloadKind.ZSTD,
    )


def test_levels_that_cluster_shrink() -> None:
    codec = codec_named("int8", 100_000, span=1.0)
    payload = write_payload(codec.spec, 1000, codec.encode(normal(100_000, width=0.01), 1000, os.urandom))
    assert payload[0] == PayloadKind.ZSTD
    assert len(payload) < 0.6 * 100_000


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"density": 0.5}, "density"),
        ({"density": 0.0, "selection": Selection.RANDOM}, "density"),
        ({"selection": Selection.TOP, "density": 0.1, "rotation": True}, "rotated"),
        ({"levels": Levels.SIGN}, "rotation"),
        ({"levels": Levels.SIGN, "rotation": True, "bits": 1}, "zero"),
        ({"selection": Selection.TOP, "density": 0.1, "bits": 1}, "zero"),
        ({"feedback": 1.5}, "feedback"),
        ({"span": 2.0}, "span"),
        ({"bits": 25}, "bits"),
        ({"ring_bits": 33}, "ring_bits"),
    ],
)
def test_stages_that_do_not_fit_together_are_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        replace(CodecSpec(1.0, 8, 12), **change)  # type: ignore[arg-type]


def test_the_ring_is_the_smallest_that_cannot_overflow() -> None:
    for bits in range(1, 25):
        for cohort in (1, 3, 10, 100, 256):
            ring = smallest_ring(bits, cohort)
            assert 1 << ring > cohort * ((1 << bits) - 1)
            assert ring == 8 or 1 << (ring - 1) <= cohort * ((1 << bits) - 1)
    with pytest.raises(PlanError, match="lower bits to 22"):
        smallest_ring(24, 1000)


def test_rotated_uploads_are_padded_by_little() -> None:
    assert codec_named("int4-rotated", 587_392, span=1.0).spec.body(587_392) == padded_length(587_392) < 1.01 * 587_392
