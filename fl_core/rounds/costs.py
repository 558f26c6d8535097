"""What one attempt costs each party: seconds of one core, bytes and memory, from measured unit costs.

The counts are those of the protocol; the unit costs are a value, measured on some machine. `PACKAGED` are the figures
of the machine that it names, and another machine's come from `tacit plan --measure`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from math import isfinite
from types import MappingProxyType

from fl_core.codec.packing import packed_bytes
from fl_core.crypto.agreement_engine import COMPILED_FROM
from fl_core.crypto.mask_prg import lane_dtype
from fl_core.crypto.shamir import SHARE_BYTES
from fl_core.errors import PlanError
from fl_core.secagg.sealing import SEALED_SHARE_BYTES

FLOAT_BYTES = 4
HEADER_COORDINATES = 2
ADVERTISEMENT_BYTES = 1_000
"""A certificate, two keys, a commitment and a signature, and what frames them."""

SIGNATURE_BYTES = 80
INDEX_BYTES = 4
FRAME_BYTES = 16
HELLO_BYTES = 512
OBJECT_BYTES = 250
"""What a share in memory takes beside its bytes."""


@dataclass(frozen=True, slots=True)
class UnitCosts:
    """Seconds of one core for each thing that a party does many times.

    Args:
        machine: where they were measured: processor and mask engine, no names of hosts.
        key_pair: one key pair.
        signature: one signature made.
        verification: one signature checked.
        agreement: one key agreement.
        agreement_in_numbers: one of many that are made together.
        pair: a mask key derived from an agreement.
        sealing: two share keys derived from an agreement, one share sealed.
        opening: one share opened.
        split: the two secrets of a site shared, for each holder and each coefficient.
        coefficient: a Lagrange coefficient, for each other holder.
        rebuild: one secret rebuilt, for each holder.
        share: one share taken in, checked and passed on by the key server.
        mask_byte: one byte of mask made and added.
        encode: one coordinate clipped, quantised and packed.
        add: one coordinate unpacked and added to a sum.
        decode: one coordinate of the sum as a float.

    Raises:
        PlanError: a cost is not a finite number above zero.
    """

    machine: str
    key_pair: float
    signature: float
    verification: float
    agreement: float
    agreement_in_numbers: float
    pair: float
    sealing: float
    opening: float
    split: float
    coefficient: float
    rebuild: float
    share: float
    mask_byte: float
    encode: float
    add: float
    decode: float

    def __post_init__(self) -> None:
        for name, cost in self.seconds().items():
            if not (isfinite(cost) and cost > 0):
                raise PlanError(f"the unit cost {name} is out of range", expected="seconds above zero", got=cost)

    def seconds(self) -> dict[str, float]:
        """All unit costs by name."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name != "machine"}


PACKAGED = UnitCosts(
    machine="AMD EPYC (Zen 5), one core, masks by VAES, agreements by IFMA",
    key_pair=16e-6,
    signature=20e-6,
    verification=52e-6,
    agreement=34e-6,
    agreement_in_numbers=4.6e-6,
    pair=8e-6,
    sealing=45e-6,
    opening=7.5e-6,
    split=19e-9,
    coefficient=6e-9,
    rebuild=7.5e-9,
    share=0.5e-6,
    mask_byte=0.033e-9,
    encode=1e-9,
    add=0.7e-9,
    decode=0.3e-9,
)


@dataclass(frozen=True, slots=True)
class SessionShape:
    """The sizes that decide what an attempt costs.

    Args:
        size: sites in the roster, n.
        degree: neighbours of each site, n - 1 when the graph is complete.
        threshold: shares that rebuild a secret.
        dropped: sites that drop out after they shared their secrets, the costly place.
        parameters: of the model.
        ring_bits: bits of a coordinate of an upload.
        coordinates: of an upload; a header of two and the parameters when None.

    Raises:
        PlanError: a number is out of range.
    """

    size: int
    degree: int
    threshold: int
    dropped: int
    parameters: int
    ring_bits: int
    coordinates: int | None = None

    def __post_init__(self) -> None:
        if not (0 < self.degree < self.size and 0 <= self.dropped < self.size and self.parameters > 0):
            raise PlanError(
                "an attempt of these sizes is impossible",
                expected="0 < degree < sites, 0 <= dropped < sites, at least one parameter",
                got=f"degree {self.degree}, {self.size} sites, {self.dropped} dropped, {self.parameters} parameters",
            )

    @property
    def length(self) -> int:
        """Coordinates of an upload."""
        return HEADER_COORDINATES + self.parameters if self.coordinates is None else self.coordinates

    @property
    def is_complete(self) -> bool:
        """Whether everybody is everybody's neighbour."""
        return self.degree == self.size - 1

    @property
    def vector_bytes(self) -> int:
        """An upload as a vector in memory."""
        return self.length * lane_dtype(self.ring_bits).itemsize

    @property
    def survivors(self) -> int:
        """Sites that upload."""
        return self.size - self.dropped

    @property
    def pairs(self) -> float:
        """Pairs of a dropped site and a surviving neighbour of it: the agreements of the key server."""
        return self.dropped * self.degree * self.survivors / (self.size - 1)

    @property
    def signers(self) -> float:
        """Signatures over the survivors that a site checks."""
        return min(self.survivors, (self.degree + 1) * self.survivors / self.size)


