"""`vmfsctl locks`: who holds which lock; `locks accept` and `locks hand-over`: it passes to another host."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import click

from vmfs.cli.credentials import credentials_option
from vmfs.cli.names import find_paths
from vmfs.cli.output import NOTHING, printable, seconds_text, show_json, show_table
from vmfs.cli.targets import file_mount_or_none
from vmfs.client import ACCEPT_SECONDS, ANSWER_SECONDS, HAND_OVER_SECONDS, Mount
from vmfs.control.contract import LockInfo

WAIT_MAX_SECONDS = ANSWER_SECONDS / 2  # of a hand-over: its answer must come before the client gives up
ACCEPT_MAX_SECONDS = 24 * 3600.0  # a migration that takes longer has failed


class _LocksCommand(click.Command):
    """`locks TARGET...`, but `locks hand-over` and `locks accept` are commands of their own."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        own = {c.name: c for c in (hand_over_command, accept_command)}
        if args and args[0] in own:
            return own[args[0]].make_context(f"{info_name} {args[0]}", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


@click.command("locks", cls=_LocksCommand, short_help="Show which host holds which lock.")
@click.argument("targets", metavar="MOUNT|FILE|DEVICE...", nargs=-1, required=True)
@credentials_option
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON.")
def locks_command(targets: tuple[str, ...], as_json: bool) -> None:
    """Show locks: of MOUNT those that this host holds, of FILE in a mount that file's, whichever host holds it.

    Of DEVICE... (all a volume's devices) the volume's own locks: of the superblock and the groups of blocks.
    OPEN is how many open files of this host use the lock. --json shows more of each.

    `vmfsctl locks accept FILE` and `vmfsctl locks hand-over FILE --to HOST` move an open file from host to host; each
    has a --help of its own.

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


@click.command("hand-over", short_help="Give an open file to another host.")
@click.argument("file", metavar="FILE")
@click.option("--to", "host", metavar="HOST", required=True, help="The host that has accepted it.")
@click.option(
    "--wait", "wait_seconds", metavar="SECONDS", type=click.FloatRange(0.001, WAIT_MAX_SECONDS),
    default=HAND_OVER_SECONDS, show_default=True, help="How long to wait for that host.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
def hand_over_command(file: str, host: str, wait_seconds: float, as_json: bool) -> None:
    """Give FILE, which programs of this host have open for writing, to HOST, which has accepted it. As root.

    What was written here is on the volume then, and no third host can have the file in between. Programs here that
    still have it open can read it; what they write fails with ESTALE. When it is not handed over, they write on.

    \b
    Example (a guest moves from esx1 to esx2; on esx2 first `vmfsctl locks accept`):
      vmfsctl locks hand-over /mnt/ds1/web/web-flat.vmdk --to esx2
    """
    seconds = Mount.for_path(file).hand_over(file, host, wait_seconds=wait_seconds)
    if as_json:
        show_json({"file": file, "host": host, "seconds": seconds})
    else:
        click.echo(printable(f"{file} is host {host}'s now; writes were held back for {seconds_text(seconds)}"))


@click.command("accept", short_help="Wait for an open file of another host.")
@click.argument("file", metavar="FILE")
@click.option(
    "--wait", "wait_seconds", metavar="SECONDS", type=click.FloatRange(0.001, ACCEPT_MAX_SECONDS),
    default=ACCEPT_SECONDS, show_default=True, help="For how long the file is waited for.",
)  # fmt: skip
@click.option("--cancel", is_flag=True, help="Wait for it no more.")
def accept_command(file: str, wait_seconds: float, cancel: bool) -> None:
    """Have this host wait for FILE, which another host has open for writing, to be handed over. As root; returns.

    From now on FILE can be opened for writing here, as the hypervisor does that a guest is to move to. It is accepted
    once it is open. What is written before it has come waits for ten seconds at most, and then fails with ESTALE.
    `vmfsctl locks FILE` shows who holds it.

    \b
    Example:
      vmfsctl locks accept /mnt/ds1/web/web-flat.vmdk
    """
    mount = Mount.for_path(file)
    if cancel:
        mount.cancel_accept(file)
        click.echo(printable(f"{file} is not waited for any more"))
    else:
        mount.accept(file, wait_seconds=wait_seconds)
        click.echo(printable(f"{file} can be opened here, and is waited for"))
