"""What is kept in memory of the volume's metadata, and when it is dropped."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.core.ramhost import CONTEXT, RamVolume
from vmfs.core.nodeids import number_of
from vmfs.core.objects import NodeObject
from vmfs.core.unlocked import UnlockedReader
from vmfs.fuse.contract import ROOT_ID
from vmfs.ondisk.node import empty_pointers


def test_a_block_that_changed_its_lock_outlives_the_first_one(ram: RamVolume) -> None:
    core = ram.host("esx1").core
    first, second = 1 << 40, 2 << 40
    with core.transactions.mutex:
        for lock in (first, second):
            core.store.hold(lock, 1)
        old = NodeObject(1 << 30, first, 1, 0, 0, empty_pointers())
        new = NodeObject(1 << 30, second, 2, 0, 0, empty_pointers())
        core.store.put(old)
        core.store.put(new)
        core.store.remove(old)
        core.store.give_up(first)
        assert core.store.peek(1 << 30) is new
        core.store.give_up(second)
        assert core.store.peek(1 << 30) is None


def test_a_look_that_began_before_a_change_is_not_believed_after_it(
    ram: RamVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = ram.host("esx1")
    inodes = host.volume.inodes
    node, fh = host.create("file")
    host.close(node, fh)
    assert host.core.locks.release(inodes.lock_address(number_of(node)))
    read = UnlockedReader.read

    def change_meanwhile(own: UnlockedReader, address: int, parse: Callable[[bytes], object]) -> object:
        found = read(own, address, parse)
        monkeypatch.undo()
        other = host.open(node)
        host.write(other, 0, b"\1" * 100)
        host.close(node, other)
        assert host.core.locks.release(inodes.lock_address(number_of(node)))
        return found

    monkeypatch.setattr(UnlockedReader, "read", change_meanwhile)
    assert inodes.look(number_of(node)).inode.size == 0  # as it was when it was asked
    reader = host.open(node, os.O_RDONLY)
    assert host.read(reader, 0, 100) == b"\1" * 100
    assert host.fs.lookup(CONTEXT, ROOT_ID, b"file").attr.size == 100
    host.close(node, reader)
