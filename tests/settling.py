"""A moment in which everything that is under way gets its turn."""

import asyncio

STEPS = 20


async def settle(seconds: float = 0.2) -> None:
    """Wait, in many short sleeps.

    A machine may stand still for longer than one long sleep takes, which would then be over before anything else had
    its turn; of these, one at most is lost.
    """
    for _ in range(STEPS):
        await asyncio.sleep(seconds / STEPS)
