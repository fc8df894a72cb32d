"""What a mount answers over its control socket."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from errno import EBUSY, EOPNOTSUPP
from typing import Final

from vmfs.cluster.locktable import Tenure
from vmfs.control.contract import (
    STATE_FAILED,
    STATE_LEASE_LOST,
    STATE_SERVING,
    HostInfo,
    KernelFacts,
    LockInfo,
    MountFacts,
    RecoveryPlan,
    RecoveryReport,
    VolumeInfo,
)
from vmfs.core.deadhosts import DeadHosts
from vmfs.core.fencing import fencing_in_use, lease_text
from vmfs.core.layers import Cloner
from vmfs.core.openfile import OpenFiles
from vmfs.core.operations import FileSystem
from vmfs.core.space import Space
from vmfs.core.state import Core
from vmfs.errors import DamagedBlock
from vmfs.estate.link import Link
from vmfs.facts import host_info, volume_facts
from vmfs.fuse import mount as kernel
from vmfs.fuse.contract import Negotiated
from vmfs.fuse.errors import MountBusy
from vmfs.geometry import Geometry
from vmfs.ondisk.inode import inode_address
from vmfs.ondisk.lock import Guards, Holder, LockMode, LockRecord, parse_lock
from vmfs.ondisk.slot import SlotState

RESTART_SECONDS: Final = 0.05  # for an answer to leave
LOCK_RUN_MAX: Final = 64  # lock blocks in one read
_GROUPS_LOOKED_AT_MAX: Final = 4096  # 16 MiB of lock blocks: a tenth of a second


class Service:
    """Implements `vmfs.control.contract.VolumeService`."""

    def __init__(
        self, core: Core, files: OpenFiles, space: Space, cloner: Cloner, filesystem: FileSystem, mountpoint: str,
        dead_hosts: DeadHosts, link: Link | None = None,
    ) -> None:  # fmt: skip
        self._core = core
        self._files = files
        self._space = space
        self._cloner = cloner
        self._filesystem = filesystem
        self._mountpoint = mountpoint
        self._dead_hosts = dead_hosts
        self._link = link
        self._since_ns = core.clock.wall_ns()

    def info(self) -> VolumeInfo:
        """The volume and this mount of it."""
        core = self._core
        extents = core.volume.extents
        devices = [extents.device(i) for i in range(len(extents))]
        # Without a lease the storage may not answer, and how the lease stands is what one wants to know then.
        has_lease = core.membership.lease_valid(core.clock.now())
        free = self._space.free_blocks() if has_lease else self._space.free_blocks_seen()
        return VolumeInfo(
            volume_facts(core.volume.superblock, devices, core.lock_proof),
            self._mount_facts(),
            core.geometry.total_blocks() * core.block_bytes,
            free * core.block_bytes,
        )

    def _mount_facts(self) -> MountFacts:
        core = self._core
        now = core.clock.now()
        state = STATE_SERVING
        if core.transactions.failure is not None:
            state = f"{STATE_FAILED}: {core.transactions.failure}"
        elif not core.membership.lease_valid(now):
            state = STATE_LEASE_LOST
        holder = core.membership.holder
        agreed = self._filesystem.negotiated
        assert agreed is not None, "the control socket opens after INIT"
        return MountFacts(
            self._mountpoint, core.membership.identity.name, holder.slot, holder.incarnation, os.getpid(), state,
            max(0.0, core.membership.lease_deadline - now), core.read_only, self._since_ns, _kernel_facts(agreed),
            fencing_in_use(core.volume, core.membership.standing.fence, core.membership.identity, core.watchdogs),
            lease_text(core.membership, now),
            self._link.supervisor if self._link is not None else 0,
            self._link.estate.takeovers if self._link is not None else 0,
        )  # fmt: skip

    @property
    def can_be_taken_over(self) -> bool:
        """Whether the kernel can send requests again that this process has read and not answered."""
        agreed = self._filesystem.negotiated
        return agreed is not None and agreed.resend

    def restart(self) -> None:
        """Give way to a new process. OSError(EOPNOTSUPP) when nobody would start one, or the kernel is too old."""
        link = self._link
        if link is None:
            raise OSError(EOPNOTSUPP, "this mount has no supervisor: unmount it, and mount it again")
        if not self.can_be_taken_over:
            raise OSError(EOPNOTSUPP, "this needs Linux 6.9 or later: unmount it, and mount it again")
        self._core.transactions.settle()  # so that little is left to be replayed
        link.restart()
        # As a crash ends it: whatever is under way is sent again. The answer to whoever asked goes out first.
        ending = threading.Timer(RESTART_SECONDS, os._exit, (0,))
        ending.daemon = True
        ending.start()

    def hosts(self) -> Sequence[HostInfo]:
        """The slots in use, read afresh: the last heartbeat's look may be older than a host that has just mounted."""
        core = self._core
        snapshot = core.membership.region.read_all()
        names = [""] * core.volume.superblock.max_hosts
        for record in snapshot.records:
            names[record.slot] = record.host_name
        now = core.clock.now()
        held = self._group_locks()
        return [
            host_info(
                view.record, names, here=core.membership.identity,
                unchanged_seconds=core.membership.watcher.silent_for(view, now),
                is_self=view.slot == core.membership.holder.slot,
                groups_held=None if held is None else held[view.record.holder],
            )
            for view in snapshot.views
            if view.record is not None and view.record.state is not SlotState.FREE
        ]  # fmt: skip

    def _group_locks(self) -> Counter[Holder] | None:
        """How many groups of blocks each incarnation holds; None where the volume has too many to look at them all."""
        core = self._core
        geometry, sb = core.geometry, core.volume.superblock
        if geometry.group_count > _GROUPS_LOOKED_AT_MAX:
            return None
        held: Counter[Holder] = Counter()
        for first, count in lock_runs(geometry, sb.lock_block_bytes):
            images = core.membership.region.registers.look_many(first, sb.lock_block_bytes, count)
            for i, image in enumerate(images):
                with suppress(DamagedBlock):
                    if isinstance(image, bytes):
                        record = parse_lock(image, first + i * sb.lock_block_bytes, core.volume.prefix)
                        held.update(record.all_holders)
        return held

    def locks(self, inode: int | None = None) -> Sequence[LockInfo]:
        """The locks that this host holds; of one inode, its lock wherever it is held."""
        core = self._core
        if inode is not None:
            return [self._lock_of(inode)]
        return [self._held(t) for t in sorted(core.locks.all_held(), key=lambda t: t.address)]

    def _lock_of(self, number: int) -> LockInfo:
        core = self._core
        core.geometry.check_inode(number)
        view = core.locks.holders(core.geometry.inode_lock_address(number))
        names = tuple(
            name for name, holder in zip(view.names, view.record.all_holders, strict=True) if holder not in view.void
        )
        mode = _mode_name(view.record) if names else "free"
        return LockInfo(self._what(number), number, None, mode, names, view.record.version, *self._use(number))

    def _use(self, number: int) -> tuple[int, int]:
        file = self._files.table.get(number)
        return (file.handles, file.writers) if file is not None else (0, 0)

    def _what(self, number: int) -> str:
        with self._core.transactions.mutex:
            obj = self._core.store.peek(inode_address(number))
        inode = getattr(obj, "inode", None)
        if inode is None:
            return "file"
        return "layer" if inode.is_layer else "directory" if inode.is_directory else "file"

    def _held(self, tenure: Tenure) -> LockInfo:
        core = self._core
        mode = tenure.mode.name.lower().replace("_", "-")
        holders = (core.membership.identity.name,)
        if tenure.guards is Guards.INODE:
            number = (tenure.address + core.volume.superblock.lock_block_bytes) >> 12
            return LockInfo(self._what(number), number, None, mode, holders, tenure.version, *self._use(number))
        what = tenure.guards.name.lower().replace("_", " ")
        for index in core.groups.held:
            if core.geometry.group_lock_address(index) == tenure.address:
                what = f"group {index}"
        return LockInfo(what, None, None, mode, holders, tenure.version)

    def clone(self, source: int, parent: int, name: bytes, uid: int, gid: int) -> int:
        """Clone a file."""
        return self._cloner.clone(source, parent, name, uid, gid)

    def diff(self, old: int, new: int) -> Sequence[tuple[int, int]]:
        """Where two clones of one file differ."""
        return self._cloner.diff(old, new)

    def hand_over(self, inode: int, host: str, wait_seconds: float) -> float:
        """Give a file that is open for writing here to another host."""
        return self._filesystem.hand_overs.hand_over(inode, host, wait_seconds)

    def accept(self, inode: int, wait_seconds: float) -> None:
        """Wait for another host to hand a file over to this one; with 0 seconds: wait for it no more."""
        if wait_seconds:
            self._filesystem.hand_overs.accept(inode, wait_seconds)
        else:
            self._filesystem.hand_overs.cancel(inode)

    def recovery_plan(self, slot: int) -> RecoveryPlan:
        """What the recovery of a slot is about."""
        return self._dead_hosts.plan(slot)

    def recover(self, slot: int, incarnation: int, *, declare_dead: bool, discard_journal: bool) -> RecoveryReport:
        """Recover a slot by an operator's order."""
        return self._dead_hosts.recover(
            slot, incarnation, declare_dead=declare_dead, discard_journal=discard_journal
        )

    def request_unmount(self) -> None:
        """Begin to unmount. OSError(EBUSY) when files are open."""
        try:
            kernel.unmount(self._mountpoint)
        except MountBusy as error:
            raise OSError(EBUSY, str(error)) from error


def lock_runs(geometry: Geometry, stride: int) -> Iterator[tuple[int, int]]:
    """The tables of group locks, as (address, count) runs of at most LOCK_RUN_MAX."""
    first, count = geometry.group_lock_address(0), 0
    for index in range(geometry.group_count):
        address = geometry.group_lock_address(index)
        if address != first + count * stride or count == LOCK_RUN_MAX:
            yield first, count
            first, count = address, 0
        count += 1
    yield first, count


def _mode_name(record: LockRecord) -> str:
    return "free" if record.mode is LockMode.FREE else record.mode.name.lower().replace("_", "-")


def _kernel_facts(agreed: Negotiated) -> KernelFacts:
    names = (
        "async_read", "atomic_o_trunc", "export_support", "big_writes", "auto_inval_data", "readdirplus",
        "readdirplus_auto", "async_dio", "parallel_dirops", "max_pages", "killpriv_v2", "abort_error",
        "setxattr_ext", "init_ext", "direct_io_allow_mmap", "resend",
    )  # fmt: skip
    on = tuple(n for n in names if getattr(agreed, n))
    return KernelFacts(agreed.major, agreed.minor, agreed.max_write_bytes, on)

