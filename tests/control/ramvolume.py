"""A `VolumeService` over the file system in memory of tests/fuse, and the process that serves both for real.

It keeps the contract's promises (clones are copies, diffs compare pages, a busy volume is not unmounted); only its
hosts are made up.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Sequence
from uuid import UUID

from tests.fuse.ramfs import CAPACITY_PAGES, PAGE, RamFs, fail
from vmfs.control.contract import (
    CONTROL_XATTR,
    STATE_SERVING,
    DeviceInfo,
    HostInfo,
    JournalInfo,
    KernelFacts,
    LockInfo,
    MountFacts,
    MountOptions,
    RecoveryPlan,
    RecoveryReport,
    Timers,
    VolumeFacts,
    VolumeInfo,
)
from vmfs.control.server import ControlServer
from vmfs.errors import DeviceNotUsable, HandOverFailed, SlotNotDead
from vmfs.fuse.contract import ROOT_ID, Context, Negotiated
from vmfs.fuse.mount import mount, unmount
from vmfs.fuse.session import Session

VOLUME_UUID = UUID("11111111-2222-3333-4444-555555555555")
HOST_UUID = UUID("66666666-7777-8888-9999-aaaaaaaaaaaa")
BOOT_ID = UUID("bbbbbbbb-cccc-dddd-eeee-ffffffffffff")


class RamVolume:
    """Files of a RamFs, under its own lock."""

    def __init__(self, fs: RamFs, mountpoint: str, host: str = "esx1", label: str = "ram1") -> None:
        self.fs = fs
        self.mountpoint = mountpoint
        self.host = host
        self.label = label
        self.since_ns = time.time_ns()

    def info(self) -> VolumeInfo:
        with self.fs.lock:
            used = sum(len(n.pages) for n in self.fs.nodes.values())
        timers = Timers(3.0, 16.0, 2.0, 20.0, 5.0, 6.0, 10_000)
        device = DeviceInfo("/dev/ram-lun", 0, CAPACITY_PAGES * PAGE, 512)
        volume = VolumeFacts(
            self.label, VOLUME_UUID, 1, 0, 0, 0, self.since_ns, 65536, 64, "OFD_FILE", "one process",
            "no storage fencing", timers, (device,),
        )  # fmt: skip
        kernel = KernelFacts(7, 40, 1 << 20, ("async_read", "readdirplus"))
        mounted = MountFacts(
            self.mountpoint, self.host, 0, 7, os.getpid(), STATE_SERVING, 12.5, False, self.since_ns, kernel
        )
        return VolumeInfo(volume, mounted, CAPACITY_PAGES * PAGE, (CAPACITY_PAGES - used) * PAGE)

    def hosts(self) -> Sequence[HostInfo]:
        return [
            HostInfo(0, self.host, HOST_UUID, BOOT_ID, os.getpid(), "live", 7, 1.25, True),
            HostInfo(3, "esx2", HOST_UUID, BOOT_ID, 4711, "dead", 2, None),
        ]

    def recovery_plan(self, slot: int) -> RecoveryPlan:
        journal = JournalInfo(2, (("inode", 1),), (17,), 1, ())
        return RecoveryPlan(self.hosts()[1], "dead", None, journal)

    def recover(self, slot: int, incarnation: int, *, declare_dead: bool, discard_journal: bool) -> RecoveryReport:
        if incarnation != self.hosts()[1].incarnation:
            raise SlotNotDead(self.label, slot, "it has changed since you looked")
        return RecoveryReport(slot, "esx2", incarnation, None if discard_journal else 2, None, 1, 0.5)

    def hand_over(self, inode: int, host: str, wait_seconds: float) -> float:
        raise HandOverFailed(f"inode {inode}", f"no host {host!r} within {wait_seconds:g} s")

    def accept(self, inode: int, wait_seconds: float) -> None:
        raise HandOverFailed(f"inode {inode}", "no host has it")

    def locks(self, inode: int | None = None) -> Sequence[LockInfo]:
        with self.fs.lock:
            if inode is not None and inode not in self.fs.nodes:
                raise fail(errno.ENOENT)
            found = []
            for node in self.fs.nodes.values():
                if inode == node.ino or (inode is None and node.opens and stat.S_ISREG(node.mode)):
                    mode = "exclusive" if node.opens else "free"
                    holders = (self.host,) if node.opens else ()
                    what = "directory" if stat.S_ISDIR(node.mode) else "file"
                    found.append(LockInfo(what, node.ino, None, mode, holders, 5, node.opens))
            return found

    def clone(self, source: int, parent: int, name: bytes, uid: int, gid: int) -> int:
        fs = self.fs
        with fs.lock:
            if source not in fs.nodes or parent not in fs.nodes:
                raise fail(errno.ENOENT)
            old = fs.nodes[source]
            if not stat.S_ISREG(old.mode):
                raise fail(errno.EINVAL)
            fs._absent(parent, name)
            new = fs._new(old.mode, Context(uid, gid, 0), parent)
            new.size = old.size
            new.pages = {n: bytearray(p) for n, p in old.pages.items()}
            fs.nodes[parent].children[name] = new.ino
            return new.ino

    def diff(self, old: int, new: int) -> Sequence[tuple[int, int]]:
        with self.fs.lock:
            if old not in self.fs.nodes or new not in self.fs.nodes:
                raise fail(errno.ENOENT)
            a, b = self.fs.nodes[old], self.fs.nodes[new]
            ranges: list[tuple[int, int]] = []
            for number in range((b.size + PAGE - 1) // PAGE):
                if a.pages.get(number) == b.pages.get(number):
                    continue
                start, end = number * PAGE, min((number + 1) * PAGE, b.size)
                if ranges and sum(ranges[-1]) == start:
                    start, _ = ranges.pop()
                ranges.append((start, end - start))
            return ranges

    def request_unmount(self) -> None:
        with self.fs.lock:
            if any(n.opens for n in self.fs.nodes.values() if stat.S_ISREG(n.mode)):
                raise fail(errno.EBUSY)
        threading.Thread(target=unmount, args=(self.mountpoint,), name="unmount").start()


def publish(fs: RamFs, server: ControlServer) -> None:
    """Have the root name the socket, as a volume's root does."""
    fs.nodes[ROOT_ID].xattrs[CONTROL_XATTR.encode()] = os.fsencode(server.path)


def serve_ram(options: MountOptions, ready: Callable[[], None], *, directory: str) -> int:
    """A `Serve`: mounts a RamFs, with the control sockets in `directory`.

    The "device" says what shall go wrong: "missing" (a VmfsError), "broken" (any other exception), "dies".
    """
    if "missing" in options.devices:
        raise DeviceNotUsable("missing", "there is no such file or block device")
    if "broken" in options.devices:
        raise RuntimeError("planted")
    if "dies" in options.devices:
        os._exit(9)
    if "slow" in options.devices:
        time.sleep(60)
    fs = RamFs()
    session = Session(mount(options.mountpoint, "ram1"), fs, fs, name="ram")
    agreed: Negotiated = session.start()
    assert agreed.major == 7
    server = ControlServer(RamVolume(fs, options.mountpoint, options.host), directory=directory)
    server.start()
    publish(fs, server)
    ready()
    session.wait()
    server.close()
    return 0
