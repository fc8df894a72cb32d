"""One check of a volume that no host has mounted, from its superblocks to its last directory entry."""

from __future__ import annotations

from collections.abc import Callable

from vmfs.check.findings import Report
from vmfs.check.survey import Progress, survey
from vmfs.clock import Clock, SystemClock
from vmfs.liveness import refuse_when_mounted
from vmfs.volume import Volume


def check_volume(
    volume: Volume,
    progress: Progress | None = None,
    *,
    clock: Clock | None = None,
    waiting: Callable[[str], None] | None = None,
) -> Report:
    """Check a volume that no host has mounted (it may be open for reading only). Changes nothing.

    `waiting` is told when a host's slot has to be watched, and for how long.

    Raises:
        VolumeInUse: a host has it mounted; what is found now may be wrong in a moment.
        DeviceError: the slots cannot be read. Elsewhere what cannot be read is a finding.
    """
    slots = refuse_when_mounted(volume, clock or SystemClock(), waiting)
    return survey(volume, slots, progress or (lambda *_: None)).report
