"""Every error that `vmfs` raises: one class each, with the exit code and the errno it becomes.

A message names the object and says what to do. The faces map an error in one place each: the CLI exits with
`exit_code`, FUSE answers `-errno`, a REST route picks its status from the class.

Exit codes: 1: the operation was tried and failed; 2: it could not be tried (a wrong argument, a wrong
device, a format that this version does not know), and nothing was changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from errno import EAGAIN, EBUSY, EDEADLK, EINVAL, EIO, ENAMETOOLONG, ENODEV, ENOSPC, EROFS, ESHUTDOWN, EUSERS
from uuid import UUID

EXIT_FAILED = 1
EXIT_NOT_TRIED = 2


class VmfsError(Exception):
    """The root of them all. Raise a subclass; catch this only where errors become exit codes or errnos."""

    exit_code: int = EXIT_FAILED
    errno: int = EIO


# -- devices ---------------------------------------------------------------------------------------


class DeviceError(VmfsError):
    """The storage failed an operation, or did less than it was asked to."""

    def __init__(self, device: str, operation: str, offset: int, length: int, reason: str) -> None:
        super().__init__(f"{device}: {operation} of {length} bytes at byte {offset} failed: {reason}")
        self.device = device
        self.operation = operation
        self.offset = offset
        self.length = length


class DeviceNotUsable(VmfsError):
    """A path cannot serve as a device: missing, of the wrong kind, not permitted, or without direct I/O."""

    exit_code = EXIT_NOT_TRIED
    errno = EINVAL

    def __init__(self, spec: str, reason: str) -> None:
        super().__init__(f"{spec}: {reason}")
        self.spec = spec


class CredentialsRefused(VmfsError):
    """A file with secrets that is not as it must be. The message never shows what is in it."""

    exit_code = EXIT_NOT_TRIED
    errno = EINVAL

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"the credentials file {path} is refused: {problem}")
        self.path = path


class DeviceBusy(VmfsError):
    """Someone else uses the device in a way that excludes us."""

    exit_code = EXIT_NOT_TRIED
    errno = EBUSY

    def __init__(self, device: str, by: str) -> None:
        super().__init__(f"{device} is in use by {by}; release it there first")
        self.device = device


class NotSentAgain(DeviceError):
    """A write whose connection broke, and whose host has no lease to send it again. Its fate is unknown.

    Nothing is wrong with the write: where the lease comes back, it is written once more.
    """


class ReservationConflict(DeviceError):
    """The LUN refuses this host's command: its registration was taken away (this host was fenced), or never made."""


class DeviceGone(VmfsError):
    """A device, or an extent of a volume, is not there (any more)."""

    def __init__(self, what: str, hint: str = "make it visible to this host again and retry") -> None:
        super().__init__(f"{what} is not there; {hint}")
        self.what = what


class DeviceReadOnly(VmfsError):
    """A write to a device that was opened for reading only."""

    errno = EROFS

    def __init__(self, device: str, operation: str) -> None:
        super().__init__(f"{device} was opened read-only; {operation} refused")
        self.device = device


class OutOfRange(VmfsError):
    """A range that does not lie within the device."""

    errno = EINVAL

    def __init__(self, device: str, offset: int, length: int, size_bytes: int) -> None:
        super().__init__(f"{device}: {length} bytes at byte {offset} are not within its {size_bytes} bytes")
        self.device = device
        self.offset = offset
        self.length = length


class MisalignedIO(VmfsError):
    """An offset or length that is no multiple of the logical sector, or that a call does not allow."""

    errno = EINVAL

    def __init__(self, device: str, offset: int, length: int, rule: str) -> None:
        super().__init__(f"{device}: {length} bytes at byte {offset}: {rule}")
        self.device = device
        self.offset = offset
        self.length = length


class LockMethodUnusable(VmfsError):
    """The volume's way to compare and write does not work on this device as this host sees it."""

    exit_code = EXIT_NOT_TRIED

    def __init__(self, device: str, wanted: str, usable: str) -> None:
        super().__init__(
            f"{device}: the volume locks by {wanted}, which this host cannot use (usable: {usable}); "
            "hosts that lock by different methods do not exclude each other: reach the volume another way"
        )
        self.device = device
        self.wanted = wanted


