"""A file whose truncation its host did not live to finish: nobody makes it longer and sees what was cut off."""

from __future__ import annotations

import os
import random
import threading
import time
from errno import EBUSY
from uuid import UUID

import pytest

from tests.crash.ports import DirectPort
from tests.crash.power import findings, new_volume
from tests.crash.seeds import replay, rounds
from tests.recovery.deaths import CUT_FROM, CUT_TO, die_in_the_midst, recovered
from vmfs.clock import SystemClock
from vmfs.cluster.identity import HostIdentity
from vmfs.cluster.locks import LockManager
from vmfs.cluster.recoveries import Recoveries
from vmfs.core.mounting import MountedVolume
from vmfs.core.reaper import Reaper
from vmfs.volume import open_volume

pytestmark = pytest.mark.expected_log(
    r"the power (is|was) cut|recovered host|mount failed|is locked by|removing files|"
    r"a lock could not be given up"
)

_SLOW_SECONDS = 0.5
_WAIT_SECONDS = 30.0


class _Longer(threading.Thread):
    """A host that wants the file longer, and tries until it is let; it leaves recovering to others."""

    def __init__(self, host: MountedVolume) -> None:
        super().__init__(name="longer")
        self._port = DirectPort(host)
        self.content = b""

    def run(self) -> None:
        until = time.monotonic() + _WAIT_SECONDS
        while time.monotonic() < until:
            try:
                handle = self._port.open("cut")
            except OSError as error:
                if error.errno != EBUSY:
                    raise
                continue
            self._port.truncate(handle, CUT_FROM)
            self._port.close(handle)
            self.content = self._port.read("cut")
            return


def _extend_while_it_is_recovered(seed: int, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """What a host sees in the file that it makes longer as soon as it can, while another recovers the dead one."""
    rng = random.Random(seed)
    ram = new_volume(rng)
    identity = HostIdentity.detect("esx9", UUID(bytes=os.urandom(16)))
    longer = MountedVolume(open_volume([ram.again()]), identity, SystemClock())
    monkeypatch.setattr(longer.core.locks.recoveries, "run", lambda slot: False)
    longer.core.locks.recoveries.stop()
    die_in_the_midst(ram, rng)
    finish = Reaper.finish

    def slowly(self: Reaper, number: int, generation: int, kind: int) -> None:
        time.sleep(_SLOW_SECONDS)
        finish(self, number, generation, kind)  # type: ignore[arg-type]

    monkeypatch.setattr(Reaper, "finish", slowly)
    thread = _Longer(longer)
    thread.start()
    try:
        with recovered(ram, rng):
            thread.join(_WAIT_SECONDS)
    finally:
        thread.join(_WAIT_SECONDS)
        longer.leave()
    assert len(thread.content) == CUT_FROM
    assert findings(ram.again(read_only=True), "at the end") == []
    return thread.content[CUT_TO:]


@rounds(2)
def test_what_was_cut_off_does_not_come_back(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    print(replay(seed))
    assert not any(_extend_while_it_is_recovered(seed, monkeypatch))


def test_without_the_heirs_lock_it_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LockManager, "inherit", lambda self, address, guards, dead: None)
    assert any(_extend_while_it_is_recovered(1, monkeypatch))


def test_two_threads_that_need_one_dead_host_recover_it_once() -> None:
    """The second waits for the first, and is told to look again."""
    begun, go_on = threading.Event(), threading.Event()
    done: list[int] = []

    def recover(slot: int) -> None:
        begun.set()
        assert go_on.wait(_WAIT_SECONDS)
        done.append(slot)

    recoveries = Recoveries(None, recover, SystemClock())  # type: ignore[arg-type]  # `run` asks no membership
    outcomes: list[bool] = []
    threads = [threading.Thread(target=lambda: outcomes.append(recoveries.run(3))) for _ in range(3)]
    threads[0].start()
    assert begun.wait(_WAIT_SECONDS)
    for thread in threads[1:]:
        thread.start()
    assert recoveries.under_way() == {3}
    go_on.set()
    for thread in threads:
        thread.join(_WAIT_SECONDS)
    assert outcomes == [True] * 3
    assert done[0] == 3
    assert recoveries.under_way() == frozenset()


@pytest.mark.parametrize("planted", [False, True])
def test_who_wants_that_very_file_recovers_its_host_and_sees_zeros(
    planted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that takes the lock recovers in its own person; what was cut is cut before it may write."""
    rng = random.Random(1)
    ram = new_volume(rng)
    identity = HostIdentity.detect("esx9", UUID(bytes=os.urandom(16)))
    host = MountedVolume(open_volume([ram.again()]), identity, SystemClock())
    host.core.locks.recoveries.stop()
    host.reaper.stop()
    if planted:
        monkeypatch.setattr(Reaper, "cut_before_writing", lambda self, number: None)
    die_in_the_midst(ram, rng)
    thread = _Longer(host)
    thread.start()
    thread.join(_WAIT_SECONDS)
    host.leave()
    assert len(thread.content) == CUT_FROM
    assert any(thread.content[CUT_TO:]) == planted
