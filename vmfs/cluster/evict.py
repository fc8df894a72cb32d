"""Ending a mount's process on this very machine that exists, but is silent: stopped, or hung.

It cannot be broken while it exists: its next instruction may be a write, and nothing on this machine would stop that
one. So it is killed first, and broken when all its threads have ended, with the I/O that they were in. The kernel's
pidfd makes sure that the signal reaches the process that was looked at and no other.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import time
from pathlib import Path
from typing import Final

from vmfs.cluster.identity import HostIdentity, is_process_alive, real_boot_id
from vmfs.events import Event, event
from vmfs.ondisk.slot import SlotRecord

WAIT_S: Final = 10.0  # for the end of a killed process: its threads may be in I/O that has a time limit of its own
_POLL_S: Final = 0.01
_NAME: Final = b"vmfs-mount"  # of every process that serves a mount, as the kernel shows it (15 bytes at most)
_log = logging.getLogger(__name__)


def name_this_process() -> None:
    """Have this process, which serves a mount and does nothing else, be known as one that may be killed for it."""
    Path("/proc/self/comm").write_bytes(_NAME)


def may_evict(record: SlotRecord, here: HostIdentity) -> bool:
    """Whether a slot's process is one that this process may kill when it is silent.

    It is a process of this boot of this machine and of this pid namespace, not this one, and runs a mount of ours: a
    program that has the file system in it as a library is left alone, and so are simulated machines.
    """
    return (
        record.boot_id == here.boot_id == real_boot_id()
        and record.pid != os.getpid()
        and is_process_alive(record, here) is True
        and _name(record.pid) == _NAME
    )


def evict(record: SlotRecord, here: HostIdentity, volume_name: str, *, wait_s: float = WAIT_S) -> bool:
    """Kill the process of a silent slot and wait for the end of all its threads; whether it has ended.

    False also when it is none that may be killed.
    """
    try:
        pidfd = os.pidfd_open(record.pid)
    except (ProcessLookupError, PermissionError):
        return is_process_alive(record, here) is False
    try:
        if not may_evict(record, here):  # looked at with the descriptor in hand: the pid cannot change hands any more
            return is_process_alive(record, here) is False
        _log.warning(
            "%s: process %d of host %s (slot %d) of this machine exists and is silent: killing it before its slot is "
            "taken", volume_name, record.pid, record.host_name, record.slot, extra=event(Event.HOST_KILLED),
        )  # fmt: skip
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return is_process_alive(record, here) is False
        return _wait(pidfd, record, here, time.monotonic() + wait_s)
    finally:
        os.close(pidfd)


def _wait(pidfd: int, record: SlotRecord, here: HostIdentity, deadline: float) -> bool:
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    poller.poll(max(0.0, deadline - time.monotonic()) * 1000)
    # The descriptor tells of the first thread's end on some kernels; the others may still sit in their I/O.
    while is_process_alive(record, here) is not False:
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _name(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/comm").read_bytes().rstrip()
    except OSError:
        return b""
