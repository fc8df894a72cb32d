"""What a mounted volume answers over its control socket, and what the mount's process is told at its start.

Both Protocols are implemented by the file system (`vmfs.core`); the server, the command line and the tests know only
these. Records are frozen and carry plain values: each crosses the socket as JSON (`vmfs.control.protocol`).

Sizes and offsets are bytes, durations seconds. File names are bytes, paths text as `os.fsdecode` gives it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol
from uuid import UUID

CONTROL_XATTR: Final = "user.azekura.control"
"""Extended attribute of a mount's root directory: the control socket's path, in the encoding of file names."""

DATA_THREADS: Final = 8
"""Measured: more threads only wait for each other's interpreter lock."""

STATE_SERVING: Final = "serving"
STATE_LEASE_LOST: Final = "lease lost"
STATE_FAILED: Final = "failed"
"""Followed by ": " and the reason."""


@dataclass(frozen=True, slots=True)
class MountOptions:
    """How the mount's process mounts: what `vmfsctl mount` was told, with the defaults filled in."""

    devices: tuple[str, ...]
    """The volume's extents, in any order: paths, absolute where they are files."""
    mountpoint: str
    """Absolute: the process works in /."""
    host: str
    """The name that this mount has among the volume's hosts."""
    boot_id: UUID | None = None
    """None: this machine's own. Another one makes a simulated host on one machine count as a machine of its own."""
    read_only: bool = False
    allow_other: bool = True
    init_mask: int = 0
    """FUSE INIT flags (flags2 in bits 32 to 63) that are not taken from the kernel's offer, to try the fall-backs."""
    in_flight_s: float | None = None
    """How long a write of this host may stay on its way to the storage (F of A1); None: what the devices say."""
    watchdog: str | None = None
    """A watchdog device that resets this machine when the lease is gone."""
    credentials: str | None = None
    """The file with iSCSI's secrets; None: the default one, if it is there."""
    data_threads: int = DATA_THREADS
    """Threads that read and write files' data."""
    log_level: int = logging.INFO
    log_format: str = "text"
    """Or "json": a line of JSON a record."""
    metrics: str | None = None
    """[ADDR:]PORT at which metrics are served; None: nothing is counted."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Further `-o NAME=VALUE` options (a bare NAME has the value ""); one that is not known is refused."""


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """One extent of the volume as this host reaches it."""

    path: str
    extent: int
    size_bytes: int
    sector_bytes: int


@dataclass(frozen=True, slots=True)
class Timers:
    """The volume's timers in seconds, and the drift between two hosts' clocks that they allow, in parts per million."""

    heartbeat_seconds: float
    lease_seconds: float
    margin_seconds: float
    break_seconds: float
    validity_seconds: float
    quarantine_seconds: float
    drift_ppm: int


@dataclass(frozen=True, slots=True)
class VolumeFacts:
    """What a volume is: the same whoever looks."""

    label: str
    uuid: UUID
    format_version: int
    compat: int
    ro_compat: int
    incompat: int
    """Feature words of the superblock."""
    created_ns: int
    """Since the epoch."""
    block_bytes: int
    max_hosts: int
    lock_method: str
    lock_method_reason: str
    """Why the volume locks in this way, for people."""
    fencing: str
    """How a dead host is kept from writing: "no storage fencing", or by what."""
    timers: Timers
    devices: tuple[DeviceInfo, ...]


@dataclass(frozen=True, slots=True)
class KernelFacts:
    """What this mount's kernel and the FUSE adapter agreed on."""

    protocol_major: int
    protocol_minor: int
    max_write_bytes: int
    capabilities: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MountFacts:
    """This mount of the volume."""

    mountpoint: str
    host: str
    slot: int
    incarnation: int
    pid: int
    state: str
    """STATE_SERVING, STATE_LEASE_LOST, or STATE_FAILED + ": REASON"."""
    lease_remaining_seconds: float
    """Until this host must stop submitting; 0 when it has."""
    read_only: bool
    mounted_since_ns: int
    """Since the epoch."""
    kernel: KernelFacts
    fencing: str = ""
    """All that keeps a dead host from writing, here and now, for people."""
    lease: str = ""
    """How the lease stands: valid for how long, lapsed since when, or fenced by whom; for people."""
    supervisor: int = 0
    """Pid of the process that starts another one when this one dies; 0: there is none."""
    takeovers: int = 0
    """How many processes have served this mount before this one."""


@dataclass(frozen=True, slots=True)
class VolumeInfo:
    """`vmfsctl info` of a mount."""

    volume: VolumeFacts
    mount: MountFacts
    size_bytes: int
    """Of the space for file data."""
    free_bytes: int


