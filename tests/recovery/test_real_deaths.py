"""kill -9 of real mounts of hosts that count as machines of their own, and what the others make of it."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.crash.seeds import replay, rounds
from tests.vmfs.datastore import Datastore, Mount, until, vmfsctl

Machine = Callable[[str], Mount]
_LONG_SECONDS = 60.0
_MEGABYTE = 1 << 20


def _recovered(by: Mount, whom: str) -> bool:
    return f"recovered host {whom} " in by.log_text()


def _hosts(mount: Mount) -> dict[str, dict[str, object]]:
    return {h["name"]: h for h in json.loads(vmfsctl("hosts", mount.path, "--json").stdout)["hosts"]}


def _open_for_writing(path: str) -> int:
    """As soon as it is to be had."""
    deadline = time.monotonic() + _LONG_SECONDS
    while True:
        try:
            return os.open(path, os.O_RDWR)
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise


def test_idle_hosts_recover_a_dead_one_and_only_one_of_them_does(machine: Machine) -> None:
    """Nobody wants anything of what it had locked."""
    one, two, three = machine("esx1"), machine("esx2"), machine("esx3")
    content = os.urandom(300_000)
    disk = os.open(one / "disk", os.O_RDWR | os.O_CREAT)
    os.pwrite(disk, content, 0)
    os.fsync(disk)
    one.kill()
    until("a recovery", lambda: _recovered(two, "esx1") or _recovered(three, "esx1"), _LONG_SECONDS)
    # esx1 had slot 0, so it is the turn of slot 1.
    assert _recovered(two, "esx1"), three.log_text()
    line = re.search(r"recovered host esx1 .*", two.log_text())
    assert line is not None
    assert re.search(r"silent for \d+\.\d s.*records with \d+ blocks replayed.*replay \d+ ms.*finish \d+ ms", line[0])
    assert "esx1" not in _hosts(three)
    assert (three / "disk").read_bytes() == content
    assert not _recovered(three, "esx1")
    one.put_away()


def test_the_survivors_go_on_writing_and_have_the_dead_hosts_space(machine: Machine) -> None:
    """One host takes the dead one's open file over while another writes; all that was acknowledged is there."""
    one, two, three = machine("esx1"), machine("esx2"), machine("esx3")
    acknowledged = 0
    stop = threading.Event()

    def busy() -> int:
        count = 0
        while not stop.is_set():
            (three / f"busy{count % 10}").write_bytes(b"%d" % count * 10_000)
            count += 1
        return count

    with ThreadPoolExecutor(1) as pool:
        others = pool.submit(busy)
        disk = os.open(one / "disk", os.O_RDWR | os.O_CREAT)
        for i in range(200):
            os.pwrite(disk, b"%06d" % i * 700, i * 4200)
            if i % 10 == 9:
                os.fsync(disk)
                acknowledged = i + 1
            if i == 150:
                one.kill()
                break
        began = time.monotonic()
        mine = _open_for_writing(str(two / "disk"))
        print(f"taken over after {time.monotonic() - began:.2f} s")
        found = os.pread(mine, _MEGABYTE, 0)
        assert all(found[i * 4200 : (i + 1) * 4200] == b"%06d" % i * 700 for i in range(acknowledged))
        os.pwrite(mine, b"mine", 0)
        os.fsync(mine)
        os.close(mine)
        stop.set()
        print(f"the third host wrote {others.result()} files meanwhile")
    one.put_away()
    # What it had only promised itself is free again: the file that is removed gives all of it back.
    (two / "disk").unlink()


