"""What a volume says of itself on its devices, whether or not anybody has it mounted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from vmfs.devices import Device, LockMethod, open_device
from vmfs.errors import DamagedBlock, DeviceNotUsable, DeviceReadOnly, NotAVolume
from vmfs.facts import look_at_hosts, look_at_locks, look_at_space, look_at_volume, open_to_look, volume_facts
from vmfs.mkfs import FormatOptions, make_volume, plan
from vmfs.ondisk.lock import Guards, Holder, LockMode, LockRecord
from vmfs.ondisk.slot import SlotRecord, SlotState
from vmfs.volume import Volume, open_volume

BOOT = UUID(int=5)
LUN_BYTES = 256 << 20


@pytest.fixture
def lun(tmp_path: Path) -> Path:
    """A volume for 8 hosts on a sparse file."""
    path = tmp_path / "lun.img"
    with path.open("xb") as f:
        f.truncate(LUN_BYTES)
    device = open_device(str(path))
    make_volume(device, plan(device, FormatOptions(label="ds1", max_hosts=8)))
    device.close()
    return path


def put_slot(volume: Volume, slot: int, name: str, state: SlotState, incarnation: int, **more: object) -> None:
    record = SlotRecord(volume.geometry.slot_address(slot), volume.prefix, slot)
    record = replace(record, state=state, incarnation=incarnation, host_name=name, boot_id=BOOT, pid=99, **more)  # type: ignore[arg-type]
    volume.extents.write(record.address, record.pack(volume.superblock.sector_bytes))


def put_group_lock(volume: Volume, group: int, mode: LockMode, *holders: Holder) -> None:
    record = LockRecord(volume.geometry.group_lock_address(group), volume.prefix, Guards.RESOURCE_GROUP, version=4)
    owner = holders[0] if mode is LockMode.EXCLUSIVE else None
    record = replace(record, mode=mode, owner=owner, holders=() if owner else holders)
    volume.extents.write(record.address, record.pack(volume.superblock.sector_bytes))


def test_a_new_volume(lun: Path) -> None:
    with open_to_look([str(lun)]) as volume:
        facts = look_at_volume(volume)
        assert (facts.label, facts.uuid, facts.max_hosts) == ("ds1", volume.superblock.volume, 8)
        assert (facts.lock_method, facts.timers.lease_seconds, facts.timers.drift_ppm) == ("OFD_FILE", 16, 10_000)
        assert [(d.path, d.extent, d.size_bytes) for d in facts.devices] == [(str(lun), 0, LUN_BYTES)]
        size, free = look_at_space(volume)
        assert LUN_BYTES * 0.8 < free < size < LUN_BYTES
        assert look_at_hosts(volume) == ([], [])
        assert look_at_locks(volume) == []


def test_looking_changes_nothing(lun: Path) -> None:
    before = lun.read_bytes()
    with open_to_look([str(lun)]) as volume:
        with pytest.raises(DeviceReadOnly):
            volume.extents.write(0, bytes(512))
        look_at_space(volume)
        look_at_hosts(volume)
        look_at_locks(volume)
    assert lun.read_bytes() == before


def test_hosts_in_each_state(lun: Path) -> None:
    device = open_device(str(lun))
    volume = open_volume([device])
    put_slot(volume, 0, "esx1", SlotState.LIVE, 3)
    put_slot(volume, 2, "esx2", SlotState.RECOVERING, 5, recoverer=Holder(0, 3))
    put_slot(volume, 3, "esx3", SlotState.RECOVERING, 5, recoverer=Holder(7, 9))
    put_slot(volume, 5, "esx5", SlotState.FAILED, 1)
    volume.extents.write(volume.geometry.slot_address(6), b"\xff" * 512)
    device.close()
    with open_to_look([str(lun)]) as seen:
        hosts, problems = look_at_hosts(seen)
    assert [(h.slot, h.name, h.state, h.incarnation) for h in hosts] == [
        (0, "esx1", "live", 3),
        (2, "esx2", "recovering by esx1", 5),
        (3, "esx3", "recovering by slot 7", 5),
        (5, "esx5", "failed", 1),
    ]
    assert {h.unchanged_seconds for h in hosts} == {None}
    assert len(problems) == 1
    assert "heartbeat slot 6" in problems[0]


def test_locks_and_who_holds_them(lun: Path) -> None:
    device = open_device(str(lun))
    volume = open_volume([device])
    put_slot(volume, 0, "esx1", SlotState.LIVE, 3)
    put_slot(volume, 1, "esx2", SlotState.LIVE, 8)
    put_group_lock(volume, 0, LockMode.EXCLUSIVE, Holder(0, 3))
    put_group_lock(volume, 1, LockMode.SHARED, Holder(0, 3), Holder(1, 7))
    device.close()
    with open_to_look([str(lun)]) as seen:
        found = look_at_locks(seen)
    assert [(k.what, k.mode, k.holders, k.version) for k in found] == [
        ("group 0", "exclusive", ("esx1",), 4),
        ("group 1", "shared", ("esx1", "slot 1 (ended)"), 4),
    ]


def test_a_damaged_group_is_not_taken_for_free_space(lun: Path) -> None:
    device = open_device(str(lun))
    volume = open_volume([device])
    address = volume.geometry.group_block_address(0)
    block = bytearray(volume.extents.read(address, 4096))
    block[100] ^= 1
    volume.extents.write(address, bytes(block))
    device.close()
    with open_to_look([str(lun)]) as seen, pytest.raises(DamagedBlock):
        look_at_space(seen)


def test_a_method_that_is_not_known_is_shown_by_its_number(lun: Path) -> None:
    device: Device = open_device(str(lun), read_only=True)
    superblock = open_volume([device], read_only=True).superblock
    facts = volume_facts(replace(superblock, lock_method=99), [device])
    assert facts.lock_method == "method 99"
    assert "COMPARE AND WRITE" in volume_facts(
        replace(superblock, lock_method=LockMethod.SCSI_CAW), [device]
    ).lock_method_reason
    device.close()


def test_what_holds_no_volume(tmp_path: Path) -> None:
    path = tmp_path / "empty.img"
    with path.open("xb") as f:
        f.truncate(1 << 20)
    with pytest.raises(NotAVolume), open_to_look([str(path)]):
        pytest.fail("it was opened")
    with pytest.raises(DeviceNotUsable), open_to_look([str(path), str(tmp_path / "missing")]):
        pytest.fail("it was opened")
