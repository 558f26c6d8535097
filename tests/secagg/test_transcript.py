"""The signed record of an attempt: whoever changes, leaves out or puts in anything is found out offline."""

import json
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.crypto import labels
from fl_core.crypto.signing import CertificateSigner
from fl_core.errors import IdentityError, RemoteProtocolError, TacitError
from fl_core.secagg.inclusion import UploadTree
from fl_core.secagg.transcript import (
    FIRST_LINK,
    ROLES,
    BadTranscript,
    Part,
    Transcript,
    chain,
    frozen_body,
    sign_part,
    transcript_from_json,
    uploads_of,
    verify_sequence,
    verify_transcript,
)
from fl_core.simulation.entropy import seeded_entropy
from fl_core.simulation.identity import simulated_signers

SERVICES = dict(zip(("coordinator", "aggregator", "keyserver"), simulated_signers(3, seeded_entropy(1)), strict=True))
ROSTER = [[f"site-{index}", (bytes([index]) * 32).hex()] for index in range(5)]
PLAN, MODEL = b"p" * 32, b"m" * 32
SURVIVORS = (0, 1, 2, 4)


def fingerprint(signer: CertificateSigner) -> bytes:
    return sha256(signer.certificate_der).digest()


def binding(attempt: int) -> bytes:
    roster = labels.digest_fields(
        labels.ROSTER, *(part for name, digest in ROSTER for part in (name, bytes.fromhex(digest)))
    )
    return labels.digest_fields(labels.CONTEXT, "job", 3, attempt, MODEL, PLAN, roster)


def tree(attempt: int = 1) -> UploadTree:
    return UploadTree(binding(attempt), {index: bytes([index]) * 32 for index in SURVIVORS})


def bodies(attempt: int = 1, previous: bytes = FIRST_LINK) -> dict[str, dict[str, Any]]:
    """What honest services state, but for the chain."""
    session, uploads = binding(attempt).hex(), tree(attempt)
    return {
        "opened": {
            "session": session,
            "job_id": "job",
            "round_id": 3,
            "attempt": attempt,
            "aggregation": "secagg",
            "model_version": 3,
            "model_digest": MODEL.hex(),
            "plan_digest": PLAN.hex(),
            "roster": ROSTER,
            "threshold": 4,
            "neighbours": 0,
            "min_survivors": 4,
            "aggregator": fingerprint(SERVICES["aggregator"]).hex(),
            "keyserver": fingerprint(SERVICES["keyserver"]).hex(),
            "previous": previous.hex(),
            "opened_at": 1_700_000_000,
        },
        "exchanged": {
            "session": session,
            "directory": "",
            "commitments_root": "",
            "advertised": [0, 1, 2, 3, 4],
            "shared": [0, 1, 2, 4],
        },
        "frozen": dict(frozen_body(uploads)),
        "unmasked": {
            "session": session,
            "survivors": list(SURVIVORS),
            "uploads_root": uploads.root.hex(),
            "signed": [0, 1, 2, 4],
            "revealed": [0, 1, 2, 4],
            "dropouts": [],
            "failure": "",
        },
        "released": {
            "session": session,
            "survivors": list(SURVIVORS),
            "total_weight": 40,
            "aggregate_sha256": (b"a" * 32).hex(),
        },
        "closed": {
            "session": session,
            "outcome": "committed",
            "detail": "",
            "dropouts": [["site-3", "share_timeout"]],
            "aggregate_sha256": (b"a" * 32).hex(),
            "model_version": 4,
            "model_digest": (b"n" * 32).hex(),
            "closed_at": 1_700_000_100,
        },
    }


def signed(stated: dict[str, dict[str, Any]], signers: dict[str, CertificateSigner] | None = None) -> Transcript:
    """A transcript of these statements, each signed and the whole chained as it should be."""
    parts: list[Part] = []
    for kind, body in stated.items():
        whole = {**body, "chain": chain(parts).hex()} if kind == "closed" else body
        parts.append(sign_part(kind, whole, {**SERVICES, **(signers or {})}[ROLES[kind]]))
    return Transcript(tuple(parts))


