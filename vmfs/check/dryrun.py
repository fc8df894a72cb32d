"""A disk to try a repair on: reads come from the real one, writes stay in memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from vmfs.devices.contract import Device, LockMethod, ReadableBuffer, check_compare_and_write, check_range
from vmfs.devices.reservations import Reservations
from vmfs.ondisk.header import METADATA_BLOCK_BYTES


class ScratchDevice:
    """A device over another one, which it never writes to. It owns that one, and closes it.

    `_mutex` guards the pages that were written; every call is atomic. Memory grows with what is written.
    """

    def __init__(self, inner: Device) -> None:
        self._inner = inner
        self._pages: dict[int, bytearray] = {}
        self._mutex = threading.Lock()
        self.name = inner.name
        self.size_bytes = inner.size_bytes
        self.logical_block_bytes = inner.logical_block_bytes
        self.read_only = False

    def read(self, offset: int, length: int) -> bytes:
        check_range(self, offset, length)
        with self._mutex:
            return self._read(offset, length)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        view = buffer.cast("B")
        view[:] = self.read(offset, len(view))

    def _read(self, offset: int, length: int) -> bytes:
        data = bytearray(self._inner.read(offset, length))
        for page, start, end in _pages(offset, length):
            found = self._pages.get(page)
            if found is not None:
                at = page + start - offset
                data[at : at + end - start] = found[start:end]
        return bytes(data)

    def write(self, offset: int, data: ReadableBuffer) -> None:
        view = memoryview(data).cast("B")
        check_range(self, offset, len(view))
        with self._mutex:
            self._write(offset, view)

    def _write(self, offset: int, view: memoryview) -> None:
        for page, start, end in _pages(offset, len(view)):
            found = self._pages.get(page)
            if found is None:
                length = min(METADATA_BLOCK_BYTES, self.size_bytes - page)
                found = self._pages[page] = bytearray(self._inner.read(page, length))
            at = page + start - offset
            found[start:end] = view[at : at + end - start]

    def flush(self) -> None:
        """Nothing of it is to last."""

    def compare_and_write(self, offset: int, old: bytes, new: bytes) -> bool:
        check_compare_and_write(self, offset, old, new)
        with self._mutex:
            if self._read(offset, len(old)) != old:
                return False
            self._write(offset, memoryview(new))
            return True

    def discard(self, offset: int, length: int) -> bool:
        check_range(self, offset, length)
        return False

    def write_zeros(self, offset: int, length: int) -> None:
        self.write(offset, bytes(length))

    def fileno(self) -> int | None:
        return None

    def lock_methods(self) -> tuple[LockMethod, ...]:
        return tuple(LockMethod)  # nobody else sees this disk

    def use_lock_method(self, method: LockMethod) -> None:
        """Any will do."""

    def reservations(self) -> Reservations | None:
        return None

    def refresh_size(self) -> int:
        return self.size_bytes

    def close(self) -> None:
        self._inner.close()


def _pages(offset: int, length: int) -> Iterator[tuple[int, int, int]]:
    """(page's offset, first byte in it, byte behind the last) of each page that a range touches."""
    end = offset + length
    page = offset // METADATA_BLOCK_BYTES * METADATA_BLOCK_BYTES
    while page < end:
        yield page, max(0, offset - page), min(METADATA_BLOCK_BYTES, end - page)
        page += METADATA_BLOCK_BYTES
