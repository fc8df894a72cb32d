"""kill -9 at any moment, a full disk, and several processes at once: finished restore points stay whole."""

from __future__ import annotations

import gc
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from datarecovery.backup import back_up
from datarecovery.errors import BusyError, NoSpaceError
from datarecovery.restore import restore
from datarecovery.store.store import Store
from datarecovery.verify import verify
from tests.datarecovery.conftest import TOOL
from tests.datarecovery.disks import CHUNK, make_store, patch, write_disk

CRASHING = Path(__file__).with_name("crashing.py")


def check_all(store: Store, contents: dict[str, bytes], scratch: Path) -> None:
    """Verify is clean, and each restore point that was finished comes back."""
    report = verify(store)
    assert report.findings == []
    scratch.mkdir()
    for point, content in contents.items():
        restore(store, store.points.resolve(point), scratch / point)
        assert (scratch / point / "a.raw").read_bytes() == content
    shutil.rmtree(scratch, ignore_errors=True)


def leftovers(store: Store) -> list[str]:
    sessions = [name for name in os.listdir(store.root / "sessions") if name.endswith(".session")]
    return os.listdir(store.root / "tmp") + sessions


def test_killed_at_seeded_points(store: Store, tmp_path: Path) -> None:
    seed = 2009
    chance = random.Random(seed)
    disk = tmp_path / "a.raw"
    data = write_disk(disk, 1, 150)
    contents = {back_up(store, "vm", [disk]).id: data}
    arguments = ["backup", "--store", store.root, "--vm", "vm", disk]
    survived = killed = 0
    # An incremental of this size makes some 30 changes to the file system.
    for moment in [*range(1, 30, 2), *(chance.randrange(2, 34) for _ in range(6))]:
        data = patch(disk, data, [(chance.randrange(len(data) - CHUNK), chance.randbytes(CHUNK)) for _ in range(2)])
        command = [sys.executable, CRASHING, str(moment), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode in (0, -signal.SIGKILL), (moment, done.stderr)
        again = Store.open(store.root)
        fresh = {one.id for one in again.points.all()} - contents.keys()
        assert len(fresh) <= 1
        if done.returncode == 0:
            survived += 1
            assert fresh == {done.stdout.strip()}
        else:
            killed += 1
        contents.update(dict.fromkeys(fresh, data))
        check_all(again, contents, tmp_path / "out")
    assert killed >= 10, (seed, killed, survived)
    last = back_up(Store.open(store.root), "vm", [disk])
    contents[last.id] = data
    assert leftovers(store) == []
    check_all(Store.open(store.root), contents, tmp_path / "out")


def test_chunks_of_a_killed_backup_are_used_by_the_next(store: Store, tmp_path: Path) -> None:
    disk = tmp_path / "a.raw"
    write_disk(disk, 2, 2000)
    arguments = ["backup", "--store", store.root, "--vm", "vm", disk]
    done = subprocess.run([sys.executable, CRASHING, "40", *arguments], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    left = sum(path.stat().st_size for path in (store.root / "packs").rglob("*.pack"))
    assert left > 20 * CHUNK
    point = back_up(Store.open(store.root), "vm", [disk])
    assert point.figures.deduplicated > left // 2
    assert leftovers(store) == []


def test_interrupt_cleans_up(store: Store, tmp_path: Path) -> None:
    disk = tmp_path / "a.raw"
    with open(disk, "wb") as file:
        for _ in range(60):
            file.write(os.urandom(4 << 20))
    child = subprocess.Popen([*TOOL, "backup", "--store", store.root, "--vm", "vm", disk], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 30
    while not list((store.root / "packs").rglob("*.pack")) and time.monotonic() < deadline:
        time.sleep(0.01)
    child.terminate()
    _, errors = child.communicate(timeout=60)
    assert child.returncode in (0, 130), errors
    assert b"Traceback" not in errors
    assert leftovers(store) == []
    assert verify(store).clean


def test_full_store(tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", mount], check=True)
    try:
        store = make_store(mount / "store")
        data = write_disk(tmp_path / "a.raw", 3, 40)
        contents = {back_up(store, "vm", [tmp_path / "a.raw"]).id: data}
        (tmp_path / "big.raw").write_bytes(os.urandom(32 << 20))
        for _ in range(2):
            with pytest.raises(NoSpaceError, match="free some space"):
                back_up(store, "vm2", [tmp_path / "big.raw"])
            check_all(Store.open(store.root), contents, tmp_path / "out")
        subprocess.run(["mount", "-o", "remount,size=64m", mount], check=True)
        contents[back_up(store, "vm", [tmp_path / "a.raw"]).id] = data
        check_all(Store.open(store.root), contents, tmp_path / "out")
        assert leftovers(store) == []
        room = os.statvfs(mount)
        (mount / "fill").write_bytes(bytes(room.f_bavail * room.f_frsize - (1 << 20)))
        with pytest.raises(NoSpaceError, match=r"writing .*a\.raw"):
            restore(store, store.points.resolve("vm@latest"), mount / "a")
        assert not (mount / "a").exists()
    finally:
        store.close()
        gc.collect()  # tracebacks of the expected errors hold stores open
        subprocess.run(["umount", mount], check=True)


def test_file_size_limit_is_an_error_not_a_death(store: Store, tmp_path: Path) -> None:
    (tmp_path / "big.raw").write_bytes(os.urandom(8 << 20))
    command = [*TOOL, "backup", "--store", store.root, "--vm", "vm", tmp_path / "big.raw"]

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, 3 << 20))

    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limited, check=False)
    assert done.returncode == NoSpaceError.exit_code, done.stderr
    assert "Traceback" not in done.stderr
    assert verify(Store.open(store.root)).clean
    back_up(Store.open(store.root), "vm", [tmp_path / "big.raw"])


def test_parallel_backups_store_equal_chunks_once(store: Store, tmp_path: Path) -> None:
    data = write_disk(tmp_path / "a.raw", 4, 3000)
    for name in ("b.raw", "c.raw"):
        (tmp_path / name).write_bytes(data)
    children = [
        subprocess.Popen(
            [*TOOL, "backup", "--store", store.root, "--vm", name, tmp_path / name],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for name in ("a.raw", "b.raw", "c.raw")
    ]
    points = []
    for child in children:
        out, errors = child.communicate(timeout=120)
        assert child.returncode == 0, errors
        points.append(out.strip())
    again = Store.open(store.root)
    assert verify(again).clean
    alone = make_store(tmp_path / "alone")
    back_up(alone, "vm", [tmp_path / "a.raw"])
    assert verify(again).records == verify(alone).records
    for number, point in enumerate(points):
        found = again.points.resolve(point)
        restore(again, found, tmp_path / str(number))
        assert (tmp_path / str(number) / found.disks[0].name).read_bytes() == data
    assert leftovers(again) == []


def test_one_of_two_parallel_backups_is_killed(store: Store, tmp_path: Path) -> None:
    data = write_disk(tmp_path / "a.raw", 5, 1500)
    (tmp_path / "b.raw").write_bytes(data)
    for moment in (12, 25, 60):
        doomed = subprocess.Popen(
            [sys.executable, CRASHING, str(moment), "backup", "--store", store.root, "--vm", "b", tmp_path / "b.raw"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        point = back_up(Store.open(store.root), f"a{moment}", [tmp_path / "a.raw"])
        doomed.communicate(timeout=60)
        again = Store.open(store.root)
        assert verify(again).clean
        restore(again, point, tmp_path / str(moment))
        assert (tmp_path / str(moment) / "a.raw").read_bytes() == data
        data = patch(tmp_path / "a.raw", data, [(0, os.urandom(1000 * CHUNK))])
        (tmp_path / "b.raw").write_bytes(data)


def test_one_vm_is_backed_up_by_one_at_a_time(store: Store, tmp_path: Path) -> None:
    write_disk(tmp_path / "a.raw", 6, 3)
    session = store.session("0" * 16, "vm")
    try:
        with pytest.raises(BusyError, match="being backed up"):
            back_up(Store.open(store.root), "vm", [tmp_path / "a.raw"])
        back_up(Store.open(store.root), "vm2", [tmp_path / "a.raw"])
    finally:
        session.close()
    back_up(Store.open(store.root), "vm", [tmp_path / "a.raw"])
