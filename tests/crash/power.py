"""Rounds of a power cut: a mount without the kernel on a device with a volatile cache, a load, the cut, a remount."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from uuid import UUID

from tests.crash.load import Load, Worker
from tests.crash.ports import DirectPort
from vmfs.check import Report, check_volume
from vmfs.clock import FakeClock, SystemClock
from vmfs.cluster.identity import HostIdentity
from vmfs.core.mounting import MountedVolume
from vmfs.devices.contract import ReadableBuffer
from vmfs.devices.fault import FaultDevice, FaultPlan
from vmfs.devices.ram import RamDevice
from vmfs.errors import DeviceError, VmfsError
from vmfs.mkfs import FormatOptions, make_volume
from vmfs.mkfs import plan as plan_volume
from vmfs.volume import open_volume

SIZE_BYTES = 128 << 20
JUNK = b"what was on the disk before " * 2341  # its length is no power of two: no two blocks look alike
ACKS = 200
ACKS_AFTER_MAX = 40  # between the last fsync that must be acknowledged and the cut
WRITES_AFTER_MAX = 400  # device writes, likewise
JOURNAL_WRITES_AFTER_MAX = 20
LOCKS_AFTER_MAX = 40
JOIN_SECONDS = 60.0
QUIET_SECONDS = 1.0
# Short, so that freed blocks are used again within a round; long enough for a machine that tests other things as well.
LEASE_US = 2_000_000


def new_volume(rng: random.Random) -> RamDevice:
    """A small volume on a disk that was in use, with many small groups and a journal that wraps often.

    On a disk of large sectors whole blocks land or are lost, so that records survive of which nothing else does.
    """
    ram = RamDevice(SIZE_BYTES, name="lun", logical_block_bytes=rng.choice((512, 4096)))
    step = len(JUNK) // 4096 * 4096
    for at in range(0, SIZE_BYTES - step, step):
        ram.write(at, JUNK[:step])
    options = FormatOptions(
        "crash", max_hosts=4, lease_us=LEASE_US, journal_bytes=rng.choice((512 << 10, 1 << 20)), blocks_per_group=64,
        discard=False,
    )  # fmt: skip
    make_volume(ram, plan_volume(ram, options))
    return ram


def boot(rng: random.Random) -> HostIdentity:
    """The host, booted anew: its earlier boots' mounts are known to be dead at once."""
    return replace(HostIdentity.detect("esx1"), boot_id=UUID(int=rng.getrandbits(128)))


def mount(device: RamDevice | FaultDevice, rng: random.Random) -> MountedVolume:
    """A mount by a new boot of the host, without the kernel's side."""
    return MountedVolume(open_volume([device]), boot(rng), SystemClock(), rng=random.Random(rng.random()))


def findings(device: RamDevice | FaultDevice, when: str) -> list[str]:
    """What a check finds. Nobody has the volume mounted, so the wait for a sign of life need not be real."""
    report: Report = check_volume(open_volume([device], read_only=True), clock=FakeClock(sleep_advances=True))
    return [f"check {when}: {f.kind}: {f.message}" for f in report.findings]


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether it came true in that time."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.002)
    return True


class CutDevice(FaultDevice):
    """A fault device of which the power can be cut right behind a chosen write, which lands whatever else is lost."""

    _chosen: Callable[[int, bool], bool] | None = None
    _pass_by = 0

    def arm(self, chosen: Callable[[int, bool], bool], pass_by: int) -> None:
        """Cut at a write for which `chosen(offset, whether it compares)` holds, after `pass_by` others of the kind."""
        self._pass_by = pass_by
        self._chosen = chosen

    def write(self, offset: int, data: ReadableBuffer) -> None:
        super().write(offset, data)
        self._cut_if_chosen(offset, bytes(data), swap=False)

    def compare_and_write(self, offset: int, old: bytes, new: bytes) -> bool:
        done = super().compare_and_write(offset, old, new)
        if done:
            self._cut_if_chosen(offset, new, swap=True)
        return done

    def _cut_if_chosen(self, offset: int, data: bytes, *, swap: bool) -> None:
        if self._chosen is None or not self._chosen(offset, swap):
            return
        self._pass_by -= 1
        if self._pass_by < 0:
            self.power_cut()
            self._inner.write(offset, data)
            raise DeviceError(self.name, "write", offset, len(data), "the power was cut")


class Moment(StrEnum):
    """When the power is cut: most stand for a window that any odd moment seldom meets."""

    WRITE = "at any write"
    ACKNOWLEDGED = "when an fsync has just been acknowledged"
    JOURNAL = "at a write to the journal"
    LOCK = "when a lock has just been taken or given up"


