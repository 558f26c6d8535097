"""Logs of a site that runs in a process of its own. A program that embeds a site sets structlog up itself."""

import sys

import structlog

from client_sdk.config import LogConfig


def set_up_logs(config: LogConfig) -> None:
    """Log to stderr as the configuration says, unless the program has set structlog up already."""
    if structlog.is_configured():
        return
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if config.format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            *([structlog.processors.format_exc_info] if config.format == "json" else []),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(config.level_number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
