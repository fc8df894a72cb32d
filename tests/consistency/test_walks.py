"""A reader without the lock meets what another host has changed meanwhile: that is no damage."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from errno import EIO, ESTALE
from typing import Any

import pytest

from tests.core.ramhost import BLOCK, CONTEXT, RamHost, RamVolume
from vmfs.core.leased import LeasedIO
from vmfs.core.nodeids import number_of
from vmfs.core.unlocked import UnlockedReader
from vmfs.errors import DamagedBlock, VmfsError
from vmfs.fuse.contract import ROOT_ID, SetAttr
from vmfs.ondisk.header import BlockType
from vmfs.ondisk.lock import Guards
from vmfs.ondisk.node import ADDRESS_MASK

FAR = 600 * BLOCK  # behind the first leaf: the map has nodes


def _far_file(host: RamHost, name: str, byte: int) -> int:
    node, fh = host.create(name)
    host.write(fh, 0, bytes([byte]) * 4096)
    host.write(fh, FAR, bytes([byte]) * 4096)
    host.close(node, fh)
    _publish(host)
    return node


def _publish(host: RamHost) -> None:
    """All that the host has changed is on the volume, and it keeps no lock but those of groups."""
    host.core.transactions.settle()
    for tenure in host.core.locks.all_held():
        if tenure.guards is Guards.INODE:
            host.core.locks.release(tenure.address)


def _kind_of(block: bytes) -> int:
    return int.from_bytes(block[4:6], "little")


def _before_first(
    kind: BlockType, reader: RamHost, action: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Do `action` when `reader` is about to read a block that is of that kind now."""
    read = UnlockedReader.read

    def meanwhile(own: UnlockedReader, address: int, parse: Callable[[bytes], Any]) -> Any:
        if own._core is reader.core and _kind_of(reader.core.io.read(address, 4096)) == kind:
            monkeypatch.undo()
            action()
        return read(own, address, parse)

    monkeypatch.setattr(UnlockedReader, "read", meanwhile)


def _reuse_units(host: RamHost, count: int = 6) -> None:
    """Give freed metadata units to other files' maps."""
    for i in range(count):
        _far_file(host, f"new{i}", 9)


def test_a_map_that_is_cut_while_it_is_walked_through(ram: RamVolume, monkeypatch: pytest.MonkeyPatch) -> None:
    """Truncated elsewhere, its nodes another file's: the walk starts over with the map as it is now."""
    writer, reader = ram.host("esx1"), ram.host("esx2")
    node = _far_file(writer, "old", 1)
    fh = reader.open(node, os.O_RDONLY)
    hits: list[int] = []

    def cut() -> None:
        writer.fs.setattr(CONTEXT, node, None, SetAttr(size=4096))
        _reuse_units(writer)
        hits.append(1)

    _before_first(BlockType.NODE, reader, cut, monkeypatch)
    assert set(reader.read(fh, FAR, 4096)) <= {0}
    assert hits
    assert reader.read(fh, 0, 4096) == b"\1" * 4096
    reader.close(node, fh)


