"""Packing directory entries into the kernel's buffer: as many as fit, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from vmfs.fuse.contract import DirEntry


def pack_listing(
    entries: Iterable[DirEntry], size: int, encode: Callable[[DirEntry], bytes]
) -> tuple[bytes, DirEntry | None]:
    """Encode entries until `size` bytes are full; close a lazy iterator then.

    Returns the bytes, and the entry that was taken but did not fit (the kernel asks for it again by its
    predecessor's cookie), or None. Empty bytes mean the directory's end to the kernel.
    """
    records: list[bytes] = []
    room = size
    iterator: Iterator[DirEntry] = iter(entries)
    try:
        for entry in iterator:
            record = encode(entry)
            if len(record) > room:
                return b"".join(records), entry
            records.append(record)
            room -= len(record)
        return b"".join(records), None
    finally:
        close = getattr(iterator, "close", None)
        if close is not None:
            close()