@dataclass(frozen=True, slots=True)
class HostInfo:
    """One heartbeat slot that is not free."""

    slot: int
    name: str
    host_uuid: UUID
    boot_id: UUID
    pid: int
    state: str
    """As in the slot: "live", "recovering by HOST", "dead", "failed"..."""
    incarnation: int
    unchanged_seconds: float | None
    """Since its heartbeat was last seen to change, on this host's clock; None: not watched long enough to know."""
    is_self: bool = False
    recoverer: str | None = None
    """The host that recovers it now: its name, or "slot N"."""
    groups_held: int | None = None
    """Groups of blocks whose locks it holds; None: not looked at."""


@dataclass(frozen=True, slots=True)
class LockInfo:
    """One lock of a file, directory or group of blocks."""

    what: str
    """What it guards: "file", "directory", "layer", "group 3", "superblock"..."""
    inode: int | None
    """None: it guards no inode."""
    path: str | None
    """Below the mount point, from "/"; None where it is not known."""
    mode: str
    """"free", "exclusive", "shared", "multi-writer"."""
    holders: tuple[str, ...]
    """Names of the hosts that hold it; "slot N" where the name is not known any more."""
    version: int
    open_files: int = 0
    """How many open files of *this* mount use it."""
    pins: int = 0
    """How many operations of this mount use it besides."""


@dataclass(frozen=True, slots=True)
class JournalInfo:
    """What of a host is only in its journal and on its orphan list: lost when they are given up."""

    records: int
    """That can be read, each one transaction."""
    blocks: tuple[tuple[str, int], ...]
    """(kind of metadata block, how many blocks of it they change)."""
    inodes: tuple[int, ...]
    """Some of the inodes that they change, in order."""
    removals: int
    """Files whose removal or truncation is not finished."""
    problems: tuple[str, ...]
    """What cannot be read."""


@dataclass(frozen=True, slots=True)
class RecoveryPlan:
    """What the recovery of a slot is about. Nothing has been done yet."""

    host: HostInfo
    slot_state: str
    """"live", "dead", "recovering", "failed"."""
    fencing: str | None
    """What keeps the host from writing once it is broken; None: nothing does."""
    journal: JournalInfo


@dataclass(frozen=True, slots=True)
class RecoveryReport:
    """What a recovery has done."""

    slot: int
    host: str
    incarnation: int
    records: int | None
    """Journal records replayed; None: the journal was given up."""
    blocks: int | None
    removals: int
    seconds: float


class VolumeService(Protocol):
    """What the control socket offers; called from several threads at once.

    Every method may raise VmfsError (LeaseLost, DeviceError...) and OSError with an errno (ENOENT, EEXIST, EBUSY...):
    both reach the client as what they are.
    """

    def info(self) -> VolumeInfo: ...

    def hosts(self) -> Sequence[HostInfo]:
        """The slots in use, in order."""
        ...

    def locks(self, inode: int | None = None) -> Sequence[LockInfo]:
        """The locks that this host holds; with `inode`, that file's lock record wherever it is held."""
        ...

    def clone(self, source: int, parent: int, name: bytes, uid: int, gid: int) -> int:
        """Clone inode `source` as `name` in directory inode `parent`; return the new inode's number.

        EEXIST when the name is there, ENOENT when an inode is no more, EINVAL when `source` is no regular file.
        """
        ...

    def diff(self, old: int, new: int) -> Sequence[tuple[int, int]]:
        """Ranges (offset, length) in which file inode `new` may differ from `old`: sorted, disjoint, within `new`."""
        ...

    def hand_over(self, inode: int, host: str, wait_seconds: float) -> float:
        """Give a file that is open for writing here to the host of that name; how long writes were held back (s)."""
        ...

    def accept(self, inode: int, wait_seconds: float) -> None:
        """Wait, in the background, for another host to hand the file over; 0: wait for it no more."""
        ...

    def recovery_plan(self, slot: int) -> RecoveryPlan:
        """What the recovery of a slot is about."""
        ...

    def recover(self, slot: int, incarnation: int, *, declare_dead: bool, discard_journal: bool) -> RecoveryReport:
        """Recover the slot's host by an operator's order: one that he declares dead, or whose recovery has failed."""
        ...

    def restart(self) -> None:
        """Have a new process take the mount over. OSError(EOPNOTSUPP) where that is not possible."""
        ...

    def request_unmount(self) -> None:
        """Begin to unmount and return at once. OSError(EBUSY) when files are open in the mount."""
        ...


class Serve(Protocol):
    """The mount's process, from mount to unmount (`vmfs.core.mounting.serve`)."""

    def __call__(self, options: MountOptions, ready: Callable[[], None]) -> int:
        """Mount, call `ready` once when the mount serves, and return the exit code when it has been unmounted.

        Called on the main thread of a process that has no other threads yet. SIGTERM and SIGINT are taken care of by
        the caller, whose handlers run on the main thread and unmount `options.mountpoint` from a thread of their own:
        the implementation installs none, and keeps the main thread in waits that a Python signal handler can interrupt
        (`Event.wait`, not a blocking call into C).

        Raises VmfsError before `ready` when it cannot be mounted; nothing is left mounted then.
        """
        ...
