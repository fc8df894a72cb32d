"""Finding volumes among the devices of this machine, by the extent UUIDs in their superblocks.

Nothing is changed, not even a setting of a device. A device that another one is built on (a path of a multipath map, a
physical volume) is passed over: whatever it holds is reached through the one above. A device that does not answer is
left behind after SCAN_SECONDS and named.
"""

from __future__ import annotations

import glob
import os
import queue
import stat
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import UUID

from vmfs.devices import open_device, syscalls
from vmfs.devices.block import BlockDevice
from vmfs.devices.contract import Device, LockMethod
from vmfs.devices.direct import choose_sector_bytes
from vmfs.devices.file import FileDevice
from vmfs.devices.iscsi.address import is_iscsi
from vmfs.errors import DeviceGone, DeviceNotUsable, ExtentAmbiguous, VmfsError, VolumeNotFound
from vmfs.ondisk.superblock import Superblock
from vmfs.volume import newest_copy

SCAN_SECONDS: Final = 10.0
_READERS: Final = 16  # at a time; a LUN whose paths are down holds one up
_BY_ID: Final = Path("/dev/disk/by-id")
_SYSFS: Final = Path("/sys/class/block")


@dataclass(frozen=True, slots=True)
class Sighting:
    """An extent on a device."""

    path: str
    superblock: Superblock

    @property
    def uuid(self) -> UUID:
        return self.superblock.extents[self.superblock.extent_index].uuid


@dataclass(frozen=True, slots=True)
class FoundExtent:
    """An extent that a volume's superblock knows, and the devices on which it was seen (several: paths or copies)."""

    index: int
    uuid: UUID
    size_bytes: int
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FoundVolume:
    """A volume of which an extent at least was seen."""

    label: str
    uuid: UUID
    extents: tuple[FoundExtent, ...]

    @property
    def missing(self) -> tuple[FoundExtent, ...]:
        return tuple(e for e in self.extents if not e.devices)


@dataclass(frozen=True, slots=True)
class Scan:
    """What a look around has shown."""

    volumes: tuple[FoundVolume, ...]
    silent: tuple[str, ...]
    """Devices that did not answer in time."""


def candidates(places: Sequence[str] = ()) -> list[str]:
    """The devices to look at: this machine's disks, partitions and loop devices, and what lies in `places`.

    A place is a directory (the files and devices right in it) or a pattern. Each device once, by its name in
    /dev/disk/by-id where it has one.
    """
    found: dict[object, str] = {}
    for path in (*_links(), *_nodes(), *_within(places)):
        try:
            status = os.stat(path)
        except OSError:
            continue
        if stat.S_ISBLK(status.st_mode):
            if not _is_below_another(status.st_rdev):
                found.setdefault(status.st_rdev, path)
        elif stat.S_ISREG(status.st_mode) and status.st_size:
            found.setdefault((status.st_dev, status.st_ino), path)
    return list(found.values())


def scan(paths: Iterable[str], *, seconds: float = SCAN_SECONDS) -> Scan:
    """Look at these devices for at most `seconds`. What cannot be opened or read holds nothing of ours."""
    left = list(dict.fromkeys(paths))
    todo: queue.SimpleQueue[str] = queue.SimpleQueue()
    for path in left:
        todo.put(path)
    seen: queue.SimpleQueue[tuple[str, Superblock | None]] = queue.SimpleQueue()

    def work() -> None:
        while True:
            try:
                path = todo.get_nowait()
            except queue.Empty:
                return
            seen.put((path, _peek(path)))

    for number in range(min(_READERS, len(left))):
        # Daemons: a read of a dead LUN may never return, and nothing can end it.
        threading.Thread(target=work, name=f"scan {number}", daemon=True).start()
    sightings: list[Sighting] = []
    waiting = set(left)
    while waiting:
        try:
            path, superblock = seen.get(timeout=seconds)
        except queue.Empty:
            break
        waiting.discard(path)
        if superblock is not None:
            sightings.append(Sighting(path, superblock))
    order = {path: i for i, path in enumerate(left)}
    sightings.sort(key=lambda s: order[s.path])
    return Scan(_volumes(sightings), tuple(sorted(waiting)))


