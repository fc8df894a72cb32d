"""How the checker reads: the volume's blocks as they will be once every dead host's journal has been replayed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Final

from vmfs.errors import DeviceError
from vmfs.ondisk.header import METADATA_BLOCK_BYTES
from vmfs.volume import Volume

_READ_BYTES: Final = 1 << 20
_CACHE_BYTES: Final = 64 << 20  # of metadata chunks, so that a directory's blocks cost one read a chunk


class Source:
    """Reads metadata blocks through the overlay, chunks through a cache. For one thread.

    Raises DeviceError where the storage does not give a range.
    """

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.overlay: dict[int, bytes] = {}
        """Images of blocks, by address, that a journal holds and replay will write."""
        self._chunks: OrderedDict[int, bytes] = OrderedDict()
        self._cached_chunks = max(1, _CACHE_BYTES // volume.superblock.block_bytes)

    def block(self, address: int) -> bytes:
        """One metadata block."""
        found = self.overlay.get(address)
        return found if found is not None else self.volume.extents.read(address, METADATA_BLOCK_BYTES)

    def table(self, start: int, count: int) -> Iterator[tuple[int, bytes | None]]:
        """(address, block) of a table of metadata blocks; None for those that the storage does not give."""
        end = start + count * METADATA_BLOCK_BYTES
        for at in range(start, end, _READ_BYTES):
            length = min(_READ_BYTES, end - at)
            try:
                piece: bytes | None = self.volume.extents.read(at, length)
            except DeviceError:
                piece = None
            for inner in range(0, length, METADATA_BLOCK_BYTES):
                address = at + inner
                image = self.overlay.get(address)
                if image is None and piece is not None:
                    image = piece[inner : inner + METADATA_BLOCK_BYTES]
                yield address, image if image is not None else self._alone(address)

    def _alone(self, address: int) -> bytes | None:
        """One block of a range that could not be read as a whole."""
        try:
            return self.volume.extents.read(address, METADATA_BLOCK_BYTES)
        except DeviceError:
            return None

    def unit(self, address: int) -> bytes:
        """One metadata block within a chunk. DamagedBlock when it lies in no group."""
        image = self.overlay.get(address)
        if image is not None:
            return image
        head, unit = self.volume.geometry.chunk_of(address)
        at = unit * METADATA_BLOCK_BYTES
        return self._chunk(head)[at : at + METADATA_BLOCK_BYTES]

    def _chunk(self, head: int) -> bytes:
        found = self._chunks.get(head)
        if found is None:
            found = self._read_chunk(head)
            self._chunks[head] = found
            if len(self._chunks) > self._cached_chunks:
                self._chunks.popitem(last=False)
        else:
            self._chunks.move_to_end(head)
        return found

    def _read_chunk(self, head: int) -> bytes:
        size = self.volume.superblock.block_bytes
        try:
            return self.volume.extents.read(head, size)
        except DeviceError:
            # A bad sector must not take the other units with it: zeros fail every checksum.
            units = (self._alone(at) for at in range(head, head + size, METADATA_BLOCK_BYTES))
            return b"".join(unit or bytes(METADATA_BLOCK_BYTES) for unit in units)
