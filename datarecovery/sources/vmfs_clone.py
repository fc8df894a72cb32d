"""A file on a mounted VMFS volume, backed up from a clone, its changes found by comparing two clones.

The clone is a hidden file beside the disk, `.NAME.backup-STORE-POINT` (the store's UUID, the restore point's id; a NAME
too long for that is replaced by its SHA-256). The clone of the newest restore point stays, as the baseline of the next
backup: it costs only the blocks that the disk has replaced since. The manifest records

    kind: "vmfs-clone"; name: of the clone; inode, generation (null where the file system has none), size, mtime_ns

and a baseline counts only if a regular file of that name and identity is still there. Other clones of this store beside
the disk were left by a backup that died; they are removed by the next one, unless a restore point or a living session
may still want them.
"""

from __future__ import annotations

import array
import fcntl
import hashlib
import logging
import os
import re
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from datarecovery.errors import SourceError
from datarecovery.extents import Extent
from datarecovery.source import Baseline, Changes, Rung, RungReport
from datarecovery.sources.plain import OpenFile

log = logging.getLogger(__name__)

KIND = "vmfs-clone"
# linux/fs.h: the inode's generation, so that a number used again by another file is told apart.
_FS_IOC_GETVERSION = 0x80087601
_NAME_LIMIT_BYTES = 255
_SUFFIX = re.compile(r"\.backup-([0-9a-f]{32})-([0-9a-f]{16})")


class CloneMount(Protocol):
    """What is asked of a mounted volume; `vmfs.client.Mount` has it. Errors derive from vmfs.errors.VmfsError."""

    def clone(self, src: Path, dst: Path, /) -> object:
        """Make `dst` a point-in-time copy of `src` at once."""

    def diff(self, old: Path, new: Path, /) -> list[tuple[int, int]]:
        """Sorted (offset, length) extents, in bytes, that may differ between two clones of one file."""


def clone_prefix(disk: str) -> str:
    """How the names of all clones of a disk's file begin."""
    suffix_bytes = len(".backup-") + 32 + 1 + 16
    if len(os.fsencode(disk)) + 1 + suffix_bytes > _NAME_LIMIT_BYTES:
        disk = hashlib.sha256(os.fsencode(disk)).hexdigest()
    return f".{disk}"


def clone_name(disk: str, store: uuid.UUID, point: str) -> str:
    """The name of the clone that a backup makes."""
    return f"{clone_prefix(disk)}.backup-{store.hex}-{point}"


def _identity(path: Path) -> dict[str, object]:
    """What tells a clone from any other file. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(22, "not a regular file")
        generation = array.array("l", [0])
        try:
            fcntl.ioctl(fd, _FS_IOC_GETVERSION, generation, True)
            version: int | None = generation[0]
        except OSError:
            version = None  # not every file system has them; the rest of the identity must do
    finally:
        os.close(fd)
    return {"inode": status.st_ino, "generation": version, "size": status.st_size, "mtime_ns": status.st_mtime_ns}


class VmfsSource:
    """One disk on a VMFS volume. The clone is taken when the object is made, so open all disks of a VM in a row."""

    point_in_time = True

    def __init__(
        self,
        mount: CloneMount,
        path: Path,
        store: uuid.UUID,
        point: str,
        needed: Callable[[str], bool],
    ) -> None:
        """Remove what dead backups left (clones of points that are not `needed`), clone, and open the clone.

        Raises vmfs.errors.VmfsError when the volume refuses, SourceError when the clone cannot be read.
        """
        self._mount = mount
        self._disk = path
        self._store = store
        self._committed = False
        self._replaced: Path | None = None
        self._clean(needed)
        self._clone = path.with_name(clone_name(path.name, store, point))
        mount.clone(path, self._clone)
        try:
            self._file = OpenFile(self._clone)
        except BaseException:
            self._remove(self._clone)
            raise

    def _clean(self, needed: Callable[[str], bool]) -> None:
        prefix = clone_prefix(self._disk.name)
        try:
            names = os.listdir(self._disk.parent)
        except OSError as error:
            raise SourceError(f"folder {self._disk.parent} cannot be listed: {error.strerror}") from error
        for name in names:
            match = _SUFFIX.fullmatch(name[len(prefix) :]) if name.startswith(prefix) else None
            if match and match[1] == self._store.hex and not needed(match[2]):
                self._remove(self._disk.with_name(name))

    def _remove(self, clone: Path) -> None:
        try:
            clone.unlink(missing_ok=True)
        except OSError as error:
            log.warning("clone %s could not be removed (%s); the next backup tries again", clone, error.strerror)

    @property
    def size(self) -> int:
        """Bytes."""
        return self._file.size

    @property
    def path(self) -> str:
        """The disk's path, not the clone's."""
        return str(self._disk)

    def allocated(self) -> Iterator[Extent]:
        """See DiskSource."""
        return self._file.data_extents()

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """See DiskSource."""
        self._file.read_into(offset, buffer)

    def changes_since(self, baseline: Baseline | None, why_none: str) -> Changes:
        """See DiskSource: by the diff of the baseline's clone and ours."""
        if baseline is None:
            return Changes(RungReport(Rung.FULL_READ, why_none))
        old, why_not = self._find(baseline)
        if old is None:
            return Changes(RungReport(Rung.FULL_READ, why_not))
        from vmfs.errors import VmfsError

        try:
            found = [Extent(offset, length) for offset, length in self._mount.diff(old, self._clone)]
        except (VmfsError, OSError) as error:
            return Changes(RungReport(Rung.FULL_READ, f"the clones cannot be compared: {error}"))
        end = 0
        for extent in found:
            if extent.offset < end or extent.length < 0:
                return Changes(RungReport(Rung.FULL_READ, "the volume's list of changes is not in order"))
            end = extent.offset + extent.length
        return Changes(RungReport(Rung.VMFS_DIFF, "compared with the clone of the last backup"), tuple(found))

    def _find(self, baseline: Baseline) -> tuple[Path | None, str]:
        """The clone that a baseline means, or why there is none.

        The manifest is not trusted with a path: only a clone of this store, by its name, beside this disk will do.
        """
        name = baseline.get("name")
        prefix = clone_prefix(self._disk.name)
        match = _SUFFIX.fullmatch(name.removeprefix(prefix)) if isinstance(name, str) else None
        if baseline.get("kind") != KIND or not isinstance(name, str) or not match or match[1] != self._store.hex:
            return None, "the last backup did not read a clone of this file"
        path = self._disk.with_name(name)
        if not name.startswith(prefix) or path == self._clone:
            return None, "the last backup's clone is of another file"
        try:
            there = _identity(path)
        except OSError as error:
            return None, f"the clone of the last backup is not there: {error.strerror}"
        self._replaced = path
        if any(baseline.get(key) != value for key, value in there.items()):
            return None, "the clone of the last backup is not the one that was made then"
        return path, ""

    def baseline(self) -> Baseline:
        """See DiskSource. Raises SourceError when the clone is gone."""
        try:
            return {"kind": KIND, "name": self._clone.name, **_identity(self._clone)}
        except OSError as error:
            raise SourceError(f"clone {self._clone} cannot be read: {error.strerror}") from error

    def commit(self) -> None:
        """Keep our clone; remove the one that it replaces."""
        self._committed = True
        if self._replaced:
            self._remove(self._replaced)

    def close(self) -> None:
        """Close the clone, and remove it when nothing came of it."""
        self._file.close()
        if not self._committed:
            self._remove(self._clone)