def complete(given: Sequence[str], wanted: str | None, places: Sequence[str]) -> tuple[str, ...]:
    """The devices of a whole volume: those `given`, and by scanning the extents that are missing among them.

    `wanted`: the volume's name or UUID; None: the one that `given` are of, or the only one that is found.

    Raises:
        VolumeNotFound: there is no such volume, or more than one; says which were found.
        ExtentAmbiguous: a missing extent was found on several devices.
        DeviceGone: an extent was not found.
        DeviceNotUsable: a given device holds no extent of the volume.
    """
    looked = scan((*given, *candidates(places)))
    volume = _choose(looked, given, wanted)
    chosen: list[str] = []
    for extent in volume.extents:
        mine = [path for path in given if path in extent.devices]
        if mine:
            chosen += mine  # given twice: opening the volume refuses it, by name
            continue
        if not extent.devices:
            what = f"extent {extent.index} ({extent.uuid}, {extent.size_bytes} bytes) of volume {volume.label}"
            silent = f"; these do not answer: {', '.join(looked.silent)}" if looked.silent else ""
            raise DeviceGone(what, f"it was not found on any device of this machine{silent}")
        if len(extent.devices) > 1:
            raise ExtentAmbiguous(volume.label, extent.index, extent.uuid, extent.devices)
        chosen += extent.devices
    if strange := [path for path in given if path not in chosen]:
        raise DeviceNotUsable(strange[0], f"holds no extent of volume {volume.label} ({volume.uuid})")
    return tuple(chosen)


def _choose(looked: Scan, given: Sequence[str], wanted: str | None) -> FoundVolume:
    volumes = looked.volumes
    if wanted is not None:
        volumes = tuple(v for v in volumes if wanted == v.label or wanted.lower() == str(v.uuid))
    elif given:
        volumes = tuple(v for v in volumes if any(given[0] in e.devices for e in v.extents))
    if len(volumes) != 1:
        found = [f"{v.label} ({v.uuid})" for v in (volumes or looked.volumes)]
        raise VolumeNotFound(wanted or (given[0] if given else None), found)
    return volumes[0]


def _links() -> list[str]:
    try:
        return sorted(str(path) for path in _BY_ID.iterdir())
    except OSError:
        return []


def _nodes() -> list[str]:
    try:
        return sorted(f"/dev/{path.name.replace('!', '/')}" for path in _SYSFS.iterdir())
    except OSError:
        return []


def _within(places: Sequence[str]) -> list[str]:
    found: list[str] = []
    for place in places:
        found += sorted(glob.glob(os.path.join(glob.escape(place), "*") if os.path.isdir(place) else place))
    return [os.path.abspath(path) for path in found]


def _is_below_another(number: int) -> bool:
    folder = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    try:
        has_holders = any((folder / "holders").iterdir())
        return has_holders or (folder / "size").read_text().strip() == "0"
    except OSError:
        return False


def _peek(path: str) -> Superblock | None:
    try:
        device = _open(path)
        try:
            return newest_copy(device)
        finally:
            device.close()
    except (OSError, VmfsError, ValueError):
        return None


def _open(path: str) -> Device:
    if is_iscsi(path):
        return open_device(path, read_only=True)
    if stat.S_ISREG(os.stat(path).st_mode):
        return FileDevice.open(path, read_only=True)
    # Not BlockDevice.open, which sets a loop device to direct I/O: here the device may be anybody's.
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_NONBLOCK)
    try:
        sector = choose_sector_bytes(path, syscalls.block_sector_bytes(fd), None)
        return BlockDevice(
            path, fd, logical_block_bytes=sector, read_only=True, method=LockMethod.OFD_HOST, locks={}
        )
    except BaseException:
        os.close(fd)
        raise


def _volumes(sightings: Sequence[Sighting]) -> tuple[FoundVolume, ...]:
    newest: dict[UUID, Superblock] = {}
    for seen in sightings:
        known = newest.get(seen.superblock.volume)
        if known is None or seen.superblock.generation > known.generation:
            newest[seen.superblock.volume] = seen.superblock
    volumes = []
    for uuid, sb in newest.items():
        extents = tuple(
            FoundExtent(i, e.uuid, e.size_bytes, tuple(s.path for s in sightings if s.uuid == e.uuid))
            for i, e in enumerate(sb.extents)
        )
        volumes.append(FoundVolume(sb.label, uuid, extents))
    return tuple(sorted(volumes, key=lambda v: (v.label, str(v.uuid))))
