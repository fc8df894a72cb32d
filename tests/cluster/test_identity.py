from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from dataclasses import replace

import pytest

from vmfs.cluster.identity import HostIdentity, is_process_alive
from vmfs.errors import BadHostName
from vmfs.ondisk.slot import SlotRecord, SlotState


def slot_of(identity: HostIdentity, **change: object) -> SlotRecord:
    record = SlotRecord(
        0, bytes(8), 0, SlotState.LIVE, 1, 1, identity.name, identity.host_uuid, identity.boot_id,
        identity.pid, identity.start_ticks, identity.pid_namespace,
    )  # fmt: skip
    return replace(record, **change)  # type: ignore[arg-type]


def identity_of_child(code: str) -> tuple[subprocess.Popen[str], HostIdentity]:
    """A child process that prints its identity and goes on with `code`."""
    script = (
        "import sys, os; from vmfs.cluster.identity import HostIdentity as H; i = H.detect('child');"
        "print(i.pid, i.start_ticks, flush=True);" + code
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    pid, ticks = map(int, child.stdout.readline().split())
    return child, replace(HostIdentity.detect("child"), pid=pid, start_ticks=ticks)


def test_this_process_is_alive_and_itself() -> None:
    me = HostIdentity.detect("esx1")
    assert me.pid == os.getpid()
    assert me == HostIdentity.detect("esx1")
    assert is_process_alive(slot_of(me), me) is True
    assert HostIdentity.detect("esx2").host_uuid == me.host_uuid  # one machine, two names


def test_a_reused_pid_is_not_the_process() -> None:
    me = HostIdentity.detect("esx1")
    assert is_process_alive(slot_of(me, start_ticks=me.start_ticks + 1), me) is False


def test_a_killed_process_is_dead_before_and_after_it_is_reaped() -> None:
    me = HostIdentity.detect("esx1")
    child, identity = identity_of_child("sys.stdin.read()")
    assert is_process_alive(slot_of(identity), me) is True
    child.kill()
    deadline = time.monotonic() + 5
    while is_process_alive(slot_of(identity), me) and time.monotonic() < deadline:
        time.sleep(0.005)
    assert is_process_alive(slot_of(identity), me) is False  # a zombie: its threads have ended
    child.communicate()
    assert is_process_alive(slot_of(identity), me) is False


def test_a_process_whose_main_thread_has_ended_lives_on_in_the_others() -> None:
    me = HostIdentity.detect("esx1")
    code = (
        "import threading, time, ctypes;"
        "threading.Thread(target=time.sleep, args=(30,)).start();"
        "ctypes.CDLL(None).syscall(60, 0)"  # exit(2) of this thread alone
    )
    child, identity = identity_of_child(code)
    try:
        deadline = time.monotonic() + 5
        while "Z" not in _state(child.pid) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert "Z" in _state(child.pid)
        assert is_process_alive(slot_of(identity), me) is True
    finally:
        child.kill()
        child.communicate()


def _state(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0]


def test_what_another_boot_or_pid_namespace_says_proves_nothing() -> None:
    me = HostIdentity.detect("esx1")
    assert is_process_alive(slot_of(me, pid_namespace=me.pid_namespace + 1), me) is None
    assert is_process_alive(slot_of(me, boot_id=uuid.uuid4()), me) is None


def test_a_simulated_boot_is_a_machine_of_its_own() -> None:
    boot = uuid.uuid4()
    real, simulated = HostIdentity.detect("esx1"), HostIdentity.detect("esx1", boot)
    assert simulated.boot_id == boot
    assert simulated.host_uuid != real.host_uuid
    assert simulated.host_uuid != HostIdentity.detect("esx2", boot).host_uuid
    assert simulated == HostIdentity.detect("esx1", str(boot))


@pytest.mark.parametrize("name", ["", "x" * 64, "ü" * 32, "a b", "a\nb", "a\0b", "\udcff"])
def test_names_that_a_slot_or_a_log_cannot_carry_are_refused(name: str) -> None:
    with pytest.raises(BadHostName):
        HostIdentity.detect(name)