@dataclass(frozen=True, slots=True)
class PartyCost:
    """What one party spends on one attempt: seconds of one core by step, and bytes of memory that it needs for it."""

    seconds_by_step: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    memory_bytes: int = 0

    @property
    def seconds(self) -> float:
        """All steps together."""
        return sum(self.seconds_by_step.values())


def site_cost(shape: SessionShape, costs: UnitCosts) -> PartyCost:
    """A site, without its training."""
    agreement = _agreement(shape, costs)
    steps = {
        "keys": 3 * costs.key_pair
        + 2 * costs.signature
        + shape.degree * (costs.verification + agreement + costs.sealing)
        + shape.degree * shape.threshold * costs.split,
        "shares": shape.degree * costs.opening,
        "encoding": shape.length * costs.encode,
        "masking": shape.degree * (agreement + costs.pair) + (shape.degree + 1) * shape.vector_bytes * costs.mask_byte,
        "unmasking": shape.signers * costs.verification,
    }
    model = shape.parameters * FLOAT_BYTES
    people = shape.degree * (ADVERTISEMENT_BYTES + 2 * (SEALED_SHARE_BYTES + OBJECT_BYTES))
    return PartyCost(MappingProxyType(steps), 2 * model + 2 * shape.vector_bytes + people)


def key_server_cost(shape: SessionShape, costs: UnitCosts) -> PartyCost:
    """The key server, all its steps on one core; the last two of them can be shared out among cores."""
    shares = shape.size * shape.degree
    # In a complete graph all secrets have the same holders; in a sparse one each has its own.
    sets_of_holders = 1 if shape.is_complete else shape.size
    masks = shape.survivors + shape.pairs
    steps = {
        "signatures": (shape.size + shape.survivors) * costs.verification,
        "shares": (shares + shares * shape.survivors / shape.size) * costs.share,
        "rebuilding": sets_of_holders * shape.threshold**2 * costs.coefficient
        + shape.size * shape.threshold * costs.rebuild
        + shape.dropped * costs.key_pair,
        "agreeing": shape.pairs * (_agreement(shape, costs) + costs.pair),
        "expanding": masks * shape.vector_bytes * costs.mask_byte,
    }
    held = shares * (SEALED_SHARE_BYTES + SHARE_BYTES + 2 * OBJECT_BYTES) + shape.size * ADVERTISEMENT_BYTES
    return PartyCost(MappingProxyType(steps), shape.vector_bytes + held)


def aggregator_cost(shape: SessionShape, costs: UnitCosts) -> PartyCost:
    """The aggregator: one running sum, one upload at a time."""
    steps = {"adding": (shape.survivors + 1) * shape.length * costs.add}
    upload = packed_bytes(shape.length, shape.ring_bits)
    return PartyCost(MappingProxyType(steps), 2 * shape.vector_bytes + upload)


def coordinator_cost(shape: SessionShape, costs: UnitCosts) -> PartyCost:
    """The coordinator, when it applies the sum."""
    steps = {"decoding": shape.length * costs.decode}
    return PartyCost(MappingProxyType(steps), 3 * shape.parameters * FLOAT_BYTES + shape.vector_bytes)


def _agreement(shape: SessionShape, costs: UnitCosts) -> float:
    """A site agrees with all of its neighbours together; few of them are not worth loading compiled code for."""
    return costs.agreement_in_numbers if shape.degree >= COMPILED_FROM else costs.agreement


def bytes_up(shape: SessionShape) -> int:
    """Message bytes that one site sends: keys, shares, its upload, a signature, revealed shares."""
    shares = shape.degree * (SEALED_SHARE_BYTES + FRAME_BYTES) + (shape.degree + 1) * (SHARE_BYTES + FRAME_BYTES)
    upload = packed_bytes(shape.length, shape.ring_bits)
    return upload + shares + ADVERTISEMENT_BYTES + SIGNATURE_BYTES + HELLO_BYTES


def bytes_down(shape: SessionShape) -> int:
    """Message bytes that one site is sent: the model, keys, shares, the survivors and their signatures."""
    per_neighbour = ADVERTISEMENT_BYTES + SEALED_SHARE_BYTES + 2 * FRAME_BYTES
    lists = shape.size * 2 * INDEX_BYTES + int(shape.signers * (SIGNATURE_BYTES + INDEX_BYTES))
    return shape.parameters * FLOAT_BYTES + shape.degree * per_neighbour + lists + HELLO_BYTES
