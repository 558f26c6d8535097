"""Malicious parties against the phases of production: each attack must fail, and succeed without its check.

`run_suite` is what `tacit selftest --secrecy` prints; `tests/attacks` holds the long form of every row. The attacks on
sparse graphs are in `ring_attacks`.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fl_core.codec.spec import CodecSpec
from fl_core.codec.tensors import TensorManifest, TensorSpec
from fl_core.crypto.mask_prg import RingVector, reduce_ring
from fl_core.crypto.shamir import PRIME, combine, lagrange_at_zero, parse_shares
from fl_core.errors import TacitError
from fl_core.rounds import cohort_rules
from fl_core.rounds.plan import (
    Aggregation,
    ClientId,
    JobId,
    PhaseSchedule,
    RosterEntry,
    RoundPlan,
    ServiceEndpoint,
)
from fl_core.secagg import beacon, client, exchange, masks
from fl_core.secagg.commitments import CommitmentBook
from fl_core.secagg.context import SessionContext
from fl_core.secagg.exchange import CollectingAdvertisements
from fl_core.secagg.inclusion import UploadTree
from fl_core.secagg.masked_sum import Aggregate, CollectingMaskedInputs
from fl_core.secagg.masks import MaskTerm, expand_terms, pair_term, self_term
from fl_core.secagg.messages import (
    ConsistencyProof,
    KeyDirectory,
    MaskedInput,
    RelayedShares,
    RevealedShare,
    SurvivorSet,
)
from fl_core.secagg.noise_seeds import part_keys
from fl_core.secagg.phase import Turn
from fl_core.secagg.sealing import open_shares
from fl_core.secagg.unmasking import SharesRelayed
from fl_core.simulation import ring_attacks, stages
from fl_core.simulation.attack import Attack, Check, Outcome, nothing, run_attacks
from fl_core.simulation.entropy import seeded_entropy
from fl_core.simulation.identity import FingerprintVerifier, simulated_signers

SIZE, VICTIM = 7, 3


def run_suite() -> list[Outcome]:
    """Run every attack of the suite, as things are and without its check."""
    return run_attacks(SUITE)


def substitute_keys() -> bool:
    """A key server plays the whole cohort to its victim, with keys of its own, and reads one vector."""
    cohort = stages.make_cohort(5)
    context, forgers = cohort.context, simulated_signers(5, os.urandom)
    victim, advertisement = client.advertise(context, 0, cohort.signers[0], cohort.verifier, cohort.entropy)
    fakes = {
        index: client.advertise(context, index, forgers[index], _BelievesEverything(), os.urandom)
        for index in range(1, 5)
    }
    directory = KeyDirectory((advertisement, *(fake[1] for fake in fakes.values())))
    waiting, sealed = victim.step(directory)
    played = {index: fake[0].step(directory) for index, fake in fakes.items()}
    ready = waiting.step(RelayedShares(tuple(message.shares[0] for _, message in played.values())))
    _, upload = ready.step(cohort.vectors[0])
    known = waiting.directory
    opened = [open_shares(known, share, played[share.recipient][0].opening_keys[0]) for share in sealed.shares]
    rows = np.stack([parse_shares([held.mask_key, held.self_seed]) for held in opened])
    mask_key, self_seed = combine(lagrange_at_zero([share.recipient for share in sealed.shares]), rows)
    pairs = [pair_term(known, 0, index, mask_key) for index in fakes]
    return _strips(upload, [self_term(known, 0, self_seed), *pairs], context, cohort.vectors[0])


def replay_keys() -> bool:
    """A key server hands the signed keys of an earlier attempt to the next one."""
    old, new = stages.advertise(stages.make_cohort(5)), stages.make_cohort(5, attempt=2)
    server = CollectingAdvertisements(new.context, new.verifier)
    server.receive(old.directory.advertisements[3])
    return server.received == {3}


def unmask_twice() -> bool:
    """A key server unmasks one session for two sets, one without the victim, and reads its vector."""
    cohort = stages.make_cohort(SIZE)
    stage = stages.upload(stages.share(stages.advertise(cohort)))
    everybody, others = tuple(range(SIZE)), tuple(index for index in range(SIZE) if index != VICTIM)
    seed = _unmask(stage, everybody).self_seeds[VICTIM]
    key = _unmask(stage, others).mask_keys[VICTIM]
    known = stage.sites[0].directory
    terms = [self_term(known, VICTIM, seed), *(pair_term(known, VICTIM, peer, key) for peer in others)]
    return _strips(stage.uploads[VICTIM], terms, cohort.context, cohort.vectors[VICTIM])


def reuse_masks() -> bool:
    """A coordinator fails an attempt of a machine that draws the same secrets again, and subtracts the two uploads."""
    uploads, vectors = [], []
    for attempt in (1, 2):
        cohort = replace(stages.make_cohort(SIZE, attempt=attempt), entropy=seeded_entropy(7))
        uploads.append(stages.upload(stages.share(stages.advertise(cohort))).uploads[VICTIM].vector)
        vectors.append(cohort.vectors[VICTIM])
    return np.array_equal(uploads[0] - uploads[1], vectors[0] - vectors[1])


def equivocate() -> bool:
    """A key server tells sites different survivors, and sums four of them instead of six."""
    size, threshold, targets = 10, 6, (0, 1, 2, 3)
    kept = [(4, 5), (6, 7), (8, 9), (4, 5), *((4 + place, 4 + (place + 1) % 6) for place in range(6))]
    views = [tuple(sorted((*targets, *pair))) for pair in kept]
    cohort = stages.make_cohort(size, threshold=threshold)
    stage = stages.upload(stages.share(stages.advertise(cohort)))
    waiting, signatures = {}, []
    for index, view in enumerate(views):
        waiting[index], signature = stage.sites[index].step(SurvivorSet(view))
        signatures.append(signature)
    reveals = [
        waiting[index].step(ConsistencyProof(tuple(one for one in signatures if one.index in view)))[1]
        for index, view in enumerate(views)
    ]
    known = stage.sites[0].directory
    terms = [self_term(known, owner, _rebuilt(reveals, owner, "self_seed_shares", threshold)) for owner in targets]
    for owner in range(4, size):
        key = _rebuilt(reveals, owner, "mask_key_shares", threshold)
        pairs = (pair_term(known, owner, peer, key) for peer in targets)
        terms += [MaskTerm(term.key, not term.negative) for term in pairs]
    summed = MaskedInput(0, sum(stage.uploads[index].vector for index in targets))  # type: ignore[arg-type]
    return _strips(summed, terms, cohort.context, cohort.sum_of(targets))


def take_noise_away() -> bool:
    """A key server tells a site that all twelve survived, where ten did, and gets noise that ten need."""
    site = 9
    cohort = stages.make_cohort(12, threshold=7, min_survivors=8, noise_tiers=(12, 10, 8))
    stage = stages.upload(stages.share(stages.advertise(cohort)), range(10))
    needed = stage.sites[site].noise_keys[1]
    honest = [stage.sites[index].step(stage.survivor_set)[1] for index in range(7)]
    waiting, own = stage.sites[site].step(SurvivorSet(tuple(range(12))))
    revealed = waiting.step(ConsistencyProof((*honest, own)))[1]
    return needed in part_keys(cohort.context, site, revealed.excess_seed, 1)


def shrink_the_cohort() -> bool:
    """A key server asks for the shares of fewer survivors than the plan allows; honest sites sign and reveal."""
    cohort = stages.make_cohort(SIZE, threshold=4, min_survivors=6)
    stage = stages.upload(stages.share(stages.advertise(cohort)), [0, 1, 2, 3, 4, 5, 6])
    few = SurvivorSet((0, 1, 2, 3))
    waiting = {index: stage.sites[index].step(few) for index in few.survivors}
    proof = ConsistencyProof(tuple(signature for _, signature in waiting.values()))
    return all(phase.step(proof)[1].self_seed_shares for phase, _ in waiting.values())


def lie_about_shares() -> bool:
    """One holder reveals a false share, so that an honest owner is blamed or the attempt fails."""
    cohort = stages.make_cohort(SIZE, threshold=4)
    stage = stages.sign(stages.upload(stages.share(stages.advertise(cohort))))
    for index in stage.sites:
        sent = stage.sites[index].step(stage.proof)[1]
        if index == 0:
            first, *rest = sent.self_seed_shares
            false = RevealedShare(first.owner, _another(first.share))
            sent = replace(sent, self_seed_shares=(false, *rest))
        stage.server.receive(sent)
    try:
        stage.server.close()
    except TacitError:
        return True
    return stage.server.blame.holders != {0}


def drop_an_input() -> bool:
    """An aggregator sums something else than its victim uploaded and states it; the victim signs all the same."""
    cohort = stages.make_cohort(SIZE)
    stage = stages.upload(stages.share(stages.advertise(cohort)))
    false = UploadTree(cohort.context.binding, {**stage.tree.digests, VICTIM: bytes(32)})
    told = replace(stage.survivor_set, uploads_root=false.root)
    stages.sign(replace(stage, survivor_set=told, tree=false), [VICTIM, *range(VICTIM), *range(VICTIM + 1, SIZE)])
    return True


def spoil_the_sum() -> bool:
    """A site that did not finish the exchange uploads noise, so that the attempt has to be run again."""
    cohort = stages.make_cohort(SIZE)
    shared = stages.share(stages.advertise(cohort), range(SIZE - 1))
    aggregation = CollectingMaskedInputs(cohort.context)
    aggregation.admit(shared.server.participants)
    aggregation.add(MaskedInput(SIZE - 1, cohort.vectors[SIZE - 1]))
    return SIZE - 1 in aggregation.received


def add_twice() -> bool:
    """An aggregator adds one vector twice and hands the sum out."""
    ones = np.array([100, 4], np.uint32)
    Aggregate(ones, survivors=(0, 1, 2)).check_count(1)
    return True


def wrap_around() -> bool:
    """A coordinator plans a cohort in whose ring the largest values wrap around."""
    CodecSpec(1.0, 4, 8).check_cohort(18)
    total = sum(np.full(1, 15, np.uint8) for _ in range(18))
    return bool(int(np.asarray(total)[0]) != 15 * 18)


def fill_with_strangers() -> bool:
    """A coordinator surrounds its victim with sites that it made up: the sum less theirs is the victim's."""
    roster = [f"sybil-{index}" if index != VICTIM else "victim" for index in range(SIZE)]
    cohort_rules.check_trusted(roster, "victim", ("friend-1", "friend-2"), 2, "the cohort")
    cohort = stages.make_cohort(SIZE)
    total = _sum(cohort, range(SIZE))
    sybils = cohort.sum_of([index for index in range(SIZE) if index != VICTIM])
    return np.array_equal(total - sybils, cohort.vectors[VICTIM])


