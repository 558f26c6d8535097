"""A small site as a program, for tests that kill it: it says what it does and stands still where a file tells it to.

`python chaos_site.py --config site.yaml --gates FOLDER`. For each step it prints one JSON line. While the folder has a
file `STEP@ROUND`, a site that reaches the step in that round waits there.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from client_sdk import Array, EvaluationResult, Site, SiteConfig, SiteObserver, TrainingContext, TrainResult
from client_sdk.journal import SiteJournal
from fl_core.errors import TacitError
from fl_core.rounds.plan import RoundPlan

POLL_S = 0.02
LONGEST_STOP_S = 120.0


class Gates:
    """Says each step and waits at those that are shut."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._round_id = 0

    def reach(self, step: str, round_id: int | None = None) -> None:
        """Reach a step, of the latest round when none is given; returns when its gate is open."""
        self._round_id = self._round_id if round_id is None else round_id
        sys.stdout.write(json.dumps({"step": step, "round_id": self._round_id}) + "\n")
        sys.stdout.flush()
        gate = self._folder / f"{step}@{self._round_id}"
        deadline = time.monotonic() + LONGEST_STOP_S
        while gate.exists() and time.monotonic() < deadline:
            time.sleep(POLL_S)


class Adding:
    """Adds a constant of the site to every tensor."""

    def __init__(self, gates: Gates, step: float) -> None:
        self._gates = gates
        self._step = step

    def train(self, parameters: dict[str, Array], context: TrainingContext) -> TrainResult:
        self._gates.reach("training", context.round_id)
        for tensor in parameters.values():
            tensor += self._step
        return TrainResult(parameters, 10)

    def evaluate(self, parameters: dict[str, Array], context: TrainingContext) -> EvaluationResult:
        return EvaluationResult(0.5, 10)


class Telling(SiteObserver):
    """Reaches a gate at each step of an attempt. An observer that waits holds up everything of its site."""

    def __init__(self, gates: Gates) -> None:
        self._gates = gates

    def connected(self, coordinator: str) -> None:
        self._gates.reach("connected")

    def invited(self, plan: RoundPlan) -> None:
        self._gates.reach("invited", plan.round_id)

    def keys_shared(self, plan: RoundPlan) -> None:
        self._gates.reach("keys_shared", plan.round_id)

    def upload_chunk_sent(self, plan: RoundPlan, index: int, count: int) -> None:
        if index == count // 2:
            self._gates.reach("uploading", plan.round_id)

    def uploaded(self, plan: RoundPlan) -> None:
        self._gates.reach("uploaded", plan.round_id)

    def revealed(self, plan: RoundPlan) -> None:
        self._gates.reach("revealed", plan.round_id)

    def left(self, plan: RoundPlan, error: TacitError) -> None:
        self._gates.reach("left", plan.round_id)


def main() -> None:
    """Take part until stopped or killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--gates", type=Path, required=True)
    parser.add_argument("--step", type=float, default=0.01)
    options = parser.parse_args()
    config = SiteConfig.from_file(options.config)
    gates = Gates(options.gates)
    record_unmasked = SiteJournal.record_unmasked

    def record_and_reach(journal: SiteJournal, *arguments: Any) -> None:
        record_unmasked(journal, *arguments)
        # On the disk and not sent yet: the worst moment to lose anything.
        gates.reach("unmasked")

    SiteJournal.record_unmasked = record_and_reach  # type: ignore[method-assign]
    Site(config, observer=Telling(gates)).run(Adding(gates, options.step))


if __name__ == "__main__":
    main()
