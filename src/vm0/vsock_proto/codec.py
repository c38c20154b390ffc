"""Field codecs of the wire protocol, and the decorator that makes a message class out of a table of them.

All integers are big-endian. A payload is the fields in order, nothing between them and nothing after the last one.
Lengths and counts are checked against the bytes that are really there before anything is allocated for them.
This module imports nothing: `dataclasses` and `typing` would cost the guest a third of its start-up time.
"""

from __future__ import annotations

from vm0.vsock_proto.errors import LocalProtocolError, RemoteProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, ClassVar, TypeVar, dataclass_transform

    T = TypeVar("T", bound="Message")
else:

    def dataclass_transform(**_options: object) -> object:
        return lambda decorator: decorator


class Reader:
    """A payload being taken apart; every method raises RemoteProtocolError when the bytes run out."""

    __slots__ = ("_data", "_offset")

    def __init__(self, data: bytes | memoryview) -> None:
        self._data, self._offset = data, 0

    def take(self, size: int) -> bytes:
        end = self._offset + size
        if end > len(self._data):
            raise RemoteProtocolError(f"payload ends {end - len(self._data)} bytes early")
        taken = bytes(self._data[self._offset : end])
        self._offset = end
        return taken

    def integer(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    @property
    def remaining(self) -> int:
        return len(self._data) - self._offset


class Field:
    """One field: how it is written, read, and named in the documentation."""

    def __init__(self, kind: str, encode: Callable[[Any], bytes], decode: Callable[[Reader], Any]) -> None:
        self.kind, self.encode, self.decode = kind, encode, decode


def uint(bits: int) -> Any:
    """An unsigned integer."""
    size = bits // 8

    def encode(value: int) -> bytes:
        try:
            return value.to_bytes(size, "big")
        except OverflowError:
            raise LocalProtocolError(f"{value} does not fit in {bits} unsigned bits") from None

    return Field(f"u{bits}", encode, lambda reader: reader.integer(size))


def sint(bits: int) -> Any:
    """A signed integer, two's complement."""
    size = bits // 8

    def encode(value: int) -> bytes:
        try:
            return value.to_bytes(size, "big", signed=True)
        except OverflowError:
            raise LocalProtocolError(f"{value} does not fit in {bits} signed bits") from None

    return Field(f"i{bits}", encode, lambda reader: int.from_bytes(reader.take(size), "big", signed=True))


def fixed(size: int) -> Any:
    """Exactly `size` bytes."""

    def encode(value: bytes) -> bytes:
        if len(value) != size:
            raise LocalProtocolError(f"{len(value)} bytes where {size} are due")
        return bytes(value)

    return Field(f"{size} bytes", encode, lambda reader: reader.take(size))


def blob(length_bits: int, limit: int) -> Any:
    """A length, then that many bytes; at most `limit`."""
    size = length_bits // 8

    def encode(value: bytes) -> bytes:
        if len(value) > limit:
            raise LocalProtocolError(f"{len(value)} bytes; the field takes {limit}")
        return len(value).to_bytes(size, "big") + value

    def decode(reader: Reader) -> bytes:
        length = reader.integer(size)
        if length > limit:
            raise RemoteProtocolError(f"{length} bytes; the field takes {limit}")
        return reader.take(length)

    return Field(f"u{length_bits} + bytes ≤ {limit}", encode, decode)


def text(length_bits: int, limit: int, *, bytes_names: bool = False) -> Any:
    """A length, then UTF-8; at most `limit` bytes. `bytes_names`: file names, of which bytes that are not UTF-8 are
    kept as surrogate escapes (PEP 383) on both sides."""
    raw = blob(length_bits, limit)
    errors = "surrogateescape" if bytes_names else "strict"

    def encode(value: str) -> bytes:
        try:
            return bytes(raw.encode(value.encode("utf-8", errors)))
        except UnicodeEncodeError:
            raise LocalProtocolError("text with a lone surrogate") from None

    def decode(reader: Reader) -> str:
        try:
            return str(raw.decode(reader), "utf-8", errors)
        except UnicodeDecodeError:
            raise RemoteProtocolError("text that is not UTF-8") from None

    return Field(f"u{length_bits} + {'name' if bytes_names else 'UTF-8'} ≤ {limit}", encode, decode)


def rest() -> Any:
    """All bytes up to the end of the payload: the last field only."""
    return Field("bytes to the end", bytes, lambda reader: reader.take(reader.remaining))


def sequence(limit: int, *items: Field) -> Any:
    """A 32-bit count, then that many items (tuples, if an item has several parts); at most `limit`."""
    single = len(items) == 1

    def encode(values: tuple[Any, ...]) -> bytes:
        if len(values) > limit:
            raise LocalProtocolError(f"{len(values)} items; the field takes {limit}")
        parts = [len(values).to_bytes(4, "big")]
        for value in values:
            row = (value,) if single else value
            parts += [item.encode(part) for item, part in zip(items, row, strict=True)]
        return b"".join(parts)

    def decode(reader: Reader) -> tuple[Any, ...]:
        count = reader.integer(4)
        if count > limit or count > reader.remaining:  # every item takes at least one byte
            raise RemoteProtocolError(f"{count} items in {reader.remaining} bytes; the field takes {limit}")
        if single:
            return tuple(items[0].decode(reader) for _ in range(count))
        return tuple(tuple(item.decode(reader) for item in items) for _ in range(count))

    return Field(f"u32 × ({', '.join(item.kind for item in items)}) ≤ {limit}", encode, decode)


class Message:
    """Base of all messages: immutable by convention, compared by value, `repr` without payload bytes."""

    TYPE: ClassVar[int]
    SENDER: ClassVar[str]
    FIELDS: ClassVar[tuple[tuple[str, Field], ...]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        names = [name for name, _ in self.FIELDS]
        values = dict(zip(names, args, strict=False)) | kwargs
        if len(args) + len(kwargs) != len(names) or set(values) != set(names):
            raise TypeError(f"{type(self).__name__} takes {', '.join(names) or 'nothing'}")
        self.__dict__.update(values)

    def encode(self) -> bytes:
        """The payload; raises LocalProtocolError for a value that the field cannot hold."""
        return b"".join([field.encode(getattr(self, name)) for name, field in self.FIELDS])

    @classmethod
    def decode(cls: type[T], payload: bytes | memoryview) -> T:
        """Take a whole payload apart; raises RemoteProtocolError, also when bytes are left over."""
        reader = Reader(payload)
        message = cls.__new__(cls)
        for name, field in cls.FIELDS:
            message.__dict__[name] = field.decode(reader)
        if reader.remaining:
            raise RemoteProtocolError(f"{reader.remaining} bytes after the end of {cls.__name__}")
        return message

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = {k: f"<{len(v)} bytes>" if isinstance(v, bytes) else repr(v) for k, v in self.__dict__.items()}
        return f"{type(self).__name__}({', '.join(f'{k}={v}' for k, v in shown.items())})"


REGISTRY: dict[int, type[Message]] = {}


@dataclass_transform(frozen_default=True, field_specifiers=(uint, sint, fixed, blob, text, rest, sequence))
def message(number: int, sender: str) -> Callable[[type[T]], type[T]]:
    """Register a message class under its number; `sender` is `host`, `guest` or `both`."""

    def register(cls: type[T]) -> type[T]:
        if number in REGISTRY:
            raise ValueError(f"message number 0x{number:02X} is taken")
        cls.TYPE, cls.SENDER = number, sender
        cls.FIELDS = tuple((name, value) for name, value in list(vars(cls).items()) if isinstance(value, Field))
        for name, _ in cls.FIELDS:
            delattr(cls, name)
        REGISTRY[number] = cls
        return cls

    return register