class LockMethodUnproved(VmfsError):
    """The volume's way to compare and write was tried on its probe block, and does not do what it must."""

    exit_code = EXIT_NOT_TRIED

    def __init__(self, device: str, method: str, problem: str) -> None:
        super().__init__(
            f"{device}: locking by {method} does not work: {problem}. Mounting would put the volume at risk; repair "
            "the storage, or reach the volume another way"
        )
        self.device = device
        self.method = method


class CannotIdentify(VmfsError):
    """What a device holds could not be found out, so nothing may be assumed of it."""

    exit_code = EXIT_NOT_TRIED

    def __init__(self, device: str, reason: str) -> None:
        super().__init__(f"{device}: cannot find out what it holds: {reason}")
        self.device = device


# -- volumes and mounts ----------------------------------------------------------------------------


class NotAVmfsMount(VmfsError):
    """A path that lies in no mounted Azekura VMFS volume."""

    exit_code = EXIT_NOT_TRIED
    errno = EINVAL

    def __init__(self, path: str) -> None:
        super().__init__(f"{path} is not in a mounted volume; `vmfsctl list` shows what is mounted here")
        self.path = path


class NotAVolume(VmfsError):
    """A device that holds no volume of ours."""

    exit_code = EXIT_NOT_TRIED
    errno = EINVAL

    def __init__(self, device: str, found: str) -> None:
        super().__init__(f"{device} holds no Azekura VMFS volume: {found}")
        self.device = device
        self.found = found


class VolumeNotFound(VmfsError):
    """Not exactly one volume among this machine's devices is the one that was asked for."""

    exit_code = EXIT_NOT_TRIED
    errno = ENODEV

    def __init__(self, wanted: str | None, found: Sequence[str]) -> None:
        there = f"found: {', '.join(found)}" if found else "no volume was found"
        what = f"{wanted} does not name one volume" if wanted else "no volume was named"
        super().__init__(f"{what} ({there}); name one with --volume, or give its devices")


class ExtentAmbiguous(VmfsError):
    """An extent that a scan has seen on several devices: paths to one LUN, or a copy of it."""

    exit_code = EXIT_NOT_TRIED
    errno = EINVAL

    def __init__(self, volume: str, index: int, uuid: UUID, devices: Sequence[str]) -> None:
        super().__init__(
            f"extent {index} ({uuid}) of volume {volume} is on {' and on '.join(devices)}: give the one to be used as "
            "DEVICE (a multipath map, where these are paths to one LUN), and never a copy of it"
        )


class UnsupportedFormat(VmfsError):
    """A volume whose version or feature flags this version of the program does not know."""

    exit_code = EXIT_NOT_TRIED
    errno = EINVAL

    def __init__(self, device: str, detail: str) -> None:
        super().__init__(f"{device}: {detail}; use a version of Azekura that knows it")
        self.device = device


class DamagedBlock(VmfsError):
    """A block that is not what its address, type and checksum say."""

    def __init__(self, address: int, what: str) -> None:
        super().__init__(f"damaged block at volume address {address:#x}: {what}; run `vmfsctl check`")
        self.address = address
        self.what = what


class NoSuchStructure(VmfsError):
    """A part of a volume that it does not have."""

    exit_code = EXIT_NOT_TRIED
    errno = EINVAL

    def __init__(self, volume: str, what: str, there_is: str) -> None:
        super().__init__(f"volume {volume} has no {what}: {there_is}")


class FormatRefused(VmfsError):
    """`format` on a device that holds something already."""

    exit_code = EXIT_NOT_TRIED
    errno = EINVAL

    def __init__(self, device: str, found: str) -> None:
        super().__init__(f"{device} holds something: {found}; give --force to destroy it")
        self.device = device
        self.found = found


class BadFormatOption(VmfsError):
    """A value that no volume can be formatted with."""

    exit_code = EXIT_NOT_TRIED
    errno = EINVAL

    def __init__(self, option: str, value: object, rule: str) -> None:
        super().__init__(f"a volume cannot be formatted with {option} {value}: {rule}")
        self.option = option


