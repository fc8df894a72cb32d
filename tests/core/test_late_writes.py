"""Writes that fail may land later, and operations that wait hold up no lock but their own."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import pytest

from tests.core.ramhost import BLOCK, CONTEXT, RamVolume
from vmfs.core.nodeids import number_of
from vmfs.errors import DeviceError
from vmfs.fuse.contract import ROOT_ID, SetAttr
from vmfs.ondisk.inode import inode_address
from vmfs.ondisk.lock import Guards
from vmfs.ondisk.node import ADDRESS_MASK
from vmfs.ondisk.slot import RequestKind


@pytest.mark.expected_log("write to inode")
def test_a_block_whose_write_failed_is_not_used_before_that_can_land_no_more(
    ram: RamVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = ram.host("esx1")
    node, fh = host.create("disk")
    tried: list[int] = []

    def fail(address: int, buf: memoryview) -> None:
        tried.append(address)
        raise DeviceError("ram", "write", address, len(buf), "the answer was lost")

    monkeypatch.setattr(host.core.data, "write", fail)
    with pytest.raises(OSError, match="the answer was lost"):
        host.write(fh, 0, b"\1" * BLOCK)
    monkeypatch.undo()
    host.write(fh, 0, b"\2" * BLOCK)
    pointer = host.volume.files.handles[fh].file.view.pointer(0)
    assert pointer & ADDRESS_MASK != tried[0], "the block is used again while the failed write may land"
    group, _ = host.core.geometry.group_of(tried[0])
    assert host.core.groups.held[group].pins == 1, "the group could be given to a host that uses the block"
    end = time.monotonic() + 10
    while host.core.groups.held[group].pins and time.monotonic() < end:
        time.sleep(0.01)
    assert not host.core.groups.held[group].pins
    with host.core.transactions.mutex:
        run = host.core.groups.promise(1, tried[0])[0]
        assert host.core.groups.address(run) == tried[0]
        host.core.groups.take_back(run)
    host.close(node, fh)


def test_what_a_failed_truncation_cut_off_does_not_come_back(ram: RamVolume, monkeypatch: pytest.MonkeyPatch) -> None:
    host = ram.host("esx1")
    node, fh = host.create("disk")
    host.write(fh, 0, b"\1" * (2 * BLOCK))

    def fail(obj: object, keep: int) -> None:
        raise DeviceError("ram", "read", 0, 512, "the answer was lost")

    monkeypatch.setattr(host.volume.reaper, "free_map", fail)
    with pytest.raises(DeviceError):
        host.fs.setattr(CONTEXT, node, fh, SetAttr(size=BLOCK))
    host.clone(number_of(node), "clone")
    host.fs.setattr(CONTEXT, node, fh, SetAttr(size=2 * BLOCK))
    assert host.read(fh, BLOCK, BLOCK) == bytes(BLOCK)
    monkeypatch.undo()
    host.close(node, fh)


def test_a_group_that_is_in_use_holds_up_no_other_lock(ram: RamVolume) -> None:
    """Whoever makes a file has a place for it, and so the group, before the directory's lock."""
    host = ram.host("esx1")
    host.volume.space.ensure(1)
    core = host.core
    group = next(iter(core.groups.held))
    lock = core.geometry.group_lock_address(group)
    directory = host.volume.inodes.lock_address(core.volume.superblock.root_inode)
    core.groups.held[group].pins += 1
    core.locks.unpin(core.locks.acquire(directory, Guards.INODE))
    with core.locks._table.cond:  # another host asks for both, and the thread that gives up sees both at once
        core.locks.on_request(1, RequestKind.ASK_RELEASE, lock, 0)
        core.locks.on_request(1, RequestKind.ASK_RELEASE, directory, 0)
    done = threading.Event()

    def use() -> None:
        host.fs.mkdir(CONTEXT, ROOT_ID, b"made meanwhile", 0o755)
        done.set()

    thread = threading.Thread(target=use)
    thread.start()
    try:
        assert done.wait(20), "the directory's lock waits for the group's"
    finally:
        with core.transactions.mutex:
            core.groups.held[group].pins -= 1
        thread.join(20)


