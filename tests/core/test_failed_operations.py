"""An operation that fails half-way leaves nothing behind, in memory or on the disk."""

from __future__ import annotations

import pytest

from tests.core.ramhost import BLOCK, CONTEXT, RamVolume
from vmfs.core.nodeids import number_of
from vmfs.core.transactions import Operation
from vmfs.errors import NoSpace
from vmfs.fuse.contract import ROOT_ID, SetAttr


def test_a_claim_that_is_undone_keeps_its_promise(ram: RamVolume) -> None:
    host = ram.host("esx1")
    host.volume.space.ensure(1)
    core = host.core
    with core.transactions.mutex:
        run = core.groups.promise(1, 0)[0]

    def action(op: Operation) -> None:
        core.groups.claim(op, run)
        raise NoSpace("the volume", "a map node")

    with pytest.raises(NoSpace):
        host.volume.space.run(action)
    with core.transactions.mutex:
        again = core.groups.promise(1, core.groups.address(run))[0]
        assert again != run, "the block went to somebody else before the operation was tried again"
        core.groups.take_back(again)
        core.groups.take_back(run)


def test_a_chunk_that_is_undone_leaves_no_promise(ram: RamVolume) -> None:
    host = ram.host("esx1")
    host.volume.space.ensure(1)
    core = host.core
    before = core.groups.allocatable_blocks()

    def action(op: Operation) -> None:
        assert core.units.add_chunk(op)
        raise NoSpace("the volume", "a map node")

    with pytest.raises(NoSpace):
        host.volume.space.run(action)
    assert core.groups.allocatable_blocks() == before


def test_a_place_for_an_inode_that_was_not_used_keeps_its_lock(ram: RamVolume) -> None:
    host = ram.host("esx1")
    node, fh = host.create("there")
    for _ in range(3):
        with pytest.raises(FileExistsError):
            host.fs.mknod(CONTEXT, ROOT_ID, b"there", 0o100644, 0)
        with pytest.raises(FileExistsError):
            host.clone(node, "there")
    made, handle = host.create("new")
    host.write(handle, 0, bytes(BLOCK))
    lock = host.core.geometry.inode_lock_address(number_of(made))
    record = host.core.locks.peek(lock)
    assert record.owner == host.core.membership.holder, "the disk does not know of the lock that is held"
    assert record.version == host.core.store.version(lock)
    host.close(made, handle)
    host.close(node, fh)


@pytest.mark.parametrize("seconds", [1 << 40, -(1 << 62)])
def test_times_that_the_format_cannot_hold(ram: RamVolume, seconds: int) -> None:
    host = ram.host("esx1")
    node, fh = host.create("old")
    far = seconds * 1_000_000_000
    host.fs.setattr(CONTEXT, node, None, SetAttr(atime_ns=far, mtime_ns=far, ctime_ns=far))
    host.fs.fsync(CONTEXT, node, fh, False)
    shown = host.fs.getattr(CONTEXT, node, None).attr.mtime_ns
    assert shown == (1 << 63) - 1 if seconds > 0 else -(1 << 63)
    host.close(node, fh)