HONEST = signed(bodies()).to_json()


def anybody(certificate: bytes, role: str, at: int) -> None:
    """The federation of these tests: three certificates, one for each role."""
    if certificate != SERVICES[role].certificate_der or not 1_700_000_000 <= at <= 1_700_000_100:
        raise IdentityError("no certificate of the federation")


def test_an_honest_transcript_holds_and_says_who_was_summed() -> None:
    transcript = signed(bodies())
    verified = verify_transcript(transcript_from_json(transcript.to_json()), anybody)
    assert (verified.job_id, verified.round_id, verified.attempt, verified.outcome) == ("job", 3, 1, "committed")
    assert verified.survivors == ("site-0", "site-1", "site-2", "site-4")
    assert verified.uploads["site-4"] == b"\x04" * 32
    assert verified.aggregate_sha256 == b"a" * 32
    assert verified.head == transcript.head


@pytest.mark.parametrize("last", ["opened", "exchanged", "frozen", "unmasked"])
def test_an_abandoned_attempt_may_end_after_any_part(last: str) -> None:
    stated = bodies()
    kept = list(ROLES)[: list(ROLES).index(last) + 1]
    closed = {**stated["closed"], "outcome": "bad_shares", "aggregate_sha256": ""}
    transcript = signed({**{kind: stated[kind] for kind in kept}, "closed": closed})
    assert verify_transcript(transcript, anybody).outcome == "bad_shares"


def test_a_plain_attempt_has_no_key_server() -> None:
    stated = bodies()
    stated["opened"] = {**stated["opened"], "aggregation": "plain", "keyserver": ""}
    kept = {kind: body for kind, body in stated.items() if ROLES[kind] != "keyserver"}
    assert len(verify_transcript(signed(kept), anybody).survivors) == 4


def test_on_a_sparse_graph_a_threshold_of_neighbours_is_not_enough_reveals() -> None:
    stated = bodies()
    stated["opened"].update(neighbours=4, threshold=3)
    assert verify_transcript(signed(stated), anybody).outcome == "committed"
    stated["unmasked"].update(revealed=[0, 1, 2])
    with pytest.raises(BadTranscript, match="too few sites revealed"):
        verify_transcript(signed(stated), anybody)


LIES: dict[str, Callable[[dict[str, dict[str, Any]]], None]] = {
    "another roster": lambda said: said["opened"]["roster"].pop(),
    "another plan": lambda said: said["opened"].update(plan_digest=bytes(32).hex()),
    "another model": lambda said: said["opened"].update(model_digest=bytes(32).hex()),
    "another attempt": lambda said: said["opened"].update(attempt=2),
    "a part of another session": lambda said: said["released"].update(session=bytes(32).hex()),
    "U1 beyond the roster": lambda said: said["exchanged"].update(advertised=[0, 1, 2, 4, 5]),
    "U2 beyond U1": lambda said: said["exchanged"].update(advertised=[0, 1, 2, 3]),
    "U3 beyond U2": lambda said: said["exchanged"].update(shared=[0, 1, 2]),
    "too few survivors": lambda said: said["opened"].update(min_survivors=5),
    "too few reveals": lambda said: said["unmasked"].update(revealed=[0, 1, 2]),
    "reveals of others": lambda said: said["unmasked"].update(signed=[0, 1, 2, 3]),
    "another upload": lambda said: said["frozen"]["uploads"].__setitem__(0, (b"x" * 32).hex()),
    "an upload too few": lambda said: said["frozen"]["uploads"].pop(),
    "another root": lambda said: said["unmasked"].update(uploads_root=bytes(32).hex()),
    "a sum over others": lambda said: said["released"].update(survivors=[0, 1, 2]),
    "another sum": lambda said: said["closed"].update(aggregate_sha256=bytes(32).hex()),
    "another aggregator": lambda said: said["opened"].update(aggregator=bytes(32).hex()),
    "an end before the beginning": lambda said: said["closed"].update(closed_at=1),
    "no exchange": lambda said: said.pop("exchanged"),
    "no sum": lambda said: said.pop("released"),
    "no roster at all": lambda said: said["opened"].pop("roster"),
    "a roster of numbers": lambda said: said["opened"].update(roster=[1, 2, 3]),
    "indices of text": lambda said: said["frozen"].update(survivors=["0", "1", "2", "4"]),
}


