"""A local federation of sites that do not train, for benchmarks of the whole path."""

import asyncio
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cli.cluster import LocalCluster
from cli.demo.sites import SiteProcesses
from cli.following import JobHistory
from cli.model_files import Arrays
from cli.operator import Operator, OperatorConfig
from cli.reports import is_committed
from fl_core.errors import BadAggregate
from fl_core.rounds.job import job_from_mapping
from fl_core.rounds.report import RoundReport

SITE_PROGRAM = "benchmarks.idle_site"


@dataclass(frozen=True, slots=True)
class Federation:
    """A cluster and its sites, all connected."""

    cluster: LocalCluster
    sites: SiteProcesses

    def train(
        self, job: Mapping[str, object], model: Arrays, submitted: Callable[[], None] = lambda: None
    ) -> list[RoundReport]:
        """Run a job to its end, and return the reports of its rounds.

        Args:
            job: as `job_from_mapping` takes it.
            model: to start from.
            submitted: called once the coordinator has the job.

        Raises:
            BadAggregate: not every round was committed at the first attempt.
        """
        return asyncio.run(self._train(job, model, submitted))

    async def _train(
        self, job: Mapping[str, object], model: Arrays, submitted: Callable[[], None]
    ) -> list[RoundReport]:
        spec = job_from_mapping(job)
        async with Operator.connect(OperatorConfig.from_file(self.cluster.operator_config)) as operator:
            history = JobHistory(await operator.submit(spec, model))
            submitted()
            async for event in operator.watch(history.job_id):
                history.add(event)
        if history.failure or not all(is_committed(report) for report in history.reports):
            raise BadAggregate(
                "a benchmark round was not committed", got=history.failure or history.to_json()["rounds"]
            )
        return history.reports


@contextmanager
def federation(sites: int, *, secure: bool) -> Iterator[Federation]:
    """Start a local cluster and its sites in a temporary folder; all of it is gone after the block."""
    with (
        tempfile.TemporaryDirectory(prefix="tacit-benchmark-") as folder,
        LocalCluster(Path(folder)) as cluster,
        SiteProcesses() as processes,
    ):
        for number in range(1, sites + 1):
            client_id = f"site-{number:02d}"
            config = cluster.add_site(
                client_id, require_secure_aggregation=secure, min_cohort=min(3, sites), log_level="warning"
            )
            processes.start(client_id, SITE_PROGRAM, ["--config", str(config)], config.with_name("site.log"))
        processes.wait_connected()
        yield Federation(cluster, processes)


def zeros(parameters: int, tensors: int = 1) -> Arrays:
    """A model of zeros, cut into equal tensors."""
    return {f"layer{number}": np.zeros(parameters // tensors, np.float32) for number in range(tensors)}
