"""The turn of a phase: it is taken once, and given back when the step raises."""

from types import TracebackType
from typing import NoReturn, Self

from fl_core.errors import LocalProtocolError


class Turn:
    """The right to step a phase. Use it as a context manager around the whole step.

    A step that raises has changed nothing, so its turn comes back; a step that ends well has used it for ever. A phase
    holds secrets and may move once, so that its turn, and with it the phase, can be neither copied nor stored.
    """

    __slots__ = ("_tokens",)

    def __init__(self) -> None:
        # Popping an element is atomic: of two threads that step one phase, one gets the token.
        self._tokens = [None]

    def __enter__(self) -> Self:
        try:
            self._tokens.pop()
        except IndexError:
            raise LocalProtocolError(
                "a phase was stepped twice",
                expected="one step per phase",
                fix="go on from the phase that the first step returned, or start a new attempt",
            ) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._tokens.append(None)

    def __reduce__(self) -> NoReturn:
        raise LocalProtocolError("a phase cannot be copied or stored", expected="a new attempt with new keys")

    def __repr__(self) -> str:
        return f"Turn(taken={not self._tokens})"