@pytest.mark.parametrize("name", LIES)
def test_services_that_state_something_impossible_are_found_out_though_they_signed_it(name: str) -> None:
    stated = json.loads(json.dumps(bodies()))
    LIES[name](stated)
    with pytest.raises(BadTranscript):
        verify_transcript(signed(stated), anybody)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_byte_of_a_file_can_be_changed(data: st.DataObject) -> None:
    content = HONEST
    place = data.draw(st.integers(0, len(content) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != content[place]))
    changed = content[:place] + bytes([byte]) + content[place + 1 :]
    try:
        same = json.loads(changed) == json.loads(content)
    except ValueError:
        same = False
    # White space is no part of what was signed.
    if same:
        return
    with pytest.raises(TacitError):
        verify_transcript(transcript_from_json(changed), anybody)


def test_parts_cannot_be_left_out_repeated_reordered_or_taken_from_elsewhere() -> None:
    transcript, other = signed(bodies()), signed(bodies(attempt=2))
    parts = transcript.parts
    for bent in (
        parts[1:],
        parts[:-1],
        parts[:2] + parts[3:],
        (*parts[:3], parts[2], *parts[3:]),
        (parts[0], parts[2], parts[1], *parts[3:]),
        (*parts[:2], other.parts[2], *parts[3:]),
        (*parts[:5], other.parts[5]),
        (),
    ):
        with pytest.raises(BadTranscript):
            verify_transcript(Transcript(bent), anybody)


def test_a_part_of_another_service_or_of_nobody_is_refused() -> None:
    stranger = simulated_signers(1, seeded_entropy(9))[0]
    with pytest.raises(BadTranscript, match="not of the keyserver"):
        verify_transcript(signed(bodies(), {"keyserver": stranger}), anybody)
    with pytest.raises(IdentityError):
        verify_transcript(signed(bodies(), {"coordinator": stranger}), anybody)
    forged = list(signed(bodies()).parts)
    forged[2] = replace(forged[2], signature=forged[1].signature)
    with pytest.raises(BadTranscript):
        verify_transcript(Transcript(tuple(forged)), anybody)


def test_a_signature_of_one_kind_is_none_of_another() -> None:
    part = sign_part("frozen", frozen_body(tree()), SERVICES["aggregator"])
    with pytest.raises(BadTranscript, match="does not verify"):
        replace(part, kind="released").check_signature()


def test_attempts_of_a_job_follow_one_another_without_a_gap() -> None:
    first = verify_transcript(signed(bodies()), anybody)
    second = verify_transcript(signed(bodies(attempt=2, previous=first.head)), anybody)
    third = verify_transcript(signed(bodies(attempt=3, previous=second.head)), anybody)
    verify_sequence([first, second, third])
    for gap in ([first, third], [second, first], [first, first]):
        with pytest.raises(BadTranscript, match="does not follow"):
            verify_sequence(gap)


def test_uploads_are_read_from_the_aggregator_of_the_plan_alone() -> None:
    part = sign_part("frozen", frozen_body(tree()), SERVICES["aggregator"])
    own = fingerprint(SERVICES["aggregator"])
    assert uploads_of(part, binding(1), own).root == tree().root
    for bent, session, pinned in (
        (part, binding(2), own),
        (part, binding(1), fingerprint(SERVICES["keyserver"])),
        (replace(part, kind="released"), binding(1), own),
        (replace(part, signature=b"x"), binding(1), own),
        (replace(part, body=part.body + b" "), binding(1), own),
    ):
        with pytest.raises(BadTranscript):
            uploads_of(bent, session, pinned)


def test_a_tree_of_nobody_cannot_be_made() -> None:
    with pytest.raises(RemoteProtocolError, match="no uploads"):
        UploadTree(binding(1), {})
    with pytest.raises(RemoteProtocolError, match="no upload in the sum"):
        tree().path(3)