def test_a_site_without_power_mounts_again_at_once(datastore: Datastore, machine: Machine) -> None:
    """All four slots are of dead hosts; two of the machines boot at the same moment, and find each other."""
    datastore.expect(r"every slot is taken")
    mounts = [machine(f"esx{i}") for i in range(4)]
    contents = {f"disk{i}": os.urandom(100_000) for i in range(4)}
    for mount, (name, content) in zip(mounts, contents.items(), strict=True):
        with open(mount / name, "wb", buffering=0) as disk:
            disk.write(content)
            os.fsync(disk.fileno())
    for mount in mounts:
        mount.kill()
    for mount in mounts:
        mount.put_away()
    with ThreadPoolExecutor(2) as pool:
        again = [pool.submit(machine, f"new{i}") for i in range(2)]
        first, second = (f.result() for f in again)
    until("all slots but two free", lambda: set(_hosts(first)) == {"new0", "new1"}, _LONG_SECONDS)
    assert sum("every slot is taken" in m.log_text() for m in (first, second)) >= 1
    for name, content in contents.items():
        assert (first / name).read_bytes() == content
        assert (second / name).read_bytes() == content
        os.close(_open_for_writing(str(second / name)))


@rounds(1)
def test_a_recoverer_that_is_killed_half_way_is_recovered_too(
    datastore: Datastore, machine: Machine, seed: int
) -> None:
    """kill -9 of the host whose turn it is, at a moment in or about its recovery; the third one does both."""
    print(replay(seed))
    rng = random.Random(seed)
    one, two, three = machine("esx1"), machine("esx2"), machine("esx3")
    content = rng.randbytes(2 * _MEGABYTE)
    disk = os.open(one / "disk", os.O_RDWR | os.O_CREAT)
    os.pwrite(disk, content, 0)
    os.fsync(disk)
    wait = rng.uniform(1.2, 1.6)  # its break time is 1.25 s
    one.kill()
    time.sleep(wait)
    two.kill()
    mine = _open_for_writing(str(three / "disk"))
    assert os.pread(mine, 2 * _MEGABYTE, 0) == content
    os.close(mine)
    until("both recovered", lambda: set(_hosts(three)) == {"esx3"}, _LONG_SECONDS)
    assert _recovered(three, "esx2")
    one.put_away()
    two.put_away()


def test_an_operators_orders(datastore: Datastore, machine: Machine) -> None:
    """fence: refused while the host lives, and of the host itself; at once when it is dead."""
    datastore.expect(r"an operator orders")
    one, two = machine("esx1"), machine("esx2")
    disk = os.open(one / "disk", os.O_RDWR | os.O_CREAT)
    os.pwrite(disk, b"kept", 0)
    os.fsync(disk)
    alive = vmfsctl("fence", "esx1", two.path, "--yes", check=False)
    assert (alive.returncode, "power it off first" in alive.stderr) == (2, True), alive
    own = vmfsctl("fence", "esx2", two.path, "--yes", check=False)
    assert (own.returncode, "is this host itself" in own.stderr) == (2, True), own
    unknown = vmfsctl("fence", "esx7", two.path, check=False)
    assert (unknown.returncode, "no host esx7" in unknown.stderr) == (2, True), unknown
    unasked = vmfsctl("fence", "esx1", two.path, check=False)
    assert (unasked.returncode, "--yes" in unasked.stderr) == (2, True), unasked
    assert "no storage fencing" in unasked.stderr
    live = vmfsctl("recover", "esx1", two.path, check=False)
    assert (live.returncode, "has not failed" in live.stderr) == (2, True), live
    one.kill()
    plan = json.loads(vmfsctl("fence", "esx1", two.path, "--dry-run", "--json").stdout)["plans"][0]
    assert (plan["host"]["name"], plan["fencing"]) == ("esx1", None)
    assert plan["journal"]["records"] >= 1
    done = vmfsctl("fence", "esx1", two.path, "--yes", check=False)
    # The idle host may have been quicker on a slow machine: there is nothing left to do then.
    assert done.returncode == 0 or "no host esx1" in done.stderr or "cannot be recovered now" in done.stderr, done
    until("it is gone", lambda: set(_hosts(two)) == {"esx2"}, _LONG_SECONDS)
    assert (two / "disk").read_bytes() == b"kept"
    one.put_away()


