"""Mends bitmaps and counts of space: they follow what is there and what is referred to."""

from __future__ import annotations

from vmfs.check.shop import Shop
from vmfs.check.space import ChunkState
from vmfs.check.survey import Survey
from vmfs.ondisk.chunk import ChunkHead
from vmfs.ondisk.group import GroupBlock


def mend_space(shop: Shop, seen: Survey) -> None:
    """Write every chunk's head and every group's block that is wrong.

    As long as something that refers to blocks cannot be read, nothing is marked free: it may belong there.
    """
    known = seen.maps.complete and seen.directories.complete and not seen.inodes.damaged
    free_units: dict[int, int] = {}
    meta: dict[int, int] = {}
    for chunk in seen.space.chunks.values():
        head = _mend_chunk(shop, chunk, known)
        free_units[chunk.group] = free_units.get(chunk.group, 0) + head.unit_count - head.used.bit_count()
        _, index = shop.volume.geometry.group_of(chunk.address)
        meta[chunk.group] = meta.get(chunk.group, 0) | 1 << index
    shop.mender.flush()
    for state in seen.space.groups:
        blocks = shop.volume.geometry.group_blocks(state.index)
        used = seen.space.claimed_bits(state) | meta.get(state.index, 0)
        if not known:
            used |= state.used if state.readable else (1 << blocks) - 1
        old = state.block
        new = GroupBlock(
            state.index, blocks, used, meta.get(state.index, 0), (old.quarantine & ~used) if old is not None else 0,
            free_units.get(state.index, 0), old.generation if old is not None else 0,
        )  # fmt: skip
        if new != old:
            address = shop.volume.geometry.group_block_address(state.index)
            shop.mender.one(address, new.pack(address, shop.volume.uuid))
            shop.done(f"group {state.index}: its bitmaps and counts are made anew from the maps")
    shop.mender.flush()


def _mend_chunk(shop: Shop, chunk: ChunkState, known: bool) -> ChunkHead:
    units = shop.volume.geometry.units_per_chunk
    used = chunk.claimed
    if not known:
        used |= chunk.head.used if chunk.head is not None else (1 << units) - 1
    generation = chunk.head.generation if chunk.head is not None else 0
    head = ChunkHead(chunk.group, units, used, chunk.places, generation)
    if head != chunk.head:
        shop.mender.one(chunk.address, head.pack(chunk.address, shop.volume.uuid))
        shop.done(f"chunk at {chunk.address:#x}: its bitmaps are made anew")
    return head
