"""Orphan lists: that each names inodes which are waiting for what it says."""

from __future__ import annotations

from collections import defaultdict

from vmfs.check.findings import Kind, Report
from vmfs.check.inodes import Inodes
from vmfs.check.source import Source
from vmfs.errors import DamagedBlock
from vmfs.ondisk import orphans
from vmfs.ondisk.inode import inode_address
from vmfs.ondisk.orphans import OrphanKind


def check_orphans(source: Source, inodes: Inodes, report: Report) -> dict[OrphanKind, set[int]]:
    """Check every slot's list. Returns the inodes that are named, by kind."""
    named: dict[OrphanKind, set[int]] = defaultdict(set)
    volume = source.volume
    for slot, (address, block) in enumerate(
        source.table(volume.superblock.orphans_address, volume.superblock.max_hosts)
    ):
        if block is None:
            report.add(Kind.READ_FAILED, f"orphan list of slot {slot}", address=address)
            continue
        try:
            entries, _ = orphans.parse(block, address, volume.uuid, slot)
        except DamagedBlock as error:
            report.add(Kind.ORPHANS_DAMAGED, f"slot {slot}: {error.what}", address=address)
            continue
        for (number, generation), kind in entries.items():
            named[kind].add(number)
            problem = _problem(inodes, number, generation, kind)
            if problem:
                message = f"the orphan list of slot {slot} names inode {number} for {kind.name.lower()}: {problem}"
                report.add(Kind.ORPHAN_WRONG, message, address=address, inode=number)
    total = sum(len(numbers) for numbers in named.values())
    if total:
        report.notes.append(f"{total} removals or truncations have begun and will be finished by their hosts")
    return named


def _problem(inodes: Inodes, number: int, generation: int, kind: OrphanKind) -> str | None:
    if number in inodes.damaged:
        return None  # a finding of its own
    facts = inodes.facts.get(number)
    if facts is None or facts.generation != generation:
        return "there is no such inode any more"
    if kind is OrphanKind.REMOVE and facts.nlink and not facts.is_layer:
        return f"{facts.nlink} names lead to it"
    return None


def check_waiting(inodes: Inodes, named: dict[OrphanKind, set[int]], report: Report) -> None:
    """Inodes without a name are in a list; data behind a file's end is waiting for its trimming."""
    removing, trimming = named.get(OrphanKind.REMOVE, set()), named.get(OrphanKind.TRIM, set())
    for facts in inodes.facts.values():
        number = facts.number
        if not facts.nlink and not facts.is_layer and number not in removing:
            message = f"inode {number} has no name left and is in no orphan list"
            report.add(Kind.INODE_UNREMOVED, message, address=inode_address(number), inode=number)
        elif number in removing and facts.map.lost:
            message = f"inode {number} waits for its removal, and no mount can free a map with lost parts"
            report.add(Kind.INODE_UNREMOVED, message, address=inode_address(number), inode=number)
        if facts.ends_early and number not in removing | trimming:
            message = f"inode {number} has data behind its end"
            report.add(Kind.POINTER_BEYOND_END, message, address=inode_address(number), inode=number)
