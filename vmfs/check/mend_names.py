"""Mends directories: one that is damaged is made anew from its names; what has lost its names goes to lost+found.

The new table is written to free units first; one block, the directory's inode, then leads to it. So there is the old
directory or the new one, whole, whenever the repair ends.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from vmfs.check.buildtree import build_table
from vmfs.check.mend_fixed import lock_image
from vmfs.check.paths import entries_of
from vmfs.check.shop import Allocator, Shop
from vmfs.check.survey import Survey
from vmfs.errors import DamagedBlock
from vmfs.ondisk import directory
from vmfs.ondisk.directory import NAME_MAX_BYTES, Entry
from vmfs.ondisk.header import METADATA_BLOCK_BYTES, BlockType
from vmfs.ondisk.inode import Inode, inode_address
from vmfs.ondisk.lock import Guards, LockRecord

LOST_AND_FOUND: Final = b"lost+found"
_TYPE_AT: Final = 4  # of the common header
_OWNER_AT: Final = 48


def mend_directories(shop: Shop, seen: Survey) -> None:
    """Make every broken directory anew from whatever names can be read."""
    leftovers = find_leftovers(seen)
    for entries in leftovers.values():
        shop.old_names.update((e.inode, e.name) for e in entries)
    allocator = Allocator(shop, seen)
    for number in sorted(seen.directories.broken | shop.anew):
        if number not in seen.inodes.facts:
            continue
        inode = seen.inodes.read(number)
        own = [e for _, e in entries_of(seen.source, seen.inodes, number)]
        nameless = [e for e in leftovers.get(_old_map(shop, seen, inode, leftovers), []) if _is_nameless(seen, e)]
        kept = _kept(shop, seen, number, [*own, *nameless])
        _replace(shop, allocator, inode, kept)
        shop.done(f"directory {number}: made anew with {len(kept)} of its names")
    shop.anew.clear()


def _old_map(shop: Shop, seen: Survey, inode: Inode, leftovers: dict[int, list[Entry]]) -> int:
    """The id of the map whose stray blocks are this directory's."""
    if inode.number not in shop.anew:
        return inode.map_id
    for map_id, entries in leftovers.items():
        for entry in entries:
            facts = seen.inodes.facts.get(entry.inode)
            if facts is not None and facts.is_directory and facts.directory_parent == inode.number:
                return map_id
    strays = list(leftovers)
    return strays[0] if len(strays) == len(shop.anew) == 1 else inode.map_id


def _is_nameless(seen: Survey, entry: Entry) -> bool:
    facts = seen.inodes.facts.get(entry.inode)
    return facts is not None and facts.nlink > 0 and not seen.directories.names[entry.inode]


def _kept(shop: Shop, seen: Survey, number: int, entries: Iterable[Entry]) -> list[Entry]:
    """The names to keep: each once, and those only that lead to what is there, or was and is damaged."""
    dropped = seen.directories.drop.get(number, set())
    found: dict[bytes, Entry] = {}
    for entry in entries:
        if entry.name in found or entry.name in dropped or entry.name in (b".", b".."):
            continue
        facts = seen.inodes.facts.get(entry.inode)
        if entry.inode in seen.inodes.damaged:
            found[entry.name] = entry
        elif facts is not None and not facts.is_layer and facts.generation == entry.generation:
            found[entry.name] = replace(entry, type=stat.S_IFMT(facts.mode) >> 12)
        else:
            name = entry.name.decode("utf-8", "backslashreplace")
            shop.done(f"{name!r} in directory {number}: it led to no file; removed")
    return list(found.values())


def _replace(shop: Shop, allocator: Allocator, inode: Inode, entries: Sequence[Entry]) -> None:
    _lay_out(shop, allocator, inode, entries)
    allocator.seal()
    shop.write_inode(inode)
    shop.mender.flush()


def _lay_out(shop: Shop, allocator: Allocator, inode: Inode, entries: Sequence[Entry]) -> None:
    """Write a new table to free units, and have the inode (in memory) lead to it. Raises NoSpace."""
    map_id, seed = shop.new_id(), shop.new_id()
    table = build_table(entries, shop.volume.uuid, map_id, seed, allocator.unit)
    for address, block in table.blocks.items():
        shop.mender.plain(address, block)
    shop.alone.io.flush()
    table.put_into(inode, map_id, seed, len(entries))


