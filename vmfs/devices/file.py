"""A regular file as a device: a LUN for a laboratory, for tests, or on an NFS server that hosts share."""

from __future__ import annotations

import errno
import mmap
import os

from vmfs.devices import syscalls
from vmfs.devices.contract import LockMethod
from vmfs.devices.direct import SECTOR_BYTES_ALLOWED, DirectDevice, choose_sector_bytes
from vmfs.devices.ofdlock import OfdRangeLock
from vmfs.errors import DeviceError, DeviceNotUsable

_NO_DIRECT = "its file system does no direct I/O, which hosts need to see each other's writes; put it on ext4 or XFS"


class FileDevice(DirectDevice):
    """A file; `compare_and_write` under an open-file-description lock on those bytes of it (LockMethod.OFD_FILE)."""

    @classmethod
    def open(cls, path: str, *, read_only: bool = False, sector_bytes: int | None = None) -> FileDevice:
        """Open an existing file. `sector_bytes` (512 or 4096) overrides what its file system asks for.

        DeviceNotUsable where the file system refuses O_DIRECT or wants larger sectors; OSError as open(2) does.
        """
        try:
            fd = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_DIRECT)
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise DeviceNotUsable(path, _NO_DIRECT) from error
            raise
        try:
            sector = choose_sector_bytes(path, _smallest_sector_bytes(path, fd), sector_bytes)
            locks = {} if read_only else {LockMethod.OFD_FILE: OfdRangeLock(os.dup(fd))}
            return cls(
                path,
                fd,
                logical_block_bytes=sector,
                read_only=read_only,
                method=LockMethod.OFD_FILE,
                locks=locks,
            )
        except BaseException:
            os.close(fd)
            raise

    def _measure_bytes(self, fd: int) -> int:
        return os.fstat(fd).st_size

    def _check_change(self, operation: str, offset: int, length: int) -> None:
        super()._check_change(operation, offset, length)
        size = self._measure_bytes(self._live_fd())
        if size < offset + length:
            # Writing there would make the file long again, with zeros where other data was.
            raise DeviceError(self.name, operation, offset, length, f"the file has shrunk to {size} bytes")

    def _discard(self, fd: int, offset: int, length: int) -> None:
        syscalls.fallocate(fd, syscalls.FALLOC_FL_PUNCH_HOLE | syscalls.FALLOC_FL_KEEP_SIZE, offset, length)

    def _zero(self, fd: int, offset: int, length: int) -> None:
        # Not a hole: the range keeps its space, so that a later write into it cannot fail for want of any.
        syscalls.fallocate(fd, syscalls.FALLOC_FL_ZERO_RANGE | syscalls.FALLOC_FL_KEEP_SIZE, offset, length)


def _smallest_sector_bytes(path: str, fd: int) -> int:
    """What O_DIRECT takes on this file: as statx says, else (a file system that does not say) by trying."""
    said = syscalls.direct_alignment(fd)
    if said is not None:
        if said.offset_bytes == 0:
            raise DeviceNotUsable(path, _NO_DIRECT)
        return max(said.offset_bytes, said.memory_bytes)
    with mmap.mmap(-1, 2 * SECTOR_BYTES_ALLOWED[-1]) as memory, memoryview(memory) as view:
        for size in SECTOR_BYTES_ALLOWED:
            try:
                # Memory and offset are aligned to `size` and no better, as transfers may be later.
                with view[size : 2 * size] as part:
                    os.preadv(fd, [part], size)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
            else:
                return size
    raise DeviceNotUsable(path, _NO_DIRECT)
