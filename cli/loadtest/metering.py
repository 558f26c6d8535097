"""Counts the message bytes of one site by phase, where its stubs turn messages into bytes."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, cast

import grpc


class TrafficPhase(StrEnum):
    """What a message is for."""

    COORDINATION = "coordination"
    MODEL = "model"
    KEYS = "keys"
    UPDATE = "update"
    UNMASKING = "unmasking"


_PHASES = {
    "GetParameters": TrafficPhase.MODEL,
    "ExchangeKeys": TrafficPhase.KEYS,
    "UpdateParameters": TrafficPhase.UPDATE,
    "GetUpload": TrafficPhase.UPDATE,
    "RevealShares": TrafficPhase.UNMASKING,
}


@dataclass(slots=True)
class Tally:
    """Message bytes of one site since they were taken last."""

    up: Counter[str] = field(default_factory=Counter)
    down: Counter[str] = field(default_factory=Counter)

    def take(self) -> dict[str, dict[str, int]]:
        """The counts by direction and phase; counting begins anew."""
        taken: dict[str, dict[str, int]] = {"up": {**self.up}, "down": {**self.down}}
        self.up, self.down = Counter(), Counter()
        return taken


def metered(channel: grpc.aio.Channel, tally: Tally) -> grpc.aio.Channel:
    """The same channel; every message of the stubs that are made from it is counted."""
    return cast("grpc.aio.Channel", _MeteredChannel(channel, tally))


class _MeteredChannel:
    """What a generated stub and its owner use of a channel."""

    def __init__(self, channel: grpc.aio.Channel, tally: Tally) -> None:
        self._channel = channel
        self._tally = tally

    def unary_unary(self, method: str, *arguments: Any, **options: Any) -> Any:
        return self._channel.unary_unary(method, *arguments, **self._counted(method, options))

    def unary_stream(self, method: str, *arguments: Any, **options: Any) -> Any:
        return self._channel.unary_stream(method, *arguments, **self._counted(method, options))

    def stream_unary(self, method: str, *arguments: Any, **options: Any) -> Any:
        return self._channel.stream_unary(method, *arguments, **self._counted(method, options))

    def stream_stream(self, method: str, *arguments: Any, **options: Any) -> Any:
        return self._channel.stream_stream(method, *arguments, **self._counted(method, options))

    async def close(self, grace: float | None = None) -> None:
        await self._channel.close(grace)

    def _counted(self, method: str, options: dict[str, Any]) -> dict[str, Any]:
        phase = _PHASES.get(method.rsplit("/", 1)[-1], TrafficPhase.COORDINATION)
        serialize: Callable[[Any], bytes] = options["request_serializer"]
        deserialize: Callable[[bytes], Any] = options["response_deserializer"]

        def sent(message: Any) -> bytes:
            data = serialize(message)
            self._tally.up[phase] += len(data)
            return data

        def received(data: bytes) -> Any:
            self._tally.down[phase] += len(data)
            return deserialize(data)

        return {**options, "request_serializer": sent, "response_deserializer": received}
