"""A block of whichever type: what its first bytes say it is decides how it is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from vmfs.dump.fixed import Dumper, dump_superblocks
from vmfs.dump.structure import Structure
from vmfs.dump.trees import Trees
from vmfs.errors import NoSuchStructure
from vmfs.ondisk import lock, slot
from vmfs.ondisk.header import METADATA_BLOCK_BYTES, BlockType, peek
from vmfs.ondisk.inode import ADDRESS_SHIFT
from vmfs.ondisk.journal import HEADER_BLOCKS
from vmfs.ondisk.superblock import SIGNATURE


def dump_block(dumper: Dumper, address: int) -> list[Structure]:
    """What lies at `address`, by the magic and type that it begins with. Raises NoSuchStructure, DeviceError."""
    block = dumper.read(address, METADATA_BLOCK_BYTES)
    sb = dumper.volume.superblock
    if block.startswith(lock.MAGIC):
        return dumper.lock(address)
    if block.startswith(slot.MAGIC):
        index, rest = divmod(address - sb.slots_address, sb.lock_block_bytes)
        if 0 <= index < sb.max_hosts and not rest:
            return dumper.slot(index)
    if block.startswith(SIGNATURE):
        device, offset = dumper.volume.extents.locate(address)
        found = [s for s in dump_superblocks([device]) if s.raw == block and s.address & (1 << 56) - 1 == offset]
        if found:
            return found
    try:
        return [_by_type(dumper, address, block)]
    except NoSuchStructure as error:
        # It says that it is something for which this is no place.
        unknown = dumper.unknown(address, block)
        return [replace(unknown, problems=(*unknown.problems, str(error)))]


def _by_type(dumper: Dumper, address: int, block: bytes) -> Structure:
    trees = Trees(dumper)
    readers: dict[int, Callable[[], Structure]] = {
        BlockType.CHUNK: lambda: dumper.chunk(address),
        BlockType.INODE: lambda: trees.inode(address >> ADDRESS_SHIFT),
        BlockType.NODE: lambda: trees.node(address),
        BlockType.DIRECTORY: lambda: trees.directory_block(address),
    }
    kind = peek(block).type
    sb = dumper.volume.superblock
    unknown = dumper.unknown(address, block)
    group, geometry = peek(block).role, dumper.volume.geometry
    if kind == BlockType.GROUP and group < geometry.group_count and geometry.group_block_address(group) == address:
        return dumper.group(group)
    if kind == BlockType.ORPHANS and 0 <= address - sb.orphans_address < sb.max_hosts * METADATA_BLOCK_BYTES:
        return dumper.orphans((address - sb.orphans_address) // METADATA_BLOCK_BYTES)
    journal, position = divmod(address - sb.journals_address, sb.journal_bytes)
    copy = position // METADATA_BLOCK_BYTES
    if kind == BlockType.JOURNAL_HEADER and 0 <= journal < sb.max_hosts and copy < HEADER_BLOCKS:
        return dumper.journal_headers(journal)[0][copy]
    if "type" not in unknown.fields or kind not in readers or address % METADATA_BLOCK_BYTES:
        return unknown
    return readers[kind]()


def decode_image(dumper: Dumper, address: int, image: bytes) -> Structure:
    """The image of a block as a journal holds it, decoded as if it lay at its address already."""
    try:
        found = dump_block(dumper.with_image(address, image), address)[0]
    except NoSuchStructure:
        found = Structure("block", address, "nothing", {}, ("the volume has no such address",), image)
    return replace(found, where=f"image of {found.where}")
