"""The configuration of a site: who it is, where the coordinator is, and what it insists on."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml

from client_sdk.policy import SitePolicy
from fl_core.errors import ConfigError

LOG_FORMATS = ("console", "json")
LOG_LEVELS = ("debug", "info", "warning", "error")
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")
Section = TypeVar("Section", SitePolicy, "LogConfig")
_PATHS = ("certificate", "key", "ca", "crl", "state_dir", "record_plain_updates")


@dataclass(frozen=True, slots=True)
class LogConfig:
    """How much `Site.run` logs, and how.

    Args:
        level: debug, info, warning or error.
        format: console or json, one object in a line.

    Raises:
        ConfigError: another value.
    """

    level: str = "info"
    format: str = "console"

    def __post_init__(self) -> None:
        _check_choice("log.level", self.level, LOG_LEVELS)
        _check_choice("log.format", self.format, LOG_FORMATS)

    @property
    def level_number(self) -> int:
        """The level as the standard library counts."""
        return logging.getLevelNamesMapping()[self.level.upper()]


@dataclass(frozen=True, slots=True)
class SiteConfig:
    """Everything that a site is told by its owner.

    Args:
        coordinator: host:port; several, in a list, when the coordinator has replicas.
        certificate: the certificate of this site, PEM.
        key: its private key, PEM.
        ca: the certificate of the federation's CA, PEM.
        state_dir: a folder of this site alone; made when it is missing.
        crl: revoked certificates, PEM.
        client_id: checked against the certificate when given.
        policy: what the site insists on.
        record_plain_updates: a folder in which the site leaves its updates **before** they are masked, for an audit
            of the sum. Whoever reads that folder reads the updates.
        keep_training_after_s: an update that took at least this many seconds to train is kept in `state_dir` until
            its round is over, sealed with a key that only this site can derive, so that a restart does not train again.
        tracing_endpoint: OTLP collector that gets this site's part of the traces of rounds, such as
            `http://127.0.0.1:4317`; none when empty. Needs the extra `tracing`.
        log: what `Site.run` logs.

    Raises:
        ConfigError: a value is of the wrong type or out of range.
    """

    coordinator: str | Sequence[str]
    certificate: Path
    key: Path
    ca: Path
    state_dir: Path
    crl: Path | None = None
    client_id: str | None = None
    policy: SitePolicy = field(default_factory=SitePolicy)
    record_plain_updates: Path | None = None
    keep_training_after_s: float = 1.0
    tracing_endpoint: str = ""
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        if not self.coordinator or len(set(self.coordinators)) != len(self.coordinators):
            raise ConfigError(
                "coordinator names no address, or one twice",
                expected="host:port, or a list of them",
                got=repr(self.coordinator),
            )
        for address in self.coordinators:
            check_address("coordinator", address)
        for name in _PATHS:
            value = getattr(self, name)
            if not (isinstance(value, Path) or (value is None and name in ("crl", "record_plain_updates"))):
                raise ConfigError(f"{name} is no path", expected="a pathlib.Path", got=repr(value))
        if self.client_id is not None and not (isinstance(self.client_id, str) and self.client_id):
            raise ConfigError("client_id is no name", expected="text", got=repr(self.client_id))
        if not isinstance(self.tracing_endpoint, str):
            raise ConfigError("tracing_endpoint is no address", expected="text", got=repr(self.tracing_endpoint))
        seconds = self.keep_training_after_s
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds >= 0:
            raise ConfigError("keep_training_after_s is no duration", expected="seconds, 0 or more", got=repr(seconds))

    @property
    def coordinators(self) -> tuple[str, ...]:
        """host:port of each replica of the coordinator."""
        return tuple(self.coordinator) if isinstance(self.coordinator, list | tuple) else (str(self.coordinator),)

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Read `site.yaml`. Paths in it are relative to its folder.

        Raises:
            ConfigError: the file cannot be read, a key is unknown or missing, or a value makes no sense.
        """
        path = Path(path)
        try:
            return cls._from_mapping(_read(path), path.parent)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error.what}", expected=error.expected, got=error.got, fix=error.fix) from error

    @classmethod
    def _from_mapping(cls, mapping: Mapping[str, Any], folder: Path) -> Self:
        _check_keys(cls, mapping, "")
        values = dict(mapping)
        for name in _PATHS:
            if values.get(name) is not None:
                values[name] = _path(name, values[name], folder)
        values["policy"] = _section(SitePolicy, "policy", values.get("policy"))
        values["log"] = _section(LogConfig, "log", values.get("log"))
        return cls(**values)


def check_address(name: str, address: object) -> None:
    """Check that `address` reads host:port.

    Raises:
        ConfigError: it does not.
    """
    match = _ADDRESS.fullmatch(address) if isinstance(address, str) else None
    if match is None or not 0 < int(match[2]) < 65536:
        raise ConfigError(f"{name} is no address", expected="host:port, such as fl.example.org:7001", got=repr(address))


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(
            "the file cannot be read",
            expected="a readable YAML file",
            got=error.strerror,
            fix="check the path and its permissions",
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError("the file is no UTF-8", expected="text", fix="save the file as UTF-8") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # Dates and integers that cannot be are ValueErrors of YAML's own, nesting without end is a RecursionError.
        place = getattr(error, "problem_mark", None)
        raise ConfigError(
            "the file is no YAML",
            expected="lines of `key: value`",
            got=f"a mistake in line {place.line + 1}" if place else "a date, number or nesting that cannot be",
            fix="correct that line",
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(
            "the file holds no settings",
            expected="lines of `key: value`",
            got=type(content).__name__,
            fix="write one setting in each line",
        )
    return content


def _check_keys(kind: type[Any], mapping: Mapping[Any, Any], prefix: str) -> None:
    known = [entry.name for entry in fields(kind)]
    for name in mapping:
        if name in known:
            continue
        near = get_close_matches(str(name), known, n=1)
        fix = f"did you mean {prefix}{near[0]}?" if near else f"known keys: {', '.join(known)}"
        raise ConfigError(f"{prefix}{name} is an unknown key", expected="a key of site.yaml", got=repr(name), fix=fix)
    for entry in fields(kind):
        needed = entry.default is MISSING and entry.default_factory is MISSING
        if needed and mapping.get(entry.name) is None:
            raise ConfigError(
                f"{prefix}{entry.name} is missing",
                expected="a value",
                got="none",
                fix=f"add a line `{entry.name}: ...`",
            )


def _section(kind: type[Section], name: str, mapping: object) -> Section:
    if mapping is None:
        return kind()
    if not isinstance(mapping, dict):
        raise ConfigError(f"{name} is no section", expected="indented lines of `key: value`", got=repr(mapping))
    _check_keys(kind, mapping, f"{name}.")
    return kind(**mapping)


def _path(name: str, value: object, folder: Path) -> Path:
    if not isinstance(value, str):
        raise ConfigError(f"{name} is no path", expected="text", got=repr(value))
    return folder / Path(value).expanduser()


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} is unknown", expected=" | ".join(choices), got=repr(value))