class DeviceTooSmall(VmfsError):
    """A device with no room for a volume of the wanted shape."""

    exit_code = EXIT_NOT_TRIED
    errno = ENOSPC

    def __init__(self, device: str, size_bytes: int, minimum_bytes: int, max_hosts: int) -> None:
        super().__init__(
            f"{device} has {size_bytes} bytes; a volume for {max_hosts} hosts with these options needs at least "
            f"{minimum_bytes}; give a larger device, fewer hosts or smaller journals"
        )
        self.device = device
        self.minimum_bytes = minimum_bytes


class ExtentTooSmall(VmfsError):
    """A device with no room to be a further extent of a volume."""

    exit_code = EXIT_NOT_TRIED
    errno = ENOSPC

    def __init__(self, device: str, size_bytes: int, minimum_bytes: int) -> None:
        super().__init__(
            f"{device} has {size_bytes} bytes; as an extent of a volume with these options it needs {minimum_bytes} at "
            "least; give a larger device, or leave it out"
        )
        self.device = device
        self.minimum_bytes = minimum_bytes


class VolumeInUse(VmfsError):
    """An operation that wants the volume for itself while a host has it mounted."""

    exit_code = EXIT_NOT_TRIED
    errno = EBUSY

    def __init__(self, volume: str, by: str) -> None:
        super().__init__(f"volume {volume} is in use by {by}; unmount it there first")
        self.volume = volume


class HostNameInUse(VmfsError):
    """A second live mount under one host name."""

    exit_code = EXIT_NOT_TRIED
    errno = EBUSY

    def __init__(self, host: str, volume: str, holder: str) -> None:
        super().__init__(
            f"volume {volume} is already mounted by a host named {host} ({holder}); "
            "give this mount another --host name"
        )
        self.host = host
        self.volume = volume


class LeaseLost(VmfsError):
    """This host could not renew its heartbeat in time: it submits nothing more under this incarnation."""

    def __init__(self, volume: str, detail: str) -> None:
        super().__init__(f"volume {volume}: this host's lease is lost: {detail}; unmount and mount it again")
        self.volume = volume


class LockedByOther(VmfsError):
    """A lock that another live host holds."""

    errno = EBUSY

    def __init__(self, what: str, holder: str) -> None:
        super().__init__(f"{what} is locked by host {holder}; close it there, or wait")
        self.what = what
        self.holder = holder


class StillInUse(VmfsError):
    """Operations of this host are under way in what a lock covers: they end by themselves, and then it can be given
    up. For `LockManager`'s `before_release`, which must not wait for them: they may wait for another lock."""

    errno = EBUSY

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} is in use by operations of this host that are under way; try again in a moment")


class NoSpace(VmfsError):
    """No room for what was asked."""

    errno = ENOSPC

    def __init__(self, where: str, wanted: str) -> None:
        super().__init__(f"{where} is full: no room for {wanted}; delete files or extend the volume")
        self.where = where


class NameTooLong(VmfsError):
    """A name longer than the format allows."""

    errno = ENAMETOOLONG

    def __init__(self, name: str, limit_bytes: int) -> None:
        super().__init__(f"the name {name[:32]!r}... has more than {limit_bytes} bytes; choose a shorter one")
        self.name = name


# -- cluster: slots, leases, locks -----------------------------------------------------------------


class TimersRefused(VmfsError):
    """Timers under which two hosts could believe that they hold the same lock, or that cannot be kept."""

    exit_code = EXIT_NOT_TRIED
    errno = EINVAL

    def __init__(self, problem: str) -> None:
        super().__init__(f"these heartbeat timers are refused: {problem}; choose another lease or heartbeat interval")


class BadHostName(VmfsError):
    """A host name that a heartbeat slot cannot carry, or a host that cannot be told from others."""

    exit_code = EXIT_NOT_TRIED
    errno = EINVAL

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"the host name {name[:80]!r} cannot be used: {problem}; give this mount another --host name")
        self.name = name


class FencingUnusable(VmfsError):
    """The volume's hosts are fenced in a way that this host cannot take part in."""

    exit_code = EXIT_NOT_TRIED
    errno = EINVAL

    def __init__(self, volume: str, device: str, reason: str) -> None:
        super().__init__(
            f"volume {volume}: its hosts fence each other by SCSI persistent reservations, and {device} {reason}; "
            "reach it on a path that has them (all hosts of a volume must)"
        )
        self.volume = volume
        self.device = device
        self.reason = reason


