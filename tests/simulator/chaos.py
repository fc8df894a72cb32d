"""The faults as they happen: who dies, stands still, loses the storage, and what the storage does to all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.simulator.host import Process

if TYPE_CHECKING:
    from tests.simulator.world import World


class Chaos:
    """Of one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._timing = world.lun.timing
        self._lease = world.plan.lease
        self.excused_until = 0.0
        """Until then a living host may be broken: more has happened than a common stall (R4)."""
        self._kinds: dict[str, Callable[[Process], None]] = {
            "crash": self._crash,
            "reboot": self._reboot,
            "pause": lambda victim: self._pause(victim, self._lease * self._world.rng.uniform(0.05, 0.8)),
            "long_pause": lambda victim: self._pause(victim, self._lease * self._world.rng.uniform(1.0, 3.5)),
            "path": self._path,
            "stall": self._stall,
            "slow": self._slow,
            "stuck": self._stuck,
            "lost_answers": self._lost_answers,
            "power": self._power,
            "power_at_release": self._arm,
        }

    def strike(self, kind: str) -> None:
        """One fault happens to somebody."""
        world = self._world
        living = [m.process for m in world.machines if m.process is not None and not m.process.paused]
        if world.draining or not living:
            return
        victim = world.rng.choice(living)
        world.note("fault", kind, victim.name)
        if kind != "stall":
            self.excused_until = world.now + 8 * self._lease
        self._kinds[kind](victim)

    def _troubled(self, seconds: float) -> None:
        """Operations may fail from now on, and for some time after the fault has ended."""
        world = self._world
        world.trouble_until = max(world.trouble_until, world.now + seconds + 4 * self._lease)

    # -- hosts --------------------------------------------------------------------------------------------------

    def _crash(self, victim: Process) -> None:
        self._troubled(self._lease)
        self._world.administrator.kill(victim)
        self._world.administrator.restart_later(victim.machine)

    def _reboot(self, victim: Process) -> None:
        world = self._world
        self._troubled(self._lease * 4)
        world.administrator.kill(victim)
        # A machine takes longer to boot than a request may stay on its way.
        gone = self._timing.late_max + self._lease * world.rng.uniform(0.05, 3.0)

        def boot() -> None:
            if victim.machine.process is None:
                victim.machine.boot()
                world.administrator.start(victim.machine)

        world.scheduler.after(gone, boot)

    def _pause(self, victim: Process, seconds: float) -> None:
        world = self._world
        if not victim.alive:
            return
        if not world.lun.reserves and victim.between_check_and_submission:
            # Without fencing the gap between check and submission must be shorter than P: no pause fits into it.
            world.scheduler.after(0.0003, lambda: self._pause(victim, seconds))
            return
        if world.lun.reserves and world.rng.random() < 0.5:
            self._troubled(seconds + self._lease)
            victim.pause_at_write = seconds  # the worst moment: all is checked, and nothing submitted
            return
        self._troubled(seconds)
        victim.pause()
        world.scheduler.after(seconds, victim.resume)

    # -- the storage --------------------------------------------------------------------------------------------

    def _path(self, victim: Process) -> None:
        """One host loses its path."""
        seconds = self._lease * self._world.rng.uniform(0.1, 2.5)
        self._troubled(seconds + self._timing.timeout)
        victim.path.cut_off()
        self._world.scheduler.after(seconds, victim.path.heal)

    def _stall(self, victim: Process) -> None:
        """All hosts lose their paths, and have them back at about the same time."""
        world = self._world
        seconds = self._lease * world.rng.uniform(0.3, 3.0)
        self._troubled(seconds + self._timing.timeout)
        paths = [m.process.path for m in world.machines if m.process is not None]
        for path in paths:
            path.cut_off()
        world.lun.stalled_until = world.now + seconds
        for path in paths:
            world.scheduler.after(seconds + world.rng.uniform(0.0, 0.3) * self._lease, path.heal)

    def _slow(self, victim: Process) -> None:
        """Every fifth request is slow."""
        timing, seconds = self._timing, self._lease * self._world.rng.uniform(0.3, 2.0)
        before, timing.slow_rate = timing.slow_rate, 0.2
        self._troubled(seconds)

        def over() -> None:
            timing.slow_rate = before

        self._world.scheduler.after(seconds, over)

    def _lost_answers(self, victim: Process) -> None:
        """Requests fail though they have landed, or will."""
        timing, seconds = self._timing, self._lease * self._world.rng.uniform(0.1, 1.0)
        timing.lost_answer_rate = self._world.rng.choice((0.02, 0.1))
        self._troubled(seconds)

        def over() -> None:
            timing.lost_answer_rate = 0.0

        self._world.scheduler.after(seconds, over)

    def _stuck(self, victim: Process) -> None:
        """The disk lets some requests lie for very long."""
        timing, seconds = self._timing, self._lease * self._world.rng.uniform(0.3, 2.0)
        timing.stuck_rate = self._world.rng.choice((0.02, 0.1))
        self._troubled(seconds + timing.stuck_max + timing.timeout)

        def over() -> None:
            timing.stuck_rate = 0.0

        self._world.scheduler.after(seconds, over)

    def _arm(self, victim: Process) -> None:
        """The power goes when the next lock is given up: what it covered must be durable by then (R5)."""
        world = self._world
        if world.plan.mode == "paxos":
            return self._power(victim)

        def released() -> None:
            world.oracle.on_released = lambda: None
            world.scheduler.after(world.rng.random() * 0.002, lambda: self._power(victim))

        world.oracle.on_released = released
        return None

    def _power(self, victim: Process) -> None:
        """The whole site loses its power, the disk with its cache too."""
        world = self._world
        self._troubled(self._lease * 4)
        for machine in world.machines:
            for process in machine.processes:
                for io in list(process.path.inflight):
                    io.dropped = True
                if process.alive:
                    world.administrator.kill(process)
        world.lun.power_cut()
        world.power_was_cut()
        for machine in world.machines:
            machine.boot()
            world.administrator.restart_later(machine, self._lease * world.rng.uniform(0.0, 0.5))

    def end(self) -> None:
        """Whatever is broken is mended; from here on everything must come to rest."""
        world, timing = self._world, self._timing
        world.note("chaos ends")
        world.oracle.on_released = lambda: None
        world.lun.stalled_until = 0.0
        timing.slow_rate = timing.stuck_rate = timing.slow_replay_rate = 0.0
        timing.lost_answer_rate = timing.submit_delay = 0.0
        for machine in world.machines:
            for process in machine.processes:
                process.path.heal()
            if machine.process is not None:
                machine.process.pause_at_write = 0.0
                machine.process.resume()
        for machine in world.machines:
            if machine.process is None:
                world.administrator.restart_later(machine)
