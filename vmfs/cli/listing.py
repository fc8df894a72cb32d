"""`vmfsctl list`: the volumes that are mounted on this machine."""

from __future__ import annotations

import click

from vmfs.cli.output import NOTHING, printable, show_json, show_table, size_text
from vmfs.registry import STATE_PRIVATE, MountedVolume, mounted_volumes


@click.command("list", short_help="List the volumes that are mounted here.")
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON, with all that `info` says.")
def list_command(as_json: bool) -> None:
    """List the volumes that are mounted on this machine. Takes neither a mount point nor a device.

    A mount whose process has died is listed as dead: `vmfsctl umount` clears it away.

    \b
    Example:
      vmfsctl list
    """
    found = mounted_volumes()
    if as_json:
        show_json({"mounts": found})
        return
    if not found:
        click.echo("no volume is mounted here")
        return
    headers = ("VOLUME", "MOUNTED AT", "HOST", "STATE", "SIZE", "FREE", "DEVICES")
    show_table(headers, [_row(m) for m in found], right=("SIZE", "FREE"))
    for mounted in found:
        # The state says it all to those who are not root, about every volume alike.
        if mounted.problem is not None and mounted.state != STATE_PRIVATE:
            named = mounted.mountpoint in mounted.problem
            text = mounted.problem if named else f"{mounted.mountpoint}: {mounted.problem}"
            click.echo(printable(text), err=True)


def _row(mounted: MountedVolume) -> tuple[str, ...]:
    info = mounted.info
    if info is None:
        return mounted.label, mounted.mountpoint, NOTHING, mounted.state, NOTHING, NOTHING, NOTHING
    state = f"{mounted.state}, read only" if info.mount.read_only else mounted.state
    devices = " ".join(d.path for d in info.volume.devices)
    size, free = size_text(info.size_bytes), size_text(info.free_bytes)
    return mounted.label, mounted.mountpoint, info.mount.host, state, size, free, devices
