"""One look at a whole volume: everything that a check compares, and what it found. A repair acts on it."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

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
from vmfs.check.inheritance import check_inheritance
from vmfs.check.inodes import Inodes
from vmfs.check.layers import check_layers
from vmfs.check.maps import Maps
from vmfs.check.orphans import check_orphans, check_waiting
from vmfs.check.paths import find_paths
from vmfs.check.recovery import overlay_journals
from vmfs.check.source import Source
from vmfs.check.space import Space
from vmfs.errors import DamagedBlock, DeviceError
from vmfs.liveness import Slots
from vmfs.ondisk.inode import FLAG_INLINE
from vmfs.ondisk.orphans import OrphanKind
from vmfs.volume import Volume

Progress = Callable[[str, int, int], None]
"""Called with (what is being looked at, done, in all)."""


@dataclass(slots=True)
class Survey:
    """What one look at a volume has collected. `complete`: whatever refers to blocks could be read."""

    volume: Volume
    report: Report
    source: Source
    locks: LockChecker
    space: Space
    maps: Maps
    inodes: Inodes
    directories: Directories
    named: dict[OrphanKind, set[int]] = field(default_factory=dict)
    complete: bool = False


def survey(volume: Volume, slots: Slots, say: Progress, *, no_chunks: AbstractSet[int] = frozenset()) -> Survey:
    """Look at everything. `no_chunks`: see `Space`. What cannot be read is a finding."""
    report = Report(str(volume.superblock.volume), volume.superblock.label)
    source = Source(volume)
    holders = Holders(slots, volume.superblock.max_hosts)
    locks = LockChecker(volume, holders, report)

    say("fixed parts", 0, 1)
    check_superblocks(volume, report)
    check_slots(slots, report)
    check_journal_headers(source, holders, report)
    overlay_journals(source, slots, report)
    check_fixed_locks(source, locks)
    say("fixed parts", 1, 1)

    say("groups", 0, 1)
    space = Space(source, report, no_chunks)
    space.load()
    say("groups", 1, 1)

    maps = Maps(source, space, report)
    inodes = Inodes(source, space, maps, locks, report)
    inodes.scan(lambda done, total: say("inodes", done, total))
    directories = Directories(source, space, maps, inodes, report)
    directories.check(lambda done, total: say("directories", done, total))

    seen = Survey(volume, report, source, locks, space, maps, inodes, directories)
    seen.named = check_orphans(source, inodes, report)
    check_layers(inodes, seen.named.get(OrphanKind.REMOVE, set()), report)
    check_inheritance(inodes, volume.superblock.block_bytes, report)
    check_waiting(inodes, seen.named, report)

    _name_sharers(seen)
    complete = maps.complete and directories.complete and not inodes.damaged
    seen.complete = complete and not report.totals[Kind.CHUNK_DAMAGED]
    space.compare(complete=seen.complete)
    _add_notes(seen)
    return seen


def _add_notes(seen: Survey) -> None:
    report = seen.report
    wanted = {f.inode for f in report.findings if f.inode is not None}
    if wanted:
        report.name_paths(find_paths(seen.source, seen.inodes, seen.directories, wanted))
    if report.counts.void_locks:
        report.notes.append(f"{report.counts.void_locks} locks of mounts that ended are void; they hold up nobody")
    if report.counts.lost_blocks:
        lost = sorted(n for n, f in seen.inodes.facts.items() if f.map.lost)
        paths = find_paths(seen.source, seen.inodes, seen.directories, set(lost))
        names = ", ".join(paths.get(n, f"inode {n}") for n in lost[:20])
        report.notes.append(
            f"{report.counts.lost_blocks} blocks were lost earlier and reads of them fail, in: "
            f"{names or 'layers'}; restore from a backup what is in them"
        )


def _name_sharers(seen: Survey) -> None:
    """Say of every block that was claimed more than once by whom: a second walk, which is hardly ever needed."""
    for address, found in sorted(find_sharers(seen).items()):
        who = ", ".join(f"inode {number} (block {block})" for number, block in found)
        message = f"one block is used by {who}"
        seen.report.add(Kind.BLOCK_SHARED, message, address=address, inode=found[0][0])


def find_sharers(seen: Survey) -> dict[int, list[tuple[int, int]]]:
    """By address of a block that has more than one owner: (inode, block number in it) of each."""
    owners: dict[int, list[tuple[int, int]]] = {}
    if not seen.space.shared:
        return owners
    for number, facts in seen.inodes.facts.items():
        if facts.is_directory:
            continue
        try:
            inode = seen.inodes.read(number)
        except (DamagedBlock, DeviceError):
            continue
        if not inode.flags & FLAG_INLINE:
            for address, block in seen.maps.blocks_among(inode, seen.space.shared):
                owners.setdefault(address, []).append((number, block))
    return owners
