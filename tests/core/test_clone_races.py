"""Clones that are made while the source is opened, written and cloned by others of this host."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.core.ramhost import BLOCK, CONTEXT, RamHost, RamVolume
from vmfs.core.inodes import Inodes, Seen
from vmfs.core.nodeids import number_of
from vmfs.core.space import Space
from vmfs.fuse.contract import ROOT_ID

OLD, NEW = b"\1" * BLOCK, b"\2" * BLOCK


def _content(host: RamHost, node: int, length: int = BLOCK) -> bytes:
    fh = host.open(node, os.O_RDONLY)
    found = host.read(fh, 0, length)
    host.close(node, fh)
    return found


def test_a_file_that_is_opened_while_it_is_cloned(ram: RamVolume, monkeypatch: pytest.MonkeyPatch) -> None:
    host = ram.host("esx1")
    node, fh = host.create("source")
    host.write(fh, 0, OLD)
    host.close(node, fh)
    opened: list[int] = []
    run = Space.run

    def open_first(space: Space, action: Callable[..., Any], **options: int) -> Any:
        if not opened and "Cloner.clone" in repr(action):
            opened.append(host.open(node))
            assert host.read(opened[0], 0, BLOCK) == OLD
        return run(space, action, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Space, "run", open_first)
        copy = host.clone(node, "copy")
    host.write(opened[0], 0, NEW)
    host.close(node, opened[0])
    assert _content(host, copy) == OLD
    assert _content(host, node) == NEW


def test_one_file_cloned_by_two_at_once(ram: RamVolume, monkeypatch: pytest.MonkeyPatch) -> None:
    host = ram.host("esx1")
    node, fh = host.create("source")
    host.write(fh, 0, OLD)
    others: list[threading.Thread] = []
    look = Inodes.look

    def clone_meanwhile(inodes: Inodes, number: int, *, fresh: bool = False) -> Seen:
        seen = look(inodes, number, fresh=fresh)
        if not others and number == number_of(node):
            others.append(threading.Thread(target=host.clone, args=(node, "second")))
            others[0].start()
            others[0].join(0.3)
            time.sleep(0.1)  # its idle locks are given up
        return seen

    with monkeypatch.context() as patch:
        patch.setattr(Inodes, "look", clone_meanwhile)
        host.clone(node, "first")
    others[0].join()
    host.core.transactions.settle()
    host.write(fh, 0, NEW)
    for name in (b"first", b"second"):
        assert _content(host, host.fs.lookup(CONTEXT, ROOT_ID, name).nodeid) == OLD
    host.close(node, fh)
