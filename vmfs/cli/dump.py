"""`vmfsctl dump`: structures of a volume as they lie on its devices. The reading is `vmfs.dump`'s."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any, Concatenate, Final, ParamSpec

import click

from vmfs.cli.credentials import credentials_option
from vmfs.cli.dumptext import show_structure
from vmfs.cli.output import show_json
from vmfs.cli.targets import mount_or_none
from vmfs.client import Mount
from vmfs.devices import open_device
from vmfs.dump.anyblock import dump_block
from vmfs.dump.fixed import Dumper, dump_superblocks
from vmfs.dump.journals import dump_journal
from vmfs.dump.structure import Structure
from vmfs.dump.trees import Trees
from vmfs.facts import open_to_look

P = ParamSpec("P")
Options = Callable[[Callable[..., None]], Callable[..., None]]
EXIT_DAMAGED: Final = 1
_ADDRESS_MAX: Final = (1 << 64) - 1


class Number(click.ParamType[int]):
    """A number that may be written in any base, as `dump` itself writes addresses: 4096, 0x1000."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            number = value if isinstance(value, int) else int(value, 0)
        except ValueError:
            number = -1
        if not 0 <= number <= _ADDRESS_MAX:
            self.fail(f"{value!r} is no number of 64 bits (1234 or 0x4d2)", param, ctx)
        return number


NUMBER: Final = Number()


@click.group("dump", short_help="Show a volume's structures as they lie on its devices.")
def dump_group() -> None:
    """Show structures of a volume as they lie on its devices, damaged ones too. Nothing is written or locked.

    Works on the devices of a volume that is mounted nowhere, and of one that is in use: what hosts change at that
    moment may be seen half done. docs/on-disk-format.md has the map. Exits 1 when anything that was shown is damaged.
    """


def _shows(command: Callable[Concatenate[Dumper, P], Sequence[Structure]]) -> Callable[..., None]:
    """A command's own work, given the open volume: what every command of the group has besides."""

    @click.argument("targets", metavar="MOUNT|DEVICE...", nargs=-1, required=True)
    @credentials_option
    @click.option("--raw", is_flag=True, help="Show the bytes too, also of what is not damaged.")
    @click.option("--json", "as_json", is_flag=True, help="Print it as JSON; with --raw the bytes in hexadecimal.")
    @wraps(command)
    def run(targets: tuple[str, ...], raw: bool, as_json: bool, *args: P.args, **kwargs: P.kwargs) -> None:
        with _opened(targets) as dumper:
            _show(command(dumper, *args, **kwargs), raw, as_json)

    return run


@contextmanager
def _opened(targets: Sequence[str]) -> Iterator[Dumper]:
    mount = mount_or_none(targets)
    paths = targets if mount is None else _devices(mount)
    with open_to_look(paths) as volume:
        yield Dumper(volume)


def _devices(mount: Mount) -> list[str]:
    return [device.path for device in mount.info().volume.devices]


def _show(structures: Sequence[Structure], raw: bool, as_json: bool) -> None:
    if as_json:
        show_json({"structures": [s.as_dict(raw=raw) for s in structures]})
    else:
        for number, structure in enumerate(structures):
            if number:
                click.echo()
            show_structure(structure, raw=raw)
    if any(s.problems for s in structures):
        click.get_current_context().exit(EXIT_DAMAGED)


@dump_group.command("superblock", short_help="All copies of the superblock.")
@click.argument("targets", metavar="MOUNT|DEVICE...", nargs=-1, required=True)
@credentials_option
@click.option("--raw", is_flag=True, help="Show the bytes too, also of what is not damaged.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON; with --raw the bytes in hexadecimal.")
def superblock_command(targets: tuple[str, ...], raw: bool, as_json: bool) -> None:
    """Show every copy of the superblock, on each device that is given, also where none of them is good.

    \b
    Example:
      vmfsctl dump superblock /dev/sdb
    """
    mount = mount_or_none(targets)
    with ExitStack() as opened:
        devices = [open_device(p, read_only=True) for p in (targets if mount is None else _devices(mount))]
        for device in devices:
            opened.callback(device.close)
        _show(dump_superblocks(devices), raw, as_json)


