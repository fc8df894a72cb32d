"""Mends counts, lists of removals, and what a removal left half done."""

from __future__ import annotations

from collections import Counter

from vmfs.check.shop import Shop
from vmfs.check.survey import Survey
from vmfs.errors import DamagedBlock
from vmfs.ondisk import orphans
from vmfs.ondisk.header import METADATA_BLOCK_BYTES
from vmfs.ondisk.orphans import OrphanKind


def mend_removals(shop: Shop, seen: Survey) -> None:
    """Finish removals that nobody would: inodes without a name, layers that nothing stands on."""
    facts = seen.inodes.facts
    listed = seen.named.get(OrphanKind.REMOVE, set())
    children: Counter[int] = Counter(f.parent for f in facts.values() if f.parent)
    # A file whose map is damaged cannot be removed by a mount: it does not know what to free.
    doomed = [
        n for n, f in facts.items()
        if (not f.nlink and not f.is_layer and (n not in listed or f.map.lost or not f.map.whole))
        or (f.is_layer and not children[n] and n not in listed)
    ]  # fmt: skip
    while doomed:
        number = doomed.pop()
        found = facts[number]
        shop.clear_inode(number, found.generation)
        shop.done(f"inode {number}: no name or child is left of it, removed")
        parent = facts.get(found.parent)
        if parent is not None and parent.is_layer:
            children[parent.number] -= 1
            if not children[parent.number] and parent.number not in listed:
                doomed.append(parent.number)


def mend_orphan_lists(shop: Shop, seen: Survey) -> None:
    """Take off the lists what is not waiting; a damaged list begins anew."""
    volume = shop.volume
    for slot in range(volume.superblock.max_hosts):
        address = volume.geometry.orphans_address(slot)
        block = volume.extents.read(address, METADATA_BLOCK_BYTES)
        try:
            entries, generation = orphans.parse(block, address, volume.uuid, slot)
        except DamagedBlock:
            entries, generation = {}, 0
            shop.done(f"list of removals of slot {slot}: damaged, made anew, empty")
        else:
            right = {
                key: kind for key, kind in entries.items()
                if _waits(seen, *key, kind) and not (kind is OrphanKind.TRIM and key[0] in shop.finished)
            }  # fmt: skip
            if right == entries:
                continue
            shop.done(f"list of removals of slot {slot}: {len(entries) - len(right)} taken off it")
            entries = right
        image = orphans.pack(entries, address=address, volume=volume.uuid, slot=slot, generation=generation + 1)
        shop.mender.one(address, image)


def _waits(seen: Survey, number: int, generation: int, kind: OrphanKind) -> bool:
    facts = seen.inodes.facts.get(number)
    if facts is None:
        return number in seen.inodes.damaged
    if facts.generation != generation:
        return False
    return kind is not OrphanKind.REMOVE or facts.is_layer or not facts.nlink


def mend_counts(shop: Shop, seen: Survey) -> None:
    """Set fields of inodes that were counted wrongly."""
    for number, fields in seen.report.fixes.items():
        if number not in seen.inodes.facts:
            continue
        inode = seen.inodes.read(number)
        for name, value in fields.items():
            shop.done(f"inode {number}: {name} was {getattr(inode, name)}, is {value}")
            setattr(inode, name, value)
        shop.write_inode(inode)
