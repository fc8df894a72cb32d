"""A file that is removed on one host while another has it open, and whose inode number becomes another file's."""

from __future__ import annotations

import os
from errno import ESTALE

import pytest

from tests.core.ramhost import BLOCK, CONTEXT, RamHost, RamVolume
from vmfs.core.nodeids import number_of
from vmfs.fuse.contract import ROOT_ID, SetAttr


def _removed_and_made_again(ram: RamVolume) -> tuple[RamHost, RamHost, int, int, int]:
    """(writer, reader, old node, its handle on the reader, new node): both nodes have one number."""
    writer, reader = ram.host("esx1"), ram.host("esx2")
    old, fh = writer.create("old")
    writer.write(fh, 0, b"\1" * BLOCK)
    writer.close(old, fh)
    writer.core.transactions.settle()
    open_there = reader.open(old, os.O_RDONLY)
    assert reader.read(open_there, 0, 4096) == b"\1" * 4096
    writer.fs.unlink(CONTEXT, ROOT_ID, b"old")
    writer.volume.reaper.work()
    for held in writer.core.groups.held.values():  # as if the number had rested for long enough
        held.resting.clear()
        held.idle_from = 0.0
    new, fh = writer.create("new")
    writer.write(fh, 0, b"\2" * BLOCK)
    writer.close(new, fh)
    writer.core.transactions.settle()
    assert number_of(new) == number_of(old)
    assert new != old
    return writer, reader, old, open_there, new


def test_whoever_has_the_old_file_open_gets_estale(ram: RamVolume) -> None:
    """Never the new file's bytes, size or attributes: what the kernel asks in the old one's name is refused."""
    _, reader, old, fh, new = _removed_and_made_again(ram)
    reader.volume.files.handles[fh].file.expire()
    attempts = (
        lambda: reader.read(fh, 0, 4096),
        lambda: reader.fs.getattr(CONTEXT, old, fh),
        lambda: reader.fs.setattr(CONTEXT, old, None, SetAttr(mode=0o600)),
        lambda: reader.fs.open(CONTEXT, old, os.O_RDONLY, False),
        lambda: reader.fs.open(CONTEXT, old, os.O_RDWR, False),
        lambda: reader.fs.getxattr(CONTEXT, old, b"user.x"),
        lambda: reader.fs.link(CONTEXT, old, ROOT_ID, b"again"),
        lambda: reader.fs.lookup(CONTEXT, old, b"."),
        lambda: reader.fs.lseek(CONTEXT, old, fh, 0, os.SEEK_DATA),
    )
    for attempt in attempts:
        with pytest.raises(OSError, match="no longer that file") as told:
            attempt()
        assert told.value.errno == ESTALE
    found = reader.fs.lookup(CONTEXT, ROOT_ID, b"new")
    assert (found.nodeid, found.attr.ino) == (new, number_of(new))
    again = reader.open(new, os.O_RDONLY)
    assert reader.read(again, 0, 4096) == b"\2" * 4096
    reader.close(new, again)
    reader.close(old, fh)
