"""`datarecovery backup`."""

from __future__ import annotations

from pathlib import Path

import click

from datarecovery import backup as operation
from datarecovery.cli import output
from datarecovery.store.store import Store


@click.command()
@output.store_option
@click.option("--vm", required=True, metavar="NAME", help="The VM whose disks these are.")
@click.argument("disks", metavar="DISK...", nargs=-1, required=True, type=click.Path(path_type=Path, readable=False))
@output.json_option
def backup(store_dir: Path, vm: str, disks: tuple[Path, ...], as_json: bool) -> None:
    """Make a restore point of a VM's disks, and print its id.

    DISK is a VMDK descriptor, a flat or raw file, or a block device. On a VMFS volume a disk is read from a clone made
    now, so the VM may run; from the second backup on only what changed is read. Figures go to stderr.

    \b
    Examples:
      datarecovery backup --store /backup --vm web1 /vmfs/ds1/web1/web1.vmdk
      datarecovery backup --store /backup --vm db /dev/vg0/db-root /dev/vg0/db-data --json
    """
    opened = Store.open(store_dir, writing=True)
    with output.shown_progress(f"backup {vm}") as tell:
        made = operation.back_up(opened, vm, disks, operation.World(progress=tell))
    if as_json:
        output.print_json(output.manifest_json(made))
    else:
        click.echo(output.figures_table(made), err=True)
        click.echo(made.id)
