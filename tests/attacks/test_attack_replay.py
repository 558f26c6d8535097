"""Attack: every message of one attempt is recorded and played again in the next.

What stops it: the attempt is part of the binding, and the binding is in every signature and key.
"""

from dataclasses import replace

import numpy as np
import pytest

from fl_core.errors import BadAggregate, BadShares, BadSignature, NotEnough, RemoteProtocolError
from fl_core.secagg.exchange import CollectingAdvertisements
from fl_core.secagg.masked_sum import CollectingMaskedInputs
from fl_core.simulation import stages

SIZE = 5


def attempt(number: int) -> stages.Cohort:
    cohort = stages.make_cohort(SIZE, attempt=number)
    return replace(cohort, vectors=[np.ones(6, np.uint32)] * SIZE)


def test_an_old_advertisement_is_refused_by_key_server_and_sites() -> None:
    old, new = stages.advertise(attempt(1)), stages.advertise(attempt(2))
    replayed = old.directory.advertisements[3]
    server = CollectingAdvertisements(new.cohort.context, new.cohort.verifier)
    with pytest.raises(BadSignature):
        server.receive(replayed)
    advertisements = list(new.directory.advertisements)
    advertisements[3] = replayed
    with pytest.raises(BadSignature):
        new.sites[0].step(replace(new.directory, advertisements=tuple(advertisements)))


def test_an_old_directory_is_refused() -> None:
    old, new = stages.advertise(attempt(1)), stages.advertise(attempt(2))
    with pytest.raises(RemoteProtocolError, match="our own keys"):
        new.sites[0].step(old.directory)


def test_without_the_attempt_in_the_binding_an_old_advertisement_is_accepted() -> None:
    old = stages.advertise(attempt(1))
    new = attempt(2)
    unbound = replace(new.context, binding=old.cohort.context.binding)
    server = CollectingAdvertisements(unbound, new.verifier)
    server.receive(old.directory.advertisements[3])
    assert server.received == {3}


def test_old_shares_do_not_open() -> None:
    old, new = stages.share(stages.advertise(attempt(1))), stages.share(stages.advertise(attempt(2)))
    with pytest.raises(BadShares, match="do not open"):
        new.sites[0].step(old.relayed[0])


def test_an_old_upload_is_noticed_by_the_count() -> None:
    old = stages.upload(stages.share(stages.advertise(attempt(1))))
    shared = stages.share(stages.advertise(attempt(2)))
    fresh = stages.upload(shared)
    aggregation = CollectingMaskedInputs(fresh.cohort.context)
    for index in range(SIZE):
        aggregation.add((old if index == 2 else fresh).uploads[index])
    awaiting, _ = aggregation.freeze(range(SIZE))
    signed = stages.sign(replace(fresh, aggregation=awaiting))
    for index in signed.sites:
        signed.server.receive(signed.sites[index].step(signed.proof)[1])
    aggregate = awaiting.step(signed.server.close().combined_mask())
    with pytest.raises(BadAggregate, match="a count of 5"):
        aggregate.check_count(1)


def test_old_signatures_and_an_old_proof_are_refused() -> None:
    old = stages.upload(stages.share(stages.advertise(attempt(1))))
    new = stages.upload(stages.share(stages.advertise(attempt(2))))
    replayed = old.sites[0].step(old.survivor_set)[1]
    signatures = new.server.freeze(new.survivor_set)
    with pytest.raises(BadSignature):
        signatures.receive(replayed)
    old_proof = stages.sign(stages.upload(stages.share(stages.advertise(attempt(1))))).proof
    waiting, _ = new.sites[0].step(new.survivor_set)
    with pytest.raises(BadSignature):
        waiting.step(old_proof)


def test_old_reveals_rebuild_nothing() -> None:
    old = stages.sign(stages.upload(stages.share(stages.advertise(attempt(1)))))
    new = stages.sign(stages.upload(stages.share(stages.advertise(attempt(2)))))
    for index in range(SIZE):
        new.server.receive(old.sites[index].step(old.proof)[1])
    with pytest.raises(NotEnough, match="right shares"):
        new.server.close()
    assert new.server.blame.holders == set(range(SIZE))
