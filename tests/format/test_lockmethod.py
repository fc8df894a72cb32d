"""Which lock method a volume gets, how large its lock blocks are, and the proof at mount."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from vmfs.devices.contract import LockMethod
from vmfs.devices.extents import ExtentSet
from vmfs.devices.ram import RamDevice
from vmfs.errors import BadFormatOption, LockMethodUnproved, LockMethodUnusable
from vmfs.lockmethod import choose, image_in, is_padded_with_zeros, lock_block_bytes, paxos_layout, prove
from vmfs.mkfs import FormatOptions, format_volume, make_volume, plan
from vmfs.ondisk.lock import Guards, parse_lock
from vmfs.ondisk.superblock import PROBE_OFFSET
from vmfs.volume import open_volume

MIB = 1 << 20


class Limited(RamDevice):
    """A device that has just these methods."""

    methods: tuple[LockMethod, ...] = ()

    def lock_methods(self) -> tuple[LockMethod, ...]:
        return self.methods


def device(*methods: LockMethod) -> RamDevice:
    made = Limited(8 * MIB)
    made.methods = methods
    return made


OFD, HOST, CAW, PAXOS = LockMethod.OFD_FILE, LockMethod.OFD_HOST, LockMethod.SCSI_CAW, LockMethod.PAXOS


@pytest.mark.parametrize(
    ("extents", "wanted", "expected"),
    [
        ([(CAW,)], None, CAW),
        ([(PAXOS,)], None, PAXOS),
        ([()], None, PAXOS),
        ([(OFD,), (OFD,)], None, OFD),
        ([(CAW,), (PAXOS,)], None, PAXOS),
        ([(OFD,), (HOST,)], None, PAXOS),
        ([(CAW,)], PAXOS, PAXOS),
        ([(HOST,)], HOST, HOST),
    ],
)
def test_the_best_method_that_all_extents_have(
    extents: list[tuple[LockMethod, ...]], wanted: LockMethod | None, expected: LockMethod
) -> None:
    chosen = choose([device(*methods) for methods in extents], wanted)
    assert chosen.method is expected
    assert chosen.reason


def test_a_method_that_an_extent_lacks_is_refused() -> None:
    with pytest.raises(LockMethodUnusable, match="SCSI_CAW"):
        choose([device(CAW), device(PAXOS)], CAW)


@pytest.mark.parametrize(
    ("hosts", "sector", "block", "expected"),
    [(8, 512, 64 << 10, 4096), (9, 512, 64 << 10, 8192), (112, 512, 64 << 10, 56 << 10), (8, 4096, 64 << 10, 32 << 10),
     (128, 512, 1 << 20, 64 << 10)],
)  # fmt: skip
def test_the_size_of_lock_blocks(hosts: int, sector: int, block: int, expected: int) -> None:
    assert lock_block_bytes(PAXOS, hosts, sector, block) == expected
    assert lock_block_bytes(OFD, hosts, sector, block) == 4096


@pytest.mark.parametrize(
    ("hosts", "sector", "block"), [(113, 512, 64 << 10), (15, 4096, 64 << 10), (129, 512, 1 << 20)]
)
def test_more_hosts_than_a_lock_block_has_room_for(hosts: int, sector: int, block: int) -> None:
    with pytest.raises(BadFormatOption, match="at most"):
        lock_block_bytes(PAXOS, hosts, sector, block)


@pytest.mark.parametrize("hosts", [1, 8, 20])
def test_a_formatted_lock_block_of_a_paxos_volume(hosts: int) -> None:
    made = RamDevice(64 * MIB)
    sb = format_volume(made, FormatOptions("v", max_hosts=hosts, journal_bytes=256 << 10, lock_method=PAXOS))
    volume = open_volume([made])
    assert paxos_layout(sb).count == hosts
    block = made.read(sb.superblock_lock, sb.lock_block_bytes)
    lock = parse_lock(image_in(sb, block, sb.superblock_lock), sb.superblock_lock, volume.prefix)
    assert lock.guards is Guards.SUPERBLOCK
    assert is_padded_with_zeros(sb, block)
    if len(block) > paxos_layout(sb).used_bytes:
        assert not is_padded_with_zeros(sb, block[:-1] + b"\1")


def test_a_mount_proves_on_the_probe_block() -> None:
    made = RamDevice(64 * MIB)
    sb = format_volume(made, FormatOptions("v", max_hosts=4, journal_bytes=256 << 10))
    rng = random.Random(1)
    assert made.name in prove(sb, ExtentSet([made]), rng)
    assert "proved" in prove(sb, ExtentSet([made.again()]), rng)
    assert any(made.read(PROBE_OFFSET, 512))


class Broken(RamDevice):
    """A device whose compare_and_write does something else."""

    does: list[Callable[[RamDevice, int, bytes, bytes], bool]]

    def compare_and_write(self, offset: int, old: bytes, new: bytes) -> bool:
        return self.does[0](self, offset, old, new)


def _writes_always(device: RamDevice, offset: int, old: bytes, new: bytes) -> bool:
    device.write(offset, new)
    return True


def _refuses_always(device: RamDevice, offset: int, old: bytes, new: bytes) -> bool:
    return False


def _claims_to_have_written(device: RamDevice, offset: int, old: bytes, new: bytes) -> bool:
    return device.read(offset, len(old)) == old


@pytest.mark.parametrize("does", [_writes_always, _refuses_always, _claims_to_have_written])
def test_a_device_that_does_not_compare_and_write_is_refused(
    does: Callable[[RamDevice, int, bytes, bytes], bool],
) -> None:
    made = Broken(64 * MIB)
    planned = plan(made, FormatOptions("v", max_hosts=4, journal_bytes=256 << 10))
    make_volume(made, planned)
    made.does = [does]
    with pytest.raises(LockMethodUnproved):
        prove(planned.superblock, ExtentSet([made]), random.Random(1))
