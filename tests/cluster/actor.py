"""A host in a process of its own, for tests: `python -m tests.cluster.actor DEVICE NAME COMMAND ...`."""

from __future__ import annotations

import contextlib
import sys
import time

from tests.cluster.world import COUNTER_AT, Host, lock_address
from vmfs.devices.file import FileDevice
from vmfs.errors import SlotNotDead, VmfsError
from vmfs.ondisk.lock import Guards


def say(*words: object) -> None:
    print(*words, flush=True)


def hold(host: Host, lock: str) -> None:
    """Take a lock and sit there."""
    if lock != "none":
        host.locks.acquire(lock_address(int(lock)), Guards.TEST)
    say("holds", host.membership.holder.slot)
    sys.stdin.read()


def count(host: Host, rounds: str) -> None:
    """Add one to a plain counter under lock 0, again and again; `did N` is said when the write has been made.

    Reads and writes of the counter are plain, and far apart: without the lock additions are lost.
    """
    for _ in range(int(rounds)):
        tenure = host.locks.acquire(lock_address(0), Guards.TEST, wait=60)
        value = int.from_bytes(host.extents.read(COUNTER_AT, 512)[:8], "little")
        time.sleep(0.0005)
        host.membership.check_lease()
        host.extents.write(COUNTER_AT, (value + 1).to_bytes(8, "little").ljust(512, b"\0"))
        say("did", value + 1)
        host.locks.unpin(tenure)


def main() -> None:
    path, name, command, *arguments = sys.argv[1:]
    host = Host(FileDevice.open(path, sector_bytes=512), name, machine=False, seed=hash(name))
    try:
        host.join()
        for slot in host.membership.dead_slots_of_this_boot():
            with contextlib.suppress(SlotNotDead):  # another host was faster
                host.recover(slot)
    except VmfsError as e:
        say("error", type(e).__name__, str(e))
        return
    say("claimed", host.membership.holder.slot, host.membership.holder.incarnation)
    {"hold": hold, "count": count}[command](host, *arguments)
    host.leave()
    say("left")


if __name__ == "__main__":
    main()
