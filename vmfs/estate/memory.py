"""Making the memory of an estate: all that the supervisor needs to know of it."""

from __future__ import annotations

import os
from typing import Final

MAGIC: Final = int.from_bytes(b"AZESTATE", "little")
VERSION: Final = 1
WORD: Final = 8
AREA_BYTES: Final = 16 << 20  # full, it forces a commit: 3,000 operations of a few blocks each
AREAS_AT: Final = 4 << 20
SIZE_BYTES: Final = AREAS_AT + 2 * AREA_BYTES


def create_memory() -> int:
    """A memfd with an empty estate in it; close-on-exec. Pages cost memory from their first use."""
    fd = os.memfd_create("azekura-estate", os.MFD_CLOEXEC)
    os.truncate(fd, SIZE_BYTES)
    os.pwrite(fd, MAGIC.to_bytes(WORD, "little") + VERSION.to_bytes(WORD, "little"), 0)
    return fd
