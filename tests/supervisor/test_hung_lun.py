"""A LUN that stops answering: whoever waits is told, by a thread that does not hang, and it goes on when it is back."""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections.abc import Iterator
from errno import EIO
from pathlib import Path

import pytest

from tests.supervisor.hangingdisk import Hanging, hanging_disk
from tests.vmfs.datastore import QUICK_TIMERS, Datastore, Mount, until, vmfsctl

PAGE = 4096
LUN_BYTES = 1 << 30
CALLERS = 24  # three times the data threads
TOLD_SECONDS = 30.0  # of patience with a busy machine; the break time is 1.25 s


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Hanging]:
    with hanging_disk(tmp_path, LUN_BYTES) as made:
        vmfsctl("format", "--name", "ds1", *QUICK_TIMERS, made.lun)
        yield made


class HungDatastore(Datastore):
    """Mounts of the disk. Their logs are full of what the test does."""

    def __init__(self, folder: Path, disk: Hanging) -> None:
        self.folder = folder
        self.lun = disk.lun
        self.mounts: list[Mount] = []
        self._expected = []


@pytest.fixture
def datastore(tmp_path: Path, disk: Hanging) -> Iterator[HungDatastore]:
    made = HungDatastore(tmp_path, disk)
    try:
        yield made
    finally:
        disk.answer()
        for mount in made.mounts:
            mount.put_away()


def _written(path: Path) -> int:
    """A file with a page for each caller: reads and writes of it go to the LUN, all at once."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    os.pwrite(fd, mmap.mmap(-1, CALLERS * PAGE), 0)
    os.fsync(fd)
    return fd


def _errno_of_each(fd: int) -> list[int | None]:
    """What CALLERS reads and writes at once end in, in the order of their ends."""
    ends: list[int | None] = []

    def call(number: int) -> None:
        memory = mmap.mmap(-1, PAGE)
        memory[:] = bytes([number + 1]) * PAGE
        try:
            if number % 2:
                os.pwrite(fd, memory, number * PAGE)
            else:
                os.preadv(fd, [memory], number * PAGE)
            ends.append(None)
        except OSError as error:
            ends.append(error.errno)

    callers = [threading.Thread(target=call, args=(n,), daemon=True) for n in range(CALLERS)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(TOLD_SECONDS)
    assert not any(c.is_alive() for c in callers), f"only {ends} have been told"
    return ends


def _works(fd: int, content: bytes) -> bool:
    memory = mmap.mmap(-1, PAGE)
    memory[:] = content * PAGE
    try:
        os.pwrite(fd, memory, 0)
        os.fsync(fd)
        os.preadv(fd, [memory], 0)
    except OSError:
        return False
    return memory[:1] == content


def test_whoever_waits_is_told_and_it_goes_on_when_the_lun_is_back(datastore: HungDatastore, disk: Hanging) -> None:
    mount = datastore.mount("esx1")
    fd = _written(mount / "disk")
    for content in (b"a", b"b"):
        disk.hang()
        began = time.monotonic()
        assert _errno_of_each(fd) == [EIO] * CALLERS
        print(f"told after {time.monotonic() - began:.2f} s")
        with pytest.raises(OSError) as error:
            os.fsync(fd)
        assert error.value.errno == EIO
        facts = mount.info()["mount"]
        assert facts["state"] == "lease lost"
        assert "lapsed since" in facts["lease"]
        disk.answer()
        took = until("it works again", lambda c=content: _works(fd, c), TOLD_SECONDS)  # type: ignore[misc]
        print(f"works again after {took:.2f} s")
    os.close(fd)
    mount.umount()
    assert vmfsctl("check", disk.backing, check=False).returncode == 0


def test_it_can_be_unmounted_while_the_lun_hangs_and_mounted_again(datastore: HungDatastore, disk: Hanging) -> None:
    mount = datastore.mount("esx1")
    fd = _written(mount / "disk")
    disk.hang()
    assert _errno_of_each(fd) == [EIO] * CALLERS
    os.close(fd)
    done = vmfsctl("umount", mount.path, check=False)
    assert not os.path.ismount(mount.path), done
    assert done.returncode == 0 or "its storage does not answer" in done.stderr, done
    mount.mounted = False
    disk.answer()
    until("its process ends", lambda: not Path(f"/proc/{mount.pid}").exists(), TOLD_SECONDS)
    again = datastore.mount("esx1")
    fd = os.open(again / "disk", os.O_RDWR | os.O_DIRECT)
    assert _works(fd, b"c")
    os.close(fd)
    again.umount()
    assert vmfsctl("check", disk.backing, check=False).returncode == 0
