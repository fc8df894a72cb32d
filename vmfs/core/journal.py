"""The writer of this host's own journal. The format and its crash rules: `vmfs.ondisk.journal`.

Not thread-safe: the committer of `vmfs.core.transactions` is the only caller.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from vmfs.core.leased import LeasedIO
from vmfs.ondisk.header import METADATA_BLOCK_BYTES
from vmfs.ondisk.journal import HEADER_BLOCKS, Image, JournalHeader, Record, Revoke, pack_record, record_blocks


class Journal:
    """A ring of records of which the oldest are dropped when their blocks are in place and flushed."""

    def __init__(
        self, io: LeasedIO, *, address: int, size_bytes: int, volume: bytes, slot: int, incarnation: int
    ) -> None:
        self._io = io
        self._address = address
        self._end = size_bytes // METADATA_BLOCK_BYTES
        self._ring = self._end - HEADER_BLOCKS
        self._volume = volume
        self._slot = slot
        self._incarnation = incarnation
        self._generation = 0
        self._next_sequence = 1
        self._position = HEADER_BLOCKS
        # Records that replay would still need: (sequence, position, blocks), oldest first.
        self._live: deque[tuple[int, int, int]] = deque()

    @property
    def max_images(self) -> int:
        """How many block images one record may hold: two must fit the ring at once, or nothing could be trimmed."""
        return self._ring // 2 - 4

    def fill(self) -> tuple[int, int]:
        """(blocks of records that replay would still need, blocks that there are for records); a moment old."""
        return sum(blocks for _, _, blocks in tuple(self._live)), self._ring

    def start(self) -> None:
        """Make the journal empty and this incarnation's, durably. The slot's former journal must have been replayed.

        Both copies of the header: one of an earlier incarnation would say, if the other were damaged, that this one
        has written nothing.
        """
        for _ in range(HEADER_BLOCKS):
            self._write_header(1, HEADER_BLOCKS)

    def take_over(self, next_sequence: int, generation: int) -> None:
        """Go on with a dead incarnation's journal, all of which has been replayed and flushed: it is empty then.

        `next_sequence` follows its last record's, `generation` is its header's.
        """
        self._generation = generation
        self._next_sequence = next_sequence
        self._write_header(next_sequence, HEADER_BLOCKS)

    def place_for(self, images: int, revokes: int) -> int | None:
        """The position at which a record of that size can go now; None: trim first."""
        need = record_blocks(images, revokes)
        if need > self._ring:
            raise ValueError(f"a record of {need} blocks does not fit a journal of {self._ring}")
        if not self._live:
            return self._position if self._position + need <= self._end else HEADER_BLOCKS
        oldest = self._live[0][1]
        if self._position > oldest:
            if self._position + need <= self._end:
                return self._position
            return HEADER_BLOCKS if HEADER_BLOCKS + need <= oldest else None
        return self._position if self._position + need <= oldest else None

    def append(self, images: Sequence[Image], revokes: Sequence[Revoke], position: int) -> int:
        """Write a record at a position that `place_for` gave, flush it, and return its sequence: it is committed."""
        sequence = self._next_sequence
        record = Record(self._slot, self._incarnation, sequence, tuple(images), tuple(revokes))
        data = pack_record(record, journal_address=self._address, position=position, volume=self._volume)
        self.write_record(position, data)
        blocks = len(data) // METADATA_BLOCK_BYTES
        self._live.append((sequence, position, blocks))
        self._next_sequence = sequence + 1
        self._position = position + blocks if position + blocks < self._end else HEADER_BLOCKS
        return sequence

    def write_record(self, position: int, data: bytes) -> None:
        """Write a packed record and flush: its checksums are the commit mark, so one write will do."""
        self._io.write(self._address + position * METADATA_BLOCK_BYTES, data)
        self._io.flush()

    def trim(self, settled: int) -> None:
        """Drop the records up to sequence `settled`, which are in place and flushed."""
        dropped = False
        while self._live and self._live[0][0] <= settled:
            self._live.popleft()
            dropped = True
        if not dropped:
            return
        if self._live:
            self._write_header(self._live[0][0], self._live[0][1])
        else:
            self._write_header(self._next_sequence, self._position)

    def _write_header(self, sequence: int, position: int) -> None:
        # Flushed before the space of the dropped records may be written again: an old header that led to an
        # overwritten record would hide the whole journal.
        self._generation += 1
        copy = self._generation % HEADER_BLOCKS
        header = JournalHeader(self._slot, self._incarnation, sequence, position, self._generation)
        image = header.pack(self._address, copy, self._volume)
        self._io.write(self._address + copy * METADATA_BLOCK_BYTES, image)
        self._io.flush()