@dump_group.command("slot", short_help="A host's heartbeat slot.")
@click.argument("slot", type=NUMBER)
@_shows
def slot_command(dumper: Dumper, slot: int) -> list[Structure]:
    """Show heartbeat slot SLOT; on volumes with Disk-Paxos registers each host's sector of it, with its ballots.

    \b
    Example:
      vmfsctl dump slot 3 /dev/sdb
    """
    return dumper.slot(slot)


@dump_group.command("lock", short_help="A lock: its holders, who waits, its version.")
@click.argument("which", metavar="superblock|group:N|inode:N|ADDRESS")
@_shows
def lock_command(dumper: Dumper, which: str) -> list[Structure]:
    """Show the lock of the superblock, of a group or an inode, or the one at ADDRESS.

    A holder is void when its slot has moved on to a greater incarnation: its hold counts no more.

    \b
    Examples:
      vmfsctl dump lock superblock /dev/sdb
      vmfsctl dump lock group:7 /dev/sdb
      vmfsctl dump lock inode:5124 /mnt/ds1
    """
    kind, _, number = which.rpartition(":")
    if which == "superblock":
        return dumper.lock(dumper.volume.superblock.superblock_lock)
    if kind not in ("", "group", "inode"):
        raise click.UsageError(f"{which!r} is no lock: superblock, group:N, inode:N, or an address")
    at = NUMBER.convert(number, None, click.get_current_context())
    read = {"group": dumper.group_lock, "inode": dumper.inode_lock, "": dumper.lock}[kind]
    return read(at)


@dump_group.command("group", short_help="A group of blocks: its bitmaps.")
@click.argument("group", type=NUMBER)
@_shows
def group_command(dumper: Dumper, group: int) -> list[Structure]:
    """Show the block of group GROUP: which of its blocks are used, hold metadata, or are in quarantine.

    \b
    Example:
      vmfsctl dump group 7 /dev/sdb --json
    """
    return [dumper.group(group)]


@dump_group.command("chunk", short_help="A metadata chunk's head.")
@click.argument("address", type=NUMBER)
@_shows
def chunk_command(dumper: Dumper, address: int) -> list[Structure]:
    """Show the head of the metadata chunk that ADDRESS lies in: which of its units are used, and its inodes.

    \b
    Example:
      vmfsctl dump chunk 0x1400000 /dev/sdb
    """
    return [dumper.chunk(address)]


@dump_group.command("orphans", short_help="A host's unfinished removals.")
@click.argument("slot", type=NUMBER)
@_shows
def orphans_command(dumper: Dumper, slot: int) -> list[Structure]:
    """Show the list of removals and truncations that the host in slot SLOT has begun and not finished.

    \b
    Example:
      vmfsctl dump orphans 3 /dev/sdb
    """
    return [dumper.orphans(slot)]


@dump_group.command("journal", short_help="A host's journal.")
@click.argument("slot", type=NUMBER)
@click.option("--images", is_flag=True, help="Show each block that a record holds, decoded.")
@click.option("--all", "every", is_flag=True, help="Show the records too that are not needed any more.")
@_shows
def journal_command(dumper: Dumper, slot: int, images: bool, every: bool) -> list[Structure]:
    """Show the journal of slot SLOT: its headers, and the records that a recovery would replay.

    \b
    Examples:
      vmfsctl dump journal 3 /dev/sdb
      vmfsctl dump journal 3 /dev/sdb --all --images
    """
    return dump_journal(dumper, slot, images=images, every=every)


