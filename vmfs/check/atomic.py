"""Writing a repair: sets of metadata blocks that are there whole or not at all, through a journal like any mount's.

When the repair dies, whoever recovers its slot replays what it had begun. All is covered by the repair's own slot: it
has the volume for itself and takes no locks.
"""

from __future__ import annotations

from collections.abc import Mapping

from vmfs.check.alone import Alone
from vmfs.core.journal import Journal
from vmfs.ondisk.journal import Image


class Mender:
    """Writes blocks. For one thread. Raises LeaseLost, DeviceError."""

    def __init__(self, alone: Alone) -> None:
        volume = alone.volume
        holder = alone.membership.holder
        self._io = alone.io
        self._lock = volume.geometry.slot_address(holder.slot)
        self._version = holder.incarnation
        self._journal = Journal(
            alone.io, address=volume.geometry.journal_address(holder.slot), size_bytes=volume.superblock.journal_bytes,
            volume=volume.uuid, slot=holder.slot, incarnation=holder.incarnation,
        )  # fmt: skip
        self._journal.start()
        self._pending: dict[int, bytes] = {}
        self.written = 0
        """Blocks that were changed."""

    def together(self, blocks: Mapping[int, bytes]) -> None:
        """Write blocks, by address, in one transaction. ValueError for more than a record holds."""
        if len(blocks) > self._journal.max_images:
            raise ValueError(f"{len(blocks)} blocks do not fit one record")
        self.flush()
        self._write(dict(blocks))

    def one(self, address: int, block: bytes) -> None:
        """Write a block that may be changed alone; with others of its kind, at `flush` or before."""
        self._pending[address] = block
        if len(self._pending) >= self._journal.max_images:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        if self._pending:
            pending, self._pending = self._pending, {}
            self._write(pending)

    def _write(self, blocks: dict[int, bytes]) -> None:
        images = [Image(at, self._lock, self._version, data) for at, data in blocks.items()]
        position = self._journal.place_for(len(images), 0)
        assert position is not None, "the journal is empty before each record"
        sequence = self._journal.append(images, [], position)
        self._io.write_blocks(list(blocks.items()))
        self._io.flush()
        self._journal.trim(sequence)
        self.written += len(blocks)

    def plain(self, address: int, data: bytes) -> None:
        """Write what nothing refers to yet, or what is written past any journal (locks). Durable at the next write."""
        self.flush()
        self._io.write(address, data)
        self.written += 1
