"""How `vmfsctl` shows things: aligned tables and fields for people, JSON for programs."""

from __future__ import annotations

import json
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

import click

from thin.size import format_size
from vmfs.control.records import to_json

NOTHING = "-"
_GAP = "  "
_CUT_LEAST = 8  # columns; less of a name says nothing


def printable(text: str) -> str:
    """Text that cannot steer a terminal: control characters and bytes that are no UTF-8 (file names) as \\xNN."""
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    if 0xDC80 <= ord(character) <= 0xDCFF:  # how os.fsdecode carries a byte that is no UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def show_json(members: Mapping[str, object]) -> None:
    """Print one JSON object, whose members are records or what records hold."""
    click.echo(json.dumps({name: to_json(value) for name, value in members.items()}, indent=2))


def show_table(headers: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """Print rows under their headers; the columns named in `right` are aligned to the right (numbers).

    On a terminal a table that is too wide has its widest texts cut, which a "…" shows; elsewhere everything is printed.
    """
    lines = [list(headers), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(_width(line[i]) for line in lines) for i in range(len(headers))]
    if sys.stdout.isatty():
        least = [width if header in right else _width(header) for header, width in zip(headers, widths, strict=True)]
        widths = fitted(widths, least, shutil.get_terminal_size().columns - len(_GAP) * (len(headers) - 1))
    for line in lines:
        cells = []
        for header, text, width in zip(headers, line, widths, strict=True):
            cell = _cut(text, width)
            space = " " * (width - _width(cell))
            cells.append(space + cell if header in right else cell + space)
        click.echo(_GAP.join(cells).rstrip())


def fitted(widths: Sequence[int], least: Sequence[int], total: int) -> list[int]:
    """The widths made smaller, the widest first, until together they take `total`; none below its `least`."""
    fitting = list(widths)
    while sum(fitting) > total:
        wide = [i for i in range(len(fitting)) if fitting[i] > max(least[i], _CUT_LEAST)]
        if not wide:
            break
        fitting[max(wide, key=lambda i: fitting[i])] -= 1
    return fitting


def _cut(text: str, width: int) -> str:
    """The text in at most `width` columns: the beginning and the end of a longer one, which tell names apart."""
    if _width(text) <= width:
        return text
    head, tail = width // 2, (width - 1) // 2
    while _width(text[:head]) + _width(text[len(text) - tail :]) > width - 1:
        head -= 1
    return f"{text[:head]}…{text[len(text) - tail:]}"


def show_fields(fields: Iterable[tuple[str, str | None]]) -> None:
    """Print `label: value` lines, aligned; those without a value are left out."""
    present = [(label, value) for label, value in fields if value is not None]
    width = max((len(label) for label, _ in present), default=0) + 3
    for label, value in present:
        click.echo(f"{label + ':':<{width}}{printable(value)}")


def _width(text: str) -> int:
    """Columns on a terminal."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else not unicodedata.combining(c) for c in text)


def size_text(size_bytes: int | None) -> str:
    """A size in binary units; people read two decimals at most."""
    return NOTHING if size_bytes is None else format_size(size_bytes)


def seconds_text(seconds: float | None) -> str:
    """A duration, to a tenth below a minute."""
    if seconds is None:
        return NOTHING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def time_text(ns_since_epoch: int) -> str:
    """A point in time, in this machine's time zone."""
    at = datetime.fromtimestamp(ns_since_epoch / 1e9, UTC).astimezone()
    return at.strftime("%Y-%m-%d %H:%M:%S %z")
