"""From a plan to the facts of an encrypted attempt. Importing this module needs gmpy2."""

from typing import Protocol

from fl_core.crypto.paillier.keys import PublicKey
from fl_core.crypto.paillier.slots import SlotLayout
from fl_core.crypto.signing import verify_signature
from fl_core.encrypted.context import EncryptedContext, check_key
from fl_core.encrypted.dealing import Dealing, dealing_message
from fl_core.errors import PlanError
from fl_core.rounds.paillier_terms import Custody
from fl_core.rounds.plan import Aggregation, RoundPlan


class Authority(Protocol):
    """The pinned federation."""

    def check_signed(self, message: bytes, signature: bytes) -> None:
        """BadSignature when its CA did not sign the message."""


def encrypted_context(plan: RoundPlan) -> EncryptedContext:
    """The facts that aggregation by encryption needs.

    Raises:
        PlanError: the attempt is not encrypted, or key, slots or cohort cannot hold one.
        BadKey: the key is none.
    """
    if plan.paillier is None:
        raise PlanError("the attempt is not encrypted", expected=Aggregation.PAILLIER.value, got=plan.aggregation.value)
    public_key = PublicKey.from_bytes(plan.paillier.modulus)
    check_key(public_key)
    if plan.paillier.custody is Custody.THRESHOLD and dealing_of(plan).key.public_key != public_key:
        raise PlanError("the dealing is of another key", expected="the modulus of the plan")
    return EncryptedContext(
        binding=plan.binding,
        size=len(plan.roster),
        min_survivors=plan.min_survivors,
        length=plan.length,
        ring_bits=plan.codec.ring_bits,
        public_key=public_key,
        layout=SlotLayout((1 << plan.codec.bits) - 1, len(plan.roster), public_key.bits),
    )


def dealing_of(plan: RoundPlan) -> Dealing:
    """Who holds the shares of the plan's key.

    Raises:
        PlanError: the plan's key is not shared out, or its dealing is none.
    """
    if plan.paillier is None or plan.paillier.custody is not Custody.THRESHOLD:
        raise PlanError("the key of the attempt is not shared out", expected=Custody.THRESHOLD.value)
    return Dealing.from_bytes(plan.paillier.dealing)


def check_endorsement(plan: RoundPlan, keyserver_certificate_der: bytes, authority: Authority) -> None:
    """Check that the key server stands for the plan's key, and the federation CA for the holders of its shares.

    Args:
        plan: of an encrypted attempt.
        keyserver_certificate_der: what the key server showed; the caller has checked that it is the plan's.
        authority: the pinned federation.

    Raises:
        BadSignature: one of them does not.
    """
    terms = plan.paillier
    if terms is None:
        return
    verify_signature(keyserver_certificate_der, terms.endorsed_message(), terms.endorsement)
    if terms.custody is Custody.THRESHOLD:
        authority.check_signed(dealing_message(terms.dealing), terms.dealing_signature)
