"""One check of a volume, from its superblocks to its last directory entry."""

from __future__ import annotations

from collections.abc import Callable

from vmfs.check.directories import Directories
from vmfs.check.findings import Kind, Report
from vmfs.check.fixed import (
    Holders,
    LockChecker,
    check_fixed_locks,
    check_journal_headers,
    check_slots,
    check_superblocks,
)
from vmfs.check.inodes import Inodes
from vmfs.check.layers import check_layers
from vmfs.check.maps import Maps
from vmfs.check.orphans import check_orphans, check_waiting
from vmfs.check.recovery import overlay_journals
from vmfs.check.source import Source
from vmfs.check.space import Space
from vmfs.clock import Clock, SystemClock
from vmfs.errors import DamagedBlock, DeviceError
from vmfs.liveness import refuse_when_mounted
from vmfs.ondisk.inode import FLAG_INLINE
from vmfs.ondisk.orphans import OrphanKind
from vmfs.volume import Volume

Progress = Callable[[str, int, int], None]
"""Called with (what is being looked at, done, in all)."""


def check_volume(
    volume: Volume,
    progress: Progress | None = None,
    *,
    clock: Clock | None = None,
    waiting: Callable[[str], None] | None = None,
) -> Report:
    """Check a volume that no host has mounted (it may be open for reading only). Changes nothing.

    `waiting` is told when a host's slot has to be watched, and for how long.

    Raises:
        VolumeInUse: a host has it mounted; what is found now may be wrong in a moment.
        DeviceError: the slots cannot be read. Elsewhere what cannot be read is a finding.
    """
    say = progress or (lambda *_: None)
    slots = refuse_when_mounted(volume, clock or SystemClock(), waiting)
    report = Report(str(volume.superblock.volume), volume.superblock.label)
    source = Source(volume)
    holders = Holders(slots)
    locks = LockChecker(volume, holders, report)

    say("fixed parts", 0, 1)
    check_superblocks(volume, report)
    check_slots(slots, report)
    check_journal_headers(source, holders, report)
    overlay_journals(source, slots, report)
    check_fixed_locks(source, locks)
    say("fixed parts", 1, 1)

    say("groups", 0, 1)
    space = Space(source, report)
    space.load()
    say("groups", 1, 1)

    maps = Maps(source, space, report)
    inodes = Inodes(source, space, maps, locks, report)
    inodes.scan(lambda done, total: say("inodes", done, total))
    directories = Directories(source, space, maps, inodes, report)
    directories.check(lambda done, total: say("directories", done, total))

    named = check_orphans(source, inodes, report)
    check_layers(inodes, named.get(OrphanKind.REMOVE, set()), report)
    check_waiting(inodes, named, report)

    _name_sharers(space, maps, inodes, report)
    complete = maps.complete and directories.complete and not inodes.damaged
    space.compare(complete=complete and not report.totals[Kind.CHUNK_DAMAGED])
    return report


def _name_sharers(space: Space, maps: Maps, inodes: Inodes, report: Report) -> None:
    """Say of every block that was claimed more than once by whom: a second walk, which is hardly ever needed."""
    if not space.shared:
        return
    owners: dict[int, list[tuple[int, int]]] = {}
    for number, facts in inodes.facts.items():
        if facts.is_directory:
            continue
        try:
            inode = inodes.read(number)
        except (DamagedBlock, DeviceError):
            continue
        if inode.flags & FLAG_INLINE:
            continue
        for address, block in maps.blocks_among(inode, space.shared):
            owners.setdefault(address, []).append((number, block))
    for address, found in sorted(owners.items()):
        who = ", ".join(f"inode {number} (block {block})" for number, block in found)
        report.add(Kind.BLOCK_SHARED, f"one block is used by {who}", address=address, inode=found[0][0])
