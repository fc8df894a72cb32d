"""The lock method of a volume: how its hosts agree on a lock block. Chosen at format, kept in the superblock.

`choose` picks it for new extents, `registers_of` gives a mount (or a tool) the registers that work by it, `prove`
shows at mount that it does what it must. The rest is for tools that read lock blocks as bytes.

The *probe block* (superblock: probe block) is where a mount proves a compare-and-write. Its first sector holds 16
random bytes of whoever proved there last, or zeros; it means nothing else.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from vmfs.clock import Clock
from vmfs.cluster.paxos import PaxosRegisters
from vmfs.cluster.registers import DirectRegisters, Registers
from vmfs.devices.contract import Device, LockMethod
from vmfs.devices.extents import ExtentSet
from vmfs.errors import BadFormatOption, LockMethodUnproved, LockMethodUnusable
from vmfs.ondisk.header import METADATA_BLOCK_BYTES
from vmfs.ondisk.lockblock import VOLUME_PREFIX_BYTES
from vmfs.ondisk.paxosblock import PaxosLayout, fresh_block, parse_block, spare_bytes_are_zero
from vmfs.ondisk.superblock import MAX_LOCK_BLOCK_BYTES, Superblock

DEFAULT_MAX_HOSTS: Final = 64
DEFAULT_PAXOS_MAX_HOSTS: Final = 8  # their sectors fill one block of 4 KiB; each more makes every inode larger
_PROBE_TRIES: Final = 16  # another mount may prove at the same moment
_NONCE_BYTES: Final = 16

MEANINGS: Final[dict[int, str]] = {
    LockMethod.OFD_FILE: "a file stands in for the LUN: open-file-description locks on it hold between its openers",
    LockMethod.OFD_HOST: "a disk of this machine alone: open-file-description locks under /run hold on one machine",
    LockMethod.SCSI_CAW: "COMPARE AND WRITE: the LUN itself compares and writes in one step",
    LockMethod.PAXOS: "Disk-Paxos by plain reads and writes: format found no other to rely on, or was told so",
}


@dataclass(frozen=True, slots=True)
class Choice:
    """A lock method for a new volume, and why it is that one."""

    method: LockMethod
    reason: str


def choose(devices: Sequence[Device], wanted: LockMethod | None) -> Choice:
    """The method for a volume on these devices: `wanted`, else the best that works on all of them.

    A Disk-Paxos register works on every disk. Raises LockMethodUnusable.
    """
    if wanted is LockMethod.PAXOS:
        return Choice(wanted, "asked for")
    for device in devices:
        usable = device.lock_methods()
        if wanted is not None and wanted not in usable:
            names = ", ".join(m.name for m in (*usable, LockMethod.PAXOS) if m is not wanted)
            raise LockMethodUnusable(device.name, wanted.name, names)
    if wanted is not None:
        return Choice(wanted, "asked for")
    lacking = next((d.name for d in devices if d.lock_methods()[:1] in ((), (LockMethod.PAXOS,))), None)
    if lacking is not None:
        return Choice(LockMethod.PAXOS, f"{lacking} has no compare-and-write to rely on")
    first, *others = (d.lock_methods() for d in devices)
    for method in first:
        if method is not LockMethod.PAXOS and all(method in usable for usable in others):
            return Choice(method, f"the best that works on {', '.join(d.name for d in devices)}")
    return Choice(LockMethod.PAXOS, "the devices have no compare-and-write in common")


def default_max_hosts(method: LockMethod) -> int:
    """For how many hosts a volume is made when nobody says."""
    return DEFAULT_PAXOS_MAX_HOSTS if method is LockMethod.PAXOS else DEFAULT_MAX_HOSTS


def lock_block_bytes(method: LockMethod, max_hosts: int, sector_bytes: int, block_bytes: int) -> int:
    """How large the lock blocks of a new volume are. Raises BadFormatOption for more hosts than fit one."""
    if method is not LockMethod.PAXOS:
        return METADATA_BLOCK_BYTES
    needed = -(-max_hosts * sector_bytes // METADATA_BLOCK_BYTES) * METADATA_BLOCK_BYTES
    # A chunk must have room for its head, a lock block, and an inode.
    room = min(MAX_LOCK_BLOCK_BYTES, block_bytes - 2 * METADATA_BLOCK_BYTES)
    if needed > room:
        raise BadFormatOption(
            "room for hosts:", max_hosts,
            f"with a Disk-Paxos register each has a sector of {sector_bytes} bytes in every lock block, and with "
            f"blocks of {block_bytes >> 10}K at most {room // sector_bytes} fit",
        )  # fmt: skip
    return needed


def registers_of(sb: Superblock, extents: ExtentSet, clock: Clock, rng: random.Random) -> Registers:
    """The volume's registers. `rng` must differ between hosts: it names claims and spreads collisions."""
    if sb.lock_method != LockMethod.PAXOS:
        return DirectRegisters(extents)
    return PaxosRegisters(extents, paxos_layout(sb), clock, rng, _flight_seconds(sb))


