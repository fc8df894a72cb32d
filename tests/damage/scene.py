"""A volume with one of every kind of metadata block, made through a real mount, and where each of them lies.

It is made once; every test breaks a copy of its own.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.vmfs.datastore import Datastore, vmfsctl
from vmfs.devices import open_device
from vmfs.ondisk import inode as inode_format
from vmfs.ondisk.header import METADATA_BLOCK_BYTES
from vmfs.ondisk.inode import Inode, inode_address
from vmfs.ondisk.node import ADDRESS_MASK
from vmfs.volume import Volume, open_volume

SMALL = ("--max-hosts", "4", "--journal-size", "256K")
BLOCK_BYTES = 64 << 10
MANY_NAMES = 60
_LARGEST_MAP_IN_INODE = 64  # blocks; a file that reaches further has map nodes


@dataclass(frozen=True, slots=True)
class Scene:
    """An image, the digest of each of its files by path, and one block's volume address by each kind."""

    lun: Path
    digests: dict[str, str]
    blocks: dict[str, int]


def digest_of(data: bytes) -> str:
    """What `digests` holds of a file's content."""
    return hashlib.sha256(data).hexdigest()


def make_scene(folder: Path) -> Scene:
    """Make the volume in `folder`; it is unmounted and clean."""
    datastore = Datastore(folder, "96M", *SMALL)
    try:
        mount = datastore.mount("maker")
        numbers = _fill(mount.path)
        digests = {
            str(path.relative_to(mount.path)): digest_of(path.read_bytes())
            for path in sorted(mount.path.rglob("*"))
            if path.is_file() and not path.is_symlink()
        }
        mount.umount()
        datastore.check()
        with opened(datastore.lun) as volume:
            blocks = _addresses(volume, numbers)
        return Scene(datastore.lun, digests, blocks)
    except BaseException:
        datastore.close()
        raise


def _fill(root: Path) -> dict[str, int]:
    """Write the files; returns inode numbers by path."""
    rng = random.Random(6)
    (root / "plain").write_bytes(rng.randbytes(3 * BLOCK_BYTES + 100))
    with (root / "big").open("wb") as big:
        for block in (1, _LARGEST_MAP_IN_INODE + 600):
            big.seek(block * BLOCK_BYTES)
            big.write(rng.randbytes(BLOCK_BYTES))
    (root / "base").write_bytes(rng.randbytes(3 * BLOCK_BYTES))
    vmfsctl("clone", root / "base", root / "copy")
    with (root / "copy").open("r+b") as copy:
        copy.write(rng.randbytes(BLOCK_BYTES))
    (root / "sub").mkdir()
    (root / "sub" / "inner").write_bytes(b"inner\n")
    (root / "many").mkdir()
    (root / "many" / "first").write_bytes(b"many\n")
    for i in range(MANY_NAMES):
        os.link(root / "many" / "first", root / "many" / f"name-{i:03d}-{'-' * 150}")
    (root / "link").symlink_to("plain")
    names = ("plain", "big", "base", "copy", "sub", "many", "link")
    return {name: (root / name).lstat().st_ino for name in names}


@contextmanager
def opened(lun: Path, *, read_only: bool = True) -> Iterator[Volume]:
    """The volume on an image that nobody has mounted."""
    device = open_device(str(lun), read_only=read_only)
    try:
        yield open_volume([device], read_only=read_only)
    finally:
        device.close()


def read_inode(volume: Volume, number: int) -> Inode:
    """An inode as it lies on the disk."""
    block = volume.extents.read(inode_address(number), METADATA_BLOCK_BYTES)
    return inode_format.parse(block, number, volume.uuid)


def _addresses(volume: Volume, numbers: dict[str, int]) -> dict[str, int]:
    sb, geometry = volume.superblock, volume.geometry
    big, many = read_inode(volume, numbers["big"]), read_inode(volume, numbers["many"])
    plain = numbers["plain"]
    group, _ = geometry.group_of(inode_address(plain))
    first, second, last = sb.copy_offsets(0)
    return {
        "superblock": first, "superblock 2": second, "last superblock": last,
        "superblock lock": sb.superblock_lock,
        "slot": geometry.slot_address(0),
        "orphans": geometry.orphans_address(0),
        "journal header": geometry.journal_address(0),
        "journal header 2": geometry.journal_address(0) + METADATA_BLOCK_BYTES,
        "group lock": geometry.group_lock_address(group),
        "group": geometry.group_block_address(group),
        "chunk": geometry.chunk_of(inode_address(plain))[0],
        "inode lock": geometry.inode_lock_address(plain),
        "inode": inode_address(plain),
        "directory": inode_address(numbers["sub"]),
        "root": inode_address(sb.root_inode),
        "layer": inode_address(read_inode(volume, numbers["copy"]).parent),
        "node": next(p for p in big.root if p) & ADDRESS_MASK,
        "directory block": next(p for p in many.root if p) & ADDRESS_MASK,
        "symlink": inode_address(numbers["link"]),
    }  # fmt: skip


def flip(lun: Path, address: int, bit: int) -> None:
    """Turn over one bit, counted from the beginning of the block at `address`."""
    with lun.open("r+b") as file:
        file.seek(address + bit // 8)
        byte = file.read(1)[0]
        file.seek(address + bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


class CopiedDatastore(Datastore):
    """A datastore on a copy of a scene's image."""

    def __init__(self, folder: Path, scene: Scene) -> None:
        self.folder = folder
        self.lun = folder / "lun.img"
        self.mounts = []
        self._expected = []
        subprocess.run(["cp", "--sparse=always", str(scene.lun), str(self.lun)], check=True)


def remove_scene(scene: Scene) -> None:
    """Nothing of it is left."""
    shutil.rmtree(scene.lun.parent)

