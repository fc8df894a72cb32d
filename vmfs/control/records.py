"""Records of `vmfs.control.contract` as JSON and back, by their own field types.

A record becomes an object with a member a field, a tuple an array, a UUID its usual text, None null. Decoding trusts
nothing: a missing member (without a default), or one of another type, is refused; members that are not known are
passed over, so that a newer process may say more.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from typing import TypeAlias, TypeVar
from uuid import UUID

from vmfs.control.errors import ProtocolError

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
T = TypeVar("T")


def to_json(value: object) -> Json:
    """A record, or a value of a record's field, as JSON knows it. TypeError for what no record holds."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, list | tuple):
        return [to_json(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    raise TypeError(f"a {type(value).__name__} does not cross the control socket")


def from_json(wanted: type[T], value: Json) -> T:
    """The record of type `wanted` (a dataclass, or a plain type) that `value` describes. Raises ProtocolError."""
    found = _decode(wanted, value, wanted.__name__)
    return typing.cast(T, found)


@functools.cache
def _types_of(record: type) -> Mapping[str, object]:
    return typing.get_type_hints(record)


def _decode(wanted: object, value: Json, where: str) -> object:
    if dataclasses.is_dataclass(wanted) and isinstance(wanted, type):
        return _decode_record(wanted, value, where)
    origin = typing.get_origin(wanted)
    if origin is types.UnionType or origin is typing.Union:
        present = [t for t in typing.get_args(wanted) if t is not type(None)]
        return None if value is None else _decode(present[0], value, where)
    if origin is Mapping:
        if not isinstance(value, dict):
            raise ProtocolError(f"{where}: not an object but {type(value).__name__}")
        return {k: _decode(typing.get_args(wanted)[1], v, where) for k, v in value.items()}
    if origin is tuple:
        return _decode_tuple(typing.get_args(wanted), value, where)
    if wanted is UUID:
        return _decode_uuid(value, where)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # bool is an int to isinstance, and must not pass for one.
    if isinstance(wanted, type) and isinstance(value, wanted) and (wanted is bool) == isinstance(value, bool):
        return value
    raise ProtocolError(f"{where}: not {getattr(wanted, '__name__', wanted)} but {type(value).__name__}")


def _decode_record(record: type, value: Json, where: str) -> object:
    if not isinstance(value, dict):
        raise ProtocolError(f"{where}: not an object but {type(value).__name__}")
    hints = _types_of(record)
    given: dict[str, object] = {}
    for f in dataclasses.fields(record):
        if f.name in value:
            given[f.name] = _decode(hints[f.name], value[f.name], f"{where}.{f.name}")
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ProtocolError(f"{where}.{f.name} is missing: the mount's process is of another version of Azekura")
    return record(**given)


def _decode_tuple(members: tuple[object, ...], value: Json, where: str) -> tuple[object, ...]:
    if not isinstance(value, list):
        raise ProtocolError(f"{where}: not an array but {type(value).__name__}")
    if len(members) == 2 and members[1] is Ellipsis:
        return tuple(_decode(members[0], v, where) for v in value)
    if len(members) != len(value):
        raise ProtocolError(f"{where}: {len(value)} members, not {len(members)}")
    return tuple(_decode(m, v, where) for m, v in zip(members, value, strict=True))


def _decode_uuid(value: Json, where: str) -> UUID:
    try:
        return UUID(value if isinstance(value, str) else "")
    except ValueError:
        raise ProtocolError(f"{where}: not a UUID") from None
