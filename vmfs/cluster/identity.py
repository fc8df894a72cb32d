"""Who this host is, in the words of a heartbeat slot, and whether the process that a slot names still lives."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import UUID, uuid5

from vmfs.errors import BadHostName
from vmfs.ondisk.slot import HOST_NAME_MAX_BYTES, SlotRecord

# The name space of host UUIDs: a machine's own id is not to be published as it is (machine-id(5)).
_NAMESPACE: Final = UUID("5f0d7a3e-8f2b-4a51-9c57-6f4e6b1d2a90")
_MACHINE_IDS: Final = ("/etc/machine-id", "/var/lib/dbus/machine-id")
# Cloned machines often share their machine-id, hardly ever the firmware's UUID.
_FIRMWARE_UUID: Final = "/sys/class/dmi/id/product_uuid"
_BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"
_STATE_FIELD, _START_FIELD = 0, 19  # fields 3 and 22 of /proc/PID/stat, counted from after the command's name
_STOPPED_STATES: Final = ("T", "t")
_ENDED_STATES: Final = ("Z", "X", "x")


@dataclass(frozen=True, slots=True)
class HostIdentity:
    """One mounting process of one boot of one host."""

    name: str
    host_uuid: UUID
    boot_id: UUID
    pid: int
    start_ticks: int
    pid_namespace: int

    @classmethod
    def detect(cls, name: str, boot_id: UUID | str | None = None) -> HostIdentity:
        """This process, under the given host name.

        `boot_id` simulates another machine: the host UUID is then derived from it and the name, so that this mount
        counts as a machine of its own.

        Raises BadHostName: empty, too long, or with characters that logs and slots cannot carry.
        """
        problem = _name_problem(name)
        if problem is not None:
            raise BadHostName(name, problem)
        if boot_id is None:
            boot, host = real_boot_id(), uuid5(_NAMESPACE, f"machine:{_machine_id(name)}")
        else:
            boot = UUID(str(boot_id))
            host = uuid5(_NAMESPACE, f"simulated:{name}:{boot}")
        pid = os.getpid()
        start = _start_ticks(pid)
        if start is None:
            raise BadHostName(name, "/proc is not mounted, so this process cannot be named in a slot")
        return cls(name, host, boot, pid, start, os.stat("/proc/self/ns/pid").st_ino)


def is_process_alive(record: SlotRecord, here: HostIdentity) -> bool | None:
    """Whether the process that wrote this slot lives: None when this host cannot know.

    It can for a process of its own boot and its own pid namespace only. A process is gone when all its threads have
    ended: a killed one whose threads still sit in an I/O call counts as alive, because that I/O may yet land.
    """
    if record.boot_id != here.boot_id or record.pid_namespace != here.pid_namespace or record.pid <= 0:
        return None
    start = _start_ticks(record.pid)
    if start != record.start_ticks:
        return False  # no such pid, or the pid was given to another process since
    try:
        threads = os.listdir(f"/proc/{record.pid}/task")
    except FileNotFoundError:
        return False
    except PermissionError:
        return True
    states = (_stat_fields(f"/proc/{record.pid}/task/{t}/stat") for t in threads)
    return any(fields is not None and fields[_STATE_FIELD] not in _ENDED_STATES for fields in states)


def is_stopped(record: SlotRecord) -> bool:
    """Whether the process of a slot of this machine is stopped, by a signal or a debugger: it will not beat."""
    fields = _stat_fields(f"/proc/{record.pid}/stat")
    return fields is not None and fields[_STATE_FIELD] in _STOPPED_STATES


def _name_problem(name: str) -> str | None:
    size = len(name.encode("utf-8", "surrogateescape"))
    if not 0 < size <= HOST_NAME_MAX_BYTES:
        return f"it must have 1 to {HOST_NAME_MAX_BYTES} bytes, not {size}"
    if not name.isprintable() or any(c.isspace() for c in name):
        return "it must be printable and without spaces"
    return None


def _stat_fields(path: str) -> list[str] | None:
    """The fields after the command's name, which may itself hold spaces and brackets; None: no such process."""
    try:
        text = Path(path).read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()


def _start_ticks(pid: int) -> int | None:
    fields = _stat_fields(f"/proc/{pid}/stat")
    return None if fields is None else int(fields[_START_FIELD])


def real_boot_id() -> UUID:
    """Of the machine that this process runs on, whatever it is told to count as."""
    return UUID(Path(_BOOT_ID).read_text().strip())


def _machine_id(name: str) -> str:
    """What tells this machine from others and outlives a reboot; without any, its host name has to serve."""
    parts = []
    for path in (*_MACHINE_IDS, _FIRMWARE_UUID):
        with contextlib.suppress(OSError):
            if text := Path(path).read_text().strip():
                parts.append(text)
    return "+".join(dict.fromkeys(parts)) or f"name:{name}:{real_boot_id()}"
