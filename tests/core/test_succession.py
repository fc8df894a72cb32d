"""One process of a mount after another: what the first was told, opened and promised, the second has."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from errno import ENOENT, ESTALE

import pytest

from tests.core.ramhost import BLOCK, CONTEXT, RamHost, RamVolume
from vmfs.clock import SystemClock
from vmfs.cluster.identity import HostIdentity
from vmfs.core.mounting import MountedVolume
from vmfs.estate.layout import Estate
from vmfs.estate.shadow import pending
from vmfs.fuse.contract import ROOT_ID, Context
from vmfs.fuse.negotiate import WANTED, InitRequest, agree
from vmfs.volume import open_volume

pytestmark = pytest.mark.expected_log("recovered host|the mount was abandoned")


class Follower(RamHost):
    """A mount that can be taken over. Its boot id is new: the one before it is dead when it has been silent."""

    def __init__(self, ram: RamVolume, estate: Estate) -> None:
        self.volume = MountedVolume(
            open_volume([ram.device.again()]), HostIdentity.detect("esx1", uuid.uuid4()), SystemClock(),
            estate=Estate(os.dup(estate.fd)),
        )  # fmt: skip
        self.core = self.volume.core
        self.fs = self.volume.filesystem
        self.plane = self.volume.plane
        self._buffer = memoryview(bytearray(4 << 20))
        estate.publish_session(agree(InitRequest(7, 45, 131072, int(WANTED))))
        ram.hosts.append(self)

    def die(self, ram: RamVolume) -> None:
        """Nothing more is committed."""
        ram.hosts.remove(self)
        self.volume.abandon()


def request(unique: int) -> Context:
    return replace(CONTEXT, unique=unique)


@pytest.fixture
def ram() -> Iterator[RamVolume]:
    made = RamVolume()
    try:
        yield made
        made.leave_all()
        made.check()
    finally:
        made.abandon_all()


def test_what_was_told_and_is_in_no_journal_yet_is_there(ram: RamVolume) -> None:
    estate = Estate.create()
    first = Follower(ram, estate)
    first.volume.publisher.stop()  # so that nothing is committed that nobody asked for
    node, fh = first.create("disk")
    first.write(fh, 0, b"a" * BLOCK)
    first.core.transactions.commit()
    first.write(fh, 3 * BLOCK, b"b" * BLOCK)
    first.fs.mkdir(CONTEXT, ROOT_ID, b"folder", 0o755)
    first.fs.rename(CONTEXT, ROOT_ID, b"disk", ROOT_ID, b"moved", 0)
    assert [bool(b.images) for b in pending(estate)] == [True]
    first.die(ram)

    second = Follower(ram, estate)
    assert second.fs.lookup(CONTEXT, ROOT_ID, b"moved").nodeid == node
    assert second.read(fh, 0, 8) == b"a" * 8, "the open file goes on under its number"
    assert second.read(fh, 3 * BLOCK, BLOCK) == b"b" * BLOCK
    second.write(fh, 4096, b"c" * 4096)
    second.fs.fsync(CONTEXT, node, fh, False)
    assert second.create("another")[1] != fh
    second.fs.lookup(CONTEXT, ROOT_ID, b"folder")
    number = second.volume.files.handles[fh].file.number
    assert second.core.locks.held(second.core.geometry.inode_lock_address(number)) is not None
    second.close(node, fh)
    assert second.volume.legacy.table is not None
    assert number not in [h.number for h in second.volume.legacy.table.all()]


@pytest.mark.expected_log("every slot is taken")
def test_a_volume_without_a_free_slot() -> None:
    """The dead process's own slot is the only one: it is claimed in place."""
    ram = RamVolume(max_hosts=1)
    try:
        estate = Estate.create()
        first = Follower(ram, estate)
        first.volume.publisher.stop()
        node, fh = first.create("disk")
        first.write(fh, 0, b"a" * BLOCK)
        first.fs.mkdir(CONTEXT, ROOT_ID, b"folder", 0o755)
        assert pending(estate)
        first.die(ram)
        second = Follower(ram, estate)
        assert second.read(fh, 0, BLOCK) == b"a" * BLOCK
        second.write(fh, 0, b"b" * 4096)
        second.fs.fsync(CONTEXT, node, fh, False)
        second.fs.lookup(CONTEXT, ROOT_ID, b"folder")
        ram.leave_all()
        ram.check()
    finally:
        ram.abandon_all()


def test_it_goes_on_for_many_generations(ram: RamVolume) -> None:
    estate = Estate.create()
    host = Follower(ram, estate)
    node, fh = host.create("disk")
    for generation in range(3):
        host.write(fh, generation * BLOCK, bytes([65 + generation]) * BLOCK)
        host.die(ram)
        host = Follower(ram, estate)
    assert [host.read(fh, g * BLOCK, 1) for g in range(3)] == [b"A", b"B", b"C"]
    assert host.fs.getattr(CONTEXT, node, fh).attr.size == 3 * BLOCK


