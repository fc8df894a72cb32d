"""A VM's disk as a whole: the descriptor NAME.vmdk and its flat extent NAME-flat.vmdk, in one directory.

Orders that a crash may cut anywhere:

- create: flat extent (O_EXCL, sized, fsynced, its directory fsynced), then the descriptor (see
  `thin.descriptor_file`). Cut short: a flat file without a descriptor, which is no disk, and which `create`
  refuses to overwrite. A failure that is no crash removes what was made.
- extend: flat extent grown in place and fsynced, then the descriptor replaced. Cut short: a flat file larger
  than its descriptor says, which `info` reports and `extend`, run again, mends. The inode of the flat file
  never changes, so a hypervisor that has it open sees it grow.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from thin import descriptor_file, flat
from thin.descriptor import (
    CID_NO_PARENT,
    KNOWN_ADAPTERS,
    Access,
    CreateType,
    Descriptor,
    DiskKind,
    check_disk_size,
    format_uuid,
    name_fault,
)
from thin.errors import (
    AllocationUnsupported,
    DiskExists,
    FlatExtentUnusable,
    NameInvalid,
    ShrinkRefused,
    Unsupported,
    from_os_error,
)
from thin.flat import Progress
from thin.geometry import SECTOR_BYTES, for_disk
from thin.info import DiskInfo, info, refuse_truncated, resolve_flat
from thin.location import (
    DESCRIPTOR_SUFFIX,
    FLAT_SUFFIX,
    PathLike,
    flat_path_of,
    is_descriptor_name,
    real_path,
    require_descriptor,
)
from thin.size import SizeChange

__all__ = [
    "CreateType",
    "DiskInfo",
    "DiskKind",
    "ExtendPlan",
    "create",
    "extend",
    "info",
    "plan_extend",
    "resolve_flat",
]

log = logging.getLogger(__name__)

HARDWARE_VERSION = "7"
"""vSphere 4's, the oldest that knows thin disks; later products read it as well."""

UUID_PREFIX = bytes.fromhex("6000c290")
"""NAA type 6 and VMware's OUI 000C29, as every `ddb.uuid` begins: ESX shows others' to no guest."""


@dataclass(frozen=True, slots=True)
class ExtendPlan:
    """What `extend` would do; sizes in bytes."""

    descriptor_path: Path
    flat_path: Path
    kind: DiskKind
    old_size_bytes: int
    flat_size_bytes: int
    new_size_bytes: int

    @property
    def needed(self) -> bool:
        """False when the disk has the wanted size already."""
        return not self.old_size_bytes == self.flat_size_bytes == self.new_size_bytes


def create(
    descriptor_path: PathLike,
    size_bytes: int,
    kind: DiskKind = DiskKind.THIN,
    create_type: CreateType = CreateType.VMFS,
    progress: Progress | None = None,
    *,
    adapter: str = "lsilogic",
    random_bytes: Callable[[int], bytes] = os.urandom,
) -> DiskInfo:
    """Make a new disk of `size_bytes` (a multiple of 512, at most 62 TiB) that reads as zeros.

    `progress(done_bytes, total_bytes)` is called while an eager-zeroed disk is written. On any failure, also
    one that `progress` raises, nothing is left behind.
    Raises SizeInvalid, NameInvalid, DiskExists, AllocationUnsupported, NoSpace, FileOperationFailed.
    """
    check_disk_size(size_bytes)
    path, flat_path = _new_paths(descriptor_path)
    descriptor = _new_descriptor(flat_path.name, size_bytes, kind, create_type, adapter, random_bytes)
    _refuse_existing(path)
    try:
        # O_EXCL on this name is what two creators of one disk meet on, also from two hosts.
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(flat_path, flags, descriptor_file.NEW_FILE_MODE)
    except FileExistsError as error:
        advice = "it may be left from a creation cut short; remove it if no disk uses it, or choose another name"
        raise DiskExists(str(flat_path), advice) from error
    except OSError as error:
        raise from_os_error(error, str(flat_path), "create the flat extent") from error
    with ExitStack() as undo:
        undo.callback(_remove, flat_path)
        try:
            _fill_new(fd, flat_path, size_bytes, kind, progress)
            flat.sync(fd, flat_path)
        finally:
            os.close(fd)
        _sync_directory(flat_path)
        _refuse_existing(path)  # looked at again: zeroing may have taken hours
        undo.callback(_remove, path)
        descriptor_file.write(path, descriptor)
        undo.pop_all()
    return info(path)


def plan_extend(path: PathLike, new_size: int | SizeChange) -> ExtendPlan:
    """What `extend` would do, with all its checks and without a change. Raises what `extend` raises."""
    descriptor_path = require_descriptor(path)
    descriptor = descriptor_file.read(descriptor_path)
    flat_path = flat_path_of(descriptor_path, descriptor)
    found = flat.stat_flat(flat_path)
    if found is None:
        raise FlatExtentUnusable(str(flat_path), "the flat extent is missing; restore it first")
    return _plan(descriptor_path, descriptor, found.st_size, new_size)


