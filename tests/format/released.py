"""A volume with one of everything, as each released version of the format leaves it; and what must be found on it.

`python -m tests.format.released OUT.img.zst` makes the image of the present version, by way of a real mount. Images of
released versions lie in `images/`, and are never made anew: later versions must read what earlier ones wrote.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import zstandard

from tests.vmfs.datastore import datastore_in
from vmfs.client import Mount as MountClient

VOLUME_BYTES = 48 << 20
OPTIONS = ("--max-hosts", "4", "--journal-size", "256K")
NAMES_IN_DIRECTORY = 300  # more than one bucket of a directory holds
LARGE_BYTES = 5 << 20  # more blocks than an inode's root points at
FAR_OFFSET = 3 << 30  # a map of two levels


def pattern(name: str, length: int) -> bytes:
    """What a file of that name contains: each 16 bytes say where they belong. Compresses well."""
    line = name.encode()[:8].ljust(8, b".")
    return b"".join(line + i.to_bytes(8, "little") for i in range(-(-length // 16)))[:length]


def populate(root: Path) -> None:
    """Put one of everything onto a mounted volume."""
    (root / "empty").write_bytes(b"")
    (root / "small").write_bytes(pattern("small", 1000))
    (root / "large").write_bytes(pattern("large", LARGE_BYTES))
    with open(root / "far", "wb") as far:
        far.seek(FAR_OFFSET)
        far.write(pattern("far", 70_000))
    names = root / "names"
    names.mkdir()
    for i in range(NAMES_IN_DIRECTORY):
        (names / f"name-{i:04}-{'x' * 60}").touch()
    MountClient.for_path(root).clone(root / "large", root / "clone")
    MountClient.for_path(root).clone(root / "clone", root / "clone-of-clone")
    with open(root / "clone", "r+b") as clone:
        clone.seek(100_000)
        clone.write(pattern("changed", 50_000))
    with open(root / "thick", "wb") as thick:
        os.posix_fallocate(thick.fileno(), 0, 200_000)
    os.symlink("small", root / "link")
    os.link(root / "small", root / "second-name")
    os.mkfifo(root / "fifo", 0o640)
    os.setxattr(root / "small", "user.note", b"kept")
    os.chmod(root / "small", 0o4711)
    os.chown(root / "empty", 1234, 5678)
    os.utime(root / "empty", ns=(1_000_000_001, 2_000_000_002))
    os.sync()


def verify(root: Path) -> None:
    """Find all of it again."""
    small, large = pattern("small", 1000), pattern("large", LARGE_BYTES)
    assert (root / "empty").read_bytes() == b""
    assert (root / "small").read_bytes() == small
    assert (root / "large").read_bytes() == large
    assert (root / "clone-of-clone").read_bytes() == large
    changed = bytearray(large)
    changed[100_000:150_000] = pattern("changed", 50_000)
    assert (root / "clone").read_bytes() == changed
    with open(root / "far", "rb") as far:
        assert far.read(4096) == bytes(4096)
        far.seek(FAR_OFFSET)
        assert far.read() == pattern("far", 70_000)
    found = sorted(os.listdir(root / "names"))
    assert found == [f"name-{i:04}-{'x' * 60}" for i in range(NAMES_IN_DIRECTORY)]
    assert (root / "thick").read_bytes() == bytes(200_000)
    assert (root / "thick").stat().st_blocks * 512 >= 200_000
    assert os.readlink(root / "link") == "small"
    assert (root / "second-name").stat().st_ino == (root / "small").stat().st_ino
    assert (root / "fifo").is_fifo()
    assert os.getxattr(root / "small", "user.note") == b"kept"
    assert (root / "small").stat().st_mode & 0o7777 == 0o4711
    empty = (root / "empty").stat()
    assert (empty.st_uid, empty.st_gid, empty.st_mtime_ns) == (1234, 5678, 2_000_000_002)


def main(target: str) -> None:
    """Make the image of the present version of the format."""
    with tempfile.TemporaryDirectory() as folder, datastore_in(Path(folder), str(VOLUME_BYTES), *OPTIONS) as made:
        mount = made.mount("esx1")
        populate(mount.path)
        verify(mount.path)
        mount.umount()
        data = Path(made.lun).read_bytes()
    Path(target).write_bytes(zstandard.ZstdCompressor(level=19).compress(data))
    print(f"{target}: {len(data)} bytes of volume")


if __name__ == "__main__":
    main(sys.argv[1])
