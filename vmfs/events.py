"""Events: what a log says that somebody may have to act on, under names that stay.

A record carries its event in the attribute `event` (`log.error(..., extra=event(Event.FENCED))`): it becomes a field of
the journal and of JSON logs, and a counter of the metrics. docs/operations.md says what each means and what to do.
"""

from __future__ import annotations

from enum import StrEnum

from vmfs.errors import DamagedBlock


class Event(StrEnum):
    """The names. Scripts and alerts rely on them: one may be added, none changed."""

    MOUNTED = "mounted"
    UNMOUNTED = "unmounted"
    NOT_IN_ORDER = "not-in-order"
    """The mount ended and could not put everything in order: the next one recovers its slot."""
    HEARTBEAT_MISSED = "heartbeat-missed"
    LEASE_LAPSED = "lease-lapsed"
    LEASE_RESUMED = "lease-resumed"
    FENCED = "fenced"
    REFUSED = "refused"
    """A LUN refuses this host; whether it is fenced is looked at."""
    HOST_KILLED = "host-killed"
    """A process of this machine that was silent was killed, so that its locks can be taken."""
    HOST_RECOVERED = "host-recovered"
    RECOVERY_FAILED = "recovery-failed"
    DAMAGED = "damaged"
    IO_FAILED = "io-failed"
    NO_SPACE = "no-space"
    IO_ANSWERED = "io-answered"
    """Requests that waited for a silent storage were answered with EIO."""
    MOUNT_FAILED = "mount-failed"
    PROCESS_DIED = "process-died"
    TAKEN_OVER = "taken-over"
    """A new process has taken the mount over."""
    MOUNT_DEAD = "mount-dead"
    """The mount's processes died too often: no other is started."""


def event(name: Event) -> dict[str, str]:
    """For a log call's `extra`."""
    return {"event": name.value}


def event_of(error: Exception) -> dict[str, str]:
    """For a log call's `extra`, where what failed says what has happened."""
    return event(Event.DAMAGED if isinstance(error, DamagedBlock) else Event.IO_FAILED)
