"""Two hosts on a real LUN: what they share, and what becomes of the one whose network breaks."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.luns.array import LioArray
from tests.luns.datastore import LunDatastore, datastore_on
from tests.luns.lun import Lun
from tests.luns.relay import Relay
from tests.luns.tgt import TgtTarget
from tests.vmfs.datastore import Mount, until

LEASE_SECONDS = 3
SHORT_CUT_SECONDS = 1.0
SEEN_SECONDS = 30.0
TAKEN_OVER_SECONDS = 90.0
_RECORD_BYTES = 4096
# What a host says while its network is away.
_AWAY = r"a connection is lost|lease|heartbeat|no answer|SCSI command|answered with EIO"
# What is said of a host that was broken, by itself and by the other.
_BROKEN = r"esx1|slot \d+|taken for dead|inode|not registered|abandoned|end in order"


class Writer:
    """Appends numbered records to a file, an fsync each, until it is stopped or fails. `acknowledged`: how many."""

    def __init__(self, path: Path) -> None:
        self.acknowledged = 0
        self.error: OSError | None = None
        self._path = path
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="writer")
        self._thread.start()

    def _run(self) -> None:
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT)
            try:
                while not self._stopped.is_set():
                    os.pwrite(fd, record(self.acknowledged), self.acknowledged * _RECORD_BYTES)
                    os.fsync(fd)
                    self.acknowledged += 1
            finally:
                os.close(fd)
        except OSError as error:
            self.error = error

    def has(self, count: int) -> bool:
        return self.acknowledged >= count

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(TAKEN_OVER_SECONDS)
        assert not self._thread.is_alive()


def record(number: int) -> bytes:
    return b"%015d\n" % number * (_RECORD_BYTES // 16)


def holds(path: Path, count: int) -> bool:
    """Whether the file begins with that many records, whole and in order."""
    content = path.read_bytes()[: count * _RECORD_BYTES]
    return content == b"".join(record(n) for n in range(count))


@pytest.fixture(scope="module", params=["lio", "tgt"])
def lun(request: pytest.FixtureRequest) -> Lun:
    """One of each kind for the module's tests, which leave it clean to each other."""
    targets = {"lio": "lio_array", "tgt": "tgt_target"}
    target: LioArray | TgtTarget = request.getfixturevalue(targets[request.param])
    found = target.lun(0)
    found.empty()
    return found


@pytest.fixture(scope="module")
def datastore(lun: Lun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LunDatastore]:
    # On LIO Disk-Paxos would be chosen (see docs/iscsi.md): it is asked for what other arrays are used with.
    method = ("--lock-method", "ats") if lun.has_compare_and_write else ()
    with datastore_on(lun, tmp_path_factory.mktemp("hosts"), "--lease", str(LEASE_SECONDS), *method) as made:
        yield made


@pytest.fixture(scope="module")
def esx1(datastore: LunDatastore) -> tuple[Mount, Relay]:
    return datastore.mount_by_relay("esx1")


@pytest.fixture(scope="module")
def esx2(datastore: LunDatastore, esx1: tuple[Mount, Relay]) -> Mount:
    mounted, _ = datastore.mount_by_relay("esx2")
    return mounted


def test_what_one_host_writes_the_other_reads(
    lun: Lun, datastore: LunDatastore, esx1: tuple[Mount, Relay], esx2: Mount
) -> None:
    first, _ = esx1
    method = "SCSI_CAW" if lun.has_compare_and_write else "PAXOS"
    assert datastore.formatted["lock_method"] == method
    for mount in (first, esx2):
        volume = mount.info()["volume"]
        assert volume["lock_method"] == method
        assert (volume["fencing"] != "no storage fencing") == lun.has_compare_and_write
    content = os.urandom(3_000_001)
    (first / "disk").write_bytes(content)
    until("the other host reads it", lambda: (esx2 / "disk").read_bytes() == content, SEEN_SECONDS)
    (esx2 / "disk").write_bytes(content[::-1])
    until("and back", lambda: (first / "disk").read_bytes() == content[::-1], SEEN_SECONDS)
    makers = [
        threading.Thread(target=_make_files, args=(mount, name, 20), name=f"make-{name}")
        for mount, name in ((first, "a"), (esx2, "b"))
    ]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join(SEEN_SECONDS)
    names = sorted(["disk", *(f"{name}{i}" for name in "ab" for i in range(20))])
    for mount in (first, esx2):
        until("all names", lambda m=mount: sorted(os.listdir(m.path)) == names, SEEN_SECONDS)  # type: ignore[misc]