def test_a_journal_that_cannot_be_read_waits_for_an_operator(datastore: Datastore, machine: Machine) -> None:
    """The slot is FAILED: others mount and work, its locks stay held; giving the journal up frees them."""
    datastore.expect(r"recovery of host esx1 has failed|is not recovered|an operator orders|damaged")
    one = machine("esx1")
    (one / "safe").write_bytes(b"safe" * 10_000)
    until("safe is settled", lambda: _settled(one), _LONG_SECONDS)
    disk = os.open(one / "disk", os.O_RDWR | os.O_CREAT)
    os.pwrite(disk, b"last words", 0)
    os.fsync(disk)
    one.kill()
    headers = _journal_address(datastore)
    with datastore.lun.open("r+b") as lun:
        before = os.pread(lun.fileno(), 8192, headers)
        os.pwrite(lun.fileno(), bytes(8192), headers)
    two = machine("esx2")
    until("failed", lambda: _hosts(two).get("esx1", {}).get("state") == "failed", _LONG_SECONDS)
    three = machine("esx3")
    assert (three / "safe").read_bytes() == b"safe" * 10_000
    with pytest.raises(OSError, match="busy"):
        os.open(three / "disk", os.O_RDWR)
    again = vmfsctl("recover", "esx1", two.path, check=False)
    assert (again.returncode, "damaged block" in again.stderr) == (1, True), again
    dry = vmfsctl("recover", "0", two.path, "--discard-journal", "--dry-run")
    assert "cannot be read" in dry.stdout
    unasked = vmfsctl("recover", "0", two.path, "--discard-journal", check=False)
    assert (unasked.returncode, "acknowledged as safe" in unasked.stderr) == (2, True), unasked
    # What kept it from being read is mended: nothing is lost.
    with datastore.lun.open("r+b") as lun:
        os.pwrite(lun.fileno(), before, headers)
    done = json.loads(vmfsctl("recover", "esx1", two.path, "--json").stdout)["recovered"][0]
    assert done["records"] >= 1
    assert set(_hosts(two)) == {"esx2", "esx3"}
    mine = _open_for_writing(str(three / "disk"))
    assert os.pread(mine, 100, 0) == b"last words"
    os.close(mine)
    one.put_away()


def test_a_journal_is_given_up(datastore: Datastore, machine: Machine) -> None:
    """What was settled is there; the slot and the locks are free."""
    datastore.expect(r"recovery of host esx1 has failed|is not recovered|an operator orders|damaged")
    one = machine("esx1")
    (one / "safe").write_bytes(b"safe" * 10_000)
    until("safe is settled", lambda: _settled(one), _LONG_SECONDS)
    one.kill()
    with datastore.lun.open("r+b") as lun:
        os.pwrite(lun.fileno(), bytes(8192), _journal_address(datastore))
    two = machine("esx2")
    until("failed", lambda: _hosts(two).get("esx1", {}).get("state") == "failed", _LONG_SECONDS)
    done = json.loads(vmfsctl("recover", "esx1", two.path, "--discard-journal", "--yes", "--json").stdout)
    assert done["recovered"][0]["records"] is None
    assert set(_hosts(two)) == {"esx2"}
    (two / "safe").write_bytes(b"changed")
    one.put_away()
    two.umount()
    three = machine("esx3")
    assert (three / "safe").read_bytes() == b"changed"


def _settled(mount: Mount) -> bool:
    """Whether the mount holds no lock but those of groups: then all that it changed is settled in place."""
    locks = json.loads(vmfsctl("locks", mount.path, "--json").stdout)["locks"]
    return all(k["what"].startswith("group") for k in locks)


def _journal_address(datastore: Datastore) -> int:
    from vmfs.facts import open_to_look

    with open_to_look([str(datastore.lun)]) as volume:
        return volume.geometry.journal_address(0)
