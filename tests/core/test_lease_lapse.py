"""A lease that runs out for a moment, because the storage stalled, costs time and nothing else."""

from __future__ import annotations

import math
import os
import threading

import pytest

from tests.core.ramhost import BLOCK, CONTEXT, RamHost, RamVolume
from vmfs.errors import VmfsError
from vmfs.fuse.contract import ROOT_ID, SetAttr
from vmfs.ondisk.lock import Guards

STALL = r"the lease has run out|lease is valid again"


def _lapse(host: RamHost) -> None:
    """As after a stall: the next heartbeat, at most 0.2 s later, brings the lease back."""
    host.volume.membership.lease_deadline = -math.inf


@pytest.mark.expected_log(STALL)
def test_a_commit_waits_for_the_lease(ram: RamVolume) -> None:
    host = ram.host("esx1")
    node, fh = host.create("disk")
    host.write(fh, 0, b"\1" * BLOCK)
    _lapse(host)
    host.fs.fsync(CONTEXT, node, fh, False)
    host.close(node, fh)
    host.fs.mkdir(CONTEXT, ROOT_ID, b"later", 0o755)
    assert host.core.transactions.failure is None


@pytest.mark.expected_log(rf"{STALL}|mount failed")
def test_a_mount_that_is_abandoned_waits_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    host = RamVolume().host("esx1")
    node, fh = host.create("disk")
    host.write(fh, 0, b"\1" * BLOCK)
    ended: list[BaseException] = []

    def sync() -> None:
        try:
            host.fs.fsync(CONTEXT, node, fh, False)
        except VmfsError as error:
            ended.append(error)

    monkeypatch.setattr(host.volume.membership, "_extend_lease", lambda keeper: None)
    _lapse(host)
    thread = threading.Thread(target=sync)
    thread.start()
    thread.join(0.1)
    assert thread.is_alive()
    host.volume.abandon()
    thread.join(5)
    assert not thread.is_alive()
    assert ended


@pytest.mark.expected_log(STALL)
def test_reads_and_writes_wait_for_the_lease(ram: RamVolume) -> None:
    host = ram.host("esx1")
    node, fh = host.create("disk")
    host.write(fh, 0, b"\1" * BLOCK)
    for lapse in (True, False):
        if lapse:
            _lapse(host)
        host.write(fh, 4096, b"\2" * 4096)  # in place
        if lapse:
            _lapse(host)
        assert host.read(fh, 0, 8192) == b"\1" * 4096 + b"\2" * 4096
        if lapse:
            _lapse(host)
        host.write(fh, 3 * BLOCK, b"\3" * 512)  # a block of its own
    host.close(node, fh)
    reader = host.open(node, os.O_RDONLY)
    _lapse(host)
    assert host.read(reader, 3 * BLOCK, 512) == b"\3" * 512
    host.close(node, reader)


@pytest.mark.expected_log(STALL)
def test_operations_on_names_and_attributes_wait_for_the_lease(ram: RamVolume) -> None:
    """As reads and writes do: a stall of the storage costs time and fails nothing."""
    host, other = ram.host("esx1"), ram.host("esx2")
    node, fh = host.create("disk")
    host.write(fh, 0, b"\1" * (2 * BLOCK))
    host.close(node, fh)
    directory = host.fs.mkdir(CONTEXT, ROOT_ID, b"folder", 0o755).nodeid
    host.core.transactions.settle()
    operations = (
        lambda: host.fs.mknod(CONTEXT, directory, b"made", 0o100644, 0),
        lambda: host.fs.link(CONTEXT, node, directory, b"linked"),
        lambda: host.fs.rename(CONTEXT, directory, b"linked", ROOT_ID, b"renamed", 0),
        lambda: host.fs.unlink(CONTEXT, ROOT_ID, b"renamed"),
        lambda: host.fs.setattr(CONTEXT, node, None, SetAttr(mode=0o600)),
        lambda: host.fs.setattr(CONTEXT, node, None, SetAttr(size=BLOCK + 100)),
        lambda: host.fs.setxattr(CONTEXT, node, b"user.a", b"b", 0),
        lambda: host.close(*host.create("new")),
        lambda: host.clone(node, "clone"),
        lambda: other.fs.lookup(CONTEXT, ROOT_ID, b"clone"),
        lambda: other.fs.unlink(CONTEXT, ROOT_ID, b"clone"),
        lambda: host.fs.statfs(CONTEXT, ROOT_ID),
    )
    for operation in operations:
        for each in (host, other):
            for tenure in each.core.locks.all_held():  # what is held needs no lease to be used again
                if tenure.guards is Guards.INODE:
                    each.core.locks.release(tenure.address)
        _lapse(host)
        _lapse(other)
        operation()
