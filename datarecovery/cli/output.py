"""What the commands share in how they print: JSON, sizes, tables, progress."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from datarecovery import progress
from datarecovery.store.manifest import Figures, Manifest

F = TypeVar("F", bound=Callable[..., Any])

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def store_option(function: F) -> F:
    """The option --store DIR."""
    return click.option(
        "--store",
        "store_dir",
        metavar="DIR",
        required=True,
        type=click.Path(path_type=Path, readable=False),
        help="The store's folder.",
    )(function)


def json_option(function: F) -> F:
    """The option --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)


def print_json(value: object) -> None:
    """Print as JSON, for programs."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def size(count: int) -> str:
    """Bytes for people."""
    amount = float(count)
    for unit in _UNITS:
        if amount < 1024 or unit == _UNITS[-1]:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    raise AssertionError("unreachable")


def count(number: int, noun: str) -> str:
    """`1 pack`, `2 packs`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> str:
    """Columns under their heads; those named in `right` are aligned to the right (numbers)."""
    widths = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads))]

    def line(row: Sequence[str]) -> str:
        cells = zip(heads, row, widths, strict=True)
        return "  ".join(cell.rjust(width) if head in right else cell.ljust(width) for head, cell, width in cells)

    return "\n".join(line(row).rstrip() for row in (heads, *rows))


def local_time(iso: str) -> str:
    """A manifest's time in this machine's time zone, as `vmfsctl` shows times; as it stands where it is none."""
    try:
        return datetime.fromisoformat(iso).astimezone().strftime("%Y-%m-%d %H:%M:%S %z")
    except (ValueError, OverflowError):
        return iso


@contextmanager
def shown_progress(what: str) -> Iterator[progress.Progress]:
    """Progress on stderr where that is a terminal; silence elsewhere."""
    if not sys.stderr.isatty():
        yield progress.silent
        return
    line = progress.TerminalProgress(sys.stderr, what)
    try:
        yield line
    finally:
        line.close()


def figures_json(figures: Figures) -> dict[str, object]:
    """Figures with their ratio; bytes and seconds."""
    return {**asdict(figures), "seconds": round(figures.seconds, 3), "ratio": figures.ratio}


def manifest_json(manifest: Manifest) -> dict[str, object]:
    """A restore point for programs."""
    return {
        "id": manifest.id,
        "vm": manifest.vm,
        "sequence": manifest.sequence,
        "created": manifest.created,
        "finished": manifest.finished,
        "previous": manifest.previous,
        "retain_until": manifest.retain_until,
        "quiesced": manifest.quiesced,
        "total": figures_json(manifest.figures),
        "disks": [
            {
                "name": disk.name,
                "folder": disk.folder,
                "size": disk.size,
                "descriptor": disk.descriptor.name if disk.descriptor else None,
                "source": disk.source,
                "rung": disk.rung,
                "reason": disk.reason,
                "point_in_time": disk.point_in_time,
                "figures": figures_json(disk.figures),
            }
            for disk in manifest.disks
        ],
    }


def _figure_cells(figures: Figures) -> list[str]:
    ratio = f"{figures.ratio:.1f}" if figures.ratio is not None else "-"
    counts = (figures.logical, figures.read, figures.changed, figures.stored, figures.deduplicated)
    return [*map(size, counts), ratio, f"{figures.seconds:.1f} s"]


def figures_table(manifest: Manifest) -> str:
    """What a backup did, disk by disk and in all, with the rung used and why."""
    heads = ["DISK", "SIZE", "READ", "CHANGED", "STORED", "DEDUPLICATED", "RATIO", "TIME", "HOW"]
    rows = [[disk.label, *_figure_cells(disk.figures), disk.rung] for disk in manifest.disks]
    if len(rows) > 1:
        rows.append(["total", *_figure_cells(manifest.figures), ""])
    lines = [table(heads, rows, right=heads[1:-1])]
    for disk in manifest.disks:
        lines.append(f"{disk.label}: {disk.rung}: {disk.reason}")
        if not disk.point_in_time:
            lines.append(f"{disk.label}: read from the file itself; consistent only if nothing wrote to it meanwhile")
    return "\n".join(lines)