@dump_group.command("node", short_help="A node of a file's map.")
@click.argument("address", type=NUMBER)
@_shows
def node_command(dumper: Dumper, address: int) -> list[Structure]:
    """Show the map node at ADDRESS.

    \b
    Example:
      vmfsctl dump node 0x1408000 /dev/sdb
    """
    return [Trees(dumper).node(address)]


@dump_group.command("block", short_help="Any block, by what it says that it is.")
@click.argument("address", type=NUMBER)
@_shows
def block_command(dumper: Dumper, address: int) -> list[Structure]:
    """Show what lies at ADDRESS: the volume address that messages name, with the extent in its highest byte.

    \b
    Example:
      vmfsctl dump block 0x1401000 /dev/sdb
    """
    return dump_block(dumper, address)


# -- by inode or path ------------------------------------------------------------------------------


def _inode_of(dumper: Dumper, which: str) -> int:
    """INODE|PATH as a number; a path is one from the volume's root."""
    if which.startswith("/"):
        return Trees(dumper).find(which)
    return NUMBER.convert(which, None, click.get_current_context())


def _by_path(which: str, targets: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """A path in a mounted volume, given alone, as its inode's number and the mount."""
    if targets:
        return which, targets
    if not os.path.lexists(which):
        raise click.UsageError(f"{which!r} is no path in a mounted volume; with a number, give MOUNT or DEVICE... too")
    mount = Mount.for_path(os.path.dirname(os.path.abspath(which)) if os.path.islink(which) else which)
    return str(os.lstat(which).st_ino), (str(mount.mountpoint),)


def _shows_inode(command: Callable[Concatenate[Dumper, int, P], Sequence[Structure]]) -> Callable[..., None]:
    """As `_shows`, for commands whose first argument is an inode's number or a path."""

    @click.argument("which", metavar="INODE|PATH")
    @click.argument("targets", metavar="[MOUNT|DEVICE...]", nargs=-1)
    @credentials_option
    @click.option("--raw", is_flag=True, help="Show the bytes too, also of what is not damaged.")
    @click.option("--json", "as_json", is_flag=True, help="Print it as JSON; with --raw the bytes in hexadecimal.")
    @wraps(command)
    def run(which: str, targets: tuple[str, ...], raw: bool, as_json: bool, *args: P.args, **kwargs: P.kwargs) -> None:
        named, places = _by_path(which, targets)
        with _opened(places) as dumper:
            _show(command(dumper, _inode_of(dumper, named), *args, **kwargs), raw, as_json)

    return run


@dump_group.command("inode", short_help="An inode.")
@_shows_inode
def inode_command(dumper: Dumper, number: int) -> list[Structure]:
    """Show an inode: by its number (ls -i), by a path in a mounted volume, or by its path from the volume's root.

    \b
    Examples:
      vmfsctl dump inode /mnt/ds1/web/web-flat.vmdk
      vmfsctl dump inode 5124 /dev/sdb
      vmfsctl dump inode /web/web-flat.vmdk /dev/sdb
    """
    return [Trees(dumper).inode(number)]


@dump_group.command("map", short_help="Where a file's blocks lie.")
@_shows_inode
def map_command(dumper: Dumper, number: int) -> list[Structure]:
    """Show where a file's blocks lie, and those of each layer below it (clones share them). INODE|PATH as in `inode`.

    \b
    Example:
      vmfsctl dump map /mnt/ds1/web/web-flat.vmdk
    """
    return Trees(dumper).map(number)


@dump_group.command("directory", short_help="A directory's blocks and names.")
@click.option("--bucket", type=NUMBER, metavar="N", help="Only the blocks of this bucket.")
@_shows_inode
def directory_command(dumper: Dumper, number: int, bucket: int | None) -> list[Structure]:
    """Show a directory's inode, and the blocks of its hash table with their names. INODE|PATH as in `inode`.

    \b
    Examples:
      vmfsctl dump directory /mnt/ds1/web
      vmfsctl dump directory / /dev/sdb --bucket 3
    """
    return Trees(dumper).directory(number, bucket)
