"""`datarecovery show`."""

from __future__ import annotations

from pathlib import Path

import click

from datarecovery.cli import output
from datarecovery.store.store import Store


@click.command()
@output.store_option
@click.argument("point", metavar="POINT")
@output.json_option
def show(store_dir: Path, point: str, as_json: bool) -> None:
    """Show a restore point: its disks, how they were read and why so, and what it took.

    POINT is an id, the beginning of one, or NAME@latest.

    \b
    Examples:
      datarecovery show --store /backup web1@latest
      datarecovery show --store /backup 3fa9 --json
    """
    found = Store.open(store_dir).points.resolve(point)
    if as_json:
        output.print_json(output.manifest_json(found))
        return
    click.echo(f"restore point {found.id}, number {found.sequence} of VM {found.vm}")
    begun, finished = output.local_time(found.created), output.local_time(found.finished)
    click.echo(f"begun {begun}, finished {finished}, previous {found.previous or 'none'}")
    click.echo(output.figures_table(found))
