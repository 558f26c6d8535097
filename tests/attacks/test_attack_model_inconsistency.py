"""Attack (Pasquini et al. 2022): the coordinator gives its victim another model than everybody else.

On a model whose gradients vanish for all others the sum is the victim's update, masks or not. What stops it: the digest
of the model is part of the binding, and the binding is in every signature, key and mask.
"""

from collections.abc import Mapping

import numpy as np
import pytest

from fl_core.codec.spec import CodecSpec
from fl_core.codec.tensors import TensorManifest, TensorSpec
from fl_core.errors import BadShares, BadSignature, TacitError
from fl_core.rounds.plan import Aggregation, ClientId, JobId, PhaseSchedule, RosterEntry, RoundPlan, ServiceEndpoint
from fl_core.secagg import client
from fl_core.secagg.context import SessionContext
from fl_core.secagg.exchange import CollectingAdvertisements
from fl_core.secagg.messages import KeyDirectory, RelayedShares
from fl_core.simulation import stages
from fl_core.simulation.identity import FingerprintVerifier

SIZE, VICTIM = 5, 2


def context_of(model: bytes) -> SessionContext:
    """The context that a site derives from a plan with this model."""
    plan = RoundPlan(
        job_id=JobId("job"),
        round_id=1,
        attempt=1,
        aggregation=Aggregation.SECAGG,
        model_version=1,
        model_digest=model * 32,
        manifest=TensorManifest((TensorSpec("w", "float32", (4,)),)),
        codec=CodecSpec(clip=1.0, bits=16, ring_bits=32),
        threshold=4,
        min_survivors=4,
        max_dropout=0.2,
        max_corrupt=0.2,
        max_weight=100,
        chunk_bytes=1024,
        schedule=PhaseSchedule(),
        aggregator=ServiceEndpoint("aggregator", "127.0.0.1:1", b"a" * 32),
        keyserver=ServiceEndpoint("keyserver", "127.0.0.1:2", b"k" * 32),
        roster=tuple(RosterEntry(ClientId(f"site-{index}"), bytes([index]) * 32) for index in range(SIZE)),
    )
    return plan.session_context()


def contexts() -> Mapping[int, SessionContext]:
    honest, evil = context_of(b"h"), context_of(b"e")
    return {index: evil if index == VICTIM else honest for index in range(SIZE)}


def exchange(cohort: stages.Cohort) -> dict[int, TacitError | str]:
    """What each site says to the directory, and then to the shares, when the servers hold nothing back."""
    site_contexts, begun = contexts(), {}
    for index, context in site_contexts.items():
        begun[index] = client.advertise(context, index, cohort.signers[index], cohort.verifier, cohort.entropy)
    directory = KeyDirectory(tuple(message for _, message in begun.values()))
    said: dict[int, TacitError | str] = {}
    shared = {}
    for index, (phase, _) in begun.items():
        try:
            shared[index] = phase.step(directory)
            said[index] = "shared"
        except TacitError as error:
            said[index] = error
    for index, (waiting, _) in shared.items():
        relayed = [share for _, sealed in shared.values() for share in sealed.shares if share.recipient == index]
        try:
            waiting.step(RelayedShares(tuple(relayed)))
            said[index] = "ready"
        except TacitError as error:
            said[index] = error
    return said


def test_sites_of_another_model_do_not_even_share_a_secret() -> None:
    said = exchange(stages.make_cohort(SIZE))
    assert all(isinstance(answer, BadSignature) for answer in said.values())


def test_the_key_server_refuses_the_victim_too() -> None:
    cohort, site_contexts = stages.make_cohort(SIZE), contexts()
    server = CollectingAdvertisements(site_contexts[0], cohort.verifier)
    _, message = client.advertise(
        site_contexts[VICTIM], VICTIM, cohort.signers[VICTIM], cohort.verifier, cohort.entropy
    )
    with pytest.raises(BadSignature):
        server.receive(message)


def test_without_the_signature_check_their_shares_still_do_not_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FingerprintVerifier, "verify", lambda *_: None)
    said = exchange(stages.make_cohort(SIZE))
    assert isinstance(said.pop(VICTIM), BadShares)
    # The others hold nothing of the victim, and their directory is another than its.
    assert set(said.values()) == {"ready"}


def test_without_the_binding_the_victim_takes_part_on_its_own_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RoundPlan, "binding", property(lambda plan: plan.roster_digest))
    assert set(exchange(stages.make_cohort(SIZE)).values()) == {"ready"}


def test_masks_of_different_models_do_not_cancel() -> None:
    """The sum over an inconsistent cohort, were it ever made, is noise."""
    uploads = []
    for attempt in (1, 2):
        cohort = stages.make_cohort(3, seed=8, attempt=attempt, length=2048, ring_bits=8)
        uploads.append(stages.upload(stages.share(stages.advertise(cohort))).uploads)
    mixed = uploads[0][0].vector + uploads[0][1].vector + uploads[1][2].vector
    counts = np.bincount(mixed, minlength=256)
    # Chi-square of 255 degrees of freedom: beyond 360 with a chance below 2e-5, and the seeds are fixed.
    assert float(((counts - 8.0) ** 2 / 8.0).sum()) < 360
