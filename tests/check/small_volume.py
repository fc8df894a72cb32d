"""A small volume with one of everything, written block by block with the format's own modules.

The test suite breaks it in one place at a time, so every structure stays at hand to be changed and written again.
"""

import stat
from dataclasses import replace

from vmfs.devices.ram import RamDevice
from vmfs.mkfs import FormatOptions, format_volume
from vmfs.ondisk import chunk, group, inode, node, orphans
from vmfs.ondisk.chunk import ChunkHead
from vmfs.ondisk.directory import DirectoryBlock, Entry, name_hash
from vmfs.ondisk.inode import FLAG_INLINE, FLAG_LAYER, Inode, inode_address
from vmfs.ondisk.lock import Guards, LockRecord
from vmfs.ondisk.node import PUNCHED, UNWRITTEN, WRITTEN
from vmfs.volume import Volume, open_volume

OPTIONS = FormatOptions("small", max_hosts=4, journal_bytes=256 << 10, blocks_per_group=64)
SIZE_BYTES = 16 << 20
UNIT = 4096


class SmallVolume:
    """Names: `inodes` by what they are called here; `directory_blocks` and `nodes` by their addresses."""

    def __init__(self) -> None:
        self.device = RamDevice(SIZE_BYTES, name="small")
        format_volume(self.device, OPTIONS)
        self.volume: Volume = open_volume([self.device])
        self.geometry = self.volume.geometry
        self.uuid = self.volume.uuid
        self.block_bytes = self.volume.superblock.block_bytes
        self.groups = [self._read_group(g) for g in range(self.geometry.group_count)]
        self.chunks: dict[int, ChunkHead] = {}
        self._load_chunk(self.geometry.block_address(0, 0))
        self.inodes: dict[str, Inode] = {}
        self.directory_blocks: dict[int, tuple[int, int, DirectoryBlock]] = {}
        self.nodes: dict[int, tuple[int, int, int, list[int]]] = {}
        self._map_id = 100
        self._build()
        self.write_bitmaps()

    # -- what there is -----------------------------------------------------------------------------

    def _build(self) -> None:
        root = inode.parse(self.read(inode_address(self.root)), self.root, self.uuid)
        self.inodes["root"] = root
        plain = self.new_inode("plain", stat.S_IFREG | 0o644, size=3 * self.block_bytes)
        plain.root[0] = self.new_block() | WRITTEN
        plain.root[2] = self.new_block() | WRITTEN
        plain.root[5] = self.new_block() | UNWRITTEN
        plain.own_blocks = 3
        big = self.new_inode("big", stat.S_IFREG | 0o644, size=700 * self.block_bytes, height=1)
        for index in (0, 1):
            pointers = [0] * node.POINTERS_PER_NODE
            pointers[7] = self.new_block() | WRITTEN
            big.root[index] = self.new_node(big.map_id, 0, index, pointers) | WRITTEN
        big.own_blocks = 2
        self.new_inode("linked", stat.S_IFREG | 0o644, nlink=2)
        self.new_inode("symlink", stat.S_IFLNK | 0o777, flags=FLAG_INLINE, inline=b"plain", size=5)
        self._clones()
        self.new_inode("inner", stat.S_IFREG | 0o600)
        sub = self.new_inode("sub", stat.S_IFDIR | 0o755, nlink=2, directory_parent=self.root, seed=7)
        self.fill_directory(sub, {b"inner": "inner"})
        many = self.new_inode("many", stat.S_IFDIR | 0o755, nlink=2, directory_parent=self.root, seed=9)
        many.level = many.split = 1
        self.inodes["many-file"] = self.new_inode("many-file", stat.S_IFREG | 0o644, nlink=120)
        self.fill_directory(many, {b"name-%03d" % i + b"-" * 100: "many-file" for i in range(120)})
        root.nlink = 4
        names = ("plain", "big", "symlink", "base", "copy", "sub", "many")
        self.fill_directory(root, {n.encode(): n for n in names} | {b"one": "linked", b"two": "linked"})
        for each in self.inodes.values():
            self.write_inode(each)

    def _clones(self) -> None:
        layer = self.new_inode("layer", stat.S_IFREG, nlink=0, flags=FLAG_LAYER, size=2 * self.block_bytes, children=2)
        layer.root[0] = self.new_block() | WRITTEN
        layer.root[1] = self.new_block() | WRITTEN
        layer.own_blocks = 2
        for name in ("base", "copy"):
            above = self.new_inode(name, stat.S_IFREG | 0o644, size=2 * self.block_bytes, layer_depth=1)
            above.parent, above.parent_generation = layer.number, layer.inode_generation
            above.shared_blocks = 2
        self.inodes["copy"].root[0] = self.new_block() | WRITTEN
        self.inodes["copy"].root[1] = PUNCHED
        self.inodes["copy"].own_blocks = 1
        self.inodes["copy"].shared_blocks = 0

    @property
    def root(self) -> int:
        return self.volume.superblock.root_inode

    # -- allocating --------------------------------------------------------------------------------

    def new_block(self) -> int:
        """A data block of group 1."""
        g = self.groups[1]
        bit = (~g.used & (g.used + 1)).bit_length() - 1
        g.used |= 1 << bit
        return self.geometry.block_address(1, bit)

    def new_units(self, count: int) -> int:
        """The address of that many free units in a row, in group 0."""
        for address, head in self.chunks.items():
            first = head.used.bit_length()
            if first + count <= head.unit_count:
                head.used |= ((1 << count) - 1) << first
                return address + first * UNIT
        g = self.groups[0]
        bit = g.used.bit_length()
        g.used |= 1 << bit
        g.meta |= 1 << bit
        address = self.geometry.block_address(0, bit)
        self.chunks[address] = ChunkHead(0, self.geometry.units_per_chunk)
        return self.new_units(count)

    def new_inode(self, name: str, mode: int, nlink: int = 1, **fields: object) -> Inode:
        lock = self.new_units(self.geometry.inode_units)
        head, unit = self.geometry.chunk_of(lock)
        self.chunks[head].inodes |= 1 << unit
        number = (lock >> 12) + self.geometry.inode_units - 1
        self._map_id += 1
        made = Inode(number, mode=mode, nlink=nlink, map_id=self._map_id, **fields)  # type: ignore[arg-type]
        self.inodes[name] = made
        self.write(lock, self.free_lock(lock, Guards.INODE).pack(512).ljust(UNIT, b"\0"))
        return made

    def free_lock(self, address: int, guards: Guards) -> LockRecord:
        return LockRecord(address, self.volume.prefix, guards)

    def new_node(self, map_id: int, level: int, index: int, pointers: list[int]) -> int:
        address = self.new_units(1)
        self.nodes[address] = (map_id, level, index, pointers)
        self.write_node(address)
        return address

    def fill_directory(self, directory: Inode, names: dict[bytes, str]) -> None:
        """Write all buckets of a directory with overflow blocks where they are needed."""
        total = (1 << directory.level) + directory.split
        buckets: list[list[Entry]] = [[] for _ in range(total)]
        for name, target in names.items():
            hash_ = name_hash(name, directory.seed)
            bucket = hash_ % (1 << directory.level)
            if bucket < directory.split:
                bucket = hash_ % (2 << directory.level)
            t = self.inodes[target]
            buckets[bucket].append(Entry(name, hash_, t.number, t.inode_generation, stat.S_IFMT(t.mode) >> 12))
        for bucket, entries in enumerate(buckets):
            bits = directory.level + (bucket < directory.split or bucket >= 1 << directory.level)
            blocks = [DirectoryBlock({}, bits)]
            for entry in entries:
                if not blocks[-1].fits(entry):
                    blocks.append(DirectoryBlock({}, bits))
                blocks[-1].add(entry)
            addresses = [self.new_units(1) for _ in blocks]
            for i, (address, block) in enumerate(zip(addresses, blocks, strict=True)):
                block.overflow = addresses[i + 1] if i + 1 < len(addresses) else 0
                self.directory_blocks[address] = (directory.map_id, bucket, block)
                self.write_directory_block(address)
            directory.root[bucket] = addresses[0] | WRITTEN
            directory.own_blocks += len(blocks)
            directory.size += len(blocks) * UNIT
        directory.entry_count = len(names)

    # -- reading and writing -----------------------------------------------------------------------

    def read(self, address: int) -> bytes:
        return self.volume.extents.read(address, UNIT)

    def write(self, address: int, block: bytes) -> None:
        self.volume.extents.write(address, block)

    def flip(self, address: int, bit: int) -> None:
        """Turn one bit of the metadata block at `address` over."""
        block = bytearray(self.read(address))
        block[bit // 8] ^= 1 << bit % 8
        self.write(address, bytes(block))

    def _read_group(self, index: int) -> group.GroupBlock:
        address = self.geometry.group_block_address(index)
        return group.parse(self.read(address), address, self.uuid, index, self.geometry.group_blocks(index))

    def _load_chunk(self, address: int) -> None:
        self.chunks[address] = chunk.parse(self.read(address), address, self.uuid, 0, self.geometry.units_per_chunk)

    def write_bitmaps(self) -> None:
        """Write every chunk's head and every group's block."""
        self.groups[0].free_units = sum(h.unit_count - h.used.bit_count() for h in self.chunks.values())
        for address, head in self.chunks.items():
            self.write(address, head.pack(address, self.uuid))
        for g in self.groups:
            self.write_group(g.index)

    def write_group(self, index: int) -> None:
        address = self.geometry.group_block_address(index)
        self.write(address, self.groups[index].pack(address, self.uuid))

    def write_inode(self, changed: Inode) -> None:
        self.write(inode_address(changed.number), changed.pack(self.uuid))

    def write_node(self, address: int) -> None:
        map_id, level, index, pointers = self.nodes[address]
        self.write(
            address,
            node.pack(
                node.array("Q", pointers), address=address, volume=self.uuid, map_id=map_id, level=level, index=index,
                generation=1,
            ),
        )  # fmt: skip

    def write_directory_block(self, address: int) -> None:
        map_id, bucket, block = self.directory_blocks[address]
        self.write(address, block.pack(address=address, volume=self.uuid, map_id=map_id, bucket=bucket))

    def write_orphans(self, slot: int, entries: dict[tuple[int, int], orphans.OrphanKind]) -> None:
        address = self.geometry.orphans_address(slot)
        self.write(address, orphans.pack(entries, address=address, volume=self.uuid, slot=slot, generation=2))

    def block_of(self, directory: str, name: bytes) -> tuple[int, DirectoryBlock, Entry]:
        """The directory block that holds a name: (address, block, entry)."""
        for address, (map_id, _, block) in self.directory_blocks.items():
            if map_id == self.inodes[directory].map_id and name in block.entries:
                return address, block, block.entries[name]
        raise KeyError(name)

    def change_entry(self, directory: str, name: bytes, **fields: object) -> None:
        """Replace fields of one entry, in place."""
        address, block, entry = self.block_of(directory, name)
        changed = replace(entry, **fields)  # type: ignore[arg-type]
        block.remove(name)
        block.add(changed)
        self.write_directory_block(address)

    def all_blocks(self) -> dict[str, int]:
        """The address of one block of each kind of metadata, by what it is."""
        sb, g = self.volume.superblock, self.geometry
        nodes = list(self.nodes)
        plain = self.inodes["plain"].number
        return {
            "superblock": 64 << 10, "superblock 2": 68 << 10, "last superblock": sb.copy_offsets(0)[2],
            "superblock lock": sb.superblock_lock, "slot": g.slot_address(1), "orphans": g.orphans_address(2),
            "journal header": g.journal_address(3), "journal header 2": g.journal_address(3) + UNIT,
            "group lock": g.group_lock_address(1), "group": g.group_block_address(1),
            "group with chunks": g.group_block_address(0), "chunk": g.block_address(0, 1),
            "inode lock": g.inode_lock_address(plain), "inode": inode_address(plain),
            "directory inode": inode_address(self.inodes["many"].number), "root": inode_address(self.root),
            "layer": inode_address(self.inodes["layer"].number), "node": nodes[0],
            "directory block": next(iter(self.directory_blocks)),
        }  # fmt: skip
