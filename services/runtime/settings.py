"""Settings of a service: a YAML file, overridden by the environment (`TACIT_LISTEN`, `TACIT_LOG__LEVEL`)."""

import difflib
import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from fl_core.errors import ConfigError
from fl_core.transport.tls import Credentials

ENVIRONMENT_PREFIX = "TACIT_"


class LogSettings(BaseModel):
    """What is logged and how.

    Args:
        level: smallest level.
        format: one JSON object per line, or text for people.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "console"] = "json"


class QuotaSettings(BaseModel):
    """What one site may ask of this service.

    Args:
        calls: calls at once.
        connections: connections with calls on them at once.
        requests_per_second: calls that it may begin, in the long run.
        requests_at_once: calls that it may begin in one go.
        bytes_per_second: message bytes that it may send, in the long run.
        bytes_at_once: message bytes that it may send in one go.
        mistakes_per_second: wrong messages that are answered at once, in the long run.
        mistakes_at_once: wrong messages that are answered at once in one go.
        pause_seconds: how long the refusal of a caller beyond its quota is held back.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    calls: int = Field(default=64, ge=1)
    connections: int = Field(default=16, ge=1)
    requests_per_second: float = Field(default=100.0, gt=0)
    requests_at_once: float = Field(default=2000.0, ge=1)
    bytes_per_second: float = Field(default=float(256 << 20), gt=0)
    bytes_at_once: float = Field(default=float(32 << 30), ge=1)
    mistakes_per_second: float = Field(default=1.0, gt=0)
    mistakes_at_once: float = Field(default=30.0, ge=1)
    pause_seconds: float = Field(default=1.0, ge=0)