def test_a_removed_file_that_is_open_lives_on(ram: RamVolume) -> None:
    estate = Estate.create()
    first = Follower(ram, estate)
    node, fh = first.create("temporary")
    first.write(fh, 0, b"x" * BLOCK)
    first.fs.unlink(CONTEXT, ROOT_ID, b"temporary")
    first.die(ram)
    second = Follower(ram, estate)
    second.volume.reaper.work()
    assert second.read(fh, 0, 4) == b"xxxx"
    second.close(node, fh)
    second.volume.reaper.work()
    with pytest.raises(OSError) as error:
        second.fs.getattr(CONTEXT, node, None)
    assert error.value.errno == ESTALE


def test_requests_that_were_done_are_not_done_again(ram: RamVolume) -> None:
    estate = Estate.create()
    first = Follower(ram, estate)
    for number, name in enumerate((b"old", b"gone", b"a", b"b")):
        first.fs.mkdir(request(number + 1), ROOT_ID, name, 0o755)
    made = first.fs.mkdir(request(10), ROOT_ID, b"made", 0o755)
    first.fs.rmdir(request(11), ROOT_ID, b"gone")
    first.fs.rename(request(12), ROOT_ID, b"old", ROOT_ID, b"new", 0)
    entry, opened = first.fs.create(request(13), ROOT_ID, b"log", 0o644, os.O_RDWR | os.O_EXCL, False)
    memory = memoryview(bytearray(b"once" * 1024))
    first.plane.append(opened.fh, memory, 4096, 14)
    first.fs.link(request(15), entry.nodeid, ROOT_ID, b"log2")
    reopened = first.fs.open(request(16), entry.nodeid, os.O_RDWR, False)
    first.fs.setxattr(request(17), entry.nodeid, b"user.x", b"1", os.XATTR_CREATE)
    first.die(ram)

    second = Follower(ram, estate)
    assert second.fs.mkdir(request(10), ROOT_ID, b"made", 0o755).nodeid == made.nodeid
    second.fs.rmdir(request(11), ROOT_ID, b"gone")
    second.fs.rename(request(12), ROOT_ID, b"old", ROOT_ID, b"new", 0)
    again, opened_again = second.fs.create(request(13), ROOT_ID, b"log", 0o644, os.O_RDWR | os.O_EXCL, False)
    assert (again.nodeid, opened_again.fh) == (entry.nodeid, opened.fh)
    assert second.plane.append(opened.fh, memory, 4096, 14) == -1
    assert second.fs.link(request(15), entry.nodeid, ROOT_ID, b"log2").nodeid == entry.nodeid
    assert second.fs.open(request(16), entry.nodeid, os.O_RDWR, False).fh == reopened.fh
    second.fs.setxattr(request(17), entry.nodeid, b"user.x", b"1", os.XATTR_CREATE)
    attr = second.fs.getattr(CONTEXT, entry.nodeid, None).attr
    assert (attr.size, attr.nlink) == (4096, 2)
    with pytest.raises(OSError) as error:
        second.fs.rmdir(request(100), ROOT_ID, b"gone")
    assert error.value.errno == ENOENT, "a request that is new is done"


def test_a_file_that_another_host_had_meanwhile_is_lost(
    ram: RamVolume, expected_log: Callable[[str], None]
) -> None:
    expected_log("another host recovered slot|another host may have had inode|is locked by")
    estate = Estate.create()
    first = Follower(ram, estate)
    first.volume.publisher.stop()
    node, fh = first.create("disk")
    _, other_fh = first.create("quiet")
    first.write(fh, 0, b"a" * BLOCK)
    first.write(other_fh, 0, b"q" * BLOCK)
    first.fs.fsync(CONTEXT, node, fh, False)
    first.die(ram)

    other = ram.host("esx2")
    theirs = _open_when_free(other, node)
    other.write(theirs, 0, b"z" * BLOCK)
    other.close(node, theirs)
    second = Follower(ram, estate)
    for use in (
        lambda: second.write(fh, 0, b"b" * 4096),
        lambda: second.read(fh, 0, 4096),
        lambda: second.fs.fsync(CONTEXT, node, fh, False),
    ):
        with pytest.raises(OSError) as error:
            use()
        assert error.value.errno == ESTALE
    second.close(node, fh)
    fresh = second.open(node)
    assert second.read(fresh, 0, 1) == b"z"
    second.write(other_fh, 0, b"r" * 4096)  # nobody else wanted that one: it goes on
    assert second.read(other_fh, 0, 4097) == b"r" * 4096 + b"q"


def _open_when_free(host: RamHost, node: int) -> int:
    while True:
        try:
            return host.open(node)
        except OSError:
            continue  # the dead host is not known to be dead yet
