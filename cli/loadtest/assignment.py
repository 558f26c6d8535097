"""What one site process is told: a JSON file that its parent writes."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from cli.loadtest.options import Shaping
from cli.loadtest.schedule import VanishPoint


@dataclass(frozen=True, slots=True)
class Assignment:
    """The sites of one process.

    Args:
        folder: where the process leaves its partial sums.
        sites: for each site its `site.yaml`.
        schedule: for each site the rounds in which it vanishes, with the step.
        cohort: sites of all processes.
        parameters: size of the model.
        codec: by name.
        max_weight: most samples of one site.
        seed: of the made-up updates.
        shaping: of the sites' lines.
    """

    folder: Path
    sites: Mapping[str, Path]
    schedule: Mapping[str, Mapping[int, VanishPoint]]
    cohort: int
    parameters: int
    codec: str
    max_weight: int
    seed: int
    shaping: Shaping

    def write(self, path: Path) -> Path:
        """Write the file, and return its path."""
        content = {
            **asdict(self),
            "folder": str(self.folder),
            "sites": {client_id: str(config) for client_id, config in self.sites.items()},
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
        return path

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` wrote."""
        content = json.loads(path.read_text())
        return cls(
            folder=Path(content["folder"]),
            sites={client_id: Path(config) for client_id, config in content["sites"].items()},
            schedule={
                client_id: {int(round_id): VanishPoint(point) for round_id, point in rounds.items()}
                for client_id, rounds in content["schedule"].items()
            },
            **{name: content[name] for name in ("cohort", "parameters", "codec", "max_weight", "seed")},
            shaping=Shaping(**content["shaping"]),
        )
