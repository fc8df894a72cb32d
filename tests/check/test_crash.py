"""Volumes of hosts that live, and of hosts that died."""

import os
from collections.abc import Callable
from uuid import UUID, uuid4

import pytest

from tests.check.small_volume import SmallVolume
from vmfs.check import Kind, Report, check_volume
from vmfs.clock import FakeClock
from vmfs.cluster.identity import HostIdentity
from vmfs.errors import VolumeInUse
from vmfs.ondisk.inode import Inode, inode_address
from vmfs.ondisk.journal import HEADER_BLOCKS, Image, JournalHeader, Record, Revoke, pack_record
from vmfs.ondisk.lock import Guards, Holder, LockMode
from vmfs.ondisk.slot import SlotRecord, SlotState

Check = Callable[[SmallVolume], Report]
SLOT, INCARNATION = 2, 5


def _claim(small: SmallVolume, *, boot_id: UUID | None = None, pid: int = 0, ticks: int = 0, sequence: int = 1) -> None:
    here = HostIdentity.detect("esx1")
    address = small.geometry.slot_address(SLOT)
    record = SlotRecord(
        address, small.volume.prefix, SLOT, SlotState.LIVE, INCARNATION, sequence, "esx1", here.host_uuid,
        boot_id or here.boot_id, pid or here.pid, ticks, here.pid_namespace,
    )  # fmt: skip
    small.write(address, record.pack(512).ljust(4096, b"\0"))


def _hold(small: SmallVolume, lock: int, version: int) -> None:
    record = small.free_lock(lock, Guards.INODE).taken(Holder(SLOT, INCARNATION), LockMode.EXCLUSIVE, version=version)
    small.write(lock, record.pack(512).ljust(4096, b"\0"))


def _journal(small: SmallVolume, *records: tuple[list[Image], list[Revoke]]) -> None:
    address = small.geometry.journal_address(SLOT)
    header = JournalHeader(SLOT, INCARNATION, 1, HEADER_BLOCKS, 2)
    small.write(address, header.pack(address, 0, small.uuid))
    position = HEADER_BLOCKS
    for sequence, (images, revokes) in enumerate(records, 1):
        record = Record(SLOT, INCARNATION, sequence, tuple(images), tuple(revokes))
        data = pack_record(record, journal_address=address, position=position, volume=small.uuid)
        small.write(address + position * 4096, data)
        position += len(data) // 4096


def _image(small: SmallVolume, inode: Inode, version: int) -> Image:
    lock = small.geometry.inode_lock_address(inode.number)
    return Image(inode_address(inode.number), lock, version, inode.pack(small.uuid))


def test_a_process_that_lives_here_has_it_mounted(small: SmallVolume, check: Check) -> None:
    here = HostIdentity.detect("esx1")
    _claim(small, ticks=here.start_ticks)
    with pytest.raises(VolumeInUse, match=f"esx1.*pid {os.getpid()}"):
        check(small)


def test_a_process_that_died_here_is_known_at_once(small: SmallVolume) -> None:
    _claim(small, ticks=1)  # this pid, started at another time
    clock = FakeClock()  # would stand still for ever
    assert check_volume(small.volume, clock=clock).clean


def test_a_slot_of_another_machine_is_watched_for_a_lease(small: SmallVolume) -> None:
    _claim(small, boot_id=uuid4())
    clock = FakeClock(sleep_advances=True)
    started, said = clock.now(), []
    report = check_volume(small.volume, clock=clock, waiting=said.append)
    assert report.clean
    assert clock.now() - started >= 16
    assert "esx1" in said[0]


def test_a_slot_that_changes_is_a_living_host(small: SmallVolume) -> None:
    boot = uuid4()
    _claim(small, boot_id=boot)

    class Beating(FakeClock):
        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            _claim(small, boot_id=boot, sequence=round(self.now() * 1000))

    with pytest.raises(VolumeInUse, match="esx1"):
        check_volume(small.volume, clock=Beating(sleep_advances=True))


def test_the_volume_is_judged_as_it_will_be_after_replay(small: SmallVolume, check: Check) -> None:
    """The blocks in place are old and contradict each other; the newer images in the journal mend them."""
    _claim(small, ticks=1)
    linked = small.inodes["linked"]
    lock = small.geometry.inode_lock_address(linked.number)
    _hold(small, lock, version=3)
    linked.nlink = 9
    small.write_inode(linked)
    assert Kind.LINKS_WRONG in check(small).totals
    linked.nlink = 4
    wrong = _image(small, linked, 3)
    linked.nlink = 2
    _journal(small, ([wrong], []), ([_image(small, linked, 3)], []))
    report = check(small)
    assert report.findings == []
    assert report.counts.journal_blocks_pending == 1
    assert "esx1" in report.notes[0]


@pytest.mark.parametrize(("version", "revoked"), [(4, False), (3, True)])
def test_images_that_replay_drops_do_not_count(small: SmallVolume, check: Check, version: int, revoked: bool) -> None:
    """Of a lock that was given up since (its version has moved on), or revoked by a later record."""
    _claim(small, ticks=1)
    linked = small.inodes["linked"]
    lock = small.geometry.inode_lock_address(linked.number)
    _hold(small, lock, version=3)
    linked.nlink = 9
    stale = _image(small, linked, version)
    revokes = [Revoke(stale.address, lock, version)] if revoked else []
    _journal(small, ([stale], []), ([], revokes))
    report = check(small)
    assert report.findings == []
    assert report.counts.journal_blocks_pending == 0


def test_a_journal_without_a_header_cannot_be_replayed(small: SmallVolume, check: Check) -> None:
    _claim(small, ticks=1)
    address = small.geometry.journal_address(SLOT)
    small.write(address, bytes(8192))
    messages = [f.message for f in check(small).findings if f.kind is Kind.JOURNAL_DAMAGED]
    assert len(messages) == 3
    assert any("cannot be replayed" in m for m in messages)
