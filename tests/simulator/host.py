"""A host: a machine with its clock, and the processes that mount the volume on it, one at a time."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from uuid import UUID

from tests.simulator.engine import Scheduler, Task
from tests.simulator.lun import Lun
from tests.simulator.path import TwoNexusPath
from tests.simulator.threads import SimEvent
from vmfs.cluster.identity import HostIdentity
from vmfs.core.mounting import MountedVolume
from vmfs.ondisk.slot import SlotRecord
from vmfs.volume import open_volume

WALL_START_NS = 1_700_000_000_000_000_000
_NAMESPACE = 4026531836


class SimClock:
    """`vmfs.clock.Clock` of one machine: it drifts, and its zero is its own."""

    def __init__(self, scheduler: Scheduler, rate: float, start: float) -> None:
        self._scheduler = scheduler
        self.rate = rate
        self._zero = start - scheduler.now * rate

    def now(self) -> float:
        return self._zero + self._scheduler.now * self.rate

    def wall_ns(self) -> int:
        return WALL_START_NS + int(self._scheduler.now * 1e9)

    def sleep(self, seconds: float) -> None:
        if seconds > 0:
            self._scheduler.sleep(seconds / self.rate)
        else:
            self._scheduler.give_way()

    def wait(self, event: SimEvent, timeout_seconds: float) -> bool:
        return event.wait(max(0.0, timeout_seconds))


class Machine:
    """One machine, through its boots."""

    def __init__(self, scheduler: Scheduler, lun: Lun, rng: Random, name: str, drift: float) -> None:
        self.scheduler = scheduler
        self.lun = lun
        self.rng = rng
        self.name = name
        self.uuid = UUID(int=rng.getrandbits(128))
        self._drift = drift
        self._pids = 100
        self.processes: list[Process] = []
        self.boot()

    def boot(self) -> None:
        """Start the machine (again): another boot id, another clock."""
        self.boot_id = UUID(int=self.rng.getrandbits(128))
        rate = 1 + self.rng.uniform(-self._drift, self._drift)
        self.clock = SimClock(self.scheduler, rate, self.rng.uniform(1.0, 1e6))

    def start(self) -> Process:
        """A process that may mount the volume."""
        self._pids += 1
        process = Process(self, self._pids)
        if self.lun.stalled_until > self.scheduler.now:
            process.path.cut_off()
            self.scheduler.at(self.lun.stalled_until, process.path.heal)
        self.processes.append(process)
        return process

    @property
    def process(self) -> Process | None:
        """The one that lives, if any."""
        return self.processes[-1] if self.processes and self.processes[-1].alive else None

    def is_alive(self, pid: int) -> bool:
        """What /proc says: a process exists as long as any request of its is under way."""
        return any(p.pid == pid and (p.alive or p.path.inflight) for p in self.processes)


class Process:
    """One process and its mount."""

    def __init__(self, machine: Machine, pid: int) -> None:
        self.machine = machine
        self.pid = pid
        self.name = f"{machine.name}.{pid - 100}"
        self.scheduler = machine.scheduler
        self.clock = machine.clock
        self.clock_rate = machine.clock.rate
        self.path = TwoNexusPath(machine.lun, self, f"lun-of-{self.name}")
        self.alive = True
        self.paused = False
        self.parked: list[Task] = []
        self.pause_at_write = 0.0
        """For so many seconds it stands still when it is next about to submit a write."""
        self.tasks: list[Task] = []
        self.volume: MountedVolume | None = None
        self.left = False
        """It has unmounted in order."""

    def spawn(self, name: str, run: Callable[[], None]) -> Task:
        """A thread of this process."""
        task = self.scheduler.spawn(self, name, run)
        self.tasks.append(task)
        return task

    def mount(self) -> MountedVolume:
        """Mount the volume; call it in a task of this process."""
        machine = self.machine
        identity = HostIdentity(machine.name, machine.uuid, machine.boot_id, self.pid, self.pid, _NAMESPACE)
        rng = Random(machine.rng.getrandbits(64))
        self.volume = MountedVolume(open_volume([self.path]), identity, self.clock, rng=rng)
        return self.volume

    def kill(self) -> None:
        """The process dies, with all its threads, where they are. Requests under way may land."""
        self.alive = False
        self.paused = False
        self.path.host_died()
        for task in self.tasks:
            self.scheduler.kill(task)
        self.parked.clear()

    def pause(self) -> None:
        """The process stands still: a stopped virtual machine."""
        self.paused = True

    def resume(self) -> None:
        if self.alive and self.paused:
            self.paused = False
            self.scheduler.resume(self)

    @property
    def failed(self) -> bool:
        """Whether the mount has given itself up."""
        return self.volume is not None and (
            self.volume.core.transactions.failure is not None or self.volume.membership.fenced
        )

    @property
    def between_check_and_submission(self) -> bool:
        """Whether a thread has looked at the lease and not submitted yet."""
        return any(t.at_submission for t in self.tasks)


def process_liveness(machines: list[Machine]) -> Callable[[SlotRecord, HostIdentity], bool | None]:
    """In the place of `vmfs.cluster.identity.is_process_alive`, which looks at /proc."""

    def is_process_alive(record: SlotRecord, here: HostIdentity) -> bool | None:
        if record.boot_id != here.boot_id or record.pid <= 0:
            return None
        machine = next(m for m in machines if m.boot_id == here.boot_id)
        return machine.is_alive(record.pid)

    return is_process_alive