class FenceFailed(VmfsError):
    """A dead host's way to a LUN could not be closed, so nothing of it may be recovered yet."""

    def __init__(self, volume: str, device: str, reason: str) -> None:
        super().__init__(
            f"volume {volume}: a dead host could not be fenced off {device}: {reason}; "
            "its slot is left to a host that can, look at this LUN's paths"
        )
        self.volume = volume
        self.device = device


class WatchdogUnusable(VmfsError):
    """The watchdog device that a mount was given does not do what it must."""

    exit_code = EXIT_NOT_TRIED
    errno = EINVAL

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"watchdog {path} {reason}; give another device, or mount without --watchdog")
        self.path = path


class NoFreeSlot(VmfsError):
    """As many hosts have the volume mounted, or died on it, as it has heartbeat slots."""

    exit_code = EXIT_NOT_TRIED
    errno = EUSERS

    def __init__(self, volume: str, slots: int, detail: str) -> None:
        super().__init__(
            f"volume {volume}: none of its {slots} heartbeat slots is free ({detail}); "
            "unmount it on a host; slots that have failed are freed by `vmfsctl recover`, where it is mounted"
        )
        self.volume = volume


class SlotNotDead(VmfsError):
    """A recovery, or a step of one, that the slot's state does not allow."""

    errno = EBUSY

    def __init__(self, volume: str, slot: int, detail: str) -> None:
        super().__init__(f"volume {volume}: heartbeat slot {slot} cannot be recovered now: {detail}; try again later")
        self.volume = volume
        self.slot = slot


class BadSlot(VmfsError):
    """A heartbeat slot, or a host, that an order cannot be about."""

    exit_code = EXIT_NOT_TRIED
    errno = EINVAL

    def __init__(self, volume: str, which: str, problem: str) -> None:
        super().__init__(f"volume {volume}: {which} {problem}; `vmfsctl hosts` shows the slots and their hosts")
        self.volume = volume


class OwnSlot(VmfsError):
    """An order against the very host that it is given to."""

    exit_code = EXIT_NOT_TRIED
    errno = EINVAL

    def __init__(self, volume: str, host: str) -> None:
        super().__init__(f"volume {volume}: {host} is this host itself; unmount it here, or order it on another host")
        self.volume = volume


class HostStillAlive(VmfsError):
    """A host that was declared dead, and has a heartbeat, where nothing but the power switch ends its writes."""

    exit_code = EXIT_NOT_TRIED
    errno = EBUSY

    def __init__(self, volume: str, host: str) -> None:
        super().__init__(
            f"volume {volume}: host {host} is alive: its heartbeat has changed just now, and without storage fencing "
            "nothing keeps it from writing; power it off first"
        )
        self.volume = volume
        self.host = host


class LeaseExpired(VmfsError):
    """This host's heartbeat is late, so it submits nothing. It goes on by itself once a heartbeat lands in time."""

    def __init__(self, volume: str) -> None:
        super().__init__(
            f"volume {volume}: this host's heartbeat is late and its lease has run out; "
            "look at the storage's response times, I/O goes on when a heartbeat lands"
        )
        self.volume = volume


class RequestsFull(VmfsError):
    """This host already asks as much of others as its slot has room for."""

    errno = EAGAIN

    def __init__(self, volume: str, limit: int) -> None:
        super().__init__(f"volume {volume}: {limit} requests to other hosts are under way; try again later")
        self.volume = volume


class LockUpgradeRefused(VmfsError):
    """A thread that holds a lock shared wants it exclusively: it must unpin the shared tenure first (R12)."""

    errno = EDEADLK

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} is held shared by the thread that wants it exclusively; unpin it first")
        self.what = what


class MountClosing(VmfsError):
    """An operation on a mount that is being ended."""

    errno = ESHUTDOWN

    def __init__(self, volume: str) -> None:
        super().__init__(f"volume {volume} is being unmounted here; mount it again to go on")
        self.volume = volume


class HandOverFailed(VmfsError):
    """A lock that was not handed over. It is with whom it was before."""

    errno = EAGAIN

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(f"{what} was not handed over: {reason}")
        self.what = what
