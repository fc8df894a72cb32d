"""The last blocks of a volume: whichever host's group they lie in, whoever was removing what held them."""

from __future__ import annotations

import os
import threading
import uuid
from errno import ENOSPC

import pytest

from tests.core.ramhost import BLOCK, CONTEXT, RamHost, RamVolume
from vmfs.core.groups import Groups
from vmfs.errors import NoSpace
from vmfs.fuse.contract import ROOT_ID

FULL = "is full: no room for"


def _free(host: RamHost) -> int:
    return host.fs.statfs(CONTEXT, ROOT_ID).bfree


def _fill(host: RamHost, fh: int, at: int, leave: int = 0) -> int:
    """Write block after block until `leave` are free; the number of the next one."""
    step = 16
    while step:
        try:
            while _free(host) >= leave + step or not leave:
                host.write(fh, at * BLOCK, b"\1" * (step * BLOCK))
                at += step
            step //= 2
        except OSError as error:
            if error.errno != ENOSPC:
                raise
            step //= 2
    return at


@pytest.mark.expected_log(FULL)
def test_the_last_block_is_had_by_whoever_asks(ram: RamVolume) -> None:
    """One host holds every group; what it left is the other's, to the last block, and not one more."""
    one, two = ram.host("esx1"), ram.host("esx2")
    node, fh = one.create("large")
    small, handle = two.create("small")
    two.write(handle, 0, b"\2" * BLOCK)
    at = _fill(one, fh, 0, leave=3)
    left = _free(one)
    assert left == 3
    for block in range(left):
        two.write(handle, (1 + block) * BLOCK, b"\2" * BLOCK)
    for host, file, offset in ((two, handle, 4), (one, fh, at)):
        with pytest.raises(OSError, match="full") as told:
            host.write(file, offset * BLOCK, b"\3" * BLOCK)
        assert told.value.errno == ENOSPC
    assert (_free(one), _free(two)) == (0, 0)
    two.close(small, handle)
    one.close(node, fh)


@pytest.mark.expected_log(FULL)
def test_a_new_file_finds_its_place_in_another_hosts_metadata(ram: RamVolume) -> None:
    """No block is free to become metadata, but there are inodes' places in a chunk of the other host's."""
    one, two = ram.host("esx1"), ram.host("esx2")
    node, fh = one.create("large")
    _fill(one, fh, 0)
    assert _free(one) == 0
    made, handle = two.create("new")
    assert two.fs.getattr(CONTEXT, made, handle).attr.size == 0
    two.close(made, handle)
    one.close(node, fh)


