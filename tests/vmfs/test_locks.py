"""A file that one host has open for writing is that host's: others read what it publishes, write when it is closed."""

from __future__ import annotations

import errno
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.vmfs.datastore import Datastore, Mount, until, vmfsctl

BUSY_SECONDS = 1.5
SEEN_SECONDS = 1.0
_MIB = 1 << 20
# Of the volumes of these tests: a lease of 1 s, so a silent host is taken for dead after 1.25 s.
BREAK_SECONDS = 1.25


@contextmanager
def _busy(number: int = errno.EBUSY) -> Iterator[None]:
    began = time.monotonic()
    with pytest.raises(OSError) as error:
        yield
    assert error.value.errno == number
    assert time.monotonic() - began < BUSY_SECONDS + 0.5


@pytest.fixture
def pair(datastore: Datastore) -> tuple[Mount, Mount]:
    """Two hosts that are machines of their own."""
    return datastore.mount("esx1", boot_id=uuid.uuid4()), datastore.mount("esx2", boot_id=uuid.uuid4())


def test_one_host_writes_the_other_reads(datastore: Datastore, pair: tuple[Mount, Mount]) -> None:
    one, two = pair
    datastore.expect(r"inode \d+ is locked by host esx[12]; close it there")
    (one / "other").write_bytes(b"other")
    with open(one / "disk", "wb+", buffering=0) as disk:
        disk.write(b"a" * _MIB)
        until("the file", (two / "disk").exists, SEEN_SECONDS)
        refused: list[tuple[str, Callable[[], object]]] = [
            ("open for writing", lambda: os.open(two / "disk", os.O_WRONLY)),
            ("open for reading and writing", lambda: os.open(two / "disk", os.O_RDWR | os.O_DIRECT)),
            ("O_TRUNC", lambda: os.open(two / "disk", os.O_WRONLY | os.O_TRUNC)),
            ("truncate", lambda: os.truncate(two / "disk", 0)),
            ("unlink", lambda: os.unlink(two / "disk")),
            ("rename over it", lambda: os.rename(two / "other", two / "disk")),
        ]
        for _, action in refused:
            with _busy():
                action()
        assert "esx1" in [line for line in two.log_text().splitlines() if "WARNING" in line][-1]
        held = json.loads(vmfsctl("locks", "--json", two / "disk").stdout)
        assert "esx1" in json.dumps(held)
        assert "esx2" not in json.dumps(held)
        assert "esx1" in vmfsctl("locks", two / "disk").stdout
        disk.seek(0)
        disk.write(b"b" * 4096)

        def published() -> bool:
            return (two / "disk").read_bytes() == b"b" * 4096 + b"a" * (_MIB - 4096)

        until("what was published", published, SEEN_SECONDS)
        os.rename(one / "disk", one / "name")  # the name is not the file
        until("the new name", (two / "name").exists, SEEN_SECONDS)
    with open(two / "name", "rb+", buffering=0) as disk:
        disk.write(b"c" * 4096)
        with _busy():
            os.open(one / "name", os.O_WRONLY)
    assert (one / "name").exists()
    (one / "name").unlink()
    until("it is gone", lambda: not (two / "name").exists(), SEEN_SECONDS)
    (two / "other").unlink()


def test_a_name_is_mounted_once(datastore: Datastore) -> None:
    mount = datastore.mount("esx1")
    again = datastore.folder / "again"
    again.mkdir()
    for boot in ([], ["--boot-id", str(uuid.uuid4())]):
        log = ["--log-file", again.with_suffix(".log")]
        refused = vmfsctl("mount", datastore.lun, again, "--host", "esx1", *log, *boot, check=False)
        assert refused.returncode != 0
        assert "esx1" in refused.stderr
        assert "Traceback" not in refused.stderr
    assert not os.path.ismount(again)
    (mount / "file").write_bytes(b"works")


