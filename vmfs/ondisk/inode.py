"""An inode: one metadata block; its lock block lies just before it.

The inode's number is its address divided by 4096 (unique in the volume, the extent's index included); owner = that
number. Covered by its own lock. A freed inode keeps its block, with mode 0 and its generation: the next file there gets
the next generation, so that an old handle never opens another file.

Layout after the common header:

    64   mode u32 (as stat's; 0: free), uid u32, gid u32, links u32, generation u32, flags u32
    88   size in bytes u64, blocks of its own u64 (allocated to this map, parents not counted)
    104  atime, mtime, ctime, birth time: ns since the epoch, i64 x 4
    136  rdev u64, version u64 (grows with each change of map, directory or attributes that readers must see)
    152  map id u64, parent layer's inode u64, its generation u32, children u32 (layers and files above this layer)
    176  inherit limit u64: blocks at and above this number are not looked up in the parent layer
    184  parent directory's inode u64 (directories only)
    192  directory: seed u64, entries u64, split point u32, level u8; map height u8, layer depth u16
    216  xattr bytes u16, inline bytes u16, reserved u32
    224  shared blocks u64 (inherited from parent layers and not replaced: together with the blocks of its own, what
         stat counts), reserved 24 bytes
    256  root of the map: 64 pointers (see `vmfs.ondisk.node`); or, with INLINE set, unused
    768  extended attributes, packed: name length u8, value length u16, name, value; then the inline content (a symbolic
         link's target); together at most 3328 bytes

Flags: 1 layer (a frozen map without a name), 2 inline content. Unknown flags are refused.
"""

from __future__ import annotations

import stat
import struct
from array import array
from dataclasses import dataclass, field
from typing import Final

from vmfs.errors import DamagedBlock
from vmfs.ondisk.header import METADATA_BLOCK_BYTES, BlockType, open_block, seal
from vmfs.ondisk.node import MAX_HEIGHT, ROOT_POINTERS, empty_pointers

FLAG_LAYER: Final = 1
FLAG_INLINE: Final = 2
_KNOWN_FLAGS: Final = FLAG_LAYER | FLAG_INLINE
NO_INHERIT_LIMIT: Final = (1 << 64) - 1
ADDRESS_SHIFT: Final = 12  # an inode's number is its address in metadata blocks
_FIELDS: Final = struct.Struct("<6I2Q4q2Q2Q2IQQ2QIBBHHHIQ")
_ROOT: Final = 256
_TAIL: Final = _ROOT + ROOT_POINTERS * 8
TAIL_MAX_BYTES: Final = METADATA_BLOCK_BYTES - _TAIL
_XATTR: Final = struct.Struct("<BH")


def inode_address(number: int) -> int:
    """The volume address of an inode's block."""
    return number << ADDRESS_SHIFT


@dataclass(slots=True)
class Inode:
    """A decoded inode. Times in ns, sizes in bytes."""

    number: int
    mode: int = 0
    uid: int = 0
    gid: int = 0
    nlink: int = 0
    inode_generation: int = 1
    flags: int = 0
    size: int = 0
    own_blocks: int = 0
    atime_ns: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    btime_ns: int = 0
    rdev: int = 0
    version: int = 0
    map_id: int = 0
    parent: int = 0
    parent_generation: int = 0
    children: int = 0
    inherit_limit: int = NO_INHERIT_LIMIT
    directory_parent: int = 0
    seed: int = 0
    entry_count: int = 0
    split: int = 0
    level: int = 0
    height: int = 0
    layer_depth: int = 0
    shared_blocks: int = 0
    root: array[int] = field(default_factory=lambda: empty_pointers(ROOT_POINTERS))
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    inline: bytes = b""
    generation: int = 0

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_regular(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_layer(self) -> bool:
        return bool(self.flags & FLAG_LAYER)

    @property
    def in_use(self) -> bool:
        return self.mode != 0

    def tail_bytes(self) -> int:
        """What extended attributes and inline content take, of TAIL_MAX_BYTES."""
        return sum(_XATTR.size + len(k) + len(v) for k, v in self.xattrs.items()) + len(self.inline)

    def pack(self, volume: bytes) -> bytes:
        """The block's image, with the next generation."""
        self.generation += 1
        block = bytearray(METADATA_BLOCK_BYTES)
        tail = bytearray()
        for name, value in self.xattrs.items():
            tail += _XATTR.pack(len(name), len(value)) + name + value
        xattr_bytes = len(tail)
        tail += self.inline
        _FIELDS.pack_into(
            block, 64, self.mode, self.uid, self.gid, self.nlink, self.inode_generation, self.flags,
            self.size, self.own_blocks, self.atime_ns, self.mtime_ns, self.ctime_ns, self.btime_ns,
            self.rdev, self.version, self.map_id, self.parent, self.parent_generation, self.children,
            self.inherit_limit, self.directory_parent, self.seed, self.entry_count, self.split, self.level,
            self.height, self.layer_depth, xattr_bytes, len(self.inline), 0, self.shared_blocks,
        )  # fmt: skip
        block[_ROOT:_TAIL] = self.root.tobytes()
        block[_TAIL : _TAIL + len(tail)] = tail
        seal(
            block, BlockType.INODE, address=inode_address(self.number), generation=self.generation,
            volume=volume, owner=self.number,
        )  # fmt: skip
        return bytes(block)


def _parse_xattrs(data: bytes, address: int) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(data):
        if at + _XATTR.size > len(data):
            raise DamagedBlock(address, "inode: an extended attribute is cut short")
        name_length, value_length = _XATTR.unpack_from(data, at)
        at += _XATTR.size
        end = at + name_length + value_length
        if not name_length or end > len(data):
            raise DamagedBlock(address, "inode: an extended attribute is cut short")
        found[data[at : at + name_length]] = data[at + name_length : end]
        at = end
    return found


def parse(block: bytes | memoryview, number: int, volume: bytes) -> Inode:
    """Decode inode `number`. Raises DamagedBlock."""
    address = inode_address(number)
    header = open_block(block, BlockType.INODE, address=address, volume=volume, owner=number)
    f = _FIELDS.unpack_from(block, 64)
    xattr_bytes, inline_bytes = f[26], f[27]
    if xattr_bytes + inline_bytes > TAIL_MAX_BYTES or f[24] > MAX_HEIGHT or f[23] > 62 or f[5] & ~_KNOWN_FLAGS:
        raise DamagedBlock(address, "inode: impossible sizes or unknown flags")
    root = array("Q")
    root.frombytes(block[_ROOT:_TAIL])
    tail = bytes(block[_TAIL : _TAIL + xattr_bytes + inline_bytes])
    inode = Inode(number, *f[:26])
    inode.shared_blocks = f[29]
    inode.root = root
    inode.xattrs = _parse_xattrs(tail[:xattr_bytes], address)
    inode.inline = tail[xattr_bytes:]
    inode.generation = header.generation
    return inode
