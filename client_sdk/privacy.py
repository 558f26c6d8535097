"""A site's own privacy ledger: every release that it takes part in, on its disk before anything leaves it.

It is the site's word against the coordinator's: what it counts is signed by its certificate, and a plan that would
take a job, or all jobs together, above what the owner allows is declined, whatever the coordinator says it has spent.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import structlog

from client_sdk.policy import SitePolicy
from fl_core.errors import CodecError, StorageError, TacitError
from fl_core.privacy.budget import PrivacyBudget
from fl_core.privacy.events import PrivacyEvent, event_from_json
from fl_core.privacy.ledger import check_affordable
from fl_core.rounds.plan import RoundPlan
from fl_core.rounds.privacy_terms import private_coordinates

log = structlog.get_logger(__name__)

LEDGER_NAME = "privacy.jsonl"


@dataclass(frozen=True, slots=True)
class CountedRelease:
    """One line of the ledger."""

    job_id: str
    session_id: str
    round_id: int
    attempt: int
    event: PrivacyEvent


class PrivacyLedger:
    """The ledger in `state_dir`. The journal's lock keeps other processes out of that folder.

    Raises:
        StorageError: the ledger is damaged.
    """

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / LEDGER_NAME
        self._counted: list[CountedRelease] = []
        self._file: IO[str] | None = None
        self._load()

    @property
    def counted(self) -> tuple[CountedRelease, ...]:
        """All lines, oldest first."""
        return tuple(self._counted)

    def count(self, plan: RoundPlan, event: PrivacyEvent, policy: SitePolicy) -> None:
        """Write down that this site takes part in a release, before it does. The same release counts once.

        Raises:
            BudgetExhausted: the job's budget or the owner's would be overshot; nothing is written.
            StorageError: the disk refused.
        """
        assert plan.privacy is not None
        session = plan.session_id.hex()
        if any(line.session_id == session for line in self._counted):
            return
        of_job = [line.event for line in self._counted if line.job_id == plan.job_id]
        check_affordable(plan.privacy.budget, of_job, event, f"job {plan.job_id} at this site")
        if policy.max_total_epsilon is not None:
            # Amplification hides who took part, but a site must assume that somebody knows when it did.
            everything = [line.event.without_sampling() for line in self._counted]
            allowed = PrivacyBudget(policy.max_total_epsilon, policy.max_delta)
            check_affordable(allowed, everything, event.without_sampling(), "this site over all jobs")
        line = CountedRelease(plan.job_id, session, plan.round_id, plan.attempt, event)
        self._append(line)
        self._counted.append(line)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _append(self, line: CountedRelease) -> None:
        try:
            if self._file is None:
                self._file = self._path.open("a")
            self._file.write(json.dumps(_mapping(line)) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except (OSError, ValueError) as error:
            raise StorageError(f"the privacy ledger {self._path} cannot be written", got=str(error)) from error

    def _load(self) -> None:
        try:
            text = self._path.read_text()
        except FileNotFoundError:
            return
        except (OSError, UnicodeDecodeError) as error:
            raise StorageError(f"the privacy ledger {self._path} cannot be read", got=str(error)) from error
        *lines, cut_off = text.split("\n")
        self._counted = [self._read(number, line) for number, line in enumerate(lines, start=1)]
        if cut_off:
            # A crash cut this record off, so that nothing was done that depends on it.
            log.warning("privacy_ledger_cut", path=str(self._path))
            self._drop_tail(len(text.encode()) - len(cut_off.encode()))

    def _drop_tail(self, size: int) -> None:
        try:
            os.truncate(self._path, size)
        except OSError as error:
            raise StorageError(f"the privacy ledger {self._path} cannot be mended", got=str(error)) from error

    def _read(self, number: int, line: str) -> CountedRelease:
        try:
            facts = json.loads(line)
            return CountedRelease(
                str(facts["job_id"]),
                str(facts["session_id"]),
                int(facts["round_id"]),
                int(facts["attempt"]),
                event_from_json(json.dumps(facts["event"])),
            )
        except (ValueError, KeyError, TypeError, TacitError) as error:
            raise StorageError(
                f"line {number} of the privacy ledger {self._path} is damaged",
                fix="restore the file; without it this site forgets what it has spent",
            ) from error


def event_for(plan: RoundPlan, trained: PrivacyEvent | None) -> PrivacyEvent:
    """What this site counts for an attempt: the event of the plan, or with local noise that of its own training.

    Args:
        plan: of a private attempt.
        trained: what the trainer says about the noise that it added.

    Raises:
        CodecError: the plan asks for local noise, and the trainer added none, or too little.
    """
    assert plan.privacy is not None
    if plan.privacy.mechanism.is_in_ring:
        return plan.privacy.event(private_coordinates(plan.privacy, plan.manifest.size))
    if trained is None or trained.noise_multiplier < plan.privacy.noise_multiplier * (1 - 1e-9):
        raise CodecError(
            "the trainer added too little noise",
            expected=f"a TrainResult whose privacy has a noise multiplier of {plan.privacy.noise_multiplier:.4g}",
            got="none" if trained is None else f"{trained.noise_multiplier:.4g}",
            fix="use TorchTrainer, which trains with noise where a plan asks for it",
        )
    return trained


def _mapping(line: CountedRelease) -> dict[str, object]:
    return {
        "job_id": line.job_id,
        "session_id": line.session_id,
        "round_id": line.round_id,
        "attempt": line.attempt,
        "event": json.loads(line.event.to_json()),
    }