def subtract_cohorts() -> bool:
    """A coordinator gives an attempt up after it has its sum, runs it again without its victim, and subtracts."""
    first, second = stages.make_cohort(SIZE), stages.make_cohort(SIZE, attempt=2)
    everybody, others = range(SIZE), [index for index in range(SIZE) if index != VICTIM]
    # A site that did not train anew sends the same update in the next attempt.
    again = replace(second, vectors=first.vectors)
    whole = _sum(first, everybody)
    signed = [frozenset(f"site-{index}" for index in everybody)]
    cohort_rules.check_difference([f"site-{index}" for index in others], signed, 3)
    return np.array_equal(whole - _sum(again, others), first.vectors[VICTIM])


def change_the_model() -> bool:
    """A coordinator gives its victim another model, on which the gradients of all others vanish, and it takes part."""
    cohort = stages.make_cohort(SIZE)
    contexts = [_context(cohort, b"e" if index == VICTIM else b"h") for index in range(SIZE)]
    begun = [
        client.advertise(context, index, cohort.signers[index], cohort.verifier, cohort.entropy)
        for index, context in enumerate(contexts)
    ]
    directory = KeyDirectory(tuple(message for _, message in begun))
    shared = [phase.step(directory) for phase, _ in begun]
    relayed = [share for _, sealed in shared for share in sealed.shares if share.recipient == VICTIM]
    return len(shared[VICTIM][0].step(RelayedShares(tuple(relayed))).held_shares) == SIZE


