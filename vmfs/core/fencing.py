"""What a mount does about late writes, its own and those of the dead: chosen from the volume, the LUNs, the options.

The rules are R2, R3, A1 and A2 of docs/locking.md; the means are `vmfs.cluster.fencing`, `.evict` and `.watchdog`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Final

from vmfs.clock import Clock
from vmfs.cluster.fenceproof import prove_for_mount
from vmfs.cluster.fencing import Fence, NoFence, ReservationFence
from vmfs.cluster.identity import HostIdentity, real_boot_id
from vmfs.cluster.membership import Membership
from vmfs.cluster.timers import Timers
from vmfs.cluster.watchdog import Watchdog
from vmfs.core.state import Core
from vmfs.devices import Device, LockMethod
from vmfs.devices.flight import longest_flight
from vmfs.errors import DeviceNotUsable, FencingUnusable
from vmfs.ondisk.superblock import Superblock
from vmfs.volume import Volume

_US_PER_S: Final = 1_000_000
_ONE_MACHINE: Final = (LockMethod.OFD_FILE, LockMethod.OFD_HOST)
_KILL_TEXT: Final = (
    "process kill (same machine only): a mount of this machine that is silent is killed before its locks are taken; "
    "no storage fencing"
)
_NONE_TEXT: Final = (
    "no storage fencing: a host that was stopped between its lease check and a write may still make that write after "
    "another has taken its locks"
)
log = logging.getLogger("vmfs.core")


def volume_devices(volume: Volume) -> list[Device]:
    """The devices of all extents."""
    return [volume.extents.device(index) for index in range(len(volume.extents))]


def timers_of(sb: Superblock) -> Timers:
    """The volume's timers. Raises TimersRefused."""
    t = sb.timers
    return Timers(t.heartbeat_us, t.lease_us, t.margin_us, t.break_us, t.validity_us, t.quarantine_us, t.drift_ppm)


def fence_for(volume: Volume, clock: Clock) -> Fence:
    """How this volume's hosts fence each other.

    Raises FencingUnusable, or DeviceNotUsable, where this host's path does not fit what the others do.
    """
    sb = volume.superblock
    if sb.fenced:
        for device in volume_devices(volume):
            if device.reservations() is None:
                raise FencingUnusable(sb.label, device.name, "has none on this path")
        return ReservationFence(
            volume.extents, sb.label, clock, abort_wait_s=sb.preempt_wait_ms / 1000,
            proof=prove_for_mount(sb.label, plain=bool(sb.preempt_wait_ms)),
        )  # fmt: skip
    for device in volume_devices(volume):
        theirs = device.reservations()
        found = theirs.reservation() if theirs is not None else None
        if found is not None:
            raise DeviceNotUsable(
                device.name,
                f"is reserved (type {found.type:x}h) by somebody, and volume {sb.label} was formatted without fencing "
                "by reservations: this host's writes would be refused; have the reservation cleared",
            )
    return NoFence()


def check_in_flight(volume: Volume, timers: Timers, in_flight_s: float | None) -> None:
    """A1, where no LUN ends a dead host's writes. Raises TimersRefused with the numbers.

    A device's own bound counts where it has one; `in_flight_s` is the operator's word for what the devices do not know.
    """
    if volume.superblock.fenced:
        return
    bound_us, name = longest_flight(volume_devices(volume)) or (0, volume.superblock.label)
    timers.check_in_flight(max(bound_us, round((in_flight_s or 0.0) * _US_PER_S)), name)


def arm_watchdog(watchdog: Watchdog, core: Core, in_flight_s: float | None) -> None:
    """Arm a watchdog device for this mount. Raises WatchdogUnusable, TimersRefused."""
    bound_us, _ = longest_flight(volume_devices(core.volume)) or (0, "")
    in_flight_us = 0 if core.volume.superblock.fenced else max(bound_us, round((in_flight_s or 0.0) * _US_PER_S))
    watchdog.arm(core.membership.timers.watchdog_timeout_us(in_flight_us), core.membership.lease_valid)
    core.watchdogs.append(watchdog)


def fencing_in_use(volume: Volume, fence: Fence, identity: HostIdentity, watchdogs: Sequence[Watchdog] = ()) -> str:
    """All that keeps the dead from writing, for people."""
    sb = volume.superblock
    if sb.fenced:
        text = fence.describe()
    elif sb.lock_method in _ONE_MACHINE and identity.boot_id == real_boot_id():
        text = _KILL_TEXT
    else:
        text = _NONE_TEXT
    for watchdog in watchdogs:
        text += f"; watchdog {watchdog.path}: this machine is reset before another may break it"
    return text


def lease_text(membership: Membership, now: float) -> str:
    """How this mount's lease stands at `now` (Clock.now() seconds), for people."""
    left = membership.lease_deadline - now
    if left > 0:
        return f"valid for {left:.1f} s"
    if membership.fenced:
        return f"fenced by {membership.fenced_by}: unmount, and mount again when the storage is back"
    if membership.standing.doubt is not None:
        return f"suspended, a LUN refuses this host: {membership.standing.doubt}"
    if math.isinf(left):
        return "given up"
    return f"lapsed since {-left:.1f} s: nothing is written until a heartbeat lands"