def _make_files(mount: Mount, name: str, count: int) -> None:
    for i in range(count):
        (mount / f"{name}{i}").write_text(f"{name}{i}")


def test_a_cut_shorter_than_the_lease_is_outlasted(
    datastore: LunDatastore, esx1: tuple[Mount, Relay], esx2: Mount
) -> None:
    """The writer waits, and goes on; nobody is broken, nothing is lost."""
    first, relay = esx1
    datastore.expect(_AWAY)
    writer = Writer(first / "records")
    until("it writes", lambda: writer.has(5), SEEN_SECONDS)
    incarnation = first.info()["mount"]["incarnation"]
    for _ in range(2):
        relay.cut()
        time.sleep(SHORT_CUT_SECONDS)
        relay.heal()
        wanted = writer.acknowledged + 5
        until("it goes on", lambda wanted=wanted: writer.has(wanted) or writer.error is not None, SEEN_SECONDS)  # type: ignore[misc]
        relay.drop()
        until("it goes on", lambda wanted=wanted: writer.has(wanted + 5) or writer.error is not None, SEEN_SECONDS)  # type: ignore[misc]
    writer.stop()
    assert writer.error is None
    assert first.info()["mount"]["incarnation"] == incarnation
    until("the other host has it all", lambda: holds(esx2 / "records", writer.acknowledged), SEEN_SECONDS)


def test_a_host_without_its_network_is_broken_and_comes_back(
    datastore: LunDatastore, esx1: tuple[Mount, Relay], esx2: Mount
) -> None:
    """What it had acknowledged is there; what it had locked is the other's; it is told, and mounts again."""
    first, relay = esx1
    datastore.expect(_AWAY)
    datastore.expect(_BROKEN)
    writer = Writer(first / "broken")
    until("it writes", lambda: writer.has(5), SEEN_SECONDS)
    relay.cut()
    began = time.monotonic()
    _take_over(esx2 / "broken")
    print(f"taken over {time.monotonic() - began:.1f} s after the cut")
    writer.stop()
    assert writer.error is not None
    assert holds(esx2 / "broken", writer.acknowledged)
    relay.heal()
    with pytest.raises(OSError, match="broken"):
        (first / "broken").write_bytes(b"late")
    first.umount()
    again, _ = datastore.mount_by_relay("esx1")
    assert holds(again / "broken", writer.acknowledged)
    (again / "back").write_bytes(b"here")
    until("the other host sees it", lambda: (esx2 / "back").read_bytes() == b"here", SEEN_SECONDS)


def test_a_stopped_host_that_wakes_is_refused_by_the_lun(second_lio_lun: Lun, tmp_path: Path) -> None:
    """It sleeps in the midst of writing, is taken for dead, and writes on: RESERVATION CONFLICT, not one byte lands."""
    with datastore_on(second_lio_lun, tmp_path, "--lease", str(LEASE_SECONDS)) as datastore:
        first, _ = datastore.mount_by_relay("esx1")
        second, _ = datastore.mount_by_relay("esx2")
        datastore.expect(_AWAY)
        datastore.expect(_BROKEN)
        writer = Writer(first / "records")
        until("it writes", lambda: writer.has(5), SEEN_SECONDS)
        os.kill(first.pid, signal.SIGSTOP)
        try:
            _take_over(second / "records")
            (second / "records").write_bytes(b"mine" * 100_000)
        finally:
            os.kill(first.pid, signal.SIGCONT)
        writer.stop()
        assert writer.error is not None
        until("it is told", lambda: "fenced" in first.info()["mount"]["lease"], SEEN_SECONDS)
        assert (second / "records").read_bytes() == b"mine" * 100_000
        first.umount()


def _take_over(path: Path) -> None:
    """Write to a file that another host has locked, as soon as that is possible."""
    deadline = time.monotonic() + TAKEN_OVER_SECONDS
    while True:
        try:
            with path.open("ab") as file:
                file.write(b"mine\n")
            return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
