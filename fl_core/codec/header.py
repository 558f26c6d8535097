"""The first coordinates of an upload: weight, count, and what the site says about the width of its update.

They are masked and summed like every other coordinate, so that each must be below 2**bits. A number that needs more is
written in digits of `bits` bits, lowest first, one coordinate each: the sum of numbers is the number whose digits are
the sums. The order is

    weight digit 0, one, weight digits 1.., [reach digits.., clamped]

with what stands in brackets only when the codec is adaptive. For 14 bits and more a weight below 2**14 is one digit,
and the header has two coordinates.
"""

from dataclasses import dataclass

from fl_core.codec.spec import REACH_BITS, CodecSpec
from fl_core.crypto.mask_prg import RingVector
from fl_core.errors import BadAggregate, CodecError


@dataclass(frozen=True, slots=True)
class UploadHeader:
    """What one upload, or a sum of uploads, says about itself.

    Args:
        weight: samples.
        count: uploads; one of a single site.
        reach: see `fl_core.codec.span`; 0 when the codec is not adaptive.
        clamped: uploads that the span was too narrow for.
    """

    weight: int
    count: int = 1
    reach: int = 0
    clamped: int = 0


def write_header(spec: CodecSpec, max_weight: int, header: UploadHeader, out: RingVector) -> None:
    """Write the header of one site.

    Args:
        spec: of the plan.
        max_weight: of the plan.
        header: of this site.
        out: (spec.header(max_weight),) in the lane of the ring.
    """
    first, *others = _digits(header.weight, spec.digits(max_weight.bit_length()), spec.bits)
    words = [first, header.count, *others]
    if spec.adaptive:
        words += [*_digits(header.reach, spec.digits(REACH_BITS), spec.bits), header.clamped]
    out[:] = words


def read_header(spec: CodecSpec, max_weight: int, words: RingVector) -> UploadHeader:
    """Read the header of an upload or of a sum; whether it is possible is for `check_sum` to say.

    Args:
        spec: of the plan.
        max_weight: of the plan.
        words: (spec.header(max_weight),) unsigned.

    Raises:
        CodecError: there are not as many coordinates.
    """
    if words.shape != (spec.header(max_weight),):
        raise CodecError("a header has the wrong length", expected=f"({spec.header(max_weight)},)", got=words.shape)
    numbers = [int(word) for word in words]
    weights = spec.digits(max_weight.bit_length())
    weight = _number([numbers[0], *numbers[2 : 1 + weights]], spec.bits)
    if not spec.adaptive:
        return UploadHeader(weight, numbers[1])
    return UploadHeader(weight, numbers[1], _number(numbers[1 + weights : -1], spec.bits), numbers[-1])


def check_sum(header: UploadHeader, survivors: int, max_weight: int) -> None:
    """Check that a header can be that of a sum of so many uploads.

    Raises:
        BadAggregate: it cannot.
    """
    if survivors < 1 or header.count != survivors:
        raise BadAggregate(
            "the sum does not count its survivors",
            expected=f"{survivors} uploads",
            got=header.count,
            fix="the attempt is run again; if it happens twice, look for a site or service that misbehaves",
        )
    if not survivors <= header.weight <= survivors * max_weight:
        raise BadAggregate(
            "the total weight is impossible", expected=f"{survivors} to {survivors * max_weight}", got=header.weight
        )
    if header.reach > survivors * ((1 << REACH_BITS) - 1) or header.clamped > survivors:
        raise BadAggregate(
            "what a sum says about its widths is impossible",
            expected=f"up to {survivors} sites of {REACH_BITS} bits",
            got=f"{header.reach} and {header.clamped}",
        )


def _digits(number: int, count: int, bits: int) -> list[int]:
    return [(number >> (bits * place)) & ((1 << bits) - 1) for place in range(count)]


def _number(digits: list[int], bits: int) -> int:
    return sum(digit << (bits * place) for place, digit in enumerate(digits))