def test_a_file_that_is_removed_while_its_map_is_walked_through(
    ram: RamVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, reader = ram.host("esx1"), ram.host("esx2")
    node = _far_file(writer, "old", 1)
    fh = reader.open(node, os.O_RDONLY)

    def remove() -> None:
        writer.fs.unlink(CONTEXT, ROOT_ID, b"old")
        writer.volume.reaper.work()
        _reuse_units(writer)

    _before_first(BlockType.NODE, reader, remove, monkeypatch)
    with pytest.raises(OSError, match="no longer that file") as told:
        reader.read(fh, FAR, 4096)
    assert told.value.errno == ESTALE
    reader.close(node, fh)


def test_holes_are_sought_while_the_map_is_cut(ram: RamVolume, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, reader = ram.host("esx1"), ram.host("esx2")
    node = _far_file(writer, "old", 1)
    fh = reader.open(node, os.O_RDONLY)

    def cut() -> None:
        writer.fs.setattr(CONTEXT, node, None, SetAttr(size=4096))
        _reuse_units(writer)

    _before_first(BlockType.NODE, reader, cut, monkeypatch)
    assert reader.fs.lseek(CONTEXT, node, fh, 0, os.SEEK_HOLE) in (4096, BLOCK)
    reader.close(node, fh)


def test_a_directory_that_is_removed_while_it_is_read(ram: RamVolume, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, reader = ram.host("esx1"), ram.host("esx2")
    directory = writer.fs.mkdir(CONTEXT, ROOT_ID, b"many", 0o755).nodeid
    names = [f"name-{i:03}-{'x' * 200}".encode() for i in range(200)]
    for name in names:
        writer.fs.mknod(CONTEXT, directory, name, 0o100644, 0)
    _publish(writer)
    fh = reader.fs.opendir(CONTEXT, directory, 0).fh
    listing = reader.fs.readdir(CONTEXT, directory, fh, 0)
    for _ in range(3):
        next(iter(listing))

    def remove() -> None:
        for name in names:
            writer.fs.unlink(CONTEXT, directory, name)
        writer.fs.rmdir(CONTEXT, ROOT_ID, b"many")
        writer.volume.reaper.work()
        _reuse_units(writer, 12)

    _before_first(BlockType.DIRECTORY, reader, remove, monkeypatch)
    with pytest.raises(OSError, match="no longer that file") as told:
        list(listing)
    assert told.value.errno == ESTALE
    reader.fs.releasedir(directory, fh)


@pytest.mark.expected_log("damaged block at volume address|read of inode")
def test_what_stays_damaged_is_told_and_at_once_the_next_time(ram: RamVolume) -> None:
    writer, reader = ram.host("esx1"), ram.host("esx2")
    node = _far_file(writer, "old", 1)
    address = _far_leaf(reader, node)
    good = ram.device.read(address, 4096)
    ram.device.write(address, bytes([good[100] ^ 1]).join((good[:100], good[101:])))
    fh = reader.open(node, os.O_RDONLY)
    try:
        for _ in range(2):
            with pytest.raises(OSError, match=f"{address:#x}") as told:
                reader.read(fh, FAR, 4096)
            assert told.value.errno == EIO
        with pytest.raises(DamagedBlock):  # not waited for again: the clock may stand still
            reader.volume.inodes.flat_leaf(reader.volume.inodes.look(number_of(node)), 1)
    finally:
        ram.device.write(address, good)
    assert reader.read(fh, FAR, 4096) == b"\1" * 4096
    reader.close(node, fh)


def _far_leaf(host: RamHost, node: int) -> int:
    return host.volume.inodes.look(number_of(node), fresh=True).inode.root[1] & ADDRESS_MASK


@pytest.mark.expected_log("mount failed|recovered host|died")
def test_what_a_dead_host_left_half_written_is_recovered_first(
    ram: RamVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its journal has the whole block: the reader waits until it may take the lock, and reads on."""
    reader, elsewhere = ram.host("esx1"), ram.host("esx9", uuid.uuid4())
    node = _far_file(elsewhere, "disk", 1)
    fh = elsewhere.open(node)
    write_blocks = LeasedIO.write_blocks

    def torn(io: LeasedIO, blocks: list[tuple[int, bytes]]) -> None:
        nodes = [(a, b[:512] + bytes(3584)) for a, b in blocks if _kind_of(b) == BlockType.NODE]
        if not nodes:
            return write_blocks(io, blocks)
        write_blocks(io, nodes)
        raise DamagedBlock(nodes[0][0], "the host died")

    monkeypatch.setattr(LeasedIO, "write_blocks", torn)
    elsewhere.write(fh, FAR + BLOCK, b"\2" * BLOCK)
    with pytest.raises(VmfsError, match="died"):
        elsewhere.fs.fsync(CONTEXT, node, fh, False)
    monkeypatch.undo()
    ram.hosts.remove(elsewhere)
    elsewhere.volume.abandon()
    handle = reader.open(node, os.O_RDONLY)
    assert reader.read(handle, FAR, 2 * BLOCK) == b"\1" * 4096 + bytes(BLOCK - 4096) + b"\2" * BLOCK
    reader.close(node, handle)