def flood_the_relay() -> bool:
    """A site sends a megabyte where a sealed share belongs, to fill the memory of key server and recipients."""
    stage = stages.advertise(stages.make_cohort(SIZE))
    _, sealed = stage.sites[0].step(stage.directory)
    large = replace(sealed.shares[0], ciphertext=bytes(1 << 20))
    stage.server.receive(0, replace(sealed, shares=(large, *sealed.shares[1:])))
    return stage.server.received == {0}


class _BelievesEverything:
    def verify(self, index: int, certificate_der: bytes, message: bytes, signature: bytes) -> None: ...


def _sum(cohort: stages.Cohort, survivors: Sequence[int]) -> RingVector:
    uploaded = stages.upload(stages.share(stages.advertise(cohort)), survivors)
    return stages.reveal(stages.sign(uploaded))


def _context(cohort: stages.Cohort, model: bytes) -> SessionContext:
    """The context that a site derives from a plan with this model."""
    roster = tuple(RosterEntry(ClientId(f"site-{index}"), bytes([index]) * 32) for index in range(SIZE))
    plan = RoundPlan(
        job_id=JobId("job"),
        round_id=1,
        attempt=1,
        aggregation=Aggregation.SECAGG,
        model_version=1,
        model_digest=model * 32,
        manifest=TensorManifest((TensorSpec("w", "float32", (4,)),)),
        codec=CodecSpec(clip=1.0, bits=16, ring_bits=cohort.context.ring_bits),
        threshold=cohort.context.threshold,
        min_survivors=cohort.context.min_survivors,
        max_dropout=0.2,
        max_corrupt=0.2,
        max_weight=100,
        chunk_bytes=1024,
        schedule=PhaseSchedule(),
        aggregator=ServiceEndpoint("aggregator", "127.0.0.1:1", b"a" * 32),
        keyserver=ServiceEndpoint("keyserver", "127.0.0.1:2", b"k" * 32),
        roster=roster,
    )
    return plan.session_context()


