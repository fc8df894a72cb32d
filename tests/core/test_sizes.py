"""Sizes: what a failed truncation leaves, and what is read around the ends of files."""

from __future__ import annotations

import time
from errno import ENOSPC

import pytest

from tests.core.ramhost import BLOCK, CONTEXT, RamVolume
from vmfs.core.blockio import BlockIO
from vmfs.core.reaper import Reaper
from vmfs.fuse.contract import SetAttr


def test_a_truncation_that_fails_changes_no_size(ram: RamVolume, monkeypatch: pytest.MonkeyPatch) -> None:
    host = ram.host("esx1")
    node, fh = host.create("file")
    host.write(fh, 0, b"\1" * (2 * BLOCK))

    def full(*_: object) -> None:
        raise OSError(ENOSPC, "the list of removals is full")

    with monkeypatch.context() as patch:
        patch.setattr(Reaper, "add", full)
        with pytest.raises(OSError, match="full"):
            host.fs.setattr(CONTEXT, node, fh, SetAttr(size=BLOCK))
    assert host.fs.getattr(CONTEXT, node, fh).attr.size == 2 * BLOCK
    assert host.read(fh, BLOCK, BLOCK) == b"\1" * BLOCK
    host.close(node, fh)


def test_a_read_that_outlives_its_map_is_read_again(ram: RamVolume, monkeypatch: pytest.MonkeyPatch) -> None:
    host = ram.host("esx1")
    node, fh = host.create("file")
    host.write(fh, 0, b"\1" * BLOCK)
    monkeypatch.setattr(host.plane, "_validity", 0.1)
    read, calls = BlockIO.read, []

    def slow_at_first(io: BlockIO, address: int, buf: memoryview) -> None:
        read(io, address, buf)
        calls.append(address)
        if len(calls) == 1:
            time.sleep(0.15)
            buf[:] = b"\xee" * len(buf)  # the block was freed meanwhile, and is another file's by now

    monkeypatch.setattr(BlockIO, "read", slow_at_first)
    assert host.read(fh, 0, 4096) == b"\1" * 4096
    assert len(calls) == 2
    host.close(node, fh)