class ServiceSettings(BaseSettings):
    """What every service needs. Each service adds its own fields in a subclass.

    Args:
        service_id: its id; must be the one in the certificate.
        listen: host:port to listen on; port 0 takes a free one.
        advertise: host:port under which others reach it; `listen` when empty.
        certificate: certificate (PEM).
        key: private key (PEM).
        ca: pinned CA (PEM).
        crl: revocation list (PEM).
        state_dir: folder for what it keeps.
        log: level and format.
        metrics_listen: host:port of the Prometheus endpoint; none when empty.
        tracing_endpoint: OTLP collector that gets the traces of rounds, such as `http://127.0.0.1:4317`; none when
            empty. Needs the extra `tracing`.
        max_connections: connections to the port at once, with and without a certificate; more are refused.
        quota: what one site may ask of the service.
        warm_up: load the compiled code for large models before the service is ready, not in its first round.
        drain_seconds: how long the rounds that run may finish after SIGTERM, while no new ones begin; a second
            SIGTERM ends the wait.
        grace_seconds: how long calls in flight may finish when the service stops.
    """

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix=ENVIRONMENT_PREFIX, env_nested_delimiter="__", env_ignore_empty=True
    )

    service_id: str
    listen: str
    advertise: str = ""
    certificate: Path
    key: Path
    ca: Path
    crl: Path | None = None
    state_dir: Path
    log: LogSettings = Field(default_factory=LogSettings)
    metrics_listen: str = ""
    tracing_endpoint: str = ""
    max_connections: int = Field(default=20_000, ge=1)
    quota: QuotaSettings = Field(default_factory=QuotaSettings)
    warm_up: bool = True
    drain_seconds: float = Field(default=20.0, ge=0)
    grace_seconds: float = Field(default=2.0, ge=0)

    @field_validator("listen", "advertise", "metrics_listen")
    @classmethod
    def _check_address(cls, address: str) -> str:
        if address:
            split_address(address)
        return address

    # The names of the arguments are those of pydantic-settings.
    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment goes before the file, whose values come in as arguments."""
        return env_settings, init_settings

    @classmethod
    def from_file(cls, path: Path | str) -> Self:
        """Read settings. Relative paths and SQLite URLs in the file count from the folder of the file.

        Raises:
            ConfigError: the file cannot be read, a key is unknown or missing, or a value is wrong.
        """
        path = Path(path)
        content = read_yaml(path)
        anchored = {key: _anchor(cls, key, value, path.resolve().parent) for key, value in content.items()}
        try:
            return cls(**anchored)
        except ValidationError as error:
            raise settings_error(path, error, list(cls.model_fields)) from error

    @property
    def advertised(self) -> str:
        """host:port under which others reach this service."""
        return self.advertise or self.listen

    def credentials(self) -> Credentials:
        """The certificate of this service.

        Raises:
            ConfigError: as `Credentials.from_files`, or the certificate has another id.
        """
        credentials = Credentials.from_files(self.certificate, self.key, self.ca, self.crl)
        if credentials.identity.id != self.service_id:
            raise ConfigError(
                "service_id is not the id in the certificate",
                expected=credentials.identity.id,
                got=self.service_id,
                fix=f"correct service_id or issue a certificate for {self.service_id!r}",
            )
        return credentials


def read_addresses(value: object) -> object:
    """One address, several in a list, or several in one text, separated by commas as an environment variable has it."""
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value


def check_addresses(addresses: tuple[str, ...]) -> tuple[str, ...]:
    """Check that there is an address, that each can be read, and that none stands twice.

    Raises:
        ConfigError: there is none, one cannot be read, or one stands twice.
    """
    if not addresses or len(set(addresses)) != len(addresses):
        raise ConfigError("the replicas of a service are wrong", expected="different addresses", got=addresses)
    for address in addresses:
        split_address(address)
    return addresses


Addresses = Annotated[tuple[str, ...], NoDecode, BeforeValidator(read_addresses), AfterValidator(check_addresses)]
"""The addresses of a service and its replicas: `host:port`, or several of them."""


def split_address(address: str) -> tuple[str, int]:
    """host and port of `host:port` or `[v6]:port`.

    Raises:
        ConfigError: it is not of that form.
    """
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) < 65536):
        raise ConfigError("an address cannot be read", expected="host:port", got=repr(address))
    return host, int(port)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds one mapping.

    Raises:
        ConfigError: it is missing, unreadable or something else.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(
            f"the config {path} cannot be read",
            expected="a readable YAML file",
            got=reason,
            fix="check the path and its permissions",
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # Dates and integers that cannot be are ValueErrors of YAML's own, nesting without end is a RecursionError.
        # The full message quotes the file; the place is enough to find it.
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}" if mark else "unknown place"
        raise ConfigError(
            f"the config {path} is not valid YAML",
            expected="lines of `key: value`",
            got=f"an error at {place}",
            fix="correct that line",
        ) from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError(
            f"the config {path} has the wrong form",
            expected="lines of `key: value`",
            got=type(content).__name__,
            fix="write one setting in each line",
        )
    return content


def settings_error(path: Path, error: ValidationError, known: list[str]) -> ConfigError:
    """One sentence for the first thing that is wrong in a config."""
    first = error.errors(include_url=False, include_context=True)[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return ConfigError(
            f"the config {path} lacks {name!r}", expected="a value", got="none", fix=f"add a line `{name}: ...`"
        )
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        nearest = difflib.get_close_matches(name.rsplit(".", 1)[-1], known, n=1)
        fix = f"did you mean {nearest[0]!r}?" if nearest else f"known are {', '.join(known)}"
        return ConfigError(
            f"the config {path} has an unknown key {name!r}", expected="keys of this service", got=repr(name), fix=fix
        )
    return ConfigError(
        f"{name!r} in the config {path} is wrong",
        expected=first["msg"],
        got=repr(first.get("input"))[:100],
        fix="correct that value",
    )


def _anchor(cls: type[BaseSettings], key: str, value: Any, base: Path) -> Any:
    field = cls.model_fields.get(key)
    if field is None or not isinstance(value, str):
        return value
    if field.annotation is Path or Path in get_args(field.annotation):
        return base / Path(value).expanduser()
    if key == "database_url":
        return _anchor_sqlite(value, base)
    if key == "blob_url" and "://" not in value:
        return str(base / Path(value).expanduser())
    return value


def _anchor_sqlite(url: str, base: Path) -> str:
    scheme, found, place = url.partition(":///")
    if not (found and scheme.startswith("sqlite") and place) or place.startswith(("/", ":")):
        return url
    return f"{scheme}:///{os.fspath(base / place)}"