def _unmask(stage: stages.Uploaded, survivors: tuple[int, ...]) -> Any:
    """Rounds 3 and 4 by a key server that keeps no rule of its own."""
    server = SharesRelayed(
        stage.sites[0].directory, stage.cohort.verifier, tuple(range(SIZE)), stage.server.commitments
    )
    survivor_set = SurvivorSet(survivors)
    signatures = server.freeze(survivor_set)
    waiting = {}
    for index in survivors:
        waiting[index], message = stage.sites[index].step(survivor_set)
        signatures.receive(message)
    reveals, proof = signatures.close()
    for phase in waiting.values():
        reveals.receive(phase.step(proof)[1])
    return reveals.close()


def _rebuilt(reveals: Sequence[Any], owner: int, kind: str, threshold: int) -> bytes:
    held = [(sent.index, share) for sent in reveals for share in getattr(sent, kind) if share.owner == owner]
    held = held[:threshold]
    rows = np.stack([parse_shares([share.share]) for _, share in held])
    return combine(lagrange_at_zero([holder for holder, _ in held]), rows)[0]


def _strips(upload: MaskedInput, terms: Sequence[MaskTerm], context: SessionContext, vector: RingVector) -> bool:
    stripped = upload.vector - expand_terms(terms, context)
    reduce_ring(stripped, context.ring_bits)
    return np.array_equal(stripped, vector)