@pytest.mark.expected_log(f"{FULL}|recovered host|mount failed|silent")
def test_what_a_dead_host_held_and_was_removing_comes_back(
    ram: RamVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its groups are free when it has been recovered, and what its list named when that was done: none of it is lost
    to a writer that meets a full volume meanwhile."""
    one, other = ram.host("esx1"), ram.host("esx9", uuid.uuid4())
    node, fh = other.create("removed")
    other.write(fh, 0, b"\1" * BLOCK)
    _fill(other, fh, 1, leave=20)
    other.close(node, fh)
    mine, handle = one.create("mine")
    one.write(handle, 0, b"\2" * BLOCK)
    kept = one.fs.getattr(CONTEXT, mine, handle).attr.blocks * 512 // BLOCK
    monkeypatch.setattr(type(other.volume.reaper), "work", lambda self: None)
    other.fs.unlink(CONTEXT, ROOT_ID, b"removed")
    other.core.transactions.commit()
    monkeypatch.undo()
    other.volume.reaper.stop()
    ram.hosts.remove(other)
    other.volume.abandon()
    before = _free(one)
    at = _fill(one, handle, kept)
    assert at > kept + before + 500, "the dead host's file was not given back before the volume was called full"
    assert _free(one) == 0
    one.close(mine, handle)


def test_a_full_volume_is_no_news_for_a_second(ram: RamVolume, expected_log: object) -> None:
    """Who is told once is told at once when he tries again; and waits again when anything has changed."""
    assert callable(expected_log)
    expected_log(FULL)
    host = ram.host("esx1")
    node, fh = host.create("large")
    at = _fill(host, fh, 0)
    sleeps: list[float] = []
    sleep = host.core.clock.sleep
    with pytest.raises(NoSpace):
        host.volume.space.ensure(1)
    host.core.clock.sleep = lambda seconds: (sleeps.append(seconds), sleep(seconds))[1]  # type: ignore[method-assign]
    with pytest.raises(NoSpace):
        host.volume.space.ensure(1)
    assert not sleeps
    small, handle = host.create("other")
    with pytest.raises(OSError, match="full"):
        host.write(handle, 0, b"\1" * BLOCK)
    host.fs.unlink(CONTEXT, ROOT_ID, b"large")
    host.close(node, fh)
    for block in range(at):
        host.write(handle, block * BLOCK, b"\2" * BLOCK)
    host.close(small, handle)


def test_a_group_is_handed_over_when_all_that_was_promised_of_it_is_settled(
    ram: RamVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule R11: a write into promised blocks is under way when another host asks. Nothing more is promised, the write
    ends and is committed, and only then the other host gets the group, and sees what is taken of it."""
    one, two = ram.host("esx1"), ram.host("esx2")
    node, fh = one.create("file")
    one.write(fh, 0, b"\1" * BLOCK)
    index = next(iter(one.core.groups.held))
    promise, asked, taken = Groups.promise, threading.Event(), threading.Event()

    def ask() -> None:
        assert two.volume.space.take(index, 20.0)
        taken.set()

    thread = threading.Thread(target=ask)

    def ask_meanwhile(groups: Groups, count: int, goal: int) -> object:
        found = promise(groups, count, goal)
        if groups is one.core.groups and not asked.is_set():
            asked.set()
            thread.start()
        return found

    transfer = type(one.volume.plane._slow)._transfer

    def slow(*arguments: object) -> None:
        held = one.core.groups.held[index]
        while not held.asked:
            pass
        assert held.pins
        assert not taken.wait(0.2)
        assert not held.allocatable()
        transfer(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Groups, "promise", ask_meanwhile)
    monkeypatch.setattr(type(one.volume.plane._slow), "_transfer", slow)
    one.write(fh, BLOCK, b"\2" * BLOCK)
    monkeypatch.undo()
    thread.join(20)
    assert taken.is_set()
    assert index not in one.core.groups.held
    with two.core.transactions.mutex:
        used = two.core.groups.held[index].obj.group.used
        pointer = one.volume.files.handles[fh].file.view.pointer(1) & ~0xFFF
        assert used >> one.core.geometry.group_of(pointer)[1] & 1
    reader = two.open(node, os.O_RDONLY)
    assert two.read(reader, BLOCK, BLOCK) == b"\2" * BLOCK
    two.close(node, reader)
    one.close(node, fh)


def test_places_of_removed_inodes_are_no_room_for_map_nodes(ram: RamVolume, monkeypatch: pytest.MonkeyPatch) -> None:
    """They stay inodes', and count as free metadata all the same: whoever needs a node takes a block instead."""
    host = ram.host("esx1")
    for i in range(7):
        host.close(*host.create(f"file{i}"))
    for i in range(7):
        host.fs.unlink(CONTEXT, ROOT_ID, f"file{i}".encode())
    host.volume.reaper.work()
    units = host.core.units
    with host.core.transactions.mutex:
        assert units.has_units(8)
        monkeypatch.setattr(Groups, "allocatable_blocks", lambda groups: 0)
        free = sum(held.obj.group.free_units for held in host.core.groups.held.values())
        assert free >= 14
        assert not units.has_units(free - 13)
    monkeypatch.undo()
