"""Sizes: what a failed truncation leaves, and what is read around the ends of files."""

from __future__ import annotations

from errno import ENOSPC

import pytest

from tests.core.ramhost import BLOCK, CONTEXT, RamVolume
from vmfs.core.reaper import Reaper
from vmfs.fuse.contract import SetAttr


def test_a_truncation_that_fails_changes_no_size(ram: RamVolume, monkeypatch: pytest.MonkeyPatch) -> None:
    host = ram.host("esx1")
    node, fh = host.create("file")
    host.write(fh, 0, b"\1" * (2 * BLOCK))

    def full(*_: object) -> None:
        raise OSError(ENOSPC, "the list of removals is full")

    with monkeypatch.context() as patch:
        patch.setattr(Reaper, "add", full)
        with pytest.raises(OSError, match="full"):
            host.fs.setattr(CONTEXT, node, fh, SetAttr(size=BLOCK))
    assert host.fs.getattr(CONTEXT, node, fh).attr.size == 2 * BLOCK
    assert host.read(fh, BLOCK, BLOCK) == b"\1" * BLOCK
    host.close(node, fh)
