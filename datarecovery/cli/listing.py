"""`datarecovery list`."""

from __future__ import annotations

from pathlib import Path

import click

from datarecovery.cli import output
from datarecovery.errors import DamagedManifestError
from datarecovery.store.store import Store

HEADS = ["POINT", "VM", "CREATED", "DISKS", "SIZE", "READ", "STORED", "HOW"]
RIGHT = ["DISKS", "SIZE", "READ", "STORED"]


@click.command("list")
@output.store_option
@output.json_option
def list_points(store_dir: Path, as_json: bool) -> None:
    """List the restore points, by VM and age.

    READ and STORED are what the backup read of the disks and added to the store; HOW is how it found the changes.
    Those whose manifest is damaged are named on stderr, and the exit code is 5.

    \b
    Examples:
      datarecovery list --store /backup
      datarecovery list --store /backup --json
    """
    damaged: list[str] = []
    points = Store.open(store_dir).points.all(damaged)
    if as_json:
        output.print_json([output.manifest_json(point) for point in points])
    elif points:
        rows = [
            [
                point.id,
                point.vm,
                output.local_time(point.created),
                str(len(point.disks)),
                output.size(point.figures.logical),
                output.size(point.figures.read),
                output.size(point.figures.stored),
                "+".join(sorted({disk.rung for disk in point.disks})),
            ]
            for point in points
        ]
        click.echo(output.table(HEADS, rows, right=RIGHT))
    else:
        click.echo("no restore points", err=True)
    if damaged:
        raise DamagedManifestError("\ndatarecovery: ".join(damaged))
