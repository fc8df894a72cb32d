"""A mount whose storage fails under it: EIO at seeded moments, and a freeze that outlasts the lease."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import pytest

from tests.vmfs.datastore import QUICK_TIMERS, until, vmfsctl
from vmfs.clock import SystemClock
from vmfs.cluster.identity import HostIdentity
from vmfs.core.mounting import MountedVolume
from vmfs.devices import open_device
from vmfs.devices.fault import FaultDevice, FaultPlan
from vmfs.errors import VmfsError
from vmfs.fuse.contract import BUFFER_SLACK_BYTES, ROOT_ID, Context, WouldBlock
from vmfs.volume import open_volume

CONTEXT = Context(0, 0, 1)
CHUNK = 96 << 10  # a block and a half: first writes, and writes in place
FAULTLESS = FaultPlan(volatile_cache=False)
LEASE_SECONDS = 1.0
ROUNDS_MAX = 400
OTHER_BOOT = UUID(int=7)  # another machine, as far as the volume can tell

pytestmark = pytest.mark.expected_log(r"vmfs|volume ds1|ds1:")  # the mounts run in this process, and they complain


class Host:
    """A mount in this process on a device that can fail."""

    def __init__(self, lun: Path, seed: int, boot: int = 1) -> None:
        self.device = FaultDevice(open_device(str(lun)), seed, FAULTLESS)
        identity = HostIdentity.detect("esx1", UUID(int=boot))
        self.volume = MountedVolume(open_volume([self.device]), identity, SystemClock())
        self._buffer = memoryview(mmap.mmap(-1, (1 << 20) + BUFFER_SLACK_BYTES))

    def create(self, name: str) -> tuple[int, int]:
        entry, opened = self.volume.filesystem.create(CONTEXT, ROOT_ID, name.encode(), 0o644, os.O_RDWR, False)
        return entry.nodeid, opened.fh

    def open(self, name: str) -> tuple[int, int]:
        node = self.volume.filesystem.lookup(CONTEXT, ROOT_ID, name.encode()).nodeid
        return node, self.volume.filesystem.open(CONTEXT, node, os.O_RDONLY, False).fh

    def write(self, fh: int, data: bytes, offset: int) -> None:
        self._buffer[: len(data)] = data
        try:
            self.volume.plane.write(fh, self._buffer, offset, len(data))
        except WouldBlock:
            self.volume.plane.write_slow(fh, self._buffer, offset, len(data))

    def read(self, fh: int, size: int, offset: int = 0) -> bytes:
        count = self.volume.plane.read(fh, self._buffer, offset, size)
        return bytes(self._buffer[:count])

    def fsync(self, node: int, fh: int) -> None:
        self.volume.filesystem.fsync(CONTEXT, node, fh, False)

    def end(self) -> None:
        """However it is: its threads end, and the device is closed."""
        self.device.set_plan(FAULTLESS)
        self.device.thaw()
        try:
            self.volume.leave()
        except VmfsError:
            self.volume.abandon()
        self.device.close()


@pytest.fixture
def lun(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "lun.img"
    vmfsctl("format", "--name", "ds1", "--create-size", "64M", "--max-hosts", "4", *QUICK_TIMERS, path)
    yield path
    path.unlink()


def opened(volume: MountedVolume | None, node: int) -> None:
    """Open a file for writing there, and close it."""
    assert volume is not None
    fh = volume.filesystem.open(CONTEXT, node, os.O_RDWR, False).fh
    volume.filesystem.release(node, fh, os.O_RDWR)


def errno_of(action: Callable[[], object]) -> int:
    """The errno that a call comes to; 0: it was done."""
    try:
        action()
    except OSError as error:
        return error.errno or 0
    except VmfsError as error:
        return error.errno
    return 0


PLANS = {
    "writes": FaultPlan(volatile_cache=False, write_error_rate=0.02),
    "torn writes": FaultPlan(volatile_cache=False, torn_write_rate=0.02),
    "flushes": FaultPlan(volatile_cache=False, flush_error_rate=0.05),
    "reads": FaultPlan(volatile_cache=False, read_error_rate=0.02),
    "all": FaultPlan(volatile_cache=False, write_error_rate=0.01, flush_error_rate=0.02, read_error_rate=0.01),
}


@pytest.mark.parametrize("what", PLANS)
def test_errors_are_told_and_what_was_acknowledged_stays(lun: Path, what: str) -> None:
    """Files are written and synced until the mount fails: nothing acknowledged is lost, every error is EIO."""
    seed = 20 + len(what)
    rng = random.Random(seed)
    host = Host(lun, seed)
    acknowledged: dict[str, str] = {}
    errors: list[int] = []
    try:
        host.device.set_plan(PLANS[what])
        for i in range(ROUNDS_MAX):
            if host.volume.core.transactions.failure is not None or len(errors) >= 5:
                break
            name, data = f"file-{i}", rng.randbytes(CHUNK)
            created: list[tuple[int, int]] = []

            def work(name: str = name, data: bytes = data, created: list[tuple[int, int]] = created) -> None:
                created.append(host.create(name))
                node, fh = created[0]
                host.write(fh, data, 0)
                host.write(fh, data, 0)
                host.fsync(node, fh)
                assert host.read(fh, CHUNK) == data

            failed = errno_of(work)
            if failed:
                errors.append(failed)
            else:
                acknowledged[name] = hashlib.sha256(data).hexdigest()
            for node, fh in created:
                errno_of(lambda node=node, fh=fh: host.volume.filesystem.release(node, fh, os.O_RDWR))
        assert errors, "no fault met anything"
        assert set(errors) == {errno.EIO}
        host.device.set_plan(FAULTLESS)
        if host.volume.core.transactions.failure is not None:
            kept = next(iter(acknowledged)).encode()
            assert errno_of(lambda: host.create("after")) == errno.EIO
            assert errno_of(lambda: host.volume.filesystem.unlink(CONTEXT, ROOT_ID, kept)) == errno.EIO
    finally:
        host.end()
    check_clean_after_recovery(lun, acknowledged)


def check_clean_after_recovery(lun: Path, acknowledged: dict[str, str]) -> None:
    """The next mount replays the journal; everything acknowledged is there, and the checker finds nothing."""
    host = Host(lun, 1, boot=2)  # the name is the same: what the first mount left is recovered
    try:
        for name, digest in acknowledged.items():
            _, fh = host.open(name)
            assert hashlib.sha256(host.read(fh, 2 * CHUNK)).hexdigest() == digest, name
    finally:
        host.end()
    done = vmfsctl("check", lun, check=False)
    assert done.returncode == 0, done.stdout


def test_a_failed_commit_fails_the_mount(lun: Path) -> None:
    """fsync says EIO, the mount says that it has failed, refuses every change in place too, and still reads."""
    host = Host(lun, 2)
    try:
        node, fh = host.create("kept")
        host.write(fh, b"k" * CHUNK, 0)
        host.fsync(node, fh)
        host.device.set_plan(FaultPlan(volatile_cache=False, flush_error_rate=1.0))
        host.create("lost")
        assert errno_of(lambda: host.fsync(node, fh)) == errno.EIO
        host.device.set_plan(FAULTLESS)
        assert host.volume.core.transactions.failure is not None
        assert errno_of(lambda: host.fsync(node, fh)) == errno.EIO
        assert errno_of(lambda: host.write(fh, b"x" * 4096, 0)) == errno.EIO
        assert errno_of(lambda: host.write(fh, b"x" * 4096, 8 * CHUNK)) == errno.EIO
        assert errno_of(lambda: host.create("more")) == errno.EIO
        assert host.read(fh, 2 * CHUNK) == b"k" * CHUNK
    finally:
        host.end()
    check_clean_after_recovery(lun, {"kept": hashlib.sha256(b"k" * CHUNK).hexdigest()})


def test_a_freeze_longer_than_the_lease(lun: Path) -> None:
    """While the storage does not answer nothing is acknowledged, and without a lease nothing is submitted; what waited
    goes on when a heartbeat lands."""
    host = Host(lun, 3)
    answers: list[int] = []

    def call(action: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=lambda: answers.append(errno_of(action)))
        thread.start()
        return thread

    try:
        node, fh = host.create("file")
        host.write(fh, b"a" * CHUNK, 0)
        host.fsync(node, fh)
        host.device.freeze()
        lease = host.volume.membership
        threads = [call(lambda: host.write(fh, b"b" * 4096, 0))]
        until("the lease runs out", lambda: not lease.lease_valid(SystemClock().now()), 3 * LEASE_SECONDS)
        submitted = host.device.writes
        threads.append(call(lambda: host.fsync(node, fh)))
        time.sleep(LEASE_SECONDS)
        assert not answers, "a call was answered by storage that does not answer"
        assert host.device.writes == submitted, "submitted without a lease"
        host.device.thaw()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()
        until("the lease is back", lambda: lease.lease_valid(SystemClock().now()), 5 * LEASE_SECONDS)
        assert set(answers) <= {0, errno.EIO}
        found = host.read(fh, CHUNK)
        assert found[4096:] == b"a" * (CHUNK - 4096)
        assert found[:4096] in (b"a" * 4096, b"b" * 4096)
    finally:
        host.end()


def test_taken_for_dead_while_frozen(lun: Path) -> None:
    """Another host takes over; when the storage answers again the first one writes nothing, not even what waited."""
    host = Host(lun, 4)
    other: MountedVolume | None = None
    second = open_device(str(lun))
    try:
        node, fh = host.create("file")
        host.write(fh, b"a" * CHUNK, 0)
        host.fsync(node, fh)
        host.device.freeze()
        identity = HostIdentity.detect("esx2", OTHER_BOOT)
        other = MountedVolume(open_volume([second]), identity, SystemClock())
        found = other.filesystem.lookup(CONTEXT, ROOT_ID, b"file").nodeid
        until("the other host gets the lock", lambda: errno_of(lambda: opened(other, found)) == 0, 20, every=0.2)
        host.device.thaw()
        until("it sees that it was fenced", lambda: host.volume.membership.fenced, 5)
        submitted = host.device.writes
        assert errno_of(lambda: host.write(fh, b"b" * 4096, 0)) == errno.EIO
        assert errno_of(lambda: host.fsync(node, fh)) == errno.EIO
        assert errno_of(lambda: host.create("more")) == errno.EIO
        time.sleep(LEASE_SECONDS)
        assert host.device.writes == submitted
    finally:
        host.end()
        if other is not None:
            other.leave()
        second.close()
    check_clean_after_recovery(lun, {"file": hashlib.sha256(b"a" * CHUNK).hexdigest()})
