"""What a site embeds: its configuration, the trainer that it brings, and the loop that takes part in rounds.

    from client_sdk import Site, SiteConfig

    Site(SiteConfig.from_file("site.yaml")).run(trainer)

Names are loaded when they are first used, so that importing the package costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from client_sdk.config import LogConfig, SiteConfig
    from client_sdk.observer import SiteObserver
    from client_sdk.policy import SitePolicy
    from client_sdk.site import Site
    from client_sdk.trainer import Array, EvaluationResult, Trainer, TrainingContext, TrainResult

__all__ = [
    "Array",
    "EvaluationResult",
    "LogConfig",
    "Site",
    "SiteConfig",
    "SiteObserver",
    "SitePolicy",
    "TrainResult",
    "Trainer",
    "TrainingContext",
]

_HOMES = {
    "Array": "client_sdk.trainer",
    "EvaluationResult": "client_sdk.trainer",
    "LogConfig": "client_sdk.config",
    "Site": "client_sdk.site",
    "SiteConfig": "client_sdk.config",
    "SiteObserver": "client_sdk.observer",
    "SitePolicy": "client_sdk.policy",
    "TrainResult": "client_sdk.trainer",
    "Trainer": "client_sdk.trainer",
    "TrainingContext": "client_sdk.trainer",
}


def __getattr__(name: str) -> object:
    """Load a public name from its module at first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
