"""Attack: the aggregator drops an upload that it acknowledged, or sums another one in its place.

What stops it: it must state the digest of every upload that it sums before anything is unmasked, and each site looks
for its own among them. Whoever is left out, or finds other bytes in its name, signs and reveals nothing.
"""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.errors import BadSignature, NotEnough, RemoteProtocolError
from fl_core.secagg.inclusion import UploadTree, check_included
from fl_core.secagg.messages import ConsistencyProof, SurvivorSet
from fl_core.simulation import stages

SIZE, VICTIM = 7, 3


def uploaded() -> stages.Uploaded:
    return stages.upload(stages.share(stages.advertise(stages.make_cohort(SIZE))))


def altered(stage: stages.Uploaded, **_: object) -> stages.Uploaded:
    """The aggregator states other bytes for its victim, the ones that it summed."""
    tree = UploadTree(stage.cohort.context.binding, {**stage.tree.digests, VICTIM: bytes(32)})
    return replace(stage, tree=tree, survivor_set=replace(stage.survivor_set, uploads_root=tree.root))


def test_an_altered_upload_is_found_out_by_its_site_before_it_signs() -> None:
    stage = altered(uploaded())
    with pytest.raises(RemoteProtocolError, match="not among those that are summed"):
        stages.sign(stage, [VICTIM])


def test_without_the_check_the_altered_sum_is_unmasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "check_included", lambda *_: None)
    stages.reveal(stages.sign(altered(uploaded())))


def test_a_dropped_upload_is_found_out_by_its_site() -> None:
    stage = uploaded()
    rest = {index: digest for index, digest in stage.tree.digests.items() if index != VICTIM}
    tree = UploadTree(stage.cohort.context.binding, rest)
    told = SurvivorSet(tree.survivors, tree.root)
    own = stages.upload_sha256(stage.uploads[VICTIM])
    with pytest.raises(RemoteProtocolError, match="leave this site out"):
        check_included(stage.cohort.context, told, VICTIM, own, ())
    # With the victim still in U3 the leaf of another one would have to stand in its place.
    for path in (tree.path(2), tree.path(4), stage.tree.path(VICTIM)):
        with pytest.raises(RemoteProtocolError, match="not among those that are summed"):
            check_included(stage.cohort.context, replace(stage.survivor_set, uploads_root=tree.root), VICTIM, own, path)


def test_sites_that_are_shown_different_uploads_do_not_help_to_unmask() -> None:
    """One root for the victim, in which its upload is, and another for everybody else."""
    stage = uploaded()
    lie = altered(stage).survivor_set
    waiting, own = stage.sites[VICTIM].step(stage.survivor_set)
    others = [stage.sites[index].step(lie)[1] for index in range(SIZE) if index != VICTIM]
    signatures = sorted([own, *others], key=lambda signature: signature.index)
    with pytest.raises(BadSignature):
        waiting.step(ConsistencyProof(tuple(signatures)))
    with pytest.raises(NotEnough):
        waiting.step(ConsistencyProof((own,)))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_upload_is_proved_by_its_own_path_and_by_no_other(data: st.DataObject) -> None:
    context = stages.make_cohort(40).context
    survivors = sorted(data.draw(st.sets(st.integers(0, 39), min_size=1)))
    tree = UploadTree(context.binding, {index: index.to_bytes(32, "big") for index in survivors})
    told = SurvivorSet(tuple(survivors), tree.root)
    index = data.draw(st.sampled_from(survivors))
    own, path = tree.digests[index], tree.path(index)
    check_included(context, told, index, own, path)
    lies = [(index, bytes(31) + b"\xff", path), (index, own, (*path, bytes(32)))]
    if path:
        other = data.draw(st.sampled_from([one for one in survivors if one != index]))
        lies += [(index, own, path[:-1]), (other, own, path), (index, own, (*path[:-1], bytes(32)))]
    for who, digest, way in lies:
        with pytest.raises(RemoteProtocolError):
            check_included(context, told, who, digest, way)
