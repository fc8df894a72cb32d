"""Does things to hosts, by a seed, one after the other and several at a time; each thing is a thread."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Final

from tests.history.hosts import Host, Setting
from tests.history.records import History, now

_STOPPED_LEASES: Final = 3.0


class Nemesis:
    """`run` for a time. Hosts are in trouble while a thread of it does something to them. `_mutex` guards that."""

    def __init__(self, hosts: list[Host], setting: Setting, history: History, seed: int) -> None:
        self._hosts, self._setting, self._history = hosts, setting, history
        self._random = random.Random(f"{seed}/nemesis")
        self._mutex = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._done = 0

    def run(self, seconds: float) -> None:
        """Until the time is over, and every host serves again."""
        deadline = now() + seconds
        while now() < deadline:
            time.sleep(self._random.uniform(0.1, 1.0) * self._setting.lease_s)
            broken = [host for host in self._calm() if host.broken]
            if broken:
                self._do(broken[0], "mounts again after an error", broken[0].again)
            calm = self._calm()
            if self._setting.one_at_a_time and len(calm) < len(self._hosts):
                continue
            if len(calm) > 1 or (calm and self._random.random() < 0.1):  # now and then none is left
                host = self._random.choice(calm)
                self._do(host, *self._choose(host, [h for h in calm if h is not host]))
        for thread in self._threads:
            thread.join()
        for host in self._hosts:
            if host.broken:
                host.again()

    def _calm(self) -> list[Host]:
        with self._mutex:
            return [host for host in self._hosts if not host.in_trouble]

    def _choose(self, host: Host, others: list[Host]) -> tuple[str, Callable[[], None]]:
        r, lease = self._random, self._setting.lease_s
        witness = r.choice(others) if others and r.random() < 0.7 else None
        short = r.uniform(0.05, 0.4) * self._setting.break_s
        long = r.uniform(1.0, _STOPPED_LEASES) * lease
        stop = long if self._setting.fenced and r.random() < 0.6 else short
        cut = r.choice((short, long))
        choices: list[tuple[int, str, Callable[[], None]]] = [
            (5, "kill -9 of a host", lambda: host.die(witness, lambda: self._done)),
            (2, "kill -9 of a process", host.process_dies),
            (3, "long stop" if stop == long else "short stop", lambda: host.stop(stop)),
            (1, "remount", host.again),
        ]
        if host.relay is not None:
            choices.append((3, "lost path", lambda: host.lose_path(cut)))
            choices.append((1, "dropped connections", host.drop_connections))
        _, what, action = r.choices(choices, [weight for weight, _, _ in choices])[0]
        return what, action

    def _do(self, host: Host, what: str, action: Callable[[], None]) -> None:
        self._history.count(what)
        with self._mutex:
            host.in_trouble = True
            self._done += 1

        def run() -> None:
            try:
                action()
            except BaseException as error:
                self._history.problem(f"{host.life}: {what}: {error!r}")
                raise
            with self._mutex:
                host.in_trouble = False  # a host with a problem stays as it is, for whoever looks

        thread = threading.Thread(target=run, name=f"{host.name}: {what}")
        thread.start()
        self._threads.append(thread)
