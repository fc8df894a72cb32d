"""Unmounting from outside: takes the mount point away and waits until the mount's process has put the volume in order.

The kernel decides whether a mount is busy; its process sees the connection end, flushes, frees its slot and exits.
Works as well on what a dead process left behind.
"""

from __future__ import annotations

import contextlib
import os
from typing import Final

from vmfs.control.errors import BusyMount, StillServing
from vmfs.errors import NotAVmfsMount
from vmfs.fuse import mount as kernel
from vmfs.fuse.errors import MountBusy
from vmfs.processes import ProcessEnd, holders_of_device, loops_over, users_of
from vmfs.registry import STATE_SILENT, ask_mount

WAIT_SECONDS: Final = 60.0  # flush and release need a few heartbeats; a slow LUN a few times that
STUCK_WAIT_SECONDS: Final = 5.0  # when the storage does not answer: nothing can be put in order
STUCK: Final = "its storage does not answer; it writes nothing more, and ends when the storage answers or fails"
USERS_SHOWN: Final = 10


def unmount(mountpoint: str, *, lazy: bool = False, wait_seconds: float = WAIT_SECONDS) -> int | None:
    """Unmount what is mounted at `mountpoint`; return the pid of its process, which has ended, or None.

    With `lazy` the name goes now and the volume when the last file in it is closed: nothing is waited for.

    Raises:
        NotAVmfsMount: no volume is mounted at exactly this place.
        NotRoot, BusyMount, UnmountRefused: it is mounted still.
        StillServing: unmounted, but its process has not ended in time.
    """
    target = real_mountpoint(mountpoint)
    present = kernel.mounted_at(target)
    if present is None or present.fstype != kernel.FSTYPE:
        raise NotAVmfsMount(mountpoint)
    asked = None if lazy else ask_mount(target, present.source)
    pid = asked.info.mount.pid if asked is not None and asked.info is not None else None
    supervisor = asked.info.mount.supervisor if asked is not None and asked.info is not None else 0
    with contextlib.ExitStack() as watched:
        process = watched.enter_context(ProcessEnd.of(pid)) if pid is not None else None
        above = watched.enter_context(ProcessEnd.of(supervisor)) if supervisor else None
        try:
            kernel.unmount(target, lazy=lazy)
        except MountBusy:
            silent = asked is not None and asked.state == STATE_SILENT
            raise BusyMount(target, _users_text(target, silent=silent)) from None
        stuck = asked is not None and asked.info is not None and asked.info.mount.lease_remaining_seconds <= 0
        if stuck:
            wait_seconds = min(wait_seconds, STUCK_WAIT_SECONDS)
        if process is not None and pid is not None and not process.wait(wait_seconds):
            raise StillServing(target, pid, wait_seconds, STUCK if stuck else _why_still(present.device))
        if above is not None:
            above.wait(wait_seconds)  # it has nothing more to do
    return pid


def real_mountpoint(mountpoint: str) -> str:
    """The path as mountinfo has it, found without touching the mount itself, which may be dead or stuck."""
    parent, name = os.path.split(os.path.abspath(mountpoint))
    return os.path.join(os.path.realpath(parent), name)


def _users_text(target: str, *, silent: bool) -> str:
    users = users_of(target)
    texts = [f"{u.command} (pid {u.pid}: {u.path})" for u in users[:USERS_SHOWN]]
    texts += [f"{device} (loop device over {backing})" for device, backing in loops_over(target)]
    texts += [f"{m.source} mounted at {m.target}" for m in kernel.list_mounts() if m.target.startswith(target + "/")]
    if len(users) > USERS_SHOWN:
        texts.append(f"{len(users) - USERS_SHOWN} more processes")
    if silent:
        texts.append("whoever waits for its process, which does not answer")
    return ", ".join(texts) or "something that /proc does not show (another pid namespace, a kernel service)"


def _why_still(device: str) -> str:
    holders = holders_of_device(device)
    if holders:
        pids = ", ".join(str(pid) for pid in holders[:USERS_SHOWN])
        return f"other mount namespaces hold the volume (those of pids {pids}); unmount it there, or end these"
    return "it is still putting the volume in order; its log says more"
