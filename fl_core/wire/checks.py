"""Size checks on what arrives from the network, with errors that say which field is wrong."""

from collections.abc import Iterable, Sized

from fl_core.errors import RemoteProtocolError
from fl_core.rounds.plan import MAX_COHORT

SESSION_ID_BYTES = 16
DIGEST_BYTES = 32


def check_size(
    what: str, value: Sized, low: int, high: int, error: type[RemoteProtocolError] = RemoteProtocolError
) -> None:
    """Check that `value` has `low` to `high` bytes or entries.

    Raises:
        RemoteProtocolError: or the given kind of it.
    """
    if not low <= len(value) <= high:
        expected = f"{low}" if low == high else f"{low} to {high}"
        raise error(f"{what} has the wrong size", expected=expected, got=len(value))


def session_id_from_proto(session_id: bytes) -> bytes:
    """Check the name of a session: 16 bytes.

    Raises:
        RemoteProtocolError: it has another length.
    """
    check_size("a session_id", session_id, SESSION_ID_BYTES, SESSION_ID_BYTES)
    return session_id


def digest_from_proto(what: str, digest: bytes) -> bytes:
    """Check a SHA-256 digest: 32 bytes.

    Raises:
        RemoteProtocolError: it has another length.
    """
    check_size(what, digest, DIGEST_BYTES, DIGEST_BYTES)
    return digest


def index_from_proto(index: int, size: int = MAX_COHORT) -> int:
    """Check a site's place in a roster of `size` sites.

    Raises:
        RemoteProtocolError: it lies outside.
    """
    if not 0 <= index < size:
        raise RemoteProtocolError(
            "the index of a site is out of range",
            expected=f"below {size}",
            got=index,
            fix="use the places of the plan's roster",
        )
    return index


def indices_from_proto(indices: Iterable[int], size: int = MAX_COHORT) -> tuple[int, ...]:
    """Check a set of sites: distinct and ascending places in a roster of `size` sites.

    Raises:
        RemoteProtocolError: they are not.
    """
    checked: list[int] = []
    for index in indices:
        index_from_proto(index, size)
        if checked and index <= checked[-1]:
            raise RemoteProtocolError(
                "the indices of sites are not in order", expected="distinct, ascending", got=index
            )
        checked.append(index)
    return tuple(checked)