def _another(share: bytes) -> bytes:
    limb = (int.from_bytes(share[:8], "little") + 8) % PRIME
    return limb.to_bytes(8, "little") + share[8:]


SUITE: tuple[Attack, ...] = (
    Attack(
        "key substitution",
        "key server",
        "round keys are signed by certificates of the roster",
        Check(FingerprintVerifier, "verify", nothing),
        substitute_keys,
    ),
    Attack(
        "sybil",
        "coordinator",
        "policy.trusted_sites and policy.min_trusted",
        Check(cohort_rules, "check_trusted", nothing),
        fill_with_strangers,
    ),
    Attack(
        "model inconsistency",
        "coordinator",
        "the digest of the model is part of everything that is signed",
        Check(RoundPlan, "binding", property(lambda plan: plan.roster_digest)),
        change_the_model,
    ),
    Attack(
        "differencing of cohorts",
        "coordinator",
        "policy.min_cohort_difference and the log of signed survivors",
        Check(cohort_rules, "check_difference", nothing),
        subtract_cohorts,
    ),
    Attack(
        "tiny cohort",
        "key server",
        "no site signs fewer survivors than min_survivors",
        Check(client.AwaitingSurvivors, "check", nothing),
        shrink_the_cohort,
    ),
    Attack(
        "second unmasking",
        "key server",
        "a phase of a site moves once",
        Check(Turn, "__enter__", lambda turn: turn),
        unmask_twice,
    ),
    Attack(
        "retry and mask reuse",
        "coordinator",
        "the attempt is part of the key of every mask",
        Check(masks, "_mask_key", lambda _, secret, __: secret[:16]),
        reuse_masks,
    ),
    Attack(
        "equivocation",
        "key server",
        "a threshold of signatures on the same survivors",
        Check(client.AwaitingProof, "_check", nothing),
        equivocate,
    ),
    Attack(
        "removal of noise",
        "key server",
        "a site works out what is not needed from the survivors that a threshold signed",
        Check(client.AwaitingProof, "_check", nothing),
        take_noise_away,
    ),
    Attack(
        "bogus shares",
        "site",
        "commitments to every share",
        Check(CommitmentBook, "is_right", lambda *_: True),
        lie_about_shares,
    ),
    Attack(
        "replay",
        "key server",
        "the attempt is part of everything that is signed",
        Check(FingerprintVerifier, "verify", nothing),
        replay_keys,
    ),
    Attack(
        "overflow",
        "coordinator",
        "a plan that can wrap around is refused",
        Check(CodecSpec, "check_cohort", nothing),
        wrap_around,
    ),
    Attack(
        "a vector too many",
        "aggregator",
        "one coordinate counts the vectors",
        Check(Aggregate, "check_count", nothing),
        add_twice,
    ),
    Attack(
        "dropped or altered input",
        "aggregator",
        "a site signs only what its own upload is proved to be in",
        Check(stages, "check_included", nothing),
        drop_an_input,
    ),
    Attack(
        "spoilt sum",
        "site",
        "only sites of U2 are added",
        Check(CollectingMaskedInputs, "admit", nothing),
        spoil_the_sum,
    ),
    Attack(
        "graph grinding",
        "key server",
        "the plan commits to the beacon before anybody sends keys",
        Check(beacon, "_check_committed", nothing),
        ring_attacks.grind_the_value,
    ),
    Attack(
        "exchanged U1",
        "key server",
        "the coordinator signs one directory",
        Check(beacon, "verify_once", nothing),
        ring_attacks.exchange_the_members,
    ),
    Attack(
        "cut graph",
        "coordinator",
        "the audit of gaps on the ring",
        Check(client, "check_gaps", nothing),
        ring_attacks.cut_the_ring,
    ),
    Attack(
        "parsers and resources",
        "site",
        "every field has one length",
        Check(exchange, "check_sealed_length", nothing),
        flood_the_relay,
    ),
)
"""The attacks, in the order of the threat model."""
