"""`datarecovery restore`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from datarecovery import restore as operation
from datarecovery.cli import output
from datarecovery.store.store import Store

_SHORTEST_MEASURED_SECONDS = 0.1


@click.command()
@output.store_option
@click.argument("point", metavar="POINT")
@click.argument("target", metavar="TARGET_DIR", type=click.Path(path_type=Path, readable=False))
@output.json_option
def restore(store_dir: Path, point: str, target: Path, as_json: bool) -> None:
    """Restore the disks of a restore point as files in TARGET_DIR.

    POINT is an id, the beginning of one, or NAME@latest. Files have their old names; of a VMDK the descriptor too.
    Nothing is overwritten, and a file gets its name only when it is proved whole.

    \b
    Examples:
      datarecovery restore --store /backup web1@latest /vmfs/ds1/web1-restored
      datarecovery restore --store /backup 3fa9 /srv/restored --json
    """
    opened = Store.open(store_dir)
    found = opened.points.resolve(point)
    with output.shown_progress(f"restore {found.vm}") as tell:
        made = operation.restore(opened, found, target, tell)
    if as_json:
        output.print_json({"point": found.id, "vm": found.vm, "disks": [asdict(disk) for disk in made]})
        return
    for disk in made:
        click.echo(f"{disk.path}: {output.size(disk.size)}, {output.size(disk.written)} written{_speed(disk)}")


def _speed(disk: operation.RestoredDisk) -> str:
    """Of what was written: holes cost nothing and would flatter. Of a moment it says nothing, and is left out."""
    if disk.seconds < _SHORTEST_MEASURED_SECONDS:
        return ""
    return f" in {disk.seconds:.1f} s, {disk.written / disk.seconds / 1e6:,.0f} MB/s"
