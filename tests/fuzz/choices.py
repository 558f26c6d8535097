"""Turns the bytes of a fuzzer into choices, and choices into messages that are almost right."""

from collections.abc import Sequence
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

T = TypeVar("T")

INTERESTING = (0, 1, 2, 3, 8, 24, 32, 255, 4096, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**64 - 1)
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-300, 1e300, float("inf"), float("-inf"), float("nan"))
SIZES = (0, 1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 255, 8193)
TEXTS = ("", "a", "site-1", "a" * 300, "\x00", "\u202e", "../../etc", "%s{0}", "host:0", "host:99999", "é" * 70)
ODD: tuple[Any, ...] = (None, True, -1, 0.5, 1e308, "", "x", "é", "0" * 64, "zz" * 32, [], {}, [[]], [None], 10**400)
"""What a field of JSON may hold instead of what it should."""
DEEPEST = 8
"""Levels of messages within messages that are followed."""

_WIDTH = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_ENUM: (0, 2**31 - 1),
}


class Choices:
    """Reads choices from bytes. When they run out every choice is the first one, so any input has an end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0

    @property
    def is_spent(self) -> bool:
        """Whether the bytes have run out."""
        return self._place >= len(self._data)

    def take(self, count: int) -> bytes:
        """The next bytes, filled up with zeros."""
        taken = self._data[self._place : self._place + count]
        self._place += count
        return taken.ljust(count, b"\x00")

    def rest(self) -> bytes:
        """All bytes that are left."""
        left, self._place = self._data[self._place :], len(self._data)
        return left

    def below(self, bound: int) -> int:
        """A number from 0 to bound - 1."""
        return int.from_bytes(self.take(1 if bound <= 256 else 4), "little") % bound

    def pick(self, options: Sequence[T]) -> T:
        """One of the options."""
        return options[self.below(len(options))]

    def integer(self, low: int, high: int) -> int:
        """An integer of a range: one that programs get wrong, or any."""
        kind = self.below(4)
        if kind < 2:
            value = self.pick(INTERESTING)
        elif kind == 2:
            value = -self.pick(INTERESTING)
        else:
            value = int.from_bytes(self.take(8), "little")
        return low + (value - low) % (high - low + 1)

    def blob(self) -> bytes:
        """Bytes of a length that a check may be about."""
        size = self.pick(SIZES)
        return (self.take(min(size, 8)) * (size // 8 + 1))[:size]


def mutate(message: Message, choices: Choices) -> None:
    """Change one to four places of a message, however deep they lie."""
    for _ in range(1 + choices.below(4)):
        _change(message, choices, 0)


def mutate_json(value: Any, choices: Choices) -> Any:
    """A JSON value with one place replaced by something else, however deep it lies."""
    if isinstance(value, dict) and value and choices.below(8):
        key = choices.pick(sorted(value))
        if not choices.below(8):
            return {name: part for name, part in value.items() if name != key}
        return {**value, key: mutate_json(value[key], choices)}
    if isinstance(value, list) and value and choices.below(4):
        place = choices.below(len(value))
        return [*value[:place], mutate_json(value[place], choices), *value[place + 1 :]]
    return choices.pick((*ODD, choices.integer(-(2**63), 2**64), [value, value], {"a": value}))


def is_repeated(field: FieldDescriptor) -> bool:
    """Whether a field is a list; protobuf 6 and 5 say it by different names."""
    said = getattr(field, "is_repeated", None)
    return bool(field.label == FieldDescriptor.LABEL_REPEATED if said is None else said)


def is_map(field: FieldDescriptor) -> bool:
    """Whether a field is a map."""
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _change(message: Message, choices: Choices, depth: int) -> None:
    fields = message.DESCRIPTOR.fields
    if not fields or depth > DEEPEST:
        return
    field = choices.pick(fields)
    if is_map(field):
        _change_map(getattr(message, field.name), field, choices)
    elif is_repeated(field):
        _change_list(getattr(message, field.name), field, choices, depth)
    elif field.message_type is None:
        setattr(message, field.name, _scalar(field, choices))
    elif choices.below(8) == 0:
        message.ClearField(field.name)
    else:
        part: Message = getattr(message, field.name)
        part.SetInParent()
        _change(part, choices, depth + 1)


def _change_list(values: Any, field: FieldDescriptor, choices: Choices, depth: int) -> None:
    is_scalar = field.message_type is None
    match choices.below(6):
        case 0:
            del values[:]
        case 1 if len(values):
            del values[choices.below(len(values))]
        case 2 if len(values):
            # The same once more: duplicates are what lists get wrong.
            values.append(values[choices.below(len(values))])
        case 3 if is_scalar:
            values.extend(_scalar(field, choices) for _ in range(1 + choices.below(40)))
        case 4 if len(values) and not is_scalar:
            _change(values[choices.below(len(values))], choices, depth + 1)
        case _ if is_scalar:
            values.append(_scalar(field, choices))
        case _:
            _change(values.add(), choices, depth + 1)


def _change_map(values: Any, field: FieldDescriptor, choices: Choices) -> None:
    key_field, value_field = field.message_type.fields_by_name["key"], field.message_type.fields_by_name["value"]
    key = _scalar(key_field, choices)
    if value_field.message_type is None:
        values[key] = _scalar(value_field, choices)
    else:
        _change(values[key], choices, DEEPEST)


def _scalar(field: FieldDescriptor, choices: Choices) -> Any:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return bool(choices.below(2))
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return choices.pick(FLOATS)
    if kind == FieldDescriptor.CPPTYPE_STRING:
        return choices.pick(TEXTS) if field.type == FieldDescriptor.TYPE_STRING else choices.blob()
    return choices.integer(*_WIDTH[kind])
