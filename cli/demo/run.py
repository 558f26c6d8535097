"""One run of the demo: a cluster, its sites, the job, and every check of what came out."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from cli.cluster import ClusterOptions, LocalCluster
from cli.demo.centralised import centralised_accuracies, measure
from cli.demo.digits import DigitSet, load_digit_sets, split_unevenly
from cli.demo.events import training_seconds
from cli.demo.exactness import is_exact
from cli.demo.network import build_network
from cli.demo.options import DemoOptions
from cli.demo.result import DemoResult
from cli.demo.sites import SiteProcesses, halt_options
from cli.demo.view import DemoView
from cli.following import JobHistory
from cli.operator import Operator, OperatorConfig
from cli.reports import JobSummary, is_committed
from client_sdk.adapters.torch import initial_parameters
from fl_core.errors import ConfigError
from fl_core.rounds.job import job_from_mapping
from fl_core.rounds.plan import Aggregation
from fl_core.rounds.privacy_terms import Mechanism
from fl_core.rounds.report import RoundReport

SITE_PROGRAM = "cli.demo.site_process"
PRESENCE_GRACE_S = 0.25
"""On one machine a connection breaks when its process died, and a dead process does not come back."""


@dataclass(slots=True)
class Demo:
    """A run in progress.

    Args:
        options: what was asked for.
        view: told what happens.
    """

    options: DemoOptions
    view: DemoView
    _training: DigitSet = field(init=False)
    _held_out: DigitSet = field(init=False)
    _accuracy: dict[int, float] = field(init=False, default_factory=dict)
    _shares: list[int] = field(init=False, default_factory=list)
    _privacy: Mapping[str, object] | None = field(init=False, default=None)

    def run(self) -> DemoResult:
        """Start everything, train, stop everything, check.

        Raises:
            ConfigError: the work folder holds something already, or a process ended by itself.
            PeerLost: a process is not there in time.
        """
        self._claim_workdir()
        self._training, self._held_out = load_digit_sets(self.options.seed)
        self.view.step("starting the federation: CA, certificates, three services")
        cluster_options = ClusterOptions(
            presence_grace_s=PRESENCE_GRACE_S, has_paillier_key=self.options.aggregation is Aggregation.PAILLIER
        )
        with (
            LocalCluster(self.options.workdir, cluster_options) as cluster,
            SiteProcesses(self.view.site_event) as sites,
        ):
            self._start_sites(cluster, sites)
            history = asyncio.run(self._train(cluster, sites))
        self.view.step("training the same model on all data in one place")
        # For batches this small a second thread costs more than it gives.
        torch.set_num_threads(1)
        centralised = list(centralised_accuracies(self.options, self._training, self._held_out))
        return self._result(history, sites, centralised)

    def _claim_workdir(self) -> None:
        workdir = self.options.workdir
        if workdir.exists() and any(workdir.iterdir()):
            raise ConfigError(
                f"the work folder {workdir} is not empty", fix="name another with --workdir, or leave the option out"
            )

    def _start_sites(self, cluster: LocalCluster, sites: SiteProcesses) -> None:
        self.view.step(f"starting {self.options.sites} sites, each a process of its own")
        victims = self.options.victims()
        shares = split_unevenly(self._training, self.options.sites, self.options.seed)
        self._shares = [len(share) for share in shares]
        for client_id, share in zip(self.options.client_ids, shares, strict=True):
            config = cluster.add_site(
                client_id,
                require_secure_aggregation=self.options.aggregation is not Aggregation.PLAIN,
                paillier=_paillier_policy(self.options.aggregation),
                record_plain_updates=self.options.record,
            )
            data = config.with_name("data.npz")
            share.save(data)
            arguments = ["--config", str(config), "--data", str(data)]
            if client_id in victims:
                arguments += halt_options(self.options.kill_round, victims[client_id])
            sites.start(client_id, SITE_PROGRAM, arguments, config.with_name("site.log"))
        sites.wait_connected()

    async def _train(self, cluster: LocalCluster, sites: SiteProcesses) -> JobHistory:
        async with Operator.connect(OperatorConfig.from_file(cluster.operator_config)) as operator:
            tensors = initial_parameters(build_network(self.options.seed))
            self._accuracy[1] = measure(dict(tensors), self._held_out)
            history = JobHistory(await operator.submit(job_from_mapping(self.options.job(self._shares)), tensors))
            self.view.step(f"training {self.options.rounds} rounds, {self.options.aggregation.value}")
            async for event in operator.watch(history.job_id):
                history.add(event)
                cluster.check_alive()
                sites.check_alive()
                if not isinstance(event, JobSummary) and event.state.is_final:
                    await self._round_ended(operator, event)
            if self.options.privacy is not None:
                self._privacy = json.loads(await operator.privacy_report(history.job_id))
            return history

    async def _round_ended(self, operator: Operator, report: RoundReport) -> None:
        if not is_committed(report):
            self.view.round_ended(report, None)
            return
        _, tensors = await operator.get_model(report.job_id, report.model_version)
        self._accuracy[report.model_version] = measure(tensors, self._held_out)
        self.view.round_ended(report, self._accuracy[report.model_version])

    def _result(self, history: JobHistory, sites: SiteProcesses, centralised: list[float]) -> DemoResult:
        committed = [report for report in history.reports if is_committed(report)]
        folder = self.options.workdir.resolve() / "sites"
        # The noise of central privacy is in every sum and in no record.
        is_compared = self.options.record and self.options.privacy is not Mechanism.CENTRAL
        if is_compared:
            self.view.step("comparing every aggregate with the plain sum of its survivors' updates")
        exact = all(is_exact(report, folder) for report in committed) if is_compared else None
        victims = self.options.victims()
        return DemoResult(
            workdir=self.options.workdir,
            sites=self.options.sites,
            killed={client_id: victims[client_id].value for client_id in sites.killed},
            rounds=history.reports,
            planned_rounds=self.options.rounds,
            accuracy_by_version=self._accuracy,
            accuracy_centralised=centralised,
            aggregate_exact=exact,
            aggregation_seconds=[
                report.round_seconds - training_seconds(sites.events.values(), report.round_id) for report in committed
            ],
            detail=history.failure,
            privacy=self._privacy,
        )


def _paillier_policy(aggregation: Aggregation) -> str:
    return "keyserver" if aggregation is Aggregation.PAILLIER else "refuse"
