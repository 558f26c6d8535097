"""Tools of the malicious parties."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from fl_core.secagg.messages import KeyDirectory


@pytest.fixture
def forge() -> Callable[..., KeyDirectory]:
    """Changes fields of one advertisement in a directory."""

    def change(directory: KeyDirectory, index: int, **changes: bytes) -> KeyDirectory:
        return KeyDirectory(
            tuple(
                replace(one, **changes) if one.index == index else one  # type: ignore[arg-type]
                for one in directory.advertisements
            )
        )

    return change
