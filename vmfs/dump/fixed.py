"""Structures whose place follows from the superblock or is given: copies, slots, locks, groups, chunks, any block."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final, TypeVar

from vmfs.devices import Device
from vmfs.devices.contract import LockMethod
from vmfs.devices.extents import make_address, split_address
from vmfs.dump.decode import decode_block, decode_sector, is_block, problem_of, read_settled
from vmfs.dump.fields import (
    chunk_fields,
    group_fields,
    header_fields,
    journal_header_fields,
    lock_fields,
    orphans_fields,
    slot_fields,
    superblock_fields,
)
from vmfs.dump.places import place_of
from vmfs.dump.structure import Fields, Structure, Value
from vmfs.errors import DamagedBlock, NoSuchStructure, UnsupportedFormat
from vmfs.liveness import read_slots
from vmfs.lockmethod import image_in, is_padded_with_zeros, paxos_layout
from vmfs.ondisk import chunk, group, lock, orphans, slot, superblock
from vmfs.ondisk.header import METADATA_BLOCK_BYTES, BlockType, Header, checksum_matches, peek
from vmfs.ondisk.journal import HEADER_BLOCKS, JournalHeader, parse_header, parse_one_header
from vmfs.ondisk.paxosblock import SECTOR_USED_BYTES, parse_sector
from vmfs.ondisk.superblock import backup_offset
from vmfs.volume import Volume, newest_copy

T = TypeVar("T")
SECTOR_BYTES: Final = 512  # the least that any disk reads


def dump_superblocks(devices: Sequence[Device]) -> list[Structure]:
    """Every copy on each device; a device without any good one is shown too. Raises DeviceError."""
    found: list[Structure] = []
    for device in devices:
        ends = {backup_offset(device.size_bytes)}
        try:
            best = newest_copy(device)
        except UnsupportedFormat:
            best = None
        if best is not None:
            ends.add(backup_offset(best.extents[best.extent_index].size_bytes))
        offsets = [superblock.PRIMARY_OFFSET, superblock.SECONDARY_OFFSET, *sorted(ends)]
        for number, offset in enumerate(dict.fromkeys(offsets)):
            if 0 <= offset <= device.size_bytes - METADATA_BLOCK_BYTES:
                found.append(_superblock(device, offset, number))
    return found


def _superblock(device: Device, offset: int, number: int) -> Structure:
    block = device.read(offset, METADATA_BLOCK_BYTES)
    fields: dict[str, Value] = {}
    problems: list[str] = []
    try:
        fields.update(superblock_fields(superblock.parse(block, offset, device.name)))
    except (DamagedBlock, UnsupportedFormat) as error:
        problems.append(problem_of(error))
        try:
            stated = superblock.resealed(block)
            own_offset = split_address(peek(stated).address)[1]
            fields.update(superblock_fields(superblock.parse(stated, own_offset, device.name)))
        except (DamagedBlock, UnsupportedFormat) as again:
            if problem_of(again) not in problems:
                problems.append(problem_of(again))
    extent = fields.get("extent")
    address = make_address(extent if isinstance(extent, int) else 0, offset)
    return Structure("superblock", address, f"{device.name}, copy {number}", fields, tuple(problems), block)


class Dumper:
    """Reads structures of one open volume. Nothing is cached but the slots: a structure is read when it is asked for.

    Every method raises DeviceError, and NoSuchStructure for what the volume does not have.
    """

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.slots = {record.slot: record for record in read_slots(volume).records}
        self._images: Mapping[int, bytes] = {}

    def with_image(self, address: int, image: bytes) -> Dumper:
        """The same volume, as if that metadata block lay at `address`."""
        other = copy.copy(self)
        other._images = {address: image}
        return other

    # -- lock blocks -------------------------------------------------------------------------------

    def slot(self, number: int) -> list[Structure]:
        """A heartbeat slot; with Disk-Paxos registers each host's sector of it."""
        self.check_slot(number)
        return self._lock_block("slot", self.volume.geometry.slot_address(number))

    def lock(self, address: int) -> list[Structure]:
        """The lock whose block is at `address`; with Disk-Paxos registers each host's sector of it."""
        return self._lock_block("lock", address)

    def group_lock(self, number: int) -> list[Structure]:
        """The lock of a group."""
        self.check_group(number)
        return self.lock(self.volume.geometry.group_lock_address(number))

    def inode_lock(self, number: int) -> list[Structure]:
        """The lock of an inode."""
        self.check_inode(number)
        return self.lock(self.volume.geometry.inode_lock_address(number))

    def _lock_block(self, kind: str, address: int) -> list[Structure]:
        sb = self.volume.superblock
        block = read_settled(
            lambda: self.read(address, sb.lock_block_bytes), lambda b: self._settled(kind, b, address)
        )
        if sb.lock_method == LockMethod.PAXOS:
            return self._paxos(kind, address, block)
        fields, problems = self._sector(kind, block[: sb.sector_bytes], address)
        if not problems and not is_padded_with_zeros(sb, block):
            problems.append("the bytes behind its record are not zero")
        return [Structure(kind, address, place_of(self.volume, address), fields, tuple(problems), block)]

    def _sector(self, kind: str, sector: bytes, address: int) -> tuple[dict[str, Value], list[str]]:
        expected = address, self.volume.prefix
        if kind == "lock":
            return decode_sector(sector, lock.MAGIC, lock.parse_lock, expected, lambda r: lock_fields(r, self.slots))
        sb = self.volume.superblock
        number = (address - sb.slots_address) // sb.lock_block_bytes
        return decode_sector(
            sector, slot.MAGIC, lambda s, a, prefix: slot.parse_slot(s, a, prefix, number), expected, slot_fields
        )

    def _settled(self, kind: str, block: bytes, address: int) -> None:
        if self._sector(kind, image_in(self.volume.superblock, block, address), address)[1]:
            raise DamagedBlock(address, kind)

    def _paxos(self, kind: str, address: int, block: bytes) -> list[Structure]:
        """The register's image that counts at this moment, then every host's sector."""
        sb = self.volume.superblock
        layout, where = paxos_layout(sb), place_of(self.volume, address)
        fields: dict[str, Value] = {}
        problems: list[str] = []
        try:
            fields, problems = self._sector(kind, image_in(sb, block, address), address)
        except DamagedBlock as error:
            problems.append(error.what)
        if not problems and not is_padded_with_zeros(sb, block):
            problems.append("bytes that no sector uses are not zero")
        shown = [Structure(kind, address, where, fields, tuple(problems), block)]
        for index in range(layout.count):
            raw = block[index * layout.sector_bytes :][:SECTOR_USED_BYTES]
            at, named = address + index * layout.sector_bytes, f"{where}, sector of slot {index}"
            try:
                sector = parse_sector(raw, layout, address, index)
            except DamagedBlock as error:
                shown.append(Structure("paxos-sector", at, named, {"index": index}, (error.what,), raw))
                continue
            ballots: dict[str, Value] = {
                "index": index, "mbal": sector.mbal, "bal": sector.bal, "parent": sector.parent,
                "claimant": sector.claimant.hex() if any(sector.claimant) else None, "record": None,
            }  # fmt: skip
            if sector.bal:
                ballots["record"] = self._sector(kind, sector.record.ljust(sb.sector_bytes, b"\0"), address)[0]
            shown.append(Structure("paxos-sector", at, named, ballots, (), raw))
        return shown

    # -- metadata blocks ---------------------------------------------------------------------------

    def group(self, number: int) -> Structure:
        """A group's block with its bitmaps."""
        self.check_group(number)
        geometry, uuid = self.volume.geometry, self.volume.uuid
        address, blocks = geometry.group_block_address(number), geometry.group_blocks(number)
        return self.block_of(
            BlockType.GROUP, address,
            lambda b: group.parse(b, address, uuid, number, blocks),
            lambda b, h: group.parse(b, h.address, h.volume, h.role, blocks),
            group_fields,
        )  # fmt: skip

    def chunk(self, address: int) -> Structure:
        """The head of the metadata chunk that `address` lies in."""
        head = self._chunk_head(address)
        geometry, uuid = self.volume.geometry, self.volume.uuid
        number, units = geometry.group_of(head)[0], geometry.units_per_chunk
        behind = geometry.inode_units - 1

        def show(c: chunk.ChunkHead) -> dict[str, Value]:
            first = head // METADATA_BLOCK_BYTES
            return dict(chunk_fields(c, [first + u + behind for u in range(units) if c.inodes >> u & 1]))

        return self.block_of(
            BlockType.CHUNK, head,
            lambda b: chunk.parse(b, head, uuid, number, units),
            lambda b, h: chunk.parse(b, h.address, h.volume, h.owner, units),
            show,
        )  # fmt: skip

    def orphans(self, number: int) -> Structure:
        """A slot's orphan list."""
        self.check_slot(number)
        address, uuid = self.volume.geometry.orphans_address(number), self.volume.uuid
        return self.block_of(
            BlockType.ORPHANS, address,
            lambda b: orphans.parse(b, address, uuid, number),
            lambda b, h: orphans.parse(b, h.address, h.volume, h.role),
            lambda found: orphans_fields(number, found[0]),
        )  # fmt: skip

    def journal_headers(self, number: int) -> tuple[list[Structure], JournalHeader | None]:
        """Both copies of the header of a slot's journal, and the one that counts."""
        self.check_slot(number)
        geometry, uuid = self.volume.geometry, self.volume.uuid
        start, blocks = geometry.journal_address(number), geometry.journal_blocks
        try:
            both = self.read(start, HEADER_BLOCKS * METADATA_BLOCK_BYTES)
            best: JournalHeader | None = parse_header(both, start, uuid, number, blocks)
        except (DamagedBlock, UnsupportedFormat):
            best = None
        shown = [
            self.block_of(
                BlockType.JOURNAL_HEADER, address,
                partial(parse_one_header, address=address, volume=uuid, slot=number, blocks=blocks),
                lambda b, h: parse_one_header(b, h.address, h.volume, h.role, blocks),
                lambda header: journal_header_fields(header, counts=header == best),
            )
            for address in range(start, start + HEADER_BLOCKS * METADATA_BLOCK_BYTES, METADATA_BLOCK_BYTES)
        ]  # fmt: skip
        return shown, best

    def block_of(
        self,
        kind: BlockType,
        address: int,
        strict: Callable[[bytes], T],
        as_stated: Callable[[bytes, Header], T],
        show: Callable[[T], Fields],
    ) -> Structure:
        """The metadata block at `address`, which must be of `kind` (see `decode_block`)."""
        block = read_settled(lambda: self.read(address, METADATA_BLOCK_BYTES), strict)
        fields, problems = decode_block(block, kind, strict, as_stated, show)
        return Structure(kind.name.lower().replace("_", "-"), address, place_of(self.volume, address), fields,
                         tuple(problems), block)  # fmt: skip

    def unknown(self, address: int, block: bytes) -> Structure:
        """Bytes that are none of the format's structures: data, or what was never used."""
        problems: tuple[str, ...] = ()
        fields: dict[str, Value] = {"zeros": not any(block)}
        if is_block(block):
            fields = header_fields(peek(block))
            problems = () if checksum_matches(block) else ("checksum does not match",)
        return Structure("block", address, place_of(self.volume, address), fields, problems, block)

    # -- bounds ------------------------------------------------------------------------------------

    def read(self, address: int, length: int) -> bytes:
        """Bytes at a volume address. Raises NoSuchStructure where the volume has none."""
        sb = self.volume.superblock
        if not 0 <= address < 1 << 64:
            raise NoSuchStructure(sb.label, f"address {address:#x}", "an address has 64 bits")
        if address in self._images and length == METADATA_BLOCK_BYTES:
            return self._images[address]
        extent, offset = split_address(address)
        if extent >= len(sb.extents):
            raise NoSuchStructure(sb.label, f"extent {extent} (address {address:#x})", f"it has {len(sb.extents)}")
        if offset % SECTOR_BYTES or offset + length > sb.extents[extent].size_bytes:
            raise NoSuchStructure(
                sb.label, f"block at address {address:#x}",
                f"blocks begin at multiples of {SECTOR_BYTES} bytes, and extent {extent} ends at "
                f"{make_address(extent, sb.extents[extent].size_bytes):#x}",
            )  # fmt: skip
        return self.volume.extents.read(address, length)

    def check_slot(self, number: int) -> None:
        """Raise NoSuchStructure unless the volume has that slot."""
        count = self.volume.superblock.max_hosts
        if not 0 <= number < count:
            raise NoSuchStructure(self.volume.superblock.label, f"slot {number}", f"its slots are 0 to {count - 1}")

    def check_group(self, number: int) -> None:
        """Raise NoSuchStructure unless the volume has that group."""
        count = self.volume.geometry.group_count
        if not 0 <= number < count:
            raise NoSuchStructure(self.volume.superblock.label, f"group {number}", f"its groups are 0 to {count - 1}")

    def check_inode(self, number: int) -> None:
        """Raise NoSuchStructure unless an inode of that number could lie somewhere."""
        try:
            self.volume.geometry.check_inode(number)
        except DamagedBlock as error:
            raise NoSuchStructure(self.volume.superblock.label, f"inode {number}", error.what) from None

    def _chunk_head(self, address: int) -> int:
        try:
            return self.volume.geometry.chunk_of(address & ~(METADATA_BLOCK_BYTES - 1))[0]
        except DamagedBlock as error:
            raise NoSuchStructure(self.volume.superblock.label, f"chunk at {address:#x}", error.what) from None
