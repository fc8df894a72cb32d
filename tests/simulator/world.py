"""One run of one seed: hosts that mount and work, faults, recovery, and the judgement at the end."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Final

from tests.simulator import threads
from tests.simulator.administrator import Administrator
from tests.simulator.audit import audit
from tests.simulator.chaos import Chaos
from tests.simulator.engine import Scheduler, Stuck
from tests.simulator.faults import Plan, plan
from tests.simulator.host import Machine, Process, process_liveness
from tests.simulator.image import check_image, formatted
from tests.simulator.lun import Io, Lun
from tests.simulator.model import FileModel, Model, Violation
from tests.simulator.oracle import Oracle
from tests.simulator.record import LogHandler, Record
from tests.simulator.worker import CONTEXT
from tests.simulator.workload import Client
from vmfs.cluster import claim, recovery
from vmfs.fuse.contract import ROOT_ID
from vmfs.ondisk.lock import Holder
from vmfs.ondisk.slot import SlotState

SEEN_AFTER_S: Final = 1.0  # what another host has made durable is seen without locks after so long
_SNAPSHOT_SHARE: Final = 0.25  # of the runs: the checker looks at the disk in the midst of everything


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a run."""

    seed: int
    mode: str
    violation: str | None
    steps: int
    requests: int
    operations: int
    recoveries: int
    seconds: float
    """Simulated."""
    digest: str
    """Of the whole trace: two runs of one seed have the same."""
    trace: list[str]

    def report(self) -> str:
        """What went wrong, and what happened before."""
        head = f"seed {self.seed} ({self.mode}), step {self.steps}: {self.violation}"
        return "\n".join([head, "the last events (time, host, what):", *self.trace])


