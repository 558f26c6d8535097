"""From a plan to the facts of an encrypted attempt. Importing this module needs gmpy2."""

from fl_core.crypto.paillier.keys import PublicKey
from fl_core.crypto.paillier.slots import SlotLayout
from fl_core.crypto.signing import verify_signature
from fl_core.encrypted.context import EncryptedContext, check_key
from fl_core.errors import PlanError
from fl_core.rounds.plan import Aggregation, RoundPlan


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
    return EncryptedContext(
        binding=plan.binding,
        size=len(plan.roster),
        min_survivors=plan.min_survivors,
        length=plan.length,
        ring_bits=plan.codec.ring_bits,
        public_key=public_key,
        layout=SlotLayout((1 << plan.codec.bits) - 1, len(plan.roster), public_key.bits),
    )


def check_endorsement(plan: RoundPlan, keyserver_certificate_der: bytes) -> None:
    """Check that the key server of the plan stands for the plan's key.

    Args:
        plan: of an encrypted attempt.
        keyserver_certificate_der: what the key server showed; the caller has checked that it is the plan's.

    Raises:
        BadSignature: it does not.
    """
    if plan.paillier is not None:
        verify_signature(keyserver_certificate_der, plan.paillier.endorsed_message(), plan.paillier.endorsement)
