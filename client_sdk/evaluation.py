"""Evaluation tasks: get the model, measure it on the site's data, report."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from client_sdk.download import ModelReference
from client_sdk.trainer import EvaluationResult, TrainingContext
from fl_core.errors import TacitError
from fl_core.transport.peer import call_unary
from fl_core.wire.convert import digest_from_proto, manifest_from_proto, training_from_proto
from fl_core.wire.v1 import coordinator_pb2

if TYPE_CHECKING:
    from fl_core.wire.v1.coordinator_pb2_grpc import CoordinatorServiceAsyncStub

REPORT_TIMEOUT_S = 10.0
LONGEST_FAILURE = 500
LONGEST_TASK_S = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class EvaluationTask:
    """What the coordinator asks: measure this model within `timeout_s`."""

    task_id: str
    model: ModelReference
    context: TrainingContext
    timeout_s: float


def task_from_proto(message: coordinator_pb2.EvaluationTask, client_id: str) -> EvaluationTask:
    """From the wire.

    Raises:
        CodecError, PlanError, RemoteProtocolError: a part is out of range.
    """
    version = message.model_version
    model = ModelReference(
        message.job_id,
        version,
        digest_from_proto("the model digest", message.model_digest),
        manifest_from_proto(message.manifest),
    )
    context = TrainingContext(message.job_id, version, 0, version, client_id, training_from_proto(message.training))
    # Also turns a NaN into the bound.
    timeout_s = message.timeout_seconds if 0 < message.timeout_seconds < LONGEST_TASK_S else LONGEST_TASK_S
    return EvaluationTask(message.task_id, model, context, timeout_s)


async def report_result(coordinator: "CoordinatorServiceAsyncStub", task_id: str, result: EvaluationResult) -> None:
    """Tell the coordinator what was measured.

    Raises:
        TacitError: the coordinator refused the report or cannot be reached.
    """
    request = coordinator_pb2.ReportEvaluationRequest(
        task_id=task_id, loss=result.loss, num_samples=result.num_samples, metrics=dict(result.metrics)
    )
    await call_unary(coordinator.ReportEvaluation, request, timeout_s=REPORT_TIMEOUT_S)


async def report_failure(coordinator: "CoordinatorServiceAsyncStub", task_id: str, error: TacitError) -> None:
    """Tell the coordinator that this site has no result, so that nobody waits for it.

    Raises:
        TacitError: the coordinator refused the report or cannot be reached.
    """
    request = coordinator_pb2.ReportEvaluationRequest(task_id=task_id, failure=str(error)[:LONGEST_FAILURE])
    await call_unary(coordinator.ReportEvaluation, request, timeout_s=REPORT_TIMEOUT_S)
