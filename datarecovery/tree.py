"""The ids of a disk's chunks, as a tree of pages, so that a restore point costs only what differs from the one before.

A page is up to 256 ids of 32 bytes, one after the other (record.py, kind 2). A page of level 1 holds ids of chunks, in
order of their place on the disk; a page of level n holds ids of pages of level n - 1. The one page of the highest level
is the root; there are as few levels as the number of chunks needs, at least 1. A page is full but where the disk ends.
The id of all zero bits stands for a chunk, or for a whole page, of zeros. Equal pages have equal ids and are stored
once: two restore points share what they have in common, and equal roots (of disks of one size) mean equal disks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from datarecovery.errors import DamagedRecordError
from datarecovery.store.record import ID_BYTES, KIND_PAGE, ZERO_ID, Buffer, identity

FANOUT_SHIFT = 8
FANOUT = 1 << FANOUT_SHIFT

PutPage = Callable[[bytes, bytes], None]
GetPage = Callable[[bytes], Buffer]


def levels_for(chunks: int) -> int:
    """How many levels of pages a disk of so many chunks has."""
    levels = 1
    while chunks > 1 << FANOUT_SHIFT * levels:
        levels += 1
    return levels


def _ceil_shift(value: int, shift: int) -> int:
    return -(-value >> shift)


def pages_at(chunks: int, level: int) -> int:
    """How many pages a level has."""
    return max(1, _ceil_shift(chunks, FANOUT_SHIFT * level))


def _entries(chunks: int, level: int, number: int) -> int:
    """How many ids page `number` of a level holds."""
    below = chunks if level == 1 else pages_at(chunks, level - 1)
    return min(FANOUT, below - number * FANOUT)


def split(page: Buffer) -> list[bytes]:
    """The ids of a page."""
    raw = bytes(page)
    return [raw[at : at + ID_BYTES] for at in range(0, len(raw), ID_BYTES)]


class TreeReader:
    """Reads the tree of one disk. Pages are checked: right id (by the store) and right length (here)."""

    def __init__(self, get_page: GetPage, root: bytes, levels: int, chunks: int) -> None:
        """Raises DamagedRecordError when the number of levels does not fit the number of chunks."""
        if levels != levels_for(chunks):
            raise DamagedRecordError(f"a tree of {levels} levels does not fit a disk of {chunks} chunks")
        self._get = get_page
        self._root = root
        self._levels = levels
        self.chunks = chunks
        self.leaves = pages_at(chunks, 1)

    def ids(self, page_id: bytes, level: int, number: int) -> list[bytes] | None:
        """The ids in a page of a level; None for a page of zeros. Raises DamagedError."""
        if page_id == ZERO_ID:
            return None
        ids = split(self._get(page_id))
        if len(ids) != _entries(self.chunks, level, number):
            raise DamagedRecordError(f"page of ids {page_id.hex()} holds {len(ids)} ids, not those of its place")
        return ids

    def entries(self, level: int, number: int) -> int:
        """How many ids page `number` of a level holds."""
        return _entries(self.chunks, level, number)

    def leaf_ids(self) -> Iterator[bytes]:
        """The ids of the leaves, in order; those beneath a page of zeros come as the zero id. Raises DamagedError."""
        yield from self._walk(self._root, self._levels, 0)

    def _walk(self, page_id: bytes, level: int, number: int) -> Iterator[bytes]:
        if level == 1:
            yield page_id
            return
        ids = self.ids(page_id, level, number)
        if ids is None:
            shift = FANOUT_SHIFT * (level - 1)
            first = number << shift
            for _ in range(min(self.leaves, first + (1 << shift)) - first):
                yield ZERO_ID
            return
        for at, child in enumerate(ids):
            yield from self._walk(child, level - 1, (number << FANOUT_SHIFT) + at)

    def leaf(self, number: int, leaf_id: bytes) -> list[bytes]:
        """The chunk ids of a leaf. Raises DamagedError."""
        ids = self.ids(leaf_id, 1, number)
        return [ZERO_ID] * _entries(self.chunks, 1, number) if ids is None else ids


class TreeBuilder:
    """Builds a tree from its leaves in order; holds one open page a level."""

    def __init__(self, put_page: PutPage) -> None:
        self._put = put_page
        self._open: list[list[bytes]] = []

    def page(self, ids: list[bytes]) -> bytes:
        """Store a page, unless it is all zeros; its id."""
        if not any(one != ZERO_ID for one in ids):
            return ZERO_ID
        raw = b"".join(ids)
        page_id = identity(KIND_PAGE, raw)
        self._put(page_id, raw)
        return page_id

    def add_leaf(self, leaf_id: bytes) -> None:
        """The next leaf: the result of `page`, or that of the restore point before."""
        self._add(0, leaf_id)

    def _add(self, depth: int, page_id: bytes) -> None:
        if depth == len(self._open):
            self._open.append([])
        elif len(self._open[depth]) == FANOUT:
            self._add(depth + 1, self.page(self._open[depth]))
            self._open[depth] = []
        self._open[depth].append(page_id)

    def finish(self) -> tuple[bytes, int]:
        """The root's id and the number of levels. At least one leaf was added."""
        depth = 0
        while True:
            ids = self._open[depth]
            if depth + 1 == len(self._open) and len(ids) == 1:
                return ids[0], depth + 1
            self._add(depth + 1, self.page(ids))
            depth += 1
