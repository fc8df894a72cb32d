"""From a DISK argument to an open source: descriptors resolved, the best rung chosen, reasons kept."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from datarecovery.errors import SourceError, UsageError
from datarecovery.source import DiskSource
from datarecovery.sources.plain import PlainSource
from datarecovery.sources.vmfs_clone import CloneMount, VmfsSource
from datarecovery.store import durable
from datarecovery.store.manifest import DISKS_LIMIT, Descriptor, is_file_name

# A descriptor is a kilobyte of text.
_DESCRIPTOR_LIMIT_BYTES = 64 << 10

MountFor = Callable[[Path], CloneMount]


@dataclass(frozen=True, slots=True)
class DiskPath:
    """A disk as asked for: the file that holds its bytes, and its descriptor, if it has one."""

    path: Path
    descriptor: Descriptor | None
    folder: str = ""

    @property
    def label(self) -> str:
        """What tells it from the VM's other disks; as in a manifest."""
        return f"{self.folder}/{self.path.name}" if self.folder else self.path.name


def resolve(arguments: Sequence[Path]) -> list[DiskPath]:
    """The disks meant by DISK arguments: descriptors, flat or raw files, block devices.

    A disk whose file has the same name as one before it gets a folder of its own. Raises SourceError, UsageError.
    """
    if not 0 < len(arguments) <= DISKS_LIMIT:
        raise UsageError(f"a backup has 1 to {DISKS_LIMIT} disks, not {len(arguments)}")
    disks: list[DiskPath] = []
    taken: set[tuple[str, str]] = set()
    for argument in arguments:
        found = _resolve_one(argument)
        if any(found.path.resolve() == other.path.resolve() for other in disks):
            raise UsageError(f"disk {argument} is named twice")
        names = [found.path.name] + ([found.descriptor.name] if found.descriptor else [])
        folder = ""
        number = 1
        while any((folder, name) in taken for name in names):
            number += 1
            folder = f"disk{number}"
        taken |= {(folder, name) for name in names}
        disks.append(DiskPath(found.path, found.descriptor, folder))
    return disks


def _resolve_one(argument: Path) -> DiskPath:
    path = argument.absolute()
    if not is_file_name(path.name):
        raise SourceError(f"disk {argument} has no file name")
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise SourceError(f"disk {str(path)!r}: its name is not UTF-8; rename it") from error
    # By the name alone: a raw disk's content is its guest's, who must not choose which file of the host is read.
    name = path.name.casefold()
    if not name.endswith(".vmdk") or name.endswith("-flat.vmdk"):
        return DiskPath(path, None)
    from thin.disk import resolve_flat
    from thin.errors import ThinError

    try:
        flat, _ = resolve_flat(path)
        text = durable.read_file(path, _DESCRIPTOR_LIMIT_BYTES).decode()
    except (ThinError, ValueError) as error:
        raise SourceError(f"disk {path}: {error}") from error
    except OSError as error:
        raise SourceError(f"disk {path} cannot be read: {error.strerror}") from error
    return DiskPath(flat.absolute(), Descriptor(path.name, text))


def vmfs_mount_for(path: Path) -> CloneMount:
    """The mounted VMFS volume that a path lies on. Raises vmfs.errors.VmfsError when there is none."""
    from vmfs.client import Mount

    mount: CloneMount = Mount.for_path(path)
    return mount


def open_all(
    disks: Sequence[DiskPath],
    store: uuid.UUID,
    point: str,
    needed: Callable[[str], bool],
    mount_for: MountFor,
    undo: ExitStack,
) -> list[DiskSource]:
    """Open every disk, clones first, one right after the other; `undo` closes them.

    Raises SourceError when a disk cannot be read at all.
    """
    sources: list[DiskSource] = []
    for disk in disks:
        source = _open(disk, store, point, needed, mount_for)
        undo.callback(source.close)
        sources.append(source)
    return sources


def _open(
    disk: DiskPath, store: uuid.UUID, point: str, needed: Callable[[str], bool], mount_for: MountFor
) -> DiskSource:
    from vmfs.errors import VmfsError

    if not disk.path.is_file():
        return PlainSource(disk.path, "a block device keeps no record of changes")
    try:
        mount = mount_for(disk.path)
    except (VmfsError, ImportError):
        return PlainSource(disk.path, "a file outside VMFS keeps no record of changes")
    try:
        return VmfsSource(mount, disk.path, store, point, needed)
    except (VmfsError, OSError) as error:
        return PlainSource(disk.path, f"no clone could be made ({error}); read while it may change")
