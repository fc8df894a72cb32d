"""A plain file or block device: read whole but for its holes."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from datarecovery.errors import SourceError
from datarecovery.extents import Extent
from datarecovery.source import Baseline, Changes, Rung, RungReport


class OpenFile:
    """A file or block device open for reading. Positioned reads, so threads share it."""

    def __init__(self, path: Path) -> None:
        """Raises SourceError when it cannot be opened or is neither a regular file nor a block device."""
        self.path = path
        try:
            # O_NONBLOCK: opening a FIFO by mistake must not wait for ever; regular files and disks ignore it.
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise SourceError(f"disk {path} cannot be opened: {error.strerror}") from error
        mode = os.fstat(self._fd).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            os.close(self._fd)
            raise SourceError(f"disk {path} is neither a file nor a block device")
        self.size = os.lseek(self._fd, 0, os.SEEK_END)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def data_extents(self) -> Iterator[Extent]:
        """What is not a hole, by SEEK_DATA; everything, where the system cannot say. Raises SourceError."""
        at = 0
        while at < self.size:
            try:
                begin = os.lseek(self._fd, at, os.SEEK_DATA)
                at = min(os.lseek(self._fd, begin, os.SEEK_HOLE), self.size)
            except OSError as error:
                if error.errno == errno.ENXIO:  # nothing but a hole from here on
                    return
                if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):  # block devices, some file systems
                    yield Extent(at, self.size - at)
                    return
                raise SourceError(f"holes of disk {self.path} cannot be found: {error.strerror}") from error
            if begin < at:
                yield Extent(begin, at - begin)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset` on. Raises SourceError, also when the file has become shorter."""
        while buffer:
            try:
                done = os.preadv(self._fd, [buffer], offset)
            except OSError as error:
                raise SourceError(f"disk {self.path} cannot be read at byte {offset}: {error.strerror}") from error
            if done == 0:
                raise SourceError(f"disk {self.path} ended at byte {offset}: it became shorter while it was read")
            buffer = buffer[done:]
            offset += done


class PlainSource:
    """A disk that cannot say what changed, nor hold still."""

    point_in_time = False

    def __init__(self, path: Path, why: str) -> None:
        """Open `path`; `why` no better source serves it. Raises SourceError."""
        self._why = why
        self._file = OpenFile(path)

    @property
    def size(self) -> int:
        """Bytes."""
        return self._file.size

    @property
    def path(self) -> str:
        """The disk's path."""
        return str(self._file.path)

    def allocated(self) -> Iterator[Extent]:
        """See DiskSource."""
        return self._file.data_extents()

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """See DiskSource."""
        self._file.read_into(offset, buffer)

    def changes_since(self, baseline: Baseline | None, why_none: str) -> Changes:
        """Always everything."""
        return Changes(RungReport(Rung.FULL_READ, self._why))

    def baseline(self) -> None:
        """There is none."""

    def commit(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()
