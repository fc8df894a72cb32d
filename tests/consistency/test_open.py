"""What a host sees at the moment when it opens a file that another one has changed."""

from __future__ import annotations

import os
from errno import EROFS

import pytest

from tests.core.ramhost import BLOCK, CONTEXT, RamVolume
from vmfs.core.inodes import Inodes
from vmfs.fuse.contract import ROOT_ID, SetAttr
from vmfs.ondisk.inode import Inode


def test_who_opens_a_file_sees_what_was_synced_before(ram: RamVolume) -> None:
    """At once, although the reader had looked at the file a moment ago, and has it open besides."""
    writer, reader = ram.host("esx1"), ram.host("esx2")
    node, fh = writer.create("log")
    opened = []
    for size in (100, BLOCK, 70 * BLOCK + 5, 10):
        if size == 10:
            writer.fs.setattr(CONTEXT, node, fh, SetAttr(size=0))
        writer.write(fh, 0, b"\1" * min(size, BLOCK))
        writer.write(fh, size - 1, b"\2")
        writer.fs.fsync(CONTEXT, node, fh, False)
        opened.append(reader.open(node, os.O_RDONLY))
        assert reader.read(opened[-1], size - 1, 100) == b"\2"
        assert reader.read(opened[-1], 0, 1) == b"\1"
    for handle in opened:
        reader.close(node, handle)
    writer.close(node, fh)


def test_a_mount_that_is_read_only_says_so(ram: RamVolume) -> None:
    """EROFS, as every file system does, to whoever gets by the kernel's own check."""
    host = ram.host("esx1")
    node, fh = host.create("file")
    host.close(node, fh)
    host.core.transactions.settle()
    host.core.read_only = True
    attempts = (lambda: host.open(node), lambda: host.clone(node, "copy"))
    for attempt in attempts:
        with pytest.raises(OSError, match="read-only") as told:
            attempt()
        assert told.value.errno == EROFS
    host.core.read_only = False


def test_a_name_whose_file_is_gone_is_looked_up_anew(ram: RamVolume) -> None:
    """The kernel opens by what it was told a moment ago, is told ESTALE, and asks for the name again: ENOENT."""
    writer, reader = ram.host("esx1"), ram.host("esx2")
    node, fh = writer.create("file")
    writer.close(node, fh)
    writer.core.transactions.settle()
    assert reader.fs.lookup(CONTEXT, ROOT_ID, b"file").nodeid == node
    writer.fs.unlink(CONTEXT, ROOT_ID, b"file")
    writer.volume.reaper.work()
    writer.core.transactions.settle()
    with pytest.raises(OSError, match="no longer that file"):
        reader.open(node, os.O_RDONLY)
    with pytest.raises(FileNotFoundError):
        reader.fs.lookup(CONTEXT, ROOT_ID, b"file")


def test_who_opens_a_file_is_not_told_what_was_known_before(ram: RamVolume, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the open looks at the inode, something else is forgotten on this host, or another one reads the file."""
    writer, reader = ram.host("esx1"), ram.host("esx2")
    node, fh = writer.create("file")
    read_inode = Inodes._read_inode
    opened: list[int] = []

    def forgetting(self: Inodes, number: int) -> Inode:
        found = read_inode(self, number)
        self.forget(number + 1)
        return found

    def beside_a_reader(self: Inodes, number: int) -> Inode:
        """One that was looking already ends last."""
        found = read_inode(self, number)
        monkeypatch.setattr(Inodes, "_read_inode", read_inode)
        writer.write(fh, 3 * BLOCK, b"\3")
        writer.fs.fsync(CONTEXT, node, fh, False)
        opened.append(reader.open(node, os.O_RDONLY))
        return found

    def newest(count: int) -> bytes:
        return reader.read(opened[-1], (count - 1) * BLOCK, 1)

    for count in (1, 2):
        writer.write(fh, (count - 1) * BLOCK, bytes([count]))
        writer.fs.fsync(CONTEXT, node, fh, False)
        opened.append(reader.open(node, os.O_RDONLY))
        assert newest(count) == bytes([count])
        monkeypatch.setattr(Inodes, "_read_inode", forgetting)
    reader.volume.files.handles[opened[0]].file.expire()
    monkeypatch.setattr(Inodes, "_read_inode", beside_a_reader)
    reader.read(opened[0], 0, 1)
    assert newest(4) == b"\3"
    for handle in opened:
        reader.close(node, handle)
    writer.close(node, fh)
