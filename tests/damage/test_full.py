"""A full volume: ENOSPC, nothing lost, names can still be removed, and the space comes back."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.damage.probe import probe
from tests.damage.scene import BLOCK_BYTES, digest_of
from tests.vmfs.datastore import Datastore, Mount, datastore_in, until, vmfsctl

MIB = 1 << 20
BACK_SECONDS = 20.0  # removal in the background, the quarantine, another host that lets go of its groups


@pytest.fixture
def datastore(tmp_path: Path) -> Iterator[Datastore]:
    """A volume of 32 MiB, 20 of them for data. It is checked when the test is done."""
    with datastore_in(tmp_path, "32M", "--max-hosts", "4", "--journal-size", "256K") as made:
        made.expect("is full: no room")
        yield made


def free_bytes(mount: Mount) -> int:
    stat = os.statvfs(mount.path)
    return stat.f_bavail * stat.f_frsize


def fill(folder: Path, first: int = 0) -> dict[str, str]:
    """Write files until the volume is full; the digest of each that was written whole."""
    written = {}
    for i in range(first, 10_000):
        data = os.urandom(MIB)
        try:
            with (folder / f"fill-{i}").open("xb", buffering=0) as file:
                done = file.write(data)
                if done != len(data):
                    file.write(data[done:])
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            (folder / f"fill-{i}").unlink(missing_ok=True)
            return written
        written[f"fill-{i}"] = digest_of(data)
    raise AssertionError("the volume does not fill up")


def until_enospc(action: Callable[[int], object]) -> int:
    """Call it with 0, 1, 2... until it fails for want of space; how often it did not."""
    for i in range(100_000):
        try:
            action(i)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            return i
    raise AssertionError("the volume does not fill up")


def test_filled_by_writes(datastore: Datastore) -> None:
    """What was written stays right; it can be removed, and the space filled again, by another host too."""
    esx1, esx2 = datastore.mount("esx1"), datastore.mount("esx2")
    written = fill(esx1.path)
    assert free_bytes(esx1) < MIB
    assert probe(esx1.path, written) == written
    assert probe(esx2.path, written) == written
    with pytest.raises(OSError, match="No space"):
        (esx2 / "not-here").write_bytes(os.urandom(2 * MIB))
    (esx2 / "not-here").unlink(missing_ok=True)
    gone = list(written)[::2]
    for name in gone:
        (esx1 / name).unlink()
        del written[name]
    until("the space is back", lambda: free_bytes(esx1) > (len(gone) - 1) * MIB, BACK_SECONDS, every=0.05)
    again = fill(esx2.path, first=1000)
    assert len(again) >= len(gone) - 1
    written |= again
    assert probe(esx1.path, written) == written


def test_filled_by_names(datastore: Datastore) -> None:
    """Files without content, then directories, need metadata; all can be removed while nothing is free."""
    mount = datastore.mount("esx1")
    written = fill(mount.path)
    files = until_enospc(lambda i: (mount / f"empty-{i:05d}").touch(exist_ok=False))
    directories = until_enospc(lambda i: (mount / f"directory-{i:05d}").mkdir())
    until_enospc(lambda i: (mount / f"link-{i:05d}-{'-' * 200}").symlink_to("x" * 200))
    listed = set(os.listdir(mount.path))
    assert {f"empty-{i:05d}" for i in range(files)} <= listed
    assert {f"directory-{i:05d}" for i in range(directories)} <= listed
    assert probe(mount.path, written) == written
    for name in listed - set(written):
        path = mount / name
        if name.startswith("directory"):
            path.rmdir()
        else:
            path.unlink()
    victim = next(iter(written))
    (mount / victim).unlink()
    del written[victim]
    until("a block is back", lambda: free_bytes(mount) >= MIB, BACK_SECONDS, every=0.05)
    (mount / "after").write_bytes(b"a" * (MIB // 2))
    assert probe(mount.path, written) == written


def test_a_clones_first_writes(datastore: Datastore) -> None:
    """A clone takes no room, its blocks do: ENOSPC there leaves both files as they were."""
    mount = datastore.mount("esx1")
    base = os.urandom(8 * MIB)
    (mount / "base").write_bytes(base)
    vmfsctl("clone", mount / "base", mount / "copy")
    written = fill(mount.path)
    with (mount / "copy").open("r+b", buffering=0) as copy:
        changed = until_enospc(lambda i: os.pwrite(copy.fileno(), b"c" * 4096, i * BLOCK_BYTES))
        assert changed < len(base) // BLOCK_BYTES
        wanted = bytearray(base)
        for i in range(changed):
            wanted[i * BLOCK_BYTES : i * BLOCK_BYTES + 4096] = b"c" * 4096
    digests = {"base": digest_of(base), "copy": digest_of(bytes(wanted)), **written}
    assert probe(mount.path, digests) == digests
    vmfsctl("clone", mount / "base", mount / "copy2", check=False)  # it may still fit, or not: nothing breaks
    assert probe(mount.path, digests) == digests


def test_more_than_is_free_is_refused_at_once(datastore: Datastore) -> None:
    """fallocate of what cannot fit allocates nothing, and waits for nothing."""
    mount = datastore.mount("esx1")
    (mount / "small").write_bytes(b"s" * MIB)
    os.sync()
    before = free_bytes(mount)
    with (mount / "small").open("r+b") as file:
        began = time.monotonic()
        with pytest.raises(OSError, match="No space"):
            os.posix_fallocate(file.fileno(), 0, before + 2 * MIB)
        assert time.monotonic() - began < 5
        assert os.fstat(file.fileno()).st_blocks * 512 == MIB
        assert os.fstat(file.fileno()).st_size == MIB
    assert free_bytes(mount) == before
    with (mount / "fits").open("xb") as file:
        os.posix_fallocate(file.fileno(), 0, before - 4 * MIB)
    assert (mount / "small").read_bytes() == b"s" * MIB


def test_a_full_volume_is_mounted_and_unmounted(datastore: Datastore) -> None:
    mount = datastore.mount("esx1")
    written = fill(mount.path)
    mount.umount()
    again = datastore.mount("esx2")
    assert probe(again.path, written) == written
    with (again / next(iter(written))).open("r+b", buffering=0) as file:
        os.ftruncate(file.fileno(), 100)
        os.fsync(file.fileno())
    until("the space is back", lambda: free_bytes(again) >= MIB // 2, BACK_SECONDS, every=0.05)
