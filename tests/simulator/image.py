"""The volume of a run: how it is formatted, and how any image of it is checked."""

from __future__ import annotations

from functools import cache
from random import Random
from typing import Final

from tests.simulator.model import Violation
from vmfs.check import check_volume
from vmfs.clock import FakeClock
from vmfs.devices.contract import LockMethod
from vmfs.devices.ram import RamDevice
from vmfs.formatplan import FormatOptions
from vmfs.formatplan import plan as format_plan
from vmfs.mkfs import make_volume
from vmfs.ondisk.superblock import Superblock
from vmfs.volume import open_volume

SIZE_BYTES: Final = 12 << 20  # little room, so that blocks are used again soon
JOURNAL_BYTES: Final = 1 << 20


@cache
def formatted(lease_us: int, mode: str, slots: int) -> tuple[bytes, Superblock]:
    """The image of a new volume, always the same, and its superblock."""
    device = RamDevice(SIZE_BYTES, name="image")
    options = FormatOptions(
        "sim", max_hosts=slots, journal_bytes=JOURNAL_BYTES, lease_us=lease_us, fenced=mode == "reservations",
        lock_method=LockMethod.PAXOS if mode == "paxos" else LockMethod.OFD_FILE,
    )  # fmt: skip
    rng = Random(f"format {lease_us}")
    planned = format_plan(device, options, clock=FakeClock(), random_bytes=rng.randbytes)
    make_volume(device, planned)
    return device.read(0, SIZE_BYTES), planned.superblock


def check_image(image: bytes, when: str) -> None:
    """The project's own checker must find nothing, as the volume will be when all journals are replayed."""
    device = RamDevice(len(image), name="image")
    device.write(0, image)
    report = check_volume(open_volume([device], read_only=True), clock=FakeClock(sleep_advances=True))
    if not report.clean:
        raise Violation(f"the checker finds, {when}: " + "; ".join(map(str, report.findings[:5])))
