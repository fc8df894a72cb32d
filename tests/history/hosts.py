"""Hosts with real mounts, and what may happen to them: death, a process that dies, a stop, a lost path, a remount."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.history.clients import Client, Site
from tests.history.records import Life, Takeover, now
from tests.luns.relay import Relay
from tests.vmfs.datastore import Datastore, Mount, until, vmfsctl
from vmfs import client
from vmfs.errors import VmfsError

LIMIT_S: Final = 120.0
_TOO_LATE: Final = 0.6  # of the break time: a stop that took longer on an unfenced volume ends in death


@dataclass(frozen=True, slots=True)
class Setting:
    """What a run is made on."""

    lease_s: float
    break_s: float
    writers: int
    apart: bool
    """Hosts count as machines of their own: nobody sees who lives."""
    fenced: bool
    """Whether a host may be stopped for longer than the break time: its late writes are refused, or it is killed."""
    one_at_a_time: bool = False
    """Never two hosts in trouble: an array of Linux 6.1 answered nobody after a host died amid PREEMPT AND ABORT."""
    device_by: Callable[[Relay], str] | None = None
    """The LUN's address by a relay; None: a file."""


class Host:
    """One host and the mounts that it has one after the other. One thread at a time does something to it."""

    def __init__(
        self, datastore: Datastore, site: Site, setting: Setting, name: str, seed: str, relay: Relay | None
    ) -> None:
        self.name = name
        self.relay = relay
        self.in_trouble = False
        self._datastore, self._site, self._setting = datastore, site, setting
        self._random = random.Random(seed)
        self._lives = 0
        self._mount: Mount | None = None
        self._client: Client | None = None
        self._pid = 0
        self._supervised = False

    @property
    def client(self) -> Client:
        assert self._client is not None
        return self._client

    @property
    def life(self) -> Life:
        return self.name, self._lives

    @property
    def root(self) -> Path:
        assert self._mount is not None
        return self._mount.path

    @property
    def broken(self) -> bool:
        """Its programs got an error: the mount is of no use any more."""
        return bool(self._client is not None and self._client.errors)

    def fencing(self) -> str:
        """What `vmfsctl info` says of it."""
        assert self._mount is not None
        return str(self._mount.info()["mount"]["fencing"])

    def up(self, *, start: bool = True) -> None:
        """Mount, and let the programs begin."""
        self._lives += 1
        boot = uuid.UUID(int=self._random.getrandbits(128)) if self._setting.apart else None
        self._supervised = self._random.random() < 0.5
        device = self._setting.device_by(self.relay) if self.relay is not None and self._setting.device_by else None
        where = f"{self.name}-{self._lives}"
        before = self._client
        self._mount = self._boot(boot, where, device)
        self._pid = self._mount.pid
        if before is not None:
            before.recovered()
        rng = random.Random(self._random.random())
        self._client = Client(self._site, self._mount.path, self.life, rng, writers=self._setting.writers)
        if start:
            self._client.start()

    def _boot(self, boot: uuid.UUID | None, where: str, device: str | None) -> Mount:
        """Mount, and again as long as the array does not answer: LIO makes logins wait for one that broke off."""
        deadline = now() + LIMIT_S
        while True:
            try:
                return self._datastore.mount(
                    self.name, boot_id=boot, at=where, supervised=self._supervised, device=device
                )
            except AssertionError as error:
                if "no answer to the login" not in str(error) or now() > deadline:
                    raise
                self._site.history.count("mounts that the array did not answer")

    def down(self) -> None:
        """Unmount in order, if it can be; nothing of the mount is left in any case."""
        assert self._mount is not None
        self._end_programs()
        done = vmfsctl("umount", self._mount.path, check=False)
        if done.returncode != 0 and self._alive():
            self._site.history.problem(f"{self.life}: umount: {done.stdout}{done.stderr}")
            self._kill()
        self._mount.put_away()

    def again(self) -> None:
        """A new mount after one in order."""
        self.down()
        self.up()

    # -- what may happen to it -----------------------------------------------------------------------

    def die(self, witness: Host | None, quiet: Callable[[], int]) -> None:
        """kill -9. The witness tries for a file that was open here; `quiet` counts what is done to hosts."""
        held = [t for t in self._site.history.tenures if t.life == self.life and t.closed is None]
        before = quiet()
        killed = now()
        self._kill()
        if held and witness is not None:
            when = witness.client.take_over(held[0], killed, LIMIT_S)
            ended = held[0].closed
            if when is not None and (ended is None or ended > killed):
                alone = quiet() == before and not witness.broken
                self._site.history.takeovers.append(Takeover(when - killed, alone))
        self._bury()

    def process_dies(self) -> None:
        """kill -9 of the mount's process alone: its supervisor starts another one, and the programs only wait."""
        if not self._supervised:
            self._kill()
            self._bury()
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        old = self._pid
        until("another process", lambda: self._process() not in (0, old) or self._given_up(), LIMIT_S, 0.05)

    def stop(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after that time. Where nothing ends late writes, it dies if that took too long."""
        stopped = now()
        everything = self._processes()
        for pid in everything:
            _signal(pid, signal.SIGSTOP)
        time.sleep(seconds)
        if not self._setting.fenced and now() - stopped > _TOO_LATE * self._setting.break_s:
            self._kill()
            self._bury()
            return
        for pid in reversed(everything):
            _signal(pid, signal.SIGCONT)
        if self._supervised and not self._setting.apart:
            until("it serves", lambda: self._process() != 0 or self._given_up(), LIMIT_S, 0.05)

    def lose_path(self, seconds: float) -> None:
        """The network to the LUN is cut for that time."""
        assert self.relay is not None
        self.relay.cut()
        time.sleep(seconds)
        self.relay.heal()

    def drop_connections(self) -> None:
        """They are reset."""
        assert self.relay is not None
        self.relay.drop()

    # -- parts -----------------------------------------------------------------------------------

    def _processes(self) -> list[int]:
        """A machine that stands still does so with its supervisor; on one machine, the supervisor lives on."""
        assert self._mount is not None
        supervisor = self._mount.supervisor
        return [*([supervisor] if supervisor is not None and self._setting.apart else []), self._pid]

    def _process(self) -> int:
        """The process that answers now; 0: none."""
        try:
            self._pid = client.Mount.for_path(self.root, answer_seconds=2).info().mount.pid
        except (OSError, VmfsError):
            return 0
        return self._pid

    def _given_up(self) -> bool:
        """The supervisor has ended: nobody starts another process."""
        assert self._mount is not None
        return not Path(f"/proc/{self._mount.supervisor}").exists()

    def _alive(self) -> bool:
        return Path(f"/proc/{self._pid}").exists()

    def _kill(self) -> None:
        assert self._mount is not None
        for pid in (self._mount.supervisor, self._pid):
            if pid is not None:
                _signal(pid, signal.SIGKILL)

    def _bury(self) -> None:
        """After a death: the programs end, the directory goes, and the host boots after a while."""
        assert self._mount is not None
        self._end_programs()
        self._mount.put_away()
        time.sleep(self._random.choice((0, 0, 1, 2)) * self._random.random() * self._setting.break_s)
        self.up()

    def _end_programs(self) -> None:
        self.client.stop()
        if not self.client.join(LIMIT_S):
            self._site.history.problem(f"{self.life}: programs hang: {self.client.hanging()}")


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
