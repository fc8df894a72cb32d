"""`vmfsctl locks`: who holds which lock."""

from __future__ import annotations

import os
from dataclasses import replace

import click

from vmfs.cli.credentials import credentials_option
from vmfs.cli.names import find_paths
from vmfs.cli.output import NOTHING, show_json, show_table
from vmfs.cli.targets import file_mount_or_none
from vmfs.control.contract import LockInfo


@click.command("locks", short_help="Show which host holds which lock.")
@click.argument("targets", metavar="MOUNT|FILE|DEVICE...", nargs=-1, required=True)
@credentials_option
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON.")
def locks_command(targets: tuple[str, ...], as_json: bool) -> None:
    """Show locks: of MOUNT those that this host holds, of FILE in a mount that file's, whichever host holds it.

    Of DEVICE... (all a volume's devices) the volume's own locks: of the superblock and the groups of blocks.
    OPEN is how many open files of this host use the lock. --json shows more of each.

    \b
    Examples:
      vmfsctl locks /mnt/ds1
      vmfsctl locks /mnt/ds1/web/web-flat.vmdk
      vmfsctl locks /dev/sdb --json
    """
    target = targets[0]
    mount = file_mount_or_none(target) if len(targets) == 1 else None
    if mount is None:
        from vmfs.facts import look_at_locks, open_to_look

        with open_to_look(targets) as volume:
            locks = look_at_locks(volume)
    elif os.path.realpath(target) == mount.mountpoint:
        locks = _named(mount.mountpoint, mount.locks())
    else:
        locks = mount.locks(target)
    if as_json:
        show_json({"locks": locks})
    elif not locks:
        click.echo("no locks are held")
    else:
        headers = ("GUARDS", "MODE", "HELD BY", "OPEN", "INODE", "PATH")
        show_table(headers, [_row(k) for k in locks], right=("OPEN", "INODE"))


def _named(mountpoint: str, locks: list[LockInfo]) -> list[LockInfo]:
    """The mount's process knows inodes; people know paths."""
    nameless = {k.inode for k in locks if k.inode is not None and k.path is None}
    paths = find_paths(mountpoint, nameless) if nameless else {}
    return [replace(k, path=paths[k.inode]) if k.path is None and k.inode in paths else k for k in locks]


def _row(lock: LockInfo) -> tuple[str, ...]:
    inode = NOTHING if lock.inode is None else str(lock.inode)
    holders = ", ".join(lock.holders) or NOTHING
    return lock.what, lock.mode, holders, str(lock.open_files), inode, lock.path or NOTHING