def find_leftovers(seen: Survey) -> dict[int, list[Entry]]:
    """By map id: the names in directory blocks to which nothing leads and whose place is not free."""
    found: dict[int, list[Entry]] = {}
    volume = seen.volume
    for chunk in seen.space.chunks.values():
        head = chunk.head
        bits = (head.used if head is not None else -1) & ~chunk.claimed
        for unit in range(1, volume.geometry.units_per_chunk):
            if not bits >> unit & 1:
                continue
            address = chunk.address + unit * METADATA_BLOCK_BYTES
            block = seen.source.unit(address)
            if int.from_bytes(block[_TYPE_AT : _TYPE_AT + 2], "little") != BlockType.DIRECTORY:
                continue
            map_id, role = (int.from_bytes(block[at : at + 8], "little") for at in (_OWNER_AT, _OWNER_AT + 8))
            try:
                parsed = directory.parse(block, address, volume.uuid, map_id, role)
            except DamagedBlock:
                continue
            found.setdefault(map_id, []).extend(parsed.entries.values())
    return found


# -- lost+found ------------------------------------------------------------------------------------


def attach_lost(shop: Shop, seen: Survey) -> None:
    """Give what has no name one in lost+found, which is made when it is not there."""
    if not seen.directories.lost:
        return
    root = seen.inodes.read(shop.volume.superblock.root_inode)
    in_root = [e for _, e in entries_of(seen.source, seen.inodes, root.number)]
    lost = sorted(set(seen.directories.lost))
    allocator = Allocator(shop, seen)
    names = {e.name: e for e in in_root}
    there = names.get(LOST_AND_FOUND)
    facts = seen.inodes.facts.get(there.inode) if there is not None else None
    if there is not None and facts is not None and facts.is_directory and there.inode not in lost:
        home = seen.inodes.read(there.inode)
        before = [e for _, e in entries_of(seen.source, seen.inodes, home.number)]
        _replace(shop, allocator, home, [*before, *_named(shop, seen, lost, {e.name for e in before})])
    else:
        name = next(n for i in range(len(names) + 1) if (n := LOST_AND_FOUND + b".%d" % i * (i > 0)) not in names)
        _make_home(shop, allocator, root, in_root, name, _named(shop, seen, lost, set()))
    for number in lost:
        shop.done(f"inode {number}: no name led to it; it is in lost+found now")


def _named(shop: Shop, seen: Survey, lost: Sequence[int], taken: set[bytes]) -> list[Entry]:
    """An entry for each: #NUMBER, and the name that it had once, where that is known."""
    found: list[Entry] = []
    for number in lost:
        facts = seen.inodes.facts[number]
        old = shop.old_names.get(number)
        name = b"#%d" % number + (b"." + old if old is not None else b"")
        name = name[:NAME_MAX_BYTES]
        while name in taken:
            name = b"#" + name[: NAME_MAX_BYTES - 1]
        taken.add(name)
        found.append(Entry(name, 0, number, facts.generation, stat.S_IFMT(facts.mode) >> 12))
    return found


def _make_home(
    shop: Shop, allocator: Allocator, root: Inode, in_root: Sequence[Entry], name: bytes, entries: Sequence[Entry]
) -> None:
    volume = shop.volume
    sb, geometry = volume.superblock, volume.geometry
    lock = allocator.units_in_a_row(geometry.inode_units)
    number = (lock + sb.lock_block_bytes) // METADATA_BLOCK_BYTES
    wall = shop.clock.wall_ns()
    home = Inode(
        number, mode=stat.S_IFDIR | 0o700, nlink=2, version=1, inode_generation=shop.random.getrandbits(31) | 1,
        atime_ns=wall, mtime_ns=wall, ctime_ns=wall, btime_ns=wall, directory_parent=root.number,
    )  # fmt: skip
    _lay_out(shop, allocator, home, entries)
    entry = Entry(name, 0, number, home.inode_generation, stat.S_IFDIR >> 12)
    _lay_out(shop, allocator, root, [*in_root, entry])
    root.nlink += 1
    record = LockRecord(lock, volume.prefix, Guards.INODE, version=wall, stamp=wall)
    shop.mender.plain(lock, lock_image(shop, record))
    shop.alone.io.flush()
    # The units are used first; then the new inode's place, itself, and the root that names it come together.
    allocator.seal()
    allocator.take_inode(lock)
    head, _ = geometry.chunk_of(lock)
    shop.mender.together({
        **allocator.head_image(head),
        inode_address(number): home.pack(volume.uuid),
        inode_address(root.number): root.pack(volume.uuid),
    })  # fmt: skip
