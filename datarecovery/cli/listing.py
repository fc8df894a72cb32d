"""`datarecovery list`."""

from __future__ import annotations

from pathlib import Path

import click

from datarecovery.cli import output
from datarecovery.errors import DamagedManifestError
from datarecovery.store.store import Store


@click.command("list")
@output.store_option
@output.json_option
def list_points(store_dir: Path, as_json: bool) -> None:
    """List the restore points, by VM and age.

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
                point.created,
                str(len(point.disks)),
                output.size(point.figures.logical),
                output.size(point.figures.stored),
                "+".join(sorted({disk.rung for disk in point.disks})),
            ]
            for point in points
        ]
        click.echo(output.table(["point", "vm", "created", "disks", "size", "stored", "rung"], rows))
    else:
        click.echo("no restore points", err=True)
    if damaged:
        raise DamagedManifestError("\ndatarecovery: ".join(damaged))
