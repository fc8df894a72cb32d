"""What a disk is, and where its raw bytes are: reading only, nothing is changed or locked here."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from thin import descriptor_file, flat
from thin.descriptor import CreateType, Descriptor, DiskKind
from thin.errors import FlatExtentUnusable, from_os_error
from thin.geometry import SECTOR_BYTES
from thin.location import PathLike, descriptor_of, flat_path_of, is_descriptor_name, real_path
from thin.size import format_size

STAT_BLOCK_BYTES = 512
"""The unit of st_blocks on Linux."""


@dataclass(frozen=True, slots=True)
class DiskInfo:
    """What a disk is. The fields that come from a descriptor are None for a raw file that has none."""

    descriptor_path: Path | None
    flat_path: Path
    virtual_size_bytes: int
    flat_size_bytes: int | None
    """None when the flat extent is missing."""
    allocated_bytes: int
    kind: DiskKind | None
    create_type: CreateType | None
    cid: int | None
    uuid: str | None
    adapter: str | None
    hardware_version: str | None
    problems: tuple[str, ...]
    """What is wrong, a sentence each."""

    def to_dict(self) -> dict[str, object]:
        """For JSON: sizes in bytes, the CID as in the descriptor, enumerations as their words."""
        return {
            "descriptor": None if self.descriptor_path is None else str(self.descriptor_path),
            "flat": str(self.flat_path),
            "virtual_size_bytes": self.virtual_size_bytes,
            "flat_size_bytes": self.flat_size_bytes,
            "allocated_bytes": self.allocated_bytes,
            "kind": None if self.kind is None else self.kind.value,
            "create_type": None if self.create_type is None else self.create_type.value,
            "cid": None if self.cid is None else f"{self.cid:08x}",
            "uuid": self.uuid,
            "adapter": self.adapter,
            "hardware_version": self.hardware_version,
            "problems": list(self.problems),
        }


def info(path: PathLike) -> DiskInfo:
    """What the disk at `path` is: its descriptor, its flat extent, or a raw file of any name.

    Damage that can be described is listed in `problems`. Raises DescriptorInvalid, Unsupported,
    FlatExtentUnusable, FileOperationFailed.
    """
    real = real_path(path)
    descriptor_path = descriptor_of(real)
    if descriptor_path is None:
        size, allocated = _raw_sizes(real)
        return DiskInfo(None, real, size, size, allocated, None, None, None, None, None, None, ())
    descriptor = descriptor_file.read(descriptor_path)
    flat_path = flat_path_of(descriptor_path, descriptor)
    found = flat.stat_flat(flat_path)
    problems = descriptor.problems() + _flat_problems(descriptor, flat_path, found)
    return DiskInfo(
        descriptor_path=descriptor_path,
        flat_path=flat_path,
        virtual_size_bytes=descriptor.size_bytes,
        flat_size_bytes=None if found is None else found.st_size,
        allocated_bytes=0 if found is None else found.st_blocks * STAT_BLOCK_BYTES,
        kind=descriptor.kind,
        create_type=descriptor.create_type,
        cid=descriptor.cid,
        uuid=descriptor.entry("uuid"),
        adapter=descriptor.entry("adapterType"),
        hardware_version=descriptor.entry("virtualHWVersion"),
        problems=tuple(problems),
    )


def resolve_flat(path: PathLike) -> tuple[Path, int]:
    """The file (or block device) that holds the raw bytes of the disk at `path`, and its size in bytes.

    A name that ends in `.vmdk` but not in `-flat.vmdk` is a descriptor, anything else is taken as raw; the
    content is never probed, since a guest writes it. The size is the flat file's own, which is what the
    hypervisor presents. Raises FlatExtentUnusable when the file is missing or smaller than the
    descriptor says (data is lost), and what reading a descriptor raises.
    """
    real = real_path(path)
    if not is_descriptor_name(real):
        return real, _raw_sizes(real)[0]
    descriptor = descriptor_file.read(real)
    flat_path = flat_path_of(real, descriptor)
    found = flat.stat_flat(flat_path)
    if found is None:
        raise FlatExtentUnusable(str(flat_path), "the flat extent is missing; restore it first")
    refuse_truncated(descriptor, flat_path, found.st_size)
    return flat_path, found.st_size


def refuse_truncated(descriptor: Descriptor, flat_path: Path, flat_size: int) -> None:
    if flat_size < descriptor.size_bytes:
        reason = f"it has {flat_size} bytes, its descriptor says {descriptor.size_bytes}: data is lost"
        raise FlatExtentUnusable(str(flat_path), f"{reason}; restore the disk from a backup")


def _flat_problems(descriptor: Descriptor, flat_path: Path, found: os.stat_result | None) -> list[str]:
    if found is None:
        return [f"flat extent {flat_path.name} is missing"]
    declared = descriptor.size_bytes
    sizes = f"({found.st_size} bytes instead of {declared})"
    if found.st_size > declared:
        target = format_size(found.st_size) if found.st_size % SECTOR_BYTES == 0 else "a larger size"
        return [f"flat extent larger than descriptor {sizes}: an extend was cut short; extend again to {target}"]
    if found.st_size < declared:
        return [f"flat extent smaller than descriptor {sizes}: data is lost; restore the disk from a backup"]
    allocated = found.st_blocks * STAT_BLOCK_BYTES
    if descriptor.kind is not DiskKind.THIN and allocated < declared:
        return [f"thick disk has only {allocated} of {declared} bytes allocated: a full volume can stop it"]
    return []


def _raw_sizes(path: Path) -> tuple[int, int]:
    """Size and allocated bytes of a raw file or block device."""
    try:
        found = os.stat(path)
        if stat.S_ISBLK(found.st_mode):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                size = os.lseek(fd, 0, os.SEEK_END)
            finally:
                os.close(fd)
            return size, size
    except OSError as error:
        raise from_os_error(error, str(path), "open the disk") from error
    if not stat.S_ISREG(found.st_mode):
        raise FlatExtentUnusable(str(path), "it is neither a regular file nor a block device")
    return found.st_size, found.st_blocks * STAT_BLOCK_BYTES
