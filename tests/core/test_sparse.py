"""Files with much room between their blocks."""

from __future__ import annotations

import os
import time

import pytest

from tests.core.ramhost import BLOCK, CONTEXT, RamHost, RamVolume
from vmfs.fuse.contract import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE
from vmfs.ondisk.node import POINTERS_PER_NODE

STRIDE = POINTERS_PER_NODE * BLOCK
BLOCKS = 300  # each in a leaf of its own: more leaves than a transaction holds


def _sparse(host: RamHost) -> tuple[int, int]:
    node, fh = host.create("sparse")
    for i in range(BLOCKS):
        host.write(fh, i * STRIDE, b"\1" * 4096)
    return node, fh


@pytest.mark.parametrize("mode", [FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, FALLOC_FL_ZERO_RANGE])
@pytest.mark.parametrize("cloned", [False, True])
def test_a_range_with_blocks_far_apart_is_cleared(mode: int, cloned: bool) -> None:
    ram = RamVolume(128 << 20)
    try:
        host = ram.host("esx1")
        node, fh = _sparse(host)
        if cloned:
            host.clone(node, "copy")
        length = BLOCKS * STRIDE if mode & FALLOC_FL_PUNCH_HOLE else 2 * STRIDE
        began = time.monotonic()
        host.fs.fallocate(CONTEXT, node, fh, mode, 0, length)
        assert time.monotonic() - began < 10
        host.fs.fsync(CONTEXT, node, fh, False)
        for i in range(length // STRIDE):
            assert not any(host.read(fh, i * STRIDE, 4096))
        if cloned:
            copy = host.fs.lookup(CONTEXT, 1, b"copy").nodeid
            reader = host.open(copy, os.O_RDONLY)
            assert host.read(reader, 7 * STRIDE, 4096) == b"\1" * 4096
            host.close(copy, reader)
        host.close(node, fh)
        ram.leave_all()
        ram.check()
    finally:
        ram.abandon_all()
