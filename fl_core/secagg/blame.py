"""Who lied about shares: how a holder takes what it was dealt, and what a key server concludes from what it is shown.

A share that is not what its dealer committed to is dropped and its holder blamed: the holder had checked the share
against the commitment when it opened it. A dealer whose right shares do not rebuild what it advertised is blamed
itself. A complaint alone proves nothing, because holder and dealer can each have made it up: it counts against a site
only when more sites stand behind it than there can be liars.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fl_core.errors import BadShares
from fl_core.secagg.commitments import commit_pair
from fl_core.secagg.directory import Directory
from fl_core.secagg.messages import SealedShare
from fl_core.secagg.sealing import HeldShares, open_shares


class FalseDealing(BadShares):
    """The right shares of these dealers do not rebuild what they advertised; the attempt cannot be unmasked.

    Args:
        dealers: their indices, ascending.
        what: which secret of the first of them.
    """

    code = "false_dealing"

    def __init__(self, dealers: Sequence[int], what: str) -> None:
        self.dealers = tuple(dealers)
        others = f" (and {len(dealers) - 1} more)" if len(dealers) > 1 else ""
        super().__init__(
            f"the shares of site {dealers[0]} do not rebuild its {what}{others}",
            expected="the secret that the site committed to in its advertisement",
            fix="run the round again without the site",
        )


@dataclass(frozen=True, slots=True)
class Blame:
    """What the reveals of one session show.

    Args:
        holders: sites that revealed a share which is not what its dealer committed to.
        complaints: by dealer, the sites that say that it dealt them nothing usable.
    """

    holders: frozenset[int]
    complaints: Mapping[int, frozenset[int]]

    def dealers(self, tolerated: int) -> frozenset[int]:
        """Dealers with more complaints than there can be liars."""
        return frozenset(dealer for dealer, who in self.complaints.items() if len(who) > tolerated)

    def complainers(self, tolerated: int) -> frozenset[int]:
        """Sites that complain about more dealers than there can be liars."""
        counts: dict[int, int] = {}
        for who in self.complaints.values():
            for holder in who:
                counts[holder] = counts.get(holder, 0) + 1
        return frozenset(holder for holder, count in counts.items() if count > tolerated)


def open_relayed(
    directory: Directory, index: int, relayed: Iterable[SealedShare], keys: Mapping[int, bytes], needed: int
) -> dict[int, HeldShares]:
    """Open what the dealers sealed for us, and leave out those whose shares do not open or fit their commitment.

    One dealer that sends nonsense must not be able to end the attempt of everybody else.

    Args:
        directory: U1.
        index: ours.
        relayed: what the key server relayed, with its commitments.
        keys: one-time keys, by sender.
        needed: usable shares of others, below which we are of no help and something is wrong at large.

    Returns:
        The shares of each dealer that can be used. We complain about the others when we reveal.

    Raises:
        BadShares: too few of them can be used; the first reason is given.
    """
    held: dict[int, HeldShares] = {}
    first: BadShares | None = None
    for sealed in relayed:
        try:
            held[sealed.sender] = _open_right(directory, index, sealed, keys[sealed.sender])
        except BadShares as error:
            first = first or error
    if first is not None and len(held) < needed:
        raise first
    return held


def _open_right(directory: Directory, index: int, sealed: SealedShare, key: bytes) -> HeldShares:
    shares = open_shares(directory, sealed, key)
    pair = commit_pair(directory.context, sealed.sender, index, shares.mask_key, shares.self_seed)
    if pair != sealed.commitments:
        raise BadShares(
            "shares are not those that their dealer committed to",
            expected="the commitments that the key server relayed",
            got=f"other shares of site {sealed.sender}",
        )
    return shares
