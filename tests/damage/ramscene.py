"""A volume in memory with every kind of metadata block, the contents of its files, and trials on copies of it."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from uuid import UUID

from tests.check.fastclock import FastClock
from vmfs.check.dryrun import ScratchDevice
from vmfs.check.source import Source
from vmfs.check.survey import survey
from vmfs.cluster.identity import HostIdentity
from vmfs.core.mounting import MountedVolume
from vmfs.devices import Device
from vmfs.devices.ram import RamDevice
from vmfs.errors import VmfsError
from vmfs.fuse.contract import BUFFER_SLACK_BYTES, ROOT_ID, Context, WouldBlock
from vmfs.liveness import read_slots
from vmfs.mkfs import FormatOptions, format_volume
from vmfs.ondisk.header import METADATA_BLOCK_BYTES, BlockType
from vmfs.volume import open_volume

BLOCK = 64 << 10
CONTEXT = Context(0, 0, 1)
LEASE_US = 60_000_000  # the clock runs fast
CLOCK_RATE = 30.0
SAMPLE_BYTES = 100 * BLOCK
PIECE_BYTES = 8192
_BUFFER_BYTES = (1 << 20) + BUFFER_SLACK_BYTES
EIO = "EIO"
ABSENT = "ENOENT"


class Host:
    """One mount of a device in this process."""

    def __init__(self, device: Device, name: str = "esx1", boot: int | None = None) -> None:
        """`boot`: which boot of this machine it is; those before it are known to be dead."""
        volume = open_volume([device])
        identity = HostIdentity.detect(name)
        if boot is not None:
            identity = replace(identity, boot_id=UUID(int=boot))
        self.volume = MountedVolume(volume, identity, FastClock(CLOCK_RATE))
        self.fs = self.volume.filesystem
        self._buffer = memoryview(mmap.mmap(-1, _BUFFER_BYTES))

    def end(self) -> str:
        """Leave; "" or why it could not be done in order."""
        try:
            self.volume.leave()
        except VmfsError as error:
            self.volume.abandon()
            return str(error)
        return ""

    def read(self, node: int, size: int) -> bytes:
        """Pieces from all over a file: every leaf of its map is needed for them."""
        fh = self.fs.open(CONTEXT, node, os.O_RDONLY, False).fh
        try:
            found = b""
            for offset in sorted({*range(0, min(size, 4 * BLOCK), BLOCK), *range(0, size, SAMPLE_BYTES)}):
                try:
                    count = self.volume.plane.read(fh, self._buffer, offset, PIECE_BYTES)
                except WouldBlock:
                    count = self.volume.plane.read_slow(fh, self._buffer, offset, PIECE_BYTES)
                found += bytes(self._buffer[:count])
            return found
        finally:
            self.fs.release(node, fh, os.O_RDONLY)

    def write(self, parent: int, name: str, pieces: dict[int, bytes], *, sync: bool = False) -> int:
        """Create a file with these bytes at these offsets; returns its node."""
        entry, opened = self.fs.create(CONTEXT, parent, name.encode(), 0o644, os.O_RDWR, False)
        for offset, data in pieces.items():
            self._buffer[: len(data)] = data
            try:
                self.volume.plane.write(opened.fh, self._buffer, offset, len(data))
            except WouldBlock:
                self.volume.plane.write_slow(opened.fh, self._buffer, offset, len(data))
        if sync:
            self.fs.fsync(CONTEXT, entry.nodeid, opened.fh, False)
        self.fs.release(entry.nodeid, opened.fh, os.O_RDWR)
        return entry.nodeid

    def contents(self) -> dict[str, str]:
        """By path: a file's digest, a link's target, a directory's names; or an errno's name."""
        found: dict[str, str] = {}
        self._walk("", ROOT_ID, found)
        return found

    def _walk(self, path: str, node: int, found: dict[str, str]) -> None:
        try:
            fh = self.fs.opendir(CONTEXT, node, 0).fh
            names = sorted(e.name for e in self.fs.readdir(CONTEXT, node, fh, 0) if e.name not in (b".", b".."))
            self.fs.releasedir(node, fh)
        except (VmfsError, OSError) as error:
            found[path + "/"] = errno_of(error)
            return
        found[path + "/"] = hashlib.sha256(b"/".join(names)).hexdigest()
        for name in names:
            self.look(node, f"{path}/{os.fsdecode(name)}", name, found)

    def look(self, parent: int, path: str, name: bytes, found: dict[str, str]) -> None:
        """Put what a name leads to into `found`."""
        try:
            entry = self.fs.lookup(CONTEXT, parent, name)
            kind = entry.attr.mode & 0o170000
            if kind == 0o040000:
                self._walk(path, entry.nodeid, found)
            elif kind == 0o120000:
                found[path] = os.fsdecode(self.fs.readlink(CONTEXT, entry.nodeid))
            else:
                found[path] = hashlib.sha256(self.read(entry.nodeid, entry.attr.size)).hexdigest()
        except (VmfsError, OSError) as error:
            found[path] = errno_of(error)


def errno_of(error: VmfsError | OSError) -> str:
    """The name of the errno that the kernel would get."""
    return errno.errorcode[error.errno or errno.EIO]


@dataclass(slots=True)
class RamScene:
    """The pristine volume: its memory, what its files hold, and the addresses of its metadata blocks by kind."""

    device: RamDevice
    contents: dict[str, str]
    blocks: dict[str, list[int]] = field(default_factory=dict)

    def copy(self) -> ScratchDevice:
        """A device with the same content, to be changed."""
        return ScratchDevice(self.device.again())


def make_ram_scene() -> RamScene:
    """Format, fill through a mount, and leave."""
    device = RamDevice(48 << 20)
    options = FormatOptions(
        "bits", max_hosts=4, journal_bytes=512 << 10, blocks_per_group=128, lease_us=LEASE_US,
        heartbeat_us=LEASE_US * 3 // 16,
    )  # fmt: skip
    format_volume(device, options)
    host = Host(device.again(), "maker")
    _fill(host)
    contents = host.contents()
    assert not host.end()
    scene = RamScene(device, contents)
    scene.blocks = _blocks(device)
    return scene


def _fill(host: Host) -> None:
    rng = random.Random(6)
    fs = host.fs
    host.write(ROOT_ID, "plain", {0: rng.randbytes(3 * BLOCK + 100)})
    host.write(ROOT_ID, "big", {i * 400 * BLOCK: rng.randbytes(BLOCK) for i in range(6)})
    base = host.write(ROOT_ID, "base", {0: rng.randbytes(2 * BLOCK), 700 * BLOCK: rng.randbytes(BLOCK)})
    root = host.volume.core.volume.superblock.root_inode
    number = fs.getattr(CONTEXT, base, None).attr.ino
    for i in range(3):
        host.volume.cloner.clone(number, root, b"clone-%d" % i, 0, 0)
    fs.symlink(CONTEXT, ROOT_ID, b"link", b"plain")
    for d in range(3):
        directory = fs.mkdir(CONTEXT, ROOT_ID, b"dir-%d" % d, 0o755).nodeid
        first = host.write(directory, "first", {0: b"first of %d" % d})
        fs.setxattr(CONTEXT, first, b"user.tag", b"value", 0)
        for i in range(70):
            fs.link(CONTEXT, first, directory, b"name-%03d-" % i + b"-" * 150)
        for i in range(8):
            host.write(directory, f"file-{i}", {0: rng.randbytes(5000)})


def _blocks(device: RamDevice) -> dict[str, list[int]]:
    volume = open_volume([device.again()])
    sb, geometry = volume.superblock, volume.geometry
    seen = survey(volume, read_slots(volume), lambda *_: None)
    assert seen.report.clean
    slots = range(sb.max_hosts)
    found: dict[str, list[int]] = {
        "superblock": list(sb.copy_offsets(0)),
        "superblock lock": [sb.superblock_lock],
        "slot": [geometry.slot_address(s) for s in slots],
        "orphan list": [geometry.orphans_address(s) for s in slots],
        "journal header": [geometry.journal_address(s) + i * METADATA_BLOCK_BYTES for s in slots for i in (0, 1)],
        "journal ring": [
            geometry.journal_address(s) + i * METADATA_BLOCK_BYTES for s in slots
            for i in range(2, geometry.journal_blocks)
        ],
        "group lock": [geometry.group_lock_address(g) for g in range(geometry.group_count)],
        "group": [geometry.group_block_address(g) for g in range(geometry.group_count)],
        "chunk": list(seen.space.chunks),
        "inode lock": [geometry.inode_lock_address(n) for n in seen.inodes.facts],
        "free unit": [],
    }  # fmt: skip
    for address, kind in _units(seen.source, list(seen.space.chunks.values())):
        found.setdefault(kind, []).append(address)
    return found


def _units(source: Source, chunks: list) -> Iterator[tuple[int, str]]:  # type: ignore[type-arg]
    names = {BlockType.INODE: "inode", BlockType.NODE: "map node", BlockType.DIRECTORY: "directory block"}
    for chunk in chunks:
        for unit in range(1, chunk.head.unit_count):
            address = chunk.address + unit * METADATA_BLOCK_BYTES
            kind = int.from_bytes(source.unit(address)[4:6], "little")
            if not chunk.head.used >> unit & 1:
                yield address, "free unit"
            elif kind in names and source.unit(address)[:4] == b"AZMD":
                yield address, names[BlockType(kind)]


def flip(device: Device, address: int, bit: int) -> None:
    """Turn one bit of a block over."""
    block = bytearray(device.read(address, METADATA_BLOCK_BYTES))
    block[bit // 8] ^= 1 << bit % 8
    device.write(address, bytes(block))
