"""Files that lost their last name."""

from __future__ import annotations

import os
from errno import ESTALE

import pytest

from tests.core.ramhost import BLOCK, CONTEXT, RamVolume
from vmfs.fuse.contract import ROOT_ID, SetAttr


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR])
def test_a_file_that_is_being_removed_is_not_opened_again(ram: RamVolume, flags: int) -> None:
    host = ram.host("esx1")
    node, fh = host.create("file")
    host.write(fh, 0, b"\1" * BLOCK)
    host.fs.unlink(CONTEXT, ROOT_ID, b"file")
    again = host.open(node, flags)  # through /proc, say: it is still open
    assert host.read(again, 0, BLOCK) == b"\1" * BLOCK
    with host.volume.reaper._working:
        host.close(node, again)
        host.close(node, fh)
        with pytest.raises(OSError, match="no longer that file") as told:
            host.open(node, flags)
        assert told.value.errno == ESTALE
        with pytest.raises(OSError, match="no longer that file"):
            host.fs.setattr(CONTEXT, node, None, SetAttr(size=1))