class Cut:
    """Cuts the power at a seeded moment after `acks` acknowledged fsyncs."""

    def __init__(
        self, device: CutDevice, mounted: MountedVolume, rng: random.Random, acks: int, moment: Moment
    ) -> None:
        self._device = device
        self._random = rng
        self._moment = moment
        self._acks = acks
        self._at_ack = acks + rng.randint(0, ACKS_AFTER_MAX)
        sb, geometry = mounted.volume.superblock, mounted.volume.geometry
        journal = geometry.journal_address(mounted.membership.holder.slot)
        self._journal = range(journal, journal + sb.journal_bytes)
        self._slots = range(sb.slots_address, sb.slots_address + sb.max_hosts * sb.lock_block_bytes)

    def on_ack(self, count: int) -> None:
        """For the load."""
        device, rng = self._device, self._random
        if self._moment is Moment.ACKNOWLEDGED:
            if count == self._at_ack:
                device.power_cut()
        elif count == self._acks:
            match self._moment:
                case Moment.WRITE:
                    device.set_plan(FaultPlan(power_cut_after_writes=device.writes + rng.randint(1, WRITES_AFTER_MAX)))
                case Moment.JOURNAL:
                    device.arm(lambda at, swap: at in self._journal, self._pass_by(JOURNAL_WRITES_AFTER_MAX))
                case Moment.LOCK:
                    device.arm(lambda at, swap: swap and at not in self._slots, self._pass_by(LOCKS_AFTER_MAX))

    def _pass_by(self, most: int) -> int:
        return self._random.randint(0, most) if self._acks else 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a round found."""

    moment: Moment
    acknowledged: int
    problems: tuple[str, ...]
    decisions: tuple[str, ...]


def power_cut_round(
    seed: int, *, acks: int = ACKS, moment: Moment | None = None, plan: FaultPlan | None = None
) -> Outcome:
    """Load, cut, check, remount, compare, check. `plan`: other faults, until the load has done its part."""
    # The parts of a mount refer to each other in circles, and the collector does not see the memory of their devices.
    gc.collect()
    rng = random.Random(seed)
    moment = moment or rng.choice(list(Moment))
    ram = new_volume(rng)
    device = CutDevice(ram.again(), seed, plan)
    mounted = mount(device, rng)
    load = Load(DirectPort(mounted), seed, Cut(device, mounted, rng, acks, moment).on_ack)
    try:
        load.start()
        load.join(JOIN_SECONDS)
    finally:
        load.stopped.set()
        mounted.abandon()
        device.close()
    assert device.power_is_cut, f"the load ended before the power was cut: {load.failures()}"
    assert load.count >= acks, f"only {load.count} fsyncs were acknowledged"
    problems = findings(ram.again(read_only=True), "before the remount")
    if rng.random() < 0.5:
        problems += cut_recovery(ram, rng)
    problems += remount(ram.again(), load, rng)
    return Outcome(moment, load.count, tuple(problems), tuple(device.decisions))


def quiet_round(seed: int, script: Callable[[Worker], None], moment: Moment | None = None) -> list[str]:
    """One worker does what `script` says, and the power is cut: for windows that a busy host closes at once.

    `moment`: not at once, but when that happens next, within a second.
    """
    rng = random.Random(seed)
    ram = new_volume(rng)
    device = CutDevice(ram.again(), seed)
    mounted = mount(device, rng)
    load = Load(DirectPort(mounted), seed, lambda count: None, workers=1)
    try:
        load.workers[0].prepare()
        script(load.workers[0])
        if moment is not None:
            Cut(device, mounted, rng, 0, moment).on_ack(0)
            wait_until(lambda: device.power_is_cut, QUIET_SECONDS)
    finally:
        device.power_cut()
        mounted.abandon()
        device.close()
    return findings(ram.again(read_only=True), "before the remount") + remount(ram.again(), load, rng)


def cut_recovery(ram: RamDevice, rng: random.Random) -> list[str]:
    """The power fails once more, in the middle of the recovery or right behind it."""
    device = FaultDevice(ram.again(), rng.getrandbits(32), FaultPlan(power_cut_after_writes=rng.randint(3, 60)))
    try:
        mounted = mount(device, rng)
    except VmfsError:
        if not device.power_is_cut:
            raise
    else:
        device.power_cut()
        mounted.abandon()
    device.close()
    return findings(ram.again(read_only=True), "after a recovery that was cut off")


def remount(device: RamDevice | FaultDevice, load: Load, rng: random.Random) -> list[str]:
    """Mount what survived, compare it with the ledgers, leave in order, check."""
    try:
        mounted = mount(device, rng)
    except VmfsError as error:
        return [f"it cannot be mounted again: {error}"]
    try:
        problems = load.problems(DirectPort(mounted))
        mounted.leave()
    except (OSError, VmfsError) as error:
        mounted.abandon()
        return [f"it cannot be used: {error!r}"]
    return problems + findings(device, "after the unmount")
