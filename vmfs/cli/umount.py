"""`vmfsctl umount`: takes a mount away and waits until its process has ended."""

from __future__ import annotations

import click

from vmfs.cli.output import printable, show_json
from vmfs.unmounting import WAIT_SECONDS, unmount


@click.command("umount", short_help="Unmount a volume from this host.")
@click.argument("mountpoint", metavar="MOUNT")
@click.option("--lazy", is_flag=True, help="Take the name away now, end when the last file is closed; do not wait.")
@click.option(
    "--wait",
    "wait_seconds",
    type=click.FloatRange(min=0, max=86400),
    default=WAIT_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="How long the mount's process may take to end.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
def umount_command(mountpoint: str, lazy: bool, wait_seconds: float, as_json: bool) -> None:
    """Unmount the volume at the mount point MOUNT, as root.

    Returns when its process has put the volume in order and ended. A mount in use is left alone, and whoever uses it
    is named. A mount whose process has died is cleared away.

    \b
    Examples:
      vmfsctl umount /mnt/ds1
      vmfsctl umount --lazy /mnt/ds1
    """
    pid = unmount(mountpoint, lazy=lazy, wait_seconds=wait_seconds)
    if as_json:
        show_json({"mountpoint": mountpoint, "pid": pid, "lazy": lazy})
    elif lazy:
        click.echo(printable(f"unmounted {mountpoint}; its process ends when its last file is closed"))
    elif pid is None:
        click.echo(printable(f"unmounted {mountpoint}, which no process served any more"))
    else:
        click.echo(printable(f"unmounted {mountpoint} (process {pid} has ended)"))
