"""`vmfsctl restart`: a new process takes a mount over while it is in use."""

from __future__ import annotations

import time

import click

from vmfs.cli.output import printable, seconds_text, show_json
from vmfs.client import Mount


@click.command("restart", short_help="Replace a mount's process, as after an upgrade.")
@click.argument("mountpoint", metavar="MOUNT")
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
def restart_command(mountpoint: str, as_json: bool) -> None:
    """Replace the process that serves the volume at the mount point MOUNT by a new one, as root.

    Programs and guests that use the mount go on: they wait for about a second. The new process runs what is installed
    now. It needs a mount with a supervisor, and Linux 6.9 or later.

    \b
    Example:
      vmfsctl restart /mnt/ds1
    """
    mount = Mount.for_path(mountpoint)
    began = time.monotonic()
    mount.restart()
    took = time.monotonic() - began
    pid = Mount.for_path(mountpoint).info().mount.pid
    if as_json:
        show_json({"mountpoint": mount.mountpoint, "pid": pid, "seconds": took})
    else:
        click.echo(printable(f"process {pid} serves {mount.mountpoint} now, after {seconds_text(took)}"))
