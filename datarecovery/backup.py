"""Back up a VM's disks: the operation behind `datarecovery backup`.

Order: the session begins (and dead ones are cleaned up), clones of all disks are taken, they are read one after the
other, everything is made durable, the manifest is published, and only then do the sources move their baselines.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from datarecovery import progress
from datarecovery.diskbackup import DiskBackup
from datarecovery.errors import UsageError
from datarecovery.source import DiskSource
from datarecovery.sources import disks as disk_sources
from datarecovery.sources.disks import DiskPath, MountFor
from datarecovery.store import recovery
from datarecovery.store.manifest import POINT_ID_BYTES, Disk, Manifest, encode
from datarecovery.store.store import Store
from datarecovery.workers import worker_count

# As long as a name can be in a manifest and in a report; a VM's name in vSphere has at most 80.
VM_NAME_LIMIT_CHARS = 255


def _utc_now() -> datetime:
    return datetime.now(UTC)


def _new_point_id() -> str:
    return secrets.token_hex(POINT_ID_BYTES)


@dataclass(frozen=True, slots=True)
class World:
    """What a backup takes from outside: clock, chance, mounted volumes, threads, and someone to tell."""

    now: Callable[[], datetime] = _utc_now
    new_point_id: Callable[[], str] = _new_point_id
    mount_for: MountFor = disk_sources.vmfs_mount_for
    threads: int = 0
    progress: progress.Progress = progress.silent


def check_vm_name(vm: str) -> None:
    """Raises UsageError for a name that could not be asked for again."""
    if not 0 < len(vm) <= VM_NAME_LIMIT_CHARS or not vm.isprintable() or "@" in vm or vm != vm.strip():
        raise UsageError(f"{vm!r} is no name for a VM: 1 to {VM_NAME_LIMIT_CHARS} printable characters without '@', "
                         "with no space at its ends")


def back_up(store: Store, vm: str, arguments: Sequence[Path], world: World | None = None) -> Manifest:
    """Make a restore point of a VM's disks and return its manifest.

    Raises SourceError, UsageError, BusyError, NoSpaceError, StoreIoError, DamagedIndexError; then there is no new
    restore point, and all others are as they were.
    """
    world = world or World()
    check_vm_name(vm)
    disks = disk_sources.resolve(arguments)
    point = world.new_point_id()
    created = world.now()
    with ExitStack() as undo:
        session = store.session(point, vm)
        undo.callback(session.close)
        previous = store.points.latest(vm)
        needed = _needed(store, previous)
        sources = disk_sources.open_all(disks, store.config.store, point, needed, world.mount_for, undo)
        done = [0]
        total = sum(source.size for source in sources)

        def advance(count: int) -> None:
            done[0] = min(done[0] + count, total)
            world.progress(done[0], total)

        entries = []
        for disk, source in zip(disks, sources, strict=True):
            old = _previous_disk(previous, disk)
            work = DiskBackup(store, session, source, old, world.threads or worker_count(), advance)
            entries.append(_entry(disk, source, work, _why_none(previous, old)))
        session.seal()
        manifest = Manifest(
            store.config.store,
            point,
            vm,
            previous.sequence + 1 if previous else 1,
            created.isoformat(timespec="seconds"),
            world.now().isoformat(timespec="seconds"),
            previous.id if previous else None,
            tuple(entries),
        )
        session.publish(store.points.path_of(vm, point), encode(manifest))
        for source in sources:
            source.commit()
    return manifest


def _needed(store: Store, previous: Manifest | None) -> Callable[[str], bool]:
    """Whether somebody may still want the clone of a restore point: a living session, our last point, another VM's."""

    def needed(point: str) -> bool:
        if previous and point == previous.id:
            return True
        if point in recovery.live_points(store.root):
            return True
        path = store.points.exists(point)
        return path is not None and (previous is None or path.parent != store.points.path_of(previous.vm, point).parent)

    return needed


def _previous_disk(previous: Manifest | None, disk: DiskPath) -> Disk | None:
    if previous is None:
        return None
    return next((old for old in previous.disks if old.label == disk.label), None)


def _why_none(previous: Manifest | None, old: Disk | None) -> str:
    if previous is None:
        return "first backup of this VM"
    if old is None:
        return "this disk is not in the last restore point"
    return "the last backup left nothing to compare with"


def _entry(disk: DiskPath, source: DiskSource, work: DiskBackup, why_none: str) -> Disk:
    outcome = work.run(why_none)
    baseline = source.baseline()
    return Disk(
        disk.path.name,
        disk.folder,
        source.size,
        outcome.root,
        outcome.levels,
        disk.descriptor,
        source.path,
        outcome.report.rung.value,
        outcome.report.reason,
        source.point_in_time,
        dict(baseline) if baseline is not None else None,
        outcome.figures,
    )
