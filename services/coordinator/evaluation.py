"""Evaluation: one task to each connected site, their answers, and the means over all samples."""

import asyncio
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fl_core.codec.tensors import TensorManifest
from fl_core.errors import NotFound, PermissionRefused, RemoteProtocolError
from fl_core.rounds.job import JobSpec
from fl_core.rounds.plan import ClientId
from fl_core.rounds.report import SiteEvaluation
from fl_core.wire.convert import manifest_to_proto, training_to_proto
from fl_core.wire.v1 import coordinator_pb2 as pb
from services.coordinator.presence import Presence
from services.coordinator.records import ModelRecord
from services.coordinator.traffic import Traffic
from services.runtime.events import Notice

MAX_METRICS = 256
MAX_METRIC_NAME = 200


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """What the sites measured, and which of them gave no answer."""

    sites: tuple[SiteEvaluation, ...]
    missing: tuple[ClientId, ...]

    @property
    def num_samples(self) -> int:
        """Samples of all sites together."""
        return sum(site.num_samples for site in self.sites)

    @property
    def means(self) -> dict[str, float]:
        """Loss and every metric, weighted by samples, over the sites that reported it; empty without an answer."""
        names = sorted({name for site in self.sites for name in site.metrics} - {"loss"})
        means = {
            name: _mean([(site.metrics[name], site) for site in self.sites if name in site.metrics]) for name in names
        }
        return {"loss": _mean([(site.loss, site) for site in self.sites]), **means} if self.sites else {}


def _mean(values: Sequence[tuple[float, SiteEvaluation]]) -> float:
    samples = sum(site.num_samples for _, site in values)
    return math.fsum(value * site.num_samples for value, site in values) / samples


@dataclass(slots=True)
class _Task:
    job_id: str
    expected: set[ClientId]
    results: dict[ClientId, SiteEvaluation] = field(default_factory=dict)
    failed: dict[ClientId, str] = field(default_factory=dict)
    changes: Notice = field(default_factory=Notice)

    @property
    def open(self) -> set[ClientId]:
        return self.expected - self.results.keys() - self.failed.keys()


class EvaluationDesk:
    """Hands out evaluation tasks and collects the answers."""

    def __init__(self, presence: Presence, traffic: Traffic) -> None:
        self._presence = presence
        self._traffic = traffic
        self._tasks: dict[str, _Task] = {}

    async def evaluate(
        self, spec: JobSpec, model: ModelRecord, manifest: TensorManifest, timeout_s: float
    ) -> EvaluationResult:
        """Have every connected site evaluate `model`; wait for all answers, at most `timeout_s` seconds.

        A site that is lost is not waited for. Answers that come later are refused.
        """
        task_id = secrets.token_hex(16)
        event = pb.WatchRoundsResponse(
            evaluation=pb.EvaluationTask(
                task_id=task_id,
                job_id=model.job_id,
                model_version=model.version,
                model_digest=model.model_digest,
                manifest=manifest_to_proto(manifest),
                timeout_seconds=timeout_s,
            )
        )
        training_to_proto(spec.training, event.evaluation.training)
        task = _Task(model.job_id, {site.client_id for site in self._presence.connected()})
        self._tasks[task_id] = task
        try:
            with self._presence.losses(lambda client_id: _lose(task, client_id)):
                for client_id in task.expected:
                    self._presence.send(client_id, event)
                    self._traffic.count(model.job_id, client_id, down=event.ByteSize())
                await _answers(task, timeout_s)
        finally:
            del self._tasks[task_id]
        missing = task.expected - task.results.keys()
        return EvaluationResult(tuple(task.results[name] for name in sorted(task.results)), tuple(sorted(missing)))

    def report(self, client_id: ClientId, answer: pb.ReportEvaluationRequest) -> None:
        """Take a site's answer. The same answer may come again; a different one is refused.

        Raises:
            NotFound: the task is over, or never was.
            PermissionRefused: the site was not asked.
            RemoteProtocolError: the numbers are impossible, or differ from an earlier answer.
        """
        task = self._tasks.get(answer.task_id)
        if task is None:
            raise NotFound("there is no such evaluation task", expected="a task that is still open", got=answer.task_id)
        if client_id not in task.expected:
            raise PermissionRefused("the site was not asked to evaluate", expected="an invited site", got=client_id)
        self._traffic.count(task.job_id, client_id, up=answer.ByteSize())
        if answer.failure:
            task.failed[client_id] = answer.failure[:MAX_METRIC_NAME]
        else:
            _keep(task, check_evaluation(client_id, answer.loss, answer.num_samples, answer.metrics))
        task.changes.announce()


def _keep(task: _Task, result: SiteEvaluation) -> None:
    kept = task.results.setdefault(result.client_id, result)
    if kept != result:
        raise RemoteProtocolError(
            "the site reported another evaluation before", expected="one answer per task", got=result.client_id
        )


def _lose(task: _Task, client_id: ClientId) -> None:
    if client_id in task.open:
        task.failed[client_id] = "disconnected"
        task.changes.announce()


async def _answers(task: _Task, timeout_s: float) -> None:
    deadline = asyncio.get_running_loop().time() + timeout_s
    while task.open:
        left = deadline - asyncio.get_running_loop().time()
        if left <= 0:
            return
        await task.changes.wait(left)


def check_evaluation(
    client_id: ClientId, loss: float, num_samples: int, metrics: Mapping[str, float]
) -> SiteEvaluation:
    """Build the evaluation of one site from what it sent.

    Raises:
        RemoteProtocolError: no samples, too many metrics, an over-long name, or a number that is not finite.
    """
    if num_samples < 1:
        raise RemoteProtocolError("an evaluation needs samples", expected="num_samples >= 1", got=num_samples)
    if len(metrics) > MAX_METRICS or any(len(name) > MAX_METRIC_NAME for name in metrics):
        raise RemoteProtocolError("an evaluation has too many metrics", expected=f"up to {MAX_METRICS}, short names")
    wrong = [name for name, value in {**metrics, "loss": loss}.items() if not math.isfinite(value)]
    if wrong:
        raise RemoteProtocolError(
            f"metric {wrong[0]!r} is not a number", expected="finite numbers", got="NaN or infinite"
        )
    return SiteEvaluation(client_id, loss, num_samples, dict(metrics))
