"""Typed access to the fields of a JSON object that nobody vouches for. Each function raises ValueError by name."""

from __future__ import annotations

from collections.abc import Mapping

Fields = Mapping[str, object]


def text(body: Fields, key: str, limit_chars: int = 4096) -> str:
    """A string of at most `limit_chars` characters."""
    value = body.get(key)
    if not isinstance(value, str) or len(value) > limit_chars:
        raise ValueError(f"field {key!r} is not a string of at most {limit_chars} characters")
    return value


def optional_text(body: Fields, key: str, limit_chars: int = 4096) -> str | None:
    """A string, or None where the field is null or missing."""
    return None if body.get(key) is None else text(body, key, limit_chars)


def integer(body: Fields, key: str, low: int, high: int) -> int:
    """A whole number from `low` to `high`, both included."""
    value = body.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"field {key!r} is not a whole number from {low} to {high}")
    return value


def number(body: Fields, key: str) -> float:
    """A finite number that is not negative."""
    value = body.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ValueError(f"field {key!r} is not a number")
    return float(value)


def boolean(body: Fields, key: str) -> bool:
    """True or false."""
    value = body.get(key)
    if not isinstance(value, bool):
        raise ValueError(f"field {key!r} is neither true nor false")
    return value


def identifier(body: Fields, key: str, size_bytes: int) -> bytes:
    """Bytes written as lower-case hexadecimal digits."""
    value = text(body, key, size_bytes * 2)
    try:
        raw = bytes.fromhex(value)
    except ValueError as error:
        raise ValueError(f"field {key!r} is not hexadecimal") from error
    if len(raw) != size_bytes or raw.hex() != value:
        raise ValueError(f"field {key!r} is not {size_bytes} bytes in hexadecimal")
    return raw


def mapping(value: object, what: str) -> Fields:
    """A JSON object."""
    if not isinstance(value, dict):
        raise ValueError(f"{what} is not an object")
    return value


def sequence(body: Fields, key: str, limit_items: int) -> list[object]:
    """A list of at most `limit_items`."""
    value = body.get(key)
    if not isinstance(value, list) or len(value) > limit_items:
        raise ValueError(f"field {key!r} is not a list of at most {limit_items}")
    return value