def extend(path: PathLike, new_size: int | SizeChange, progress: Progress | None = None) -> DiskInfo:
    """Grow the disk to `new_size` bytes, or by a relative SizeChange (relative to what its descriptor says).

    It keeps its kind: a thick disk's growth is reserved, an eager-zeroed one's written with zeros. It may be
    in use by a VM of this host; the hypervisor is to be told afterwards. A disk of that size is left as it is.
    A failure leaves it as it was, or grown in part and usable: `extend` again completes it.
    Raises SizeInvalid, ShrinkRefused, NotADescriptor, FlatExtentUnusable, DiskBusy, AllocationUnsupported,
    NoSpace, FileOperationFailed, and what reading a descriptor raises.
    """
    descriptor_path = require_descriptor(path)
    with descriptor_file.locked(descriptor_path) as descriptor:
        flat_path = flat_path_of(descriptor_path, descriptor)
        with flat.opened(flat_path) as fd:
            plan = _plan(descriptor_path, descriptor, os.fstat(fd).st_size, new_size)
            if not plan.needed:
                return info(descriptor_path)
            size = plan.new_size_bytes
            if plan.kind is DiskKind.THIN:
                flat.grow_thin(fd, flat_path, size)
            elif plan.kind is DiskKind.LAZY_ZEROED:
                flat.grow_lazy(fd, flat_path, plan.old_size_bytes, size)
            else:
                flat.grow_eager(fd, flat_path, plan.old_size_bytes, size, progress)
            flat.sync(fd, flat_path)
        like = _stat(descriptor_path)
        descriptor_file.write(descriptor_path, descriptor.with_size(size), like)
    return info(descriptor_path)


# -- new disks -------------------------------------------------------------------------------------


def _new_paths(descriptor_path: PathLike) -> tuple[Path, Path]:
    given = Path(os.path.abspath(os.fspath(descriptor_path)))
    path = real_path(given.parent) / given.name
    if not is_descriptor_name(path) or len(path.name) == len(DESCRIPTOR_SUFFIX):
        raise NameInvalid(str(path), f"a disk is named NAME{DESCRIPTOR_SUFFIX}, and not NAME{FLAT_SUFFIX}")
    flat_path = path.with_name(path.name[: -len(DESCRIPTOR_SUFFIX)] + FLAT_SUFFIX)
    if fault := name_fault(flat_path.name):
        raise NameInvalid(str(path), f"{fault}; choose another name")
    return path, flat_path


def _new_descriptor(
    flat_name: str,
    size_bytes: int,
    kind: DiskKind,
    create_type: CreateType,
    adapter: str,
    random_bytes: Callable[[int], bytes],
) -> Descriptor:
    if adapter not in KNOWN_ADAPTERS:
        raise Unsupported(flat_name, f"adapter type {adapter!a}", KNOWN_ADAPTERS)
    content_id = random_bytes(16)
    cid = int.from_bytes(content_id[-4:], "big")
    if cid == CID_NO_PARENT:  # would mean "no parent" in a child
        content_id, cid = content_id[:-1] + b"\xfe", CID_NO_PARENT - 1
    geometry = for_disk(size_bytes, adapter)
    ddb = {
        "adapterType": adapter,
        "geometry.cylinders": str(geometry.cylinders),
        "geometry.heads": str(geometry.heads),
        "geometry.sectors": str(geometry.sectors),
        "longContentID": content_id.hex(),
        "uuid": format_uuid(UUID_PREFIX + random_bytes(12)),
        "virtualHWVersion": HARDWARE_VERSION,
    }
    if kind is DiskKind.THIN:
        ddb["thinProvisioned"] = "1"
    elif kind is DiskKind.EAGER_ZEROED:
        ddb["azekura.zeroed"] = "eager"
    return Descriptor(create_type, size_bytes // SECTOR_BYTES, flat_name, cid, tuple(ddb.items()))


def _fill_new(fd: int, path: Path, size_bytes: int, kind: DiskKind, progress: Progress | None) -> None:
    if kind is DiskKind.THIN:
        flat.grow_thin(fd, path, size_bytes)
        return
    reserved = flat.reserve(fd, path, 0, size_bytes, keep_size=False)
    if kind is DiskKind.EAGER_ZEROED:
        flat.write_zeros(fd, path, 0, size_bytes, progress)
    elif not reserved:
        raise AllocationUnsupported(str(path))


def _refuse_existing(path: Path) -> None:
    if os.path.lexists(path):
        raise DiskExists(str(path), "choose another name, or remove the disk first")


def _remove(path: Path) -> None:
    """Take back a file of a disk that could not be made; the error that is on its way matters more."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s is left of a disk that could not be made; remove it (%s)", path, error.strerror)


def _sync_directory(path: Path) -> None:
    try:
        descriptor_file.fsync_directory(path.parent)
    except OSError as error:
        raise from_os_error(error, str(path.parent), "make the new name durable (fsync)") from error


# -- existing disks --------------------------------------------------------------------------------


def _plan(
    descriptor_path: Path, descriptor: Descriptor, flat_size: int, new_size: int | SizeChange
) -> ExtendPlan:
    size = new_size.apply(descriptor.size_bytes) if isinstance(new_size, SizeChange) else new_size
    check_disk_size(size)
    where = str(descriptor_path)
    if descriptor.access is not Access.READ_WRITE:
        raise Unsupported(where, "extending a read-only disk (RDONLY)", [Access.READ_WRITE.value])
    flat_path = flat_path_of(descriptor_path, descriptor)
    refuse_truncated(descriptor, flat_path, flat_size)
    if size < descriptor.size_bytes:
        has = f"it has {descriptor.size_bytes} bytes"
        raise ShrinkRefused(where, f"{has}, and a disk never shrinks to {size}; give a larger size")
    if size < flat_size:
        has = f"its flat extent has {flat_size} bytes already (an extend was cut short)"
        raise ShrinkRefused(where, f"{has}; extend it to that size at least")
    return ExtendPlan(descriptor_path, flat_path, descriptor.kind, descriptor.size_bytes, flat_size, size)


def _stat(path: Path) -> os.stat_result:
    try:
        return os.stat(path)
    except OSError as error:
        raise from_os_error(error, str(path), "examine the descriptor") from error