def _flight_seconds(sb: Superblock) -> float:
    """P + F: what the timers leave a write on its way (A1), and never less than the quarantine, which outlasts one."""
    t = sb.timers
    drift = t.drift_ppm / 1e6
    slack_us = t.break_us * (1 - drift) - (t.lease_us - t.margin_us) * (1 + drift)
    return max(float(t.quarantine_us), slack_us) / 1e6


# -- lock blocks as bytes ----------------------------------------------------------------------------


def paxos_layout(sb: Superblock) -> PaxosLayout:
    """How the lock blocks of a PAXOS volume are divided."""
    return PaxosLayout(sb.sector_bytes, sb.max_hosts, sb.volume.bytes[:VOLUME_PREFIX_BYTES])


def new_lock_block(sb: Superblock, image: bytes, address: int) -> bytes:
    """A whole lock block that holds `image` (one sector)."""
    if sb.lock_method == LockMethod.PAXOS:
        return fresh_block(image, paxos_layout(sb), address, sb.lock_block_bytes)
    return image.ljust(sb.lock_block_bytes, b"\0")


def image_in(sb: Superblock, block: bytes, address: int) -> bytes:
    """The image (one sector) in a lock block that was read whole. What hosts are changing just then may be half done.

    Raises DamagedBlock for a Paxos register of which a sector cannot be read.
    """
    if sb.lock_method == LockMethod.PAXOS:
        top = parse_block(block, paxos_layout(sb), address).top
        return top.record.ljust(sb.sector_bytes, b"\0")
    return block[: sb.sector_bytes]


def is_padded_with_zeros(sb: Superblock, block: bytes) -> bool:
    """Whether all bytes of a whole lock block that mean nothing are zero."""
    if sb.lock_method == LockMethod.PAXOS:
        return spare_bytes_are_zero(block, paxos_layout(sb))
    return not any(block[sb.sector_bytes :])


# -- the proof at mount ------------------------------------------------------------------------------


def prove(sb: Superblock, extents: ExtentSet, rng: random.Random) -> str:
    """Show that the volume's compare-and-write refuses a wrong image and takes the right one; returns what was shown.

    Raises LockMethodUnproved, DeviceError, DeviceGone.
    """
    if sb.lock_method == LockMethod.PAXOS:
        return ""  # it needs nothing but reads and writes, and the claim of a slot has made them
    device, offset = extents.locate(sb.probe_address)
    size = device.logical_block_bytes
    name = LockMethod(sb.lock_method).name
    for _ in range(_PROBE_TRIES):
        before = device.read(offset, size)
        wrong, new = (rng.randbytes(_NONCE_BYTES).ljust(size, b"\0") for _ in range(2))
        if device.compare_and_write(offset, wrong, new):
            raise LockMethodUnproved(device.name, name, "it wrote although the block held something else")
        if not device.compare_and_write(offset, before, new):
            if device.read(offset, size) == before:
                raise LockMethodUnproved(device.name, name, "it refuses to replace the very bytes that it returns")
            continue
        if device.read(offset, size) in (wrong, before):
            raise LockMethodUnproved(device.name, name, "it said that it wrote, and did not")
        return f"proved on {device.name} at mount"
    raise LockMethodUnproved(device.name, name, "the probe block keeps changing")