@pytest.mark.parametrize("same_machine", [True, False])
def test_the_locks_of_a_killed_host_are_recovered(datastore: Datastore, same_machine: bool) -> None:
    """At once where its process is known to be gone; on another machine, when it has been silent for long enough."""
    datastore.expect("recovered host esx1|esx1")
    boots = (None, None) if same_machine else (uuid.uuid4(), uuid.uuid4())
    one, two = (datastore.mount(h, boot_id=b) for h, b in zip(("esx1", "esx2"), boots, strict=True))
    (one / "dir").mkdir()
    disk = os.open(one / "dir" / "disk", os.O_RDWR | os.O_CREAT)  # open when its host dies
    os.write(disk, b"a" * 3 * _MIB)
    for i in range(50):
        with (one / "dir" / f"f{i}").open("wb", buffering=0) as file:
            file.write(b"%d" % i)
            os.fsync(file)  # closing alone promises nothing about a crash
    os.fsync(disk)
    folder = os.open(one / "dir", os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)
    until("the file", (two / "dir" / "disk").exists, SEEN_SECONDS)
    began = time.monotonic()
    one.kill()

    def opens() -> bool:
        try:
            os.close(os.open(two / "dir" / "disk", os.O_RDWR))
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            return False
        return True

    until("esx2 has the lock", opens, 4.0)
    took = time.monotonic() - began
    with suppress(OSError):
        os.close(disk)
    print(f"recovered after {took:.2f} s")
    assert took < 0.8 if same_machine else BREAK_SECONDS * 0.6 < took < BREAK_SECONDS + 1.5
    (two / "dir" / "new").write_bytes(b"goes on")
    assert (two / "dir" / "disk").read_bytes() == b"a" * 3 * _MIB
    assert sorted(os.listdir(two / "dir")) == sorted([f"f{i}" for i in range(50)] + ["disk", "new"])
    assert all((two / "dir" / f"f{i}").read_bytes() == b"%d" % i for i in range(50))
    assert [h["name"] for h in json.loads(vmfsctl("hosts", "--json", two.path).stdout)["hosts"]] == ["esx2"]
    one.put_away()
    back = datastore.mount("esx1", boot_id=boots[0])
    assert (back / "dir" / "new").read_bytes() == b"goes on"
    (back / "dir" / "disk").unlink()


def test_space_that_one_host_frees_in_groups_of_another_comes_back(datastore: Datastore) -> None:
    one, two = datastore.mount("esx1"), datastore.mount("esx2")
    (two / "own").write_bytes(b"x" * _MIB)
    before = _free(two.path)
    with open(one / "big", "wb") as file:
        for _ in range(64):
            file.write(os.urandom(_MIB))
    (one / "keeps").write_bytes(b"x")
    until("esx2 knows of it", lambda: (two / "big").stat().st_size == 64 * _MIB, SEEN_SECONDS)
    until("the space is taken", lambda: _free(two.path) <= before - 64 * _MIB, 3)
    (two / "big").unlink()
    took = until("the space is back", lambda: _free(two.path) >= before - _MIB, 10, every=0.1)
    print(f"{took:.2f} s")
    (one / "more").write_bytes(os.urandom(_MIB))
    assert (one / "keeps").read_bytes() == b"x"


def _free(path: Path) -> int:
    found = os.statvfs(path)
    return found.f_bfree * found.f_frsize


def _fill(path: Path, byte: bytes) -> int | None:
    """Write until it is refused, and with what."""
    with open(path, "wb", buffering=0) as file:
        while True:
            try:
                file.write(byte * _MIB)
            except OSError as error:
                return error.errno


def test_a_full_volume_is_full_for_both_and_recovers(tmp_path: Path) -> None:
    """The last block may lie in the other host's groups; and the space of deleted files serves again."""
    datastore = Datastore(tmp_path, "192M", "--max-hosts", "4")
    datastore.expect("no space|full|No space")
    try:
        one, two = datastore.mount("esx1"), datastore.mount("esx2")
        (two / "first").write_bytes(b"x")  # esx2 has a group
        total = _free(one.path)
        assert _fill(one / "big", b"z") == errno.ENOSPC
        size = (one / "big").stat().st_size
        assert size > 0.9 * total
        with open(one / "big", "rb") as file:
            assert all(set(file.read(_MIB)) == {ord("z")} for _ in range(size // _MIB))
        with pytest.raises(OSError) as full:
            (two / "more").write_bytes(b"y" * 8 * _MIB)
        assert full.value.errno == errno.ENOSPC
        (one / "big").unlink()
        (two / "again").write_bytes(b"w" * int(0.4 * total))
        assert (two / "again").stat().st_size == int(0.4 * total)
        assert (two / "first").read_bytes() == b"x"
        datastore.umount_all()
        datastore.check()
        assert not datastore.problems()
    finally:
        datastore.close()
