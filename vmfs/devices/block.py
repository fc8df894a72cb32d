"""A local block device: a disk, a partition, a multipath map, a kernel initiator's LUN, or a loop device."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

from vmfs.devices import syscalls
from vmfs.devices.contract import LockMethod
from vmfs.devices.direct import DirectDevice, choose_sector_bytes
from vmfs.devices.loop import BackingFile, find_bottom
from vmfs.devices.ofdlock import OfdRangeLock
from vmfs.errors import DeviceBusy, DeviceNotUsable

HOST_LOCK_FOLDER = Path("/run/azekura/locks")  # one for the whole machine: mounts of all volumes must meet there

# Another process that asks the same question at the same moment looks like a holder, for microseconds.
_PROBE_TRIES = 20
_PROBE_PAUSE_SECONDS = 0.02


class BlockDevice(DirectDevice):
    """A block device node.

    `compare_and_write` locks the backing file of a loop device (LockMethod.OFD_FILE: excludes whoever reaches that
    file by any way), and for any other device a file under HOST_LOCK_FOLDER (LockMethod.OFD_HOST: excludes only
    this machine's mounts that use the same disk).
    """

    @classmethod
    def open(
        cls,
        path: str,
        *,
        read_only: bool = False,
        sector_bytes: int | None = None,
        lock_folder: Path = HOST_LOCK_FOLDER,
    ) -> BlockDevice:
        """Open a node. `sector_bytes` (512 or 4096) may be larger than the device's own.

        DeviceBusy when a mounted file system, LVM, RAID or the like holds it exclusively (not asked when
        read-only); DeviceNotUsable when a loop device cannot be locked or read past caches; OSError as open(2) does.
        """
        if not read_only:
            _refuse_when_held(path)
        fd = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_DIRECT)
        try:
            sector = choose_sector_bytes(path, syscalls.block_sector_bytes(fd), sector_bytes)
            bottom = find_bottom(path, os.fstat(fd).st_rdev, direct_io=True)
            if isinstance(bottom, BackingFile):
                method, lock_path = LockMethod.OFD_FILE, Path(bottom.path)
            else:
                method, lock_path = LockMethod.OFD_HOST, lock_folder / f"{bottom.major}:{bottom.minor}"
            locks = {} if read_only else {method: _open_lock(path, method, lock_path, bottom.offset)}
            return cls(
                path, fd, logical_block_bytes=sector, read_only=read_only, method=method, locks=locks
            )
        except BaseException:
            os.close(fd)
            raise

    def _measure_bytes(self, fd: int) -> int:
        return syscalls.block_size_bytes(fd)

    def _discard(self, fd: int, offset: int, length: int) -> None:
        syscalls.block_discard(fd, offset, length)

    def _zero(self, fd: int, offset: int, length: int) -> None:
        syscalls.block_zero_out(fd, offset, length)


def _open_lock(spec: str, method: LockMethod, path: Path, base_offset: int) -> OfdRangeLock:
    """Open what `compare_and_write` locks; a host's lock file is made at its first use and stays."""
    try:
        if method is LockMethod.OFD_HOST:
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            return OfdRangeLock(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), base_offset)
        return OfdRangeLock(os.open(path, os.O_RDWR), base_offset)
    except OSError as error:
        raise DeviceNotUsable(spec, f"{path}, on which its hosts lock: {error.strerror}") from error


def _refuse_when_held(path: str) -> None:
    """Raise DeviceBusy when the kernel says that someone has claimed the device (our own mounts never do)."""
    for attempt in range(_PROBE_TRIES):
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_EXCL))
            return
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            if attempt == _PROBE_TRIES - 1:
                raise DeviceBusy(path, "a mounted file system, LVM, RAID or another exclusive user") from error
        time.sleep(_PROBE_PAUSE_SECONDS)
