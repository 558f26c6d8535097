"""What a cohort gets before it exists: graph, threshold, ring, bytes, seconds and memory, or why it cannot hold."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from fl_core.codec.spec import BITS, smallest_ring
from fl_core.errors import PlanError
from fl_core.rounds.costs import (
    PartyCost,
    SessionShape,
    UnitCosts,
    aggregator_cost,
    bytes_down,
    bytes_up,
    coordinator_cost,
    key_server_cost,
    site_cost,
)
from fl_core.secagg.context import SMALLEST_COHORT
from fl_core.secagg.degrees import Profile
from fl_core.secagg.profiles import (
    GraphKind,
    check_thresholds,
    choose_graph,
    default_threshold,
    most_dropouts,
)


@dataclass(frozen=True, slots=True)
class Question:
    """A cohort and a model.

    Args:
        sites: in the roster.
        parameters: of the model.
        max_dropout: fraction of sites that an attempt must survive losing.
        max_corrupt: fraction of sites assumed to collude with the servers.
        bits: bits of one site's coordinate.
        ring_bits: bits of a coordinate of an upload; the fewest that hold the sum when None.
        coordinates: of an upload; a header of two and the parameters when None.
        threshold: shares that rebuild a secret, of a complete graph; the graph and its default when None.
        min_survivors: fewest uploads that are summed; as few as hold when None.
        profile: what a sparse graph must hold against.

    Raises:
        PlanError: a number is out of range.
    """

    sites: int
    parameters: int
    max_dropout: float
    max_corrupt: float
    bits: int
    ring_bits: int | None = None
    threshold: int | None = None
    min_survivors: int | None = None
    profile: Profile = Profile.EQUIVOCATION_SAFE
    coordinates: int | None = None

    def __post_init__(self) -> None:
        if self.sites < SMALLEST_COHORT:
            raise PlanError("the cohort is too small to hide a site", expected=f">= {SMALLEST_COHORT}", got=self.sites)
        if self.parameters < 1:
            raise PlanError("the model is empty", expected="at least one parameter", got=self.parameters)
        if self.bits not in BITS:
            raise PlanError("bits is out of range", expected=f"{BITS[0]} to {BITS[-1]}", got=self.bits)
        for name in ("max_dropout", "max_corrupt"):
            if not 0 <= getattr(self, name) < 1:
                raise PlanError(f"{name} is out of range", expected="0 <= x < 1", got=getattr(self, name))


@dataclass(frozen=True, slots=True)
class Forecast:
    """What the cohort gets. Seconds are of one core, without training and without the network."""

    graph: str
    shape: SessionShape
    bits: int
    min_survivors: int
    bytes_up: int
    bytes_down: int
    machine: str
    parties: Mapping[str, PartyCost] = field(default_factory=lambda: MappingProxyType({}))

    def to_json(self) -> dict[str, object]:
        """For `json.dumps`."""
        shape = self.shape
        return {
            "sites": shape.size,
            "parameters": shape.parameters,
            "graph": self.graph,
            "degree": shape.degree,
            "threshold": shape.threshold,
            "bits": self.bits,
            "ring_bits": shape.ring_bits,
            "min_survivors": self.min_survivors,
            "dropped": shape.dropped,
            "bytes_up_per_site": self.bytes_up,
            "bytes_down_per_site": self.bytes_down,
            "unit_costs": self.machine,
            "parties": {name: _party_to_json(cost) for name, cost in self.parties.items()},
        }


def foresee(question: Question, costs: UnitCosts) -> Forecast:
    """Answer a question, for as many drop-outs as it allows, all of them at the costliest place.

    Raises:
        PlanError: the cohort cannot hold; the message names the number to change.
    """
    size, dropped = question.sites, most_dropouts(question.sites, question.max_dropout)
    graph, degree, threshold = _graph(question)
    # On a sparse graph the degree was proved for no fewer survivors than max_dropout leaves.
    fewest = threshold if graph is GraphKind.COMPLETE else size - dropped
    min_survivors = _survivors(question, fewest, size - dropped)
    shape = SessionShape(
        size, degree, threshold, dropped, question.parameters, _ring_bits(question), question.coordinates
    )
    parties = {
        "site": site_cost(shape, costs),
        "key server": key_server_cost(shape, costs),
        "aggregator": aggregator_cost(shape, costs),
        "coordinator": coordinator_cost(shape, costs),
    }
    return Forecast(
        graph.value,
        shape,
        question.bits,
        min_survivors,
        bytes_up(shape),
        bytes_down(shape),
        costs.machine,
        MappingProxyType(parties),
    )


def _graph(question: Question) -> tuple[GraphKind, int, int]:
    """Kind, degree and threshold: as the planner of rounds chooses them."""
    size = question.sites
    if question.threshold is None:
        chosen = choose_graph(size, question.max_corrupt, question.max_dropout, question.profile)
        if chosen.kind is GraphKind.HARARY:
            return chosen.kind, chosen.degree, chosen.threshold
    threshold = question.threshold or default_threshold(size)
    check_thresholds(size, threshold, question.max_dropout, question.max_corrupt)
    return GraphKind.COMPLETE, size - 1, threshold


def _ring_bits(question: Question) -> int:
    """The smallest ring in which the sum of the cohort cannot wrap around."""
    needed = smallest_ring(question.bits, question.sites)
    if question.ring_bits is not None and question.ring_bits < needed:
        raise PlanError(
            "the ring can overflow",
            expected=f"ring_bits >= {needed} for {question.sites} sites of {question.bits} bits",
            got=question.ring_bits,
            fix="raise ring_bits, or lower bits or the cohort",
        )
    return question.ring_bits or needed


def _survivors(question: Question, fewest: int, most: int) -> int:
    wanted = max(question.min_survivors or fewest, fewest)
    if wanted > most:
        raise PlanError(
            "min_survivors leaves no room for the drop-outs",
            expected=f"at most {most} of {question.sites} sites",
            got=wanted,
            fix="lower min_survivors or max_dropout",
        )
    return wanted


def _party_to_json(cost: PartyCost) -> dict[str, object]:
    steps = {name: float(f"{seconds:.3g}") for name, seconds in cost.seconds_by_step.items()}
    return {"seconds": float(f"{cost.seconds:.3g}"), "memory_bytes": cost.memory_bytes, "steps": steps}
