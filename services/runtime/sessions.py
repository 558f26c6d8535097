"""The open sessions of a service: bounded in number, each with a deadline, so that nothing leaks."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, Protocol, TypeVar

from fl_core.errors import Overloaded, PermissionRefused, TacitError, UnknownSession
from fl_core.rounds.plan import RoundPlan
from fl_core.transport.identity import Identity
from services.runtime.events import Notice

SESSION_GRACE_S = 60.0
"""Seconds that a session outlives the longest attempt that its schedule allows."""

LINGER_S = 60.0
"""Seconds for which a finished session still answers repeated calls."""

_REMEMBERED = 1024


class Session(Protocol):
    """What the table needs to know about a session."""

    @property
    def plan(self) -> RoundPlan: ...

    def end(self, error: TacitError) -> None:
        """Drop everything that is held, and raise `error` in everybody who waits."""


SessionT = TypeVar("SessionT", bound=Session)


def lifetime_s(plan: RoundPlan) -> float:
    """Seconds after which an attempt must be over, with a margin."""
    schedule = plan.schedule
    phases = (schedule.advertising, schedule.sharing, schedule.uploading, schedule.signing, schedule.revealing)
    return sum(bounds.max_seconds for bounds in phases) + SESSION_GRACE_S


class SessionTable(Generic[SessionT]):
    """Sessions by their id. Every session belongs to the coordinator that opened it.

    A coordinator that takes over from another one can do nothing with the other's sessions but give them up.

    Args:
        max_open: sessions that may be open at once; finished ones do not count.
    """

    def __init__(self, max_open: int) -> None:
        self._max_open = max_open
        self._sessions: dict[bytes, SessionT] = {}
        self._owners: dict[bytes, Identity] = {}
        self._timers: dict[bytes, asyncio.TimerHandle] = {}
        self._finished: set[bytes] = set()
        self._gone: OrderedDict[bytes, str] = OrderedDict()
        self._draining = False
        self._ended = Notice()

    def __iter__(self) -> Iterator[SessionT]:
        return iter(list(self._sessions.values()))

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def open_sessions(self) -> list[SessionT]:
        """Sessions that are not finished."""
        return [session for session_id, session in self._sessions.items() if session_id not in self._finished]

    def find(self, session_id: bytes, owner: Identity) -> SessionT | None:
        """The session, when `owner` opened it already.

        Raises:
            PermissionRefused: another coordinator did.
        """
        return self.owned(session_id, owner) if session_id in self._sessions else None

    def knows(self, session_id: bytes) -> bool:
        """Whether there is a session of this id, whoever opened it."""
        return session_id in self._sessions

    def add(self, session: SessionT, owner: Identity) -> None:
        """Keep a new session until its deadline.

        Raises:
            Overloaded: as many sessions as this service takes are open.
        """
        self._check_room()
        plan = session.plan
        self._sessions[plan.session_id] = session
        self._owners[plan.session_id] = owner
        self._schedule(plan.session_id, lifetime_s(plan), "expired")

    def supersede(self, plan: RoundPlan) -> None:
        """Drop older attempts of the same job: a coordinator that restarted, or took over, may not know of them."""
        newer = (plan.round_id, plan.attempt)
        for session in self.open_sessions:
            older = session.plan
            if older.job_id == plan.job_id and (older.round_id, older.attempt) < newer:
                self.drop(older.session_id, "superseded by a newer attempt of its job")

    def owner_id(self, session_id: bytes) -> str:
        """Id of the coordinator that opened a session.

        Raises:
            UnknownSession: there is none, or none any more.
        """
        self.get(session_id)
        return self._owners[session_id].id

    def _check_room(self) -> None:
        if self._draining:
            raise Overloaded("this service stops and takes no new session", fix="try again when it has been restarted")
        if len(self.open_sessions) >= self._max_open:
            raise Overloaded(
                "this service has no room for another session",
                expected=f"fewer than {self._max_open} open sessions",
                got=len(self.open_sessions),
                fix="try again later, or raise max_sessions in its configuration",
            )

    def get(self, session_id: bytes) -> SessionT:
        """A session by its id.

        Raises:
            UnknownSession: there is none, or none any more.
        """
        session = self._sessions.get(session_id)
        if session is None:
            raise _unknown(session_id, self._gone.get(session_id))
        return session

    def owned(self, session_id: bytes, owner: Identity) -> SessionT:
        """A session, for the coordinator that opened it.

        Raises:
            UnknownSession: there is none, or none any more.
            PermissionRefused: another coordinator opened it.
        """
        session = self.get(session_id)
        if self._owners[session_id].name != owner.name:
            raise PermissionRefused(
                "the session belongs to another coordinator", expected=self._owners[session_id].name, got=owner.name
            )
        return session

    def finish(self, session_id: bytes) -> None:
        """The session has done its work: it only answers repeated calls for a while."""
        if session_id in self._sessions and session_id not in self._finished:
            self._finished.add(session_id)
            self._schedule(session_id, LINGER_S, "finished")
            self._ended.announce()

    async def drain(self, patience_s: float) -> None:
        """Take no session any more, and wait until those that are open have done their work, or the patience ends."""
        self._draining = True
        try:
            async with asyncio.timeout(patience_s):
                while self.open_sessions:
                    await self._ended.wait()
        except TimeoutError:
            return

    def drop(self, session_id: bytes, why: str) -> None:
        """Forget a session at once; dropping an unknown one does nothing."""
        session = self._sessions.pop(session_id, None)
        if session is None:
            return
        self._owners.pop(session_id)
        self._finished.discard(session_id)
        self._timers.pop(session_id).cancel()
        self._gone[session_id] = why
        while len(self._gone) > _REMEMBERED:
            self._gone.popitem(last=False)
        session.end(_unknown(session_id, why))
        self._ended.announce()

    def close(self) -> None:
        """Drop every session, when the service stops."""
        for session_id in list(self._sessions):
            self.drop(session_id, "lost: the service stops")

    def _schedule(self, session_id: bytes, delay_s: float, why: str) -> None:
        if session_id in self._timers:
            self._timers[session_id].cancel()
        loop = asyncio.get_running_loop()
        self._timers[session_id] = loop.call_later(delay_s, self.drop, session_id, why)


class StreamSlots:
    """Bounds the streams that one caller holds open at once.

    Args:
        per_caller: streams of one caller; one may be open while an older, broken one is not yet noticed.
    """

    def __init__(self, per_caller: int = 2) -> None:
        self._per_caller = per_caller
        self._open: dict[object, int] = {}

    @contextmanager
    def hold(self, caller: object) -> Iterator[None]:
        """Count one stream of `caller` for the length of the block.

        Raises:
            Overloaded: the caller has as many as it may.
        """
        held = self._open.get(caller, 0)
        if held >= self._per_caller:
            raise Overloaded(
                "too many streams of one caller are open at once", expected=f"at most {self._per_caller}", got=held + 1
            )
        self._open[caller] = held + 1
        try:
            yield
        finally:
            self._release(caller)

    def _release(self, caller: object) -> None:
        self._open[caller] -= 1
        if not self._open[caller]:
            del self._open[caller]


async def run_to_end(work: Callable[[], "asyncio.Task[Any]"]) -> None:
    """Finish what must not be left half done, even when the caller is cancelled; then pass the cancellation on.

    Args:
        work: starts the task.
    """
    task = work()
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    task.result()


def _unknown(session_id: bytes, why: str | None) -> UnknownSession:
    return UnknownSession(
        "this service has no such session",
        expected="the session of an open attempt",
        got=f"session {session_id.hex()[:32]}" + (f", which is {why}" if why else ""),
        fix="wait for the next attempt",
    )