class World:
    """Everything of one run. The clients keep here, too, what they must know of each other."""

    def __init__(self, seed: int, mode: str, *, keep_trace: bool = False) -> None:
        self.seed = seed
        self.plan: Plan = plan(seed, mode)
        self.scheduler = Scheduler(Random(f"scheduler {seed} {mode}"), preempt_rate=self.plan.preempt_rate)
        self.record = Record(self.scheduler, keep_all=keep_trace)
        self.note = self.record.note
        self.rng = Random(f"world {seed} {mode}")
        self.rng_workload = Random(f"workload {seed} {mode}")
        image, self.superblock = formatted(self.plan.lease_us, mode, self.plan.slots)
        self.lun = lun = Lun(
            self.scheduler, image, Random(f"lun {seed} {mode}"), self.plan.timing, volatile=self.plan.power_cuts
        )
        lun.note = self.note
        lun.reserves = mode == "reservations"
        lun.compares = mode != "paxos"
        self.oracle = Oracle(lun, self.superblock, exact=mode != "paxos")
        lun.on_write = self.oracle.before_write
        lun.on_landed = self._landed
        lun.is_recovering = self.oracle.is_recovering
        self.oracle.on_broken = self._broken
        self.model = Model()
        self.machines = [
            Machine(self.scheduler, lun, self.rng, f"esx{i + 1}", self.plan.drift) for i in range(self.plan.hosts)
        ]
        self.administrator = Administrator(self)
        self.chaos = Chaos(self)
        self.think = self.plan.think
        self.validity = self.superblock.timers.validity_us / 1e6
        self.subdirectory = 0
        self.operations = 0
        self.draining = False
        self.trouble_until = 0.0
        self.calm_since = 0.0
        """When the faults ended; 0 before."""
        self._power_cut_at: float | None = None
        self._replayed_at: float | None = None
        # What clients tell each other: which names and files are whose just now.
        self.running: dict[Client, tuple[str, float]] = {}
        self.busy_names: set[tuple[int, bytes]] = set()
        self.open_for_writing: dict[Process, list[FileModel]] = {}
        self.writing: dict[int, int] = {}
        self.truncating: set[int] = set()
        self.last_changer: dict[int, object] = {}

    @property
    def now(self) -> float:
        """True time in seconds."""
        return self.scheduler.now

    # -- what may be --------------------------------------------------------------------------------------------

    def seen_since(self) -> float:
        """Whoever looks without locks now sees all that was durable then.

        A power cut takes back what was in place and not flushed, also where others had seen it; it is in the journals
        of the dead, and seen again when they have been replayed.
        """
        since = self.now - SEEN_AFTER_S
        if self._power_cut_at is not None:
            since = min(since, self._power_cut_at - SEEN_AFTER_S)
            if self._replayed_at is None and self._recovered():
                self._replayed_at = self.now
            if self._replayed_at is not None and self.now > self._replayed_at + SEEN_AFTER_S:
                self._power_cut_at = self._replayed_at = None
        return since

    def power_was_cut(self) -> None:
        """All processes are dead, and the disk has lost its cache."""
        self._power_cut_at, self._replayed_at = self.now, None
        self.model.crashed(None)
        self.busy_names.clear()
        self.oracle.reread()

    def trouble(self, process: Process) -> bool:
        """Whether an operation of this process may fail now."""
        return self.now < self.trouble_until or process.failed or not process.alive

    def _landed(self, io: Io) -> None:
        self.note("io", io.path.process.name, io.kind, hex(io.offset), io.length, io.result if io.kind == "caw" else "")
        self.oracle.landed(io)

    def _broken(self, holder: Holder, by: Process) -> None:
        """A slot that was live is to be recovered now."""
        owner = next((p for p, h in self.oracle.holders.items() if h == holder), None)
        if owner is None:
            return
        self.model.crashed(owner)
        if owner.alive and not owner.failed and self.now >= self.chaos.excused_until:
            raise Violation(f"{by.name} breaks {owner.name}, which lives, and nothing has happened but a common stall")

    # -- the run ------------------------------------------------------------------------------------------------

    def run(self) -> Result:
        """Run the seed to its end."""
        with self._simulated():
            try:
                self._phases()
            except (Violation, Stuck) as error:
                self.record.violation = self.record.violation or f"{type(error).__name__}: {error}"
            finally:
                for process in (p for m in self.machines for p in m.processes):
                    process.alive = False
                    for task in process.tasks:
                        self.scheduler.kill(task)
        return Result(
            self.seed, self.plan.mode, self.record.violation, self.scheduler.steps, self.lun.count, self.operations,
            self.oracle.recoveries, self.now, self.record.digest(), self.record.lines(),
        )  # fmt: skip

    @contextmanager
    def _simulated(self) -> Iterator[None]:
        """Simulated threads for the product, simulated processes for what looks at /proc, its log for the record."""
        before = claim.is_process_alive, recovery.is_process_alive, recovery.is_stopped
        logger = logging.getLogger("vmfs")
        handler = LogHandler(self.record.log_record)
        saved = logger.level, logger.propagate
        logger.addHandler(handler)
        logger.setLevel(logging.WARNING)
        logger.propagate = False
        claim.is_process_alive = recovery.is_process_alive = process_liveness(self.machines)
        recovery.is_stopped = lambda record: False
        try:
            with threads.replaced(self.scheduler):
                yield
        finally:
            claim.is_process_alive, recovery.is_process_alive, recovery.is_stopped = before
            logger.removeHandler(handler)
            logger.setLevel(saved[0])
            logger.propagate = saved[1]

    def _go(self, finished: Callable[[], bool], seconds: float, what: str | None) -> None:
        """Run until it is finished; a Violation says that `what` was not done in time."""
        record = self.record
        done = self.scheduler.run(lambda: record.violation is not None or finished(), self.now + seconds)
        if record.violation is not None:
            raise Violation(record.violation)
        if not done and what is not None:
            raise Violation(f"not within {seconds:.1f} simulated seconds: {what}; under way:\n{self._under_way()}")

    def _under_way(self) -> str:
        """Who has not finished, and where it stands."""
        lines = [f"{c.process.name}: {name} since {began:.3f}" for c, (name, began) in self.running.items()]
        for process in (p for m in self.machines for p in m.processes):
            for task in process.tasks:
                frame = task.greenlet.gr_frame if task.greenlet is not None and not task.done else None
                if frame is not None:
                    stack = traceback.extract_stack(frame)[-14:-2]
                    lines.append(f"{task}: " + " < ".join(f"{s.name}:{s.lineno}" for s in reversed(stack)))
        return "\n".join(lines) or "nothing"

    def _phases(self) -> None:
        timing, lease, administrator = self.lun.timing, self.plan.lease, self.administrator
        unquiet = timing.slow_rate, timing.submit_delay
        timing.slow_rate = timing.submit_delay = 0.0
        first = self.machines[0].start()
        setup = first.spawn("setup", lambda: self._set_up(first))
        self._go(lambda: setup.done, 60, "the first mount")
        for machine in self.machines[1:]:
            administrator.start(machine)
        administrator.start_clients(first)
        timing.slow_rate, timing.submit_delay = unquiet
        for when, kind in self.plan.faults:
            self.scheduler.at(self.now + when, lambda kind=kind: self.chaos.strike(kind))  # type: ignore[misc]
        self._plan_snapshot()
        administrator.watch()
        self._go(lambda: False, self.plan.seconds, None)
        self.chaos.end()
        self.calm_since = self.now
        self._go(self._all_served, 30 * lease + 60, "every host has mounted again")
        self.draining = True
        self._go(lambda: all(t.done for t in administrator.clients), 30 * lease + 120, "all operations have ended")
        self._go(self._recovered, 10 * lease + 30, "every dead slot is free again")
        self._judge()

    def _set_up(self, process: Process) -> None:
        volume = process.mount()
        entry = volume.filesystem.mkdir(CONTEXT, ROOT_ID, b"sub", 0o755)
        self.subdirectory = entry.nodeid
        volume.filesystem.fsyncdir(CONTEXT, ROOT_ID, 0, False)
        self.last_changer[0] = self.last_changer[1] = process

    def _plan_snapshot(self) -> None:
        """At some moment: the disk is as a crash of all hosts would leave it, and must be whole after their replay."""
        rng = Random(f"snapshot {self.seed} {self.plan.mode}")
        if rng.random() < _SNAPSHOT_SHARE:
            when = self.now + rng.random() * self.plan.seconds * 1.2
            self.scheduler.at(when, lambda: check_image(bytes(self.lun.memory), f"in the midst, at {when:.3f}"))

    # -- the end ------------------------------------------------------------------------------------------------

    def _all_served(self) -> bool:
        """Whether every host is mounted and well, and nothing is on its way from before."""
        return all(
            m.process is not None and m.process.volume is not None and not m.process.failed
            and not m.process.paused and not any(io.submitted <= self.calm_since for io in m.process.path.inflight)
            and m.process.volume.membership.lease_valid(m.process.clock.now())
            for m in self.machines
        )  # fmt: skip

    def _recovered(self) -> bool:
        """Whether no slot is left that nobody lives in. In paxos mode: as every living host has last seen them."""
        mounts = [m.process.volume.membership for m in self.machines if m.process is not None and m.process.volume]
        if self.plan.mode != "paxos":
            living = {self.oracle.holders.get(m.process) for m in self.machines if m.process is not None}
            records = [self.oracle.slot(n) for n in range(self.superblock.max_hosts)]
        else:
            living = {m.holder for m in mounts}
            records = [r for m in mounts if m.snapshot is not None for r in m.snapshot.records]
        return all(r.state is SlotState.FREE or r.occupant in living for r in records)

    def _judge(self) -> None:
        """All is quiet: read everything back on one host, unmount everywhere, and check the volume."""
        process = next(m.process for m in self.machines if m.process is not None)
        reader = process.spawn("audit", lambda: audit(self, process))
        self._go(lambda: reader.done, 60 * self.plan.lease + 60, "everything is read back")
        leavers = []
        for machine in self.machines:
            host = machine.process
            if host is not None:
                assert host.volume is not None
                leavers.append(host.spawn("leave", host.volume.leave))
        self._go(lambda: all(t.done for t in leavers), 30 * self.plan.lease + 60, "all have unmounted")
        check_image(bytes(self.lun.memory), "after all have unmounted")
