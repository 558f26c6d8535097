"""Structured logs: fields instead of prose, and never a secret."""

import logging
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any

import structlog

from services.runtime.settings import LogSettings

REDACTED = "[redacted]"
_SECRET_WORDS = ("secret", "seed", "share", "private", "password", "passphrase", "token", "vector", "mask", "key_pem")
_MAX_DEPTH = 4
_ID_BYTES = 32


def configure_logging(settings: LogSettings, **bound: str) -> None:
    """Send all logs of this process to stderr in the chosen format.

    Args:
        settings: level and format.
        bound: fields that stand in every line, such as role and service_id.
    """
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        redact,
    ]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=_tail(settings)))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(level, logging.INFO))
    logging.getLogger("tacit").setLevel(level)
    for noisy in ("alembic", "sqlalchemy", "aiosqlite", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *args: logging.getLogger(args[0] if args else "tacit"),
        cache_logger_on_first_use=False,
    )
    structlog.contextvars.bind_contextvars(**bound)


def redact(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace what must not be logged: by the name of the field, and by the kind of the value."""
    for key, value in event.items():
        event[key] = REDACTED if _is_secret(key, value) else _plain(value, 0)
    return event


def _is_secret(key: str, value: object) -> bool:
    # Counts such as `shares=7` are facts; only values that could carry a secret are hidden.
    return not isinstance(value, bool | int | float | None) and any(word in key.lower() for word in _SECRET_WORDS)


def _plain(value: Any, depth: int) -> Any:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex() if len(value) <= _ID_BYTES else f"<{len(value)} bytes>"
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"<array {value.dtype} {value.shape}>"
    if depth >= _MAX_DEPTH:
        return "..."
    if isinstance(value, Mapping):
        return {str(k): REDACTED if _is_secret(str(k), v) else _plain(v, depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(part, depth + 1) for part in value]
    return value


def _tail(settings: LogSettings) -> list[structlog.typing.Processor]:
    drop = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    # Never the local variables of a traceback: among them may be keys and vectors.
    if settings.format == "json":
        transformer = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        return [
            drop,
            structlog.processors.ExceptionRenderer(transformer),
            structlog.processors.JSONRenderer(default=str),
        ]
    plain = structlog.dev.plain_traceback
    return [drop, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
