"""The signed record of one attempt: each service states the part that it knows, the coordinator chains the parts.

    opened (coordinator) -> exchanged (key server) -> frozen (aggregator) -> unmasked (key server)
        -> released (aggregator) -> closed (coordinator)

A plain attempt has no key server and none of its parts; an abandoned one ends early. The first part names the last
link of the attempt before, and the last part, which the coordinator signs, the last link of its own chain: nobody can
take a part or an attempt out, or put one in, without a signature of each service that it concerns.

Pure: bytes in, bytes out. Whether a certificate is one of the federation is asked through a port.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from fl_core.crypto import labels
from fl_core.crypto.signing import verify_signature
from fl_core.errors import BadSignature, CryptoError, ProtocolError
from fl_core.secagg.context import Signer
from fl_core.secagg.inclusion import UploadTree
from fl_core.secagg.messages import Beacon

FORMAT = "tacit-transcript/1"
FIRST_LINK = bytes(32)
"""What the first attempt of a job names as the link before it."""
MAX_BODY_BYTES = 16 << 20

ROLES: Mapping[str, str] = {
    "opened": "coordinator",
    "exchanged": "keyserver",
    "frozen": "aggregator",
    "unmasked": "keyserver",
    "released": "aggregator",
    "closed": "coordinator",
}
"""The kinds of part in their order, and the role that signs each."""

Body = Mapping[str, Any]
CheckCertificate = Callable[[bytes, str, int], None]
"""Raises when a certificate (DER) is none of the federation for this role at this time, seconds since the epoch."""


class BadTranscript(ProtocolError):
    """A transcript, or a part of one, that does not hold."""

    code = "bad_transcript"


@dataclass(frozen=True, slots=True)
class Part:
    """What one service states about one attempt. The body is canonical JSON of an object.

    Args:
        kind: a key of `ROLES`.
        body: the statement; its `session` is the binding of the attempt.
        certificate_der: of the service.
        signature: by the key of the certificate.
    """

    kind: str
    body: bytes
    certificate_der: bytes = field(repr=False)
    signature: bytes = field(repr=False)

    @property
    def certificate_sha256(self) -> bytes:
        """The fingerprint of who signed."""
        return hashlib.sha256(self.certificate_der).digest()

    def read(self) -> dict[str, Any]:
        """The body as a mapping.

        Raises:
            BadTranscript: it is no canonical JSON of an object, or too long.
        """
        if len(self.body) > MAX_BODY_BYTES:
            raise BadTranscript("a part of a transcript is too long", expected=f"up to {MAX_BODY_BYTES} bytes")
        try:
            content = json.loads(self.body)
            canonical = isinstance(content, dict) and _canonical(content) == self.body
        except (ValueError, RecursionError) as error:
            raise BadTranscript(f"the part {self.kind!r} is no JSON") from error
        if not canonical:
            raise BadTranscript(f"the part {self.kind!r} is not in canonical form", expected="a JSON object")
        return dict(content)

    def check_signature(self) -> None:
        """Check that the certificate of the part signed it; whose certificate that is, is another question.

        Raises:
            BadTranscript: it did not.
        """
        try:
            verify_signature(self.certificate_der, _statement(self.kind, self.body), self.signature)
        except (BadSignature, CryptoError) as error:
            raise BadTranscript(f"the signature of the part {self.kind!r} does not verify") from error


@dataclass(frozen=True, slots=True)
class Transcript:
    """The parts of one attempt, in order."""

    parts: tuple[Part, ...]

    @property
    def head(self) -> bytes:
        """The last link of the chain, 32 bytes."""
        return chain(self.parts)

    def to_json(self) -> bytes:
        """The file form; `transcript_from_json` reads it back."""
        parts = [_entry_of(part) for part in self.parts]
        return json.dumps({"format": FORMAT, "head": self.head.hex(), "parts": parts}, indent=1).encode()


@dataclass(frozen=True, slots=True)
class Verified:
    """What a transcript that holds says.

    Args:
        job_id: the job.
        round_id: counts from 1.
        attempt: counts from 1.
        outcome: committed, or the reason why the attempt was abandoned.
        sites: client_ids of the roster.
        survivors: client_ids of the sites in the sum; empty when nothing was frozen.
        aggregate_sha256: of the packed sum; empty when there is none.
        previous: link of the attempt before.
        head: last link.
        uploads: by client_id, the SHA-256 of the upload in the sum.
    """

    job_id: str
    round_id: int
    attempt: int
    outcome: str
    sites: tuple[str, ...]
    survivors: tuple[str, ...]
    aggregate_sha256: bytes
    previous: bytes
    head: bytes
    uploads: Mapping[str, bytes] = field(repr=False)


def sign_part(kind: str, body: Body, signer: Signer) -> Part:
    """State a part with the key of a service."""
    encoded = _canonical(body)
    return Part(kind, encoded, signer.certificate_der, signer.sign(_statement(kind, encoded)))


def chain(parts: Sequence[Part]) -> bytes:
    """The last link of these parts, 32 bytes."""
    link = FIRST_LINK
    for part in parts:
        link = labels.digest_fields(
            labels.TRANSCRIPT_LINK, link, part.kind, part.body, part.certificate_der, part.signature
        )
    return link


def frozen_body(tree: UploadTree) -> Body:
    """What an aggregator states when it froze the survivors."""
    survivors = tree.survivors
    return {
        "session": tree.binding.hex(),
        "survivors": list(survivors),
        "uploads": [tree.digests[index].hex() for index in survivors],
        "uploads_root": tree.root.hex(),
    }


def beacon_body(beacon: Beacon | None) -> Body | None:
    """A beacon as a key server states it; None when the graph is complete."""
    if beacon is None:
        return None
    return {name: getattr(beacon, name).hex() for name in ("value", "verify_key", "signature")}


def beacon_from(body: Body | None) -> Beacon | None:
    """Read back what `beacon_body` wrote; errors are those of its types."""
    if body is None:
        return None
    return Beacon(*(bytes.fromhex(body[name]) for name in ("value", "verify_key", "signature")))


def uploads_of(part: Part, binding: bytes, certificate_sha256: bytes) -> UploadTree:
    """Read what an aggregator stated when it froze the survivors.

    Args:
        part: as it came.
        binding: of the session.
        certificate_sha256: of the aggregator that the plan names.

    Raises:
        BadTranscript: it is of somebody else or another session, is not signed, or its root is not that of its leaves.
    """
    if part.kind != "frozen" or part.certificate_sha256 != certificate_sha256:
        raise BadTranscript(
            "the uploads are not stated by the aggregator of the plan",
            expected="a part of kind 'frozen' under the certificate that the plan names",
            got=part.kind[:16] or "no part",
            fix="pass on what the aggregator answered to FreezeSurvivors",
        )
    part.check_signature()
    body = part.read()
    if body.get("session") != binding.hex():
        raise BadTranscript(
            "the uploads are of another session",
            expected=binding.hex()[:16],
            got=str(body.get("session"))[:16],
            fix="pass on what the aggregator answered to FreezeSurvivors",
        )
    return _tree(binding, body)


def transcript_from_json(content: bytes) -> Transcript:
    """Read a file.

    Raises:
        BadTranscript: it is no transcript of this format, or its head is not that of its parts.
    """
    try:
        whole = json.loads(content)
        parts = tuple(_part_from(entry) for entry in whole["parts"])
        if whole["format"] != FORMAT:
            raise BadTranscript("the file has another format", expected=FORMAT, got=str(whole["format"])[:40])
        transcript = Transcript(parts)
        if whole["head"] != transcript.head.hex():
            raise BadTranscript("the chain of the transcript is broken", expected=f"head {transcript.head.hex()[:16]}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadTranscript("the file is no transcript", expected=f"JSON of {FORMAT}") from error
    return transcript


def verify_transcript(transcript: Transcript, check_certificate: CheckCertificate) -> Verified:
    """Check everything that a transcript says, with nothing but the federation's CA at hand.

    Args:
        transcript: of one attempt.
        check_certificate: the federation's trust.

    Raises:
        BadTranscript: a part is missing, out of order, of the wrong service, not signed, or contradicts another.
        TacitError: a certificate is not one of the federation.
    """
    try:
        return _verify(transcript, check_certificate)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise BadTranscript("a part of the transcript has the wrong form", got=type(error).__name__) from error


def verify_sequence(verified: Sequence[Verified]) -> None:
    """Check that these attempts of one job follow one another, with none between left out.

    Raises:
        BadTranscript: they do not.
    """
    for before, after in pairwise(verified):
        if after.job_id != before.job_id or after.previous != before.head:
            raise BadTranscript(
                f"round {after.round_id}, attempt {after.attempt} does not follow the transcript before it",
                expected=f"previous {before.head.hex()[:16]}",
                got=after.previous.hex()[:16],
            )


def _verify(transcript: Transcript, check_certificate: CheckCertificate) -> Verified:
    bodies = _read_all(transcript)
    opened, closed = bodies["opened"], bodies["closed"]
    binding = _binding_of(opened)
    _check_signers(transcript, opened, closed, check_certificate)
    for kind, body in bodies.items():
        _require(body["session"] == binding.hex(), f"the part {kind!r} is of another session")
    _require(
        closed["chain"] == chain(transcript.parts[:-1]).hex(), "the coordinator did not sign this chain, but another"
    )
    _check_sets(bodies)
    uploads = _tree(binding, bodies["frozen"]).digests if "frozen" in bodies else {}
    names = tuple(str(entry[0]) for entry in opened["roster"])
    return Verified(
        job_id=str(opened["job_id"]),
        round_id=int(opened["round_id"]),
        attempt=int(opened["attempt"]),
        outcome=str(closed["outcome"]),
        sites=names,
        survivors=tuple(names[index] for index in uploads),
        aggregate_sha256=bytes.fromhex(closed["aggregate_sha256"]),
        previous=bytes.fromhex(opened["previous"]),
        head=transcript.head,
        uploads={names[index]: digest for index, digest in uploads.items()},
    )


def _read_all(transcript: Transcript) -> dict[str, dict[str, Any]]:
    kinds = [part.kind for part in transcript.parts]
    order = list(ROLES)
    known = all(kind in ROLES for kind in kinds)
    _require(known and kinds == sorted(set(kinds), key=order.index), "the parts are unknown, repeated or out of order")
    _require(kinds[:1] == ["opened"] and kinds[-1:] == ["closed"], "the transcript has no beginning or no end")
    bodies = {part.kind: part.read() for part in transcript.parts}
    if bodies["closed"]["outcome"] == "committed":
        secure = bodies["opened"]["aggregation"] == "secagg"
        needed = [kind for kind in order if secure or ROLES[kind] != "keyserver"]
        _require(kinds == needed, "an attempt was committed without all of its parts")
    return bodies


def _check_signers(transcript: Transcript, opened: Body, closed: Body, check_certificate: CheckCertificate) -> None:
    at = {"opened": int(opened["opened_at"]), "closed": int(closed["closed_at"])}
    _require(at["opened"] <= at["closed"], "the attempt ended before it began")
    pinned = {
        "coordinator": transcript.parts[0].certificate_sha256.hex(),
        "aggregator": opened["aggregator"],
        "keyserver": opened["keyserver"],
    }
    for part in transcript.parts:
        role = ROLES[part.kind]
        is_pinned = role == "coordinator" or part.certificate_sha256.hex() == pinned[role]
        _require(is_pinned, f"the part {part.kind!r} is not of the {role} that the plan names")
        check_certificate(part.certificate_der, role, at.get(part.kind, at["opened"]))
        part.check_signature()


def _check_sets(bodies: Mapping[str, Body]) -> None:
    opened = bodies["opened"]
    inside = list(range(len(opened["roster"])))
    if "exchanged" in bodies:
        inside = _subset(bodies["exchanged"]["advertised"], inside, "U1")
        inside = _subset(bodies["exchanged"]["shared"], inside, "U2")
    if "frozen" in bodies:
        survivors = _subset(bodies["frozen"]["survivors"], inside, "U3")
        _require(len(survivors) >= opened["min_survivors"], "there are fewer survivors than the plan demands")
        _check_unmasking(bodies, survivors)


def _check_unmasking(bodies: Mapping[str, Body], survivors: list[int]) -> None:
    opened, closed = bodies["opened"], bodies["closed"]
    if "unmasked" in bodies:
        unmasked = bodies["unmasked"]
        _require(
            unmasked["uploads_root"] == bodies["frozen"]["uploads_root"], "other uploads were unmasked than frozen"
        )
        signed = _subset(unmasked["signed"], survivors, "U4")
        revealed = _subset(unmasked["revealed"], signed, "U5")
        enough = len(revealed) >= _needed(opened) or closed["outcome"] != "committed"
        _require(enough, "too few sites revealed shares")
    if "released" in bodies:
        released = bodies["released"]
        _require(released["survivors"] == survivors, "the sum is over other sites than were frozen")
        same = closed["outcome"] != "committed" or released["aggregate_sha256"] == closed["aggregate_sha256"]
        _require(same, "another sum was applied than was released")


def _needed(opened: Body) -> int:
    """Sites that must sign and reveal. The threshold of a sparse graph counts neighbours of one site only."""
    return int(opened["min_survivors"] if opened["neighbours"] else opened["threshold"])


def _subset(indices: Any, whole: Any, name: str) -> list[int]:
    ascending = list(indices) == sorted(set(indices))
    _require(ascending and set(indices) <= set(whole), f"{name} is no part of the set before it")
    return list(indices)


def _binding_of(opened: Body) -> bytes:
    roster = labels.digest_fields(
        labels.ROSTER, *(part for name, digest in opened["roster"] for part in (name, bytes.fromhex(digest)))
    )
    return labels.digest_fields(
        labels.CONTEXT,
        opened["job_id"],
        opened["round_id"],
        opened["attempt"],
        bytes.fromhex(opened["model_digest"]),
        bytes.fromhex(opened["plan_digest"]),
        roster,
    )


def _tree(binding: bytes, body: Body) -> UploadTree:
    try:
        survivors, digests = list(body["survivors"]), [bytes.fromhex(digest) for digest in body["uploads"]]
        sound = bool(survivors) and len(survivors) == len(digests) and survivors == sorted(set(survivors))
        sound = sound and all(type(index) is int and index >= 0 for index in survivors)
        sound = sound and all(len(digest) == hashlib.sha256().digest_size for digest in digests)
    except (KeyError, TypeError, ValueError) as error:
        raise BadTranscript("the uploads have the wrong form") from error
    _require(sound, "the uploads are not one digest for each survivor, ascending")
    tree = UploadTree(binding, dict(zip(survivors, digests, strict=True)))
    _require(tree.root.hex() == body.get("uploads_root"), "the root is not that of the uploads")
    return tree


def _part_from(entry: Mapping[str, Any]) -> Part:
    certificate = base64.b64decode(entry["certificate"], validate=True)
    part = Part(str(entry["kind"]), _canonical(entry["body"]), certificate, bytes.fromhex(entry["signature"]))
    # One file has one form: a second spelling of the same bytes would be another file with the same head.
    _require(dict(entry) == _entry_of(part), "a part of the transcript is not in canonical form")
    return part


def _entry_of(part: Part) -> dict[str, Any]:
    return {
        "kind": part.kind,
        "role": ROLES.get(part.kind),
        "body": json.loads(part.body),
        "certificate": base64.b64encode(part.certificate_der).decode(),
        "signature": part.signature.hex(),
    }


def _canonical(body: Body) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _statement(kind: str, body: bytes) -> bytes:
    return labels.encode_fields(labels.TRANSCRIPT_PART, kind, body)


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise BadTranscript(what, fix="do not rely on this attempt; ask who runs the services")
