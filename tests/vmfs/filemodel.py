"""What a file must hold and which blocks it must have after any sequence of operations.

Content is kept as pages of 4 KiB that are not all zeros; blocks are the set of block numbers that count in st_blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, field

PAGE = 4096
BLOCK = 64 << 10
_ZERO_PAGE = bytes(PAGE)


@dataclass
class FileModel:
    """One file."""

    size: int = 0
    pages: dict[int, bytes] = field(default_factory=dict)
    blocks: set[int] = field(default_factory=set)
    """With space on the volume: written, or given to it by fallocate; its own or shared with a clone."""

    def clone(self) -> FileModel:
        return FileModel(self.size, dict(self.pages), set(self.blocks))

    def read(self, offset: int, length: int) -> bytes:
        """The bytes of a range, short at the end of the file."""
        end = min(offset + length, self.size)
        if end <= offset:
            return b""
        first = offset // PAGE
        data = b"".join(self.pages.get(i, _ZERO_PAGE) for i in range(first, -(-end // PAGE)))
        return data[offset - first * PAGE : end - first * PAGE]

    def _put(self, offset: int, data: bytes) -> None:
        first = offset // PAGE
        last = -(-(offset + len(data)) // PAGE)
        head = self.pages.get(first, _ZERO_PAGE)[: offset - first * PAGE]
        tail = self.pages.get(last - 1, _ZERO_PAGE)[offset + len(data) - (last - 1) * PAGE :]
        whole = head + data + tail
        for i in range(first, last):
            page = whole[(i - first) * PAGE : (i - first + 1) * PAGE]
            if page == _ZERO_PAGE:
                self.pages.pop(i, None)
            else:
                self.pages[i] = page

    def _clear(self, offset: int, end: int) -> None:
        """Zeros over a range, however long."""
        edge = min(end, -(-offset // PAGE) * PAGE)
        if offset < edge:
            self._put(offset, bytes(edge - offset))
        back = max(edge, end // PAGE * PAGE)
        if back < end:
            self._put(back, bytes(end - back))
        for i in [i for i in self.pages if edge <= i * PAGE < back]:
            del self.pages[i]

    def write(self, offset: int, data: bytes) -> None:
        if data:
            self._put(offset, data)
            self.blocks.update(range(offset // BLOCK, (offset + len(data) - 1) // BLOCK + 1))
            self.size = max(self.size, offset + len(data))

    def truncate(self, size: int) -> None:
        if size < self.size:
            self._clear(size, self.size)
            self.blocks = {b for b in self.blocks if b < -(-size // BLOCK)}
        self.size = size

    def punch(self, offset: int, length: int) -> None:
        """Whole blocks go; so does a last one that is cleared to the end of the file."""
        end = offset + length
        if offset < self.size:
            self._clear(offset, min(end, self.size))
        last = -(-end // BLOCK) if end >= self.size else end // BLOCK
        self.blocks = {b for b in self.blocks if not -(-offset // BLOCK) <= b < last}

    def allocate(self, offset: int, length: int, *, keep_size: bool) -> None:
        self.blocks.update(range(offset // BLOCK, -(-(offset + length) // BLOCK)))
        if not keep_size:
            self.size = max(self.size, offset + length)

    def zero(self, offset: int, length: int, *, keep_size: bool) -> None:
        if offset < self.size:
            self._clear(offset, min(offset + length, self.size))
        self.allocate(offset, length, keep_size=keep_size)

    def all_zero(self, offset: int, end: int) -> bool:
        """Whether a range is zeros (what lies behind the end is)."""
        first, last = offset // PAGE, -(-end // PAGE)
        inside = range(first, last) if last - first < len(self.pages) else [i for i in self.pages if first <= i < last]
        for i in inside:
            page = self.pages.get(i)
            if page is not None:
                low, high = max(offset - i * PAGE, 0), min(end - i * PAGE, PAGE)
                if any(page[low:high]):
                    return False
        return True
