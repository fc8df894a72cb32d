"""Who looks after the hosts: mounts, ends what has failed, mounts again, and retries recoveries that have failed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.simulator.engine import Task
from tests.simulator.host import Machine, Process
from tests.simulator.workload import Client
from vmfs.core.deadhosts import DeadHosts
from vmfs.errors import VmfsError
from vmfs.ondisk.slot import SlotRecord, SlotState

if TYPE_CHECKING:
    from tests.simulator.world import World


class Administrator:
    """Of one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._ordered: set[int] = set()
        self.clients: list[Task] = []

    def start(self, machine: Machine) -> None:
        """A new process mounts, and its clients begin."""
        world = self._world
        process = machine.start()
        world.note("start", process.name)

        def mount() -> None:
            try:
                process.mount()
            except VmfsError as error:
                world.note("mount failed", process.name, repr(error))
                if not world.trouble(process):
                    raise
                world.scheduler.after(0.0, lambda: self._gave_up(process))
                return
            self.start_clients(process)

        process.spawn("mount", mount)

    def _gave_up(self, process: Process) -> None:
        """A process that could not mount ends; it is tried again."""
        if process.alive:
            self.kill(process)
            self.restart_later(process.machine)

    def start_clients(self, process: Process) -> None:
        if self._world.draining:
            return
        for number in range(self._world.plan.clients):
            client = Client(self._world, process, number)
            self.clients.append(process.spawn(f"client{number}", client.run))

    def kill(self, process: Process) -> None:
        """End a process where it stands."""
        world = self._world
        world.note("kill", process.name)
        process.kill()
        world.model.crashed(process)
        for client in [c for c in world.running if c.process is process]:
            del world.running[client]

    def restart_later(self, machine: Machine, seconds: float | None = None) -> None:
        """Mount on this machine again, after a moment."""
        world = self._world
        wait = world.plan.lease * world.rng.uniform(0.05, 1.0) if seconds is None else seconds

        def again() -> None:
            if machine.process is None:
                self.start(machine)

        world.scheduler.after(wait, again)

    def watch(self) -> None:
        """From now on, start again what has failed."""
        world = self._world
        for machine in world.machines:
            process = machine.process
            if process is not None and process.failed and not process.paused:
                world.note("failed mount", process.name)
                self.kill(process)
                self.restart_later(machine)
        if world.calm_since:
            self._order_recoveries()
        if not world.record.violation:
            world.scheduler.after(world.plan.lease * 0.2, self.watch)

    def _order_recoveries(self) -> None:
        """Recoveries that have failed for good are tried again, by order, once the storage is well (R6)."""
        world = self._world
        for number in range(world.superblock.max_hosts):
            record = self._slot(number)
            if record is None or record.state is not SlotState.FAILED:
                continue
            process = next((m.process for m in world.machines if m.process is not None and m.process.volume), None)
            if process is None or process.failed or number in self._ordered:
                continue
            self._ordered.add(number)
            world.note("operator", process.name, number)
            process.spawn("operator", lambda p=process, r=record: self._order(p, r))  # type: ignore[misc]

    def _order(self, process: Process, record: SlotRecord) -> None:
        volume = process.volume
        assert volume is not None
        try:
            hosts = DeadHosts(volume.core, volume.recoverer)
            hosts.recover(record.slot, record.incarnation, declare_dead=False, discard_journal=False)
        except VmfsError as error:
            self._world.note("order failed", process.name, repr(error))
        self._ordered.discard(record.slot)

    def _slot(self, number: int) -> SlotRecord | None:
        """A slot as it is; where that cannot be read off the disk, as some host has seen it."""
        world = self._world
        if world.plan.mode != "paxos":
            return world.oracle.slot(number)
        for machine in world.machines:
            volume = machine.process.volume if machine.process is not None else None
            if volume is not None and volume.membership.snapshot is not None:
                return volume.membership.snapshot.views[number].record
        return None
