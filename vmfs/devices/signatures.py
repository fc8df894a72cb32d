"""What a device already holds, so that `format` does not destroy it unasked.

File systems, partition tables, LVM, RAID, swap and encryption are recognised by util-linux' `blkid -p` (low-level
probing: no cache file), which every Debian has: its list grows with the distribution, where a binding of libblkid by
hand would have to be kept in step. Our own volume and VMware's VMFS are looked for here as well: their signatures
may lie deeper than the version of blkid at hand looks. All numbers little-endian.
"""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from vmfs.devices.contract import Device
from vmfs.devices.scsi.disk import ScsiDisk
from vmfs.errors import CannotIdentify

_OUR_MAGIC = b"AZKVMFS\0"
_OUR_COPIES_AT = (64 << 10, 68 << 10)
_OUR_LAST_COPY_UNIT_BYTES = 64 << 10  # one more copy lies in the last whole unit of the device

_VMWARE_LVM_MAGIC = 0xC001D00D.to_bytes(4, "little")
_VMWARE_LVM_AT = 1 << 20
_VMWARE_VMFS_MAGICS = (0x2FABF15E.to_bytes(4, "little"), 0x2FABF15F.to_bytes(4, "little"))  # VMFS-3/5; VMFS-6
# Without the volume header at 2 MiB; behind it (1 MiB) and its 16 MiB of reserved space at 19 MiB.
_VMWARE_VMFS_AT = (2 << 20, 19 << 20)

_COPIED_BYTES = 2 << 20  # the deepest that blkid looks, from either end, is half a MiB (ZFS); others look less deep
_BLKID_NOTHING = 2
_BLKID_AMBIVALENT = 8
_BLKID_TIMEOUT_SECONDS = 60  # an array that fails over answers within 30
_log = logging.getLogger(__name__)


def identify(device: Device) -> str | None:
    """A phrase for what the device holds ("ext4 file system"), or None when nothing known is there.

    A LUN without a descriptor is copied as far as blkid looks; memory and the fault device are asked for VMFS volumes
    only. DeviceError when it
    cannot be read, CannotIdentify when blkid cannot be run or fails.
    """
    last_copy_at = (device.size_bytes // _OUR_LAST_COPY_UNIT_BYTES - 1) * _OUR_LAST_COPY_UNIT_BYTES
    if any(_has(device, at, (_OUR_MAGIC,)) for at in (*_OUR_COPIES_AT, last_copy_at)):
        return "Azekura VMFS volume"
    if _has(device, _VMWARE_LVM_AT, (_VMWARE_LVM_MAGIC,)):
        return "VMware VMFS extent"
    if any(_has(device, at, _VMWARE_VMFS_MAGICS) for at in _VMWARE_VMFS_AT):
        return "VMware VMFS volume"
    fd = device.fileno()
    if fd is not None:
        return _ask_blkid(device.name, fd)
    if not isinstance(device, ScsiDisk):
        return None
    with _copied_ends(device) as copy:
        return _ask_blkid(device.name, copy)


@contextmanager
def _copied_ends(device: Device) -> Iterator[int]:
    """A descriptor of memory as large as the device, with its beginning and its end, and holes between."""
    fd = os.memfd_create("signatures", os.MFD_CLOEXEC)
    try:
        size = device.size_bytes
        os.ftruncate(fd, size)
        part = min(_COPIED_BYTES, size)
        for at in {0, size - part}:
            os.pwrite(fd, device.read(at, part), at)
        yield fd
    finally:
        os.close(fd)


def _has(device: Device, at: int, magics: tuple[bytes, ...]) -> bool:
    if at < 0 or at + device.logical_block_bytes > device.size_bytes:
        return False
    return device.read(at, device.logical_block_bytes).startswith(magics)


def _ask_blkid(name: str, fd: int) -> str | None:
    # By descriptor, not by name: what is probed is the very device that was opened.
    command = ["blkid", "-p", "-o", "export", f"/proc/self/fd/{fd}"]
    try:
        done = subprocess.run(
            command, capture_output=True, pass_fds=(fd,), timeout=_BLKID_TIMEOUT_SECONDS, check=False
        )
    except FileNotFoundError as error:
        raise CannotIdentify(name, "blkid is not installed; install util-linux") from error
    except subprocess.TimeoutExpired as error:
        raise CannotIdentify(name, f"blkid did not end within {_BLKID_TIMEOUT_SECONDS} s") from error
    _log.debug("%s: blkid -p exits %d: %r", name, done.returncode, done.stdout)
    if done.returncode == _BLKID_NOTHING:
        return None
    if done.returncode == _BLKID_AMBIVALENT:
        return "several signatures at once (`wipefs` lists them)"
    if done.returncode != 0:
        reason = done.stderr.decode(errors="replace").strip() or f"blkid exits {done.returncode}"
        raise CannotIdentify(name, reason)
    lines = done.stdout.decode(errors="replace").splitlines()
    return _phrase(dict(line.partition("=")[::2] for line in lines))


def _phrase(found: dict[str, str]) -> str | None:
    """What blkid's variables say, in words; None when they hold nothing but the partition the device is."""
    if kind := found.get("TYPE"):
        nouns = {"filesystem": "file system", "raid": "member of a RAID or LVM set", "crypto": "encrypted volume"}
        label = f" named {found['LABEL']}" if "LABEL" in found else ""
        return f"{kind} {nouns.get(found.get('USAGE', ''), 'area')}{label}"
    if table := found.get("PTTYPE"):
        return f"{table} partition table"
    return None