def test_a_reader_of_a_file_that_another_host_removes_sees_no_zeros(ram: RamVolume) -> None:
    one, two = ram.host("esx1"), ram.host("esx2")
    node, fh = one.create("disk")
    one.write(fh, 0, b"\1" * BLOCK)
    one.fs.fsync(CONTEXT, node, fh, False)
    reader = two.open(node, os.O_RDONLY)
    assert two.read(reader, 0, 512) == b"\1" * 512
    one.fs.unlink(CONTEXT, ROOT_ID, b"disk")
    assert one.read(fh, 0, 512) == b"\1" * 512  # here it is open, and goes on

    def read_for_long() -> None:
        end = time.monotonic() + 20
        while time.monotonic() < end:
            assert two.read(reader, 0, 512) == b"\1" * 512
            time.sleep(0.02)

    with pytest.raises(OSError, match="no longer that file"):
        read_for_long()
    two.fs.release(node, reader, os.O_RDONLY)
    one.close(node, fh)


def test_a_torn_block_is_not_called_damaged_while_the_storage_fails(
    ram: RamVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = ram.host("esx1"), ram.host("esx2")
    node, fh = one.create("disk")
    one.fs.fsync(CONTEXT, node, fh, False)
    one.close(node, fh)
    read = two.core.io.read

    def torn(address: int, length: int) -> bytes:
        block = read(address, length)
        return block[:-512] + b"\xff" * 512 if address == inode_address(number_of(node)) else block

    def fail(*_: object, **__: object) -> None:
        raise DeviceError("ram", "read", 0, 512, "the answer was lost")

    monkeypatch.setattr(two.core.io, "read", torn)
    monkeypatch.setattr(two.core.locks, "acquire", fail)
    with pytest.raises(DeviceError):
        two.fs.getattr(CONTEXT, node, None)
    monkeypatch.undo()
    two.fs.getattr(CONTEXT, node, None)


def test_a_group_whose_quarantine_is_waited_for_is_given_to_nobody(ram: RamVolume) -> None:
    """It would begin anew with each host that takes the group: on a full volume all would wait for ever."""
    host = ram.host("esx1")
    host.volume.space.ensure(1)
    core = host.core
    index, held = next(iter(core.groups.held.items()))
    lock = core.geometry.group_lock_address(index)
    with core.transactions.mutex:
        core.groups.keep(core.clock.now() + 3600)
    core.locks.on_request(1, RequestKind.ASK_RELEASE, lock, 0)
    file = host.create("made from it")  # which takes as long as giving it up would
    assert core.groups.held.get(index) is held
    assert not held.asked
    with core.transactions.mutex:
        core.groups.keep(0.0)
    end = time.monotonic() + 20
    while core.groups.held.get(index) is held and time.monotonic() < end:
        time.sleep(0.01)
    assert core.groups.held.get(index) is not held
    host.close(*file)


@pytest.mark.expected_log("is left out|nothing is allocated from")
def test_storage_that_fails_for_a_moment_leaves_no_group_and_no_chunk_out_for_good(
    ram: RamVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = ram.host("esx1")
    node, fh = one.create("disk")
    one.close(node, fh)
    one.volume.leave()
    ram.hosts.clear()
    host = ram.host("esx2")
    core, failures = host.core, [1, 1]

    def failing(read: Callable[[int, int], object]) -> Callable[[int, int], object]:
        def once(*arguments: int) -> object:
            if failures:
                failures.pop()
                raise DeviceError("ram", "read", 0, 512, "the answer was lost")
            return read(*arguments)

        return once

    monkeypatch.setattr(core.store, "group", failing(core.store.group))
    monkeypatch.setattr("vmfs.core.space._LEFT_OUT_SECONDS", 0.0)
    first = host.volume.space._start
    assert not host.volume.space._take_usable(first, 1.0)
    failures.clear()
    assert host.volume.space._take_usable(first, 1.0), "one error of the storage, and the group is left out for good"
    failures.append(1)
    monkeypatch.setattr(core.store, "chunk", failing(core.store.chunk))
    with core.transactions.mutex:
        place = core.units.promise_inode()
        if place is not None:
            core.units.take_back_inode(place)
    host.fs.unlink(CONTEXT, ROOT_ID, b"disk")
    host.volume.reaper.finish_all()
    assert not core.orphans.entries, "one error of the storage, and nothing in the chunk can be freed"
