"""A structure of `vmfs.dump` for people: fields, tables, bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import click

from vmfs.cli.output import NOTHING, printable, show_fields, show_table, time_text
from vmfs.dump.structure import Structure, Value

_LINE_BYTES: Final = 16
_MOST_RUNS_IN_A_LINE: Final = 8  # more are told by their number; --json has them all
_TALL = (list, tuple)


def show_structure(structure: Structure, *, raw: bool) -> None:
    """Print one structure; its bytes when asked for or when it is damaged."""
    click.echo(printable(f"{structure.kind} at {structure.address:#x} ({structure.where})"))
    for problem in structure.problems:
        click.echo(printable(f"  damaged: {problem}"))
    if structure.problems and structure.fields:
        click.echo("  what the bytes say as they stand:")
    tables = {k: v for k, v in structure.fields.items() if _is_table(v)}
    show_fields((_label(k), _text(k, v)) for k, v in structure.fields.items() if k not in tables and v is not None)
    for name, rows in tables.items():
        assert isinstance(rows, Sequence)
        _show_rows(name, [row for row in rows if isinstance(row, Mapping)])
    if raw or structure.problems:
        for line in hex_lines(structure.raw):
            click.echo(line)


def _is_table(value: Value) -> bool:
    return isinstance(value, _TALL) and bool(value) and isinstance(value[0], Mapping)


def _show_rows(name: str, rows: Sequence[Mapping[str, Value]]) -> None:
    click.echo(f"{_label(name)}:")
    names = list(rows[0])
    numeric = [n.replace("_", " ").upper() for n in names if isinstance(rows[0][n], int)]
    headers = [n.replace("_", " ").upper() for n in names]
    show_table(headers, [[_text(n, row[n]) or NOTHING for n in names] for row in rows], right=numeric)


def _label(name: str) -> str:
    return name.removesuffix("_ns").replace("_", " ")


def _text(name: str, value: Value) -> str:
    if value is None or value in ("", []):
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        if name.endswith("address") or name in ("volume", "hash", "seed", "start", "owner", "role"):
            return f"{value:#x}"
        return time_text(value) if name.endswith("_ns") else str(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{_label(k)} {_text(k, v)}" for k, v in value.items() if v not in (None, "", []))
    if isinstance(value, str):
        return value
    return _listed(value)


def _listed(values: Sequence[Value]) -> str:
    shown = [_run(v) if isinstance(v, _TALL) else str(v) for v in values[:_MOST_RUNS_IN_A_LINE]]
    more = len(values) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _run(value: Sequence[Value]) -> str:
    first, last = value[0], value[-1]
    return str(first) if first == last else f"{first}-{last}"


def hex_lines(data: bytes) -> Iterator[str]:
    """Bytes as lines of offset, hexadecimal and text; a line that repeats the one before is told by one "*"."""
    before: bytes | None = None
    starred = False
    for at in range(0, len(data), _LINE_BYTES):
        line = data[at : at + _LINE_BYTES]
        if line == before:
            if not starred:
                yield "*"
            starred = True
            continue
        before, starred = line, False
        digits = f"{line[:8].hex(' ')}  {line[8:].hex(' ')}"
        text = "".join(chr(b) if 32 <= b < 127 else "." for b in line)
        yield f"{at:08x}  {digits:<48}  {text}"
    yield f"{len(data):08x}"
