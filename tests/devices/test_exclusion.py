"""compare_and_write between processes: nobody's update is lost, whichever way each reaches the bytes."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.devices.conftest import LoopMaker
from vmfs.devices import open_device
from vmfs.devices.block import BlockDevice
from vmfs.devices.contract import LockMethod
from vmfs.errors import DeviceBusy, DeviceNotUsable

ROUNDS = 60
AT = 64 << 10

_COUNTER = """
import sys
from vmfs.devices import open_device
device, at, rounds = open_device(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
size = device.logical_block_bytes
sys.stdin.readline()
done = tries = 0
while done < rounds:
    old = device.read(at, size)
    new = (int.from_bytes(old[:8], "little") + 1).to_bytes(8, "little") + old[8:]
    done += device.compare_and_write(at, old, new)
    tries += 1
device.close()
print(tries)
"""


def _count_together(paths: list[tuple[str, int]]) -> int:
    """One process on each (path, offset), started together; returns how often they tried in all."""
    command = [sys.executable, "-c", _COUNTER]
    processes = [
        subprocess.Popen([*command, path, str(at), str(ROUNDS)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for path, at in paths
    ]
    try:
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(b"go\n")
            process.stdin.flush()
        outputs = [process.communicate(timeout=60)[0] for process in processes]
        assert [process.returncode for process in processes] == [0] * len(paths)
        return sum(int(output) for output in outputs)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _counted(path: Path, at: int = AT) -> int:
    device = open_device(str(path))
    try:
        return int.from_bytes(device.read(at, 4096)[:8], "little")
    finally:
        device.close()


def test_processes_on_one_file(image: Path) -> None:
    tries = _count_together([(str(image), AT)] * 4)
    assert _counted(image) == 4 * ROUNDS
    assert tries >= 4 * ROUNDS


def test_two_loops_their_file_and_another_node(image: Path, tmp_path: Path, attach_loop: LoopMaker) -> None:
    first = attach_loop(image)  # without direct I/O: opening it must switch that on
    second = attach_loop(image, "--direct-io=on")
    other_node = tmp_path / "node"
    os.mknod(other_node, 0o600 | stat.S_IFBLK, os.stat(first).st_rdev)
    _count_together([(first, AT), (second, AT), (str(image), AT), (str(other_node), AT)])
    assert _counted(image) == 4 * ROUNDS
    assert Path(f"/sys/block/{Path(first).name}/loop/dio").read_text().strip() == "1"


def test_offset_loop_locks_the_same_bytes(image: Path, attach_loop: LoopMaker) -> None:
    shifted = attach_loop(image, "--offset", str(AT), "--direct-io=on")
    stacked = attach_loop(shifted, "--direct-io=on", "--offset", "4096")
    _count_together([(shifted, 4096), (stacked, 0), (str(image), AT + 4096)])
    assert _counted(image, AT + 4096) == 3 * ROUNDS


def test_partition_of_a_loop_locks_the_file(image: Path, attach_loop: LoopMaker) -> None:
    node = attach_loop(image, "--partscan", "--direct-io=on")
    subprocess.run(["addpart", node, "1", "2048", "8192"], check=True, timeout=30)  # no table needed
    numbers = Path(f"/sys/class/block/{Path(node).name}p1/dev").read_text().split(":")
    partition = image.parent / "p1"
    os.mknod(partition, 0o600 | stat.S_IFBLK, os.makedev(int(numbers[0]), int(numbers[1])))
    _count_together([(str(partition), AT), (str(image), AT + (1 << 20))])
    assert _counted(image, AT + (1 << 20)) == 2 * ROUNDS


def test_a_killed_holder_lets_go(image: Path) -> None:
    code = (
        "import sys; from vmfs.devices import open_device; d = open_device(sys.argv[1])\n"
        "d.write = lambda offset, data: (print('inside', flush=True), sys.stdin.read())\n"
        "d.compare_and_write(0, bytes(512), b'x' * 512)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(image)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    device = open_device(str(image), sector_bytes=512)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"inside\n"
        assert device.compare_and_write(512, bytes(512), b"y" * 512)  # another sector does not wait
        killer = subprocess.Popen(["sh", "-c", f"sleep 0.3; kill -{signal.SIGKILL} {holder.pid}"])
        before = time.monotonic()
        assert device.compare_and_write(0, bytes(512), b"z" * 512)
        assert time.monotonic() - before > 0.2
        assert killer.wait(10) == 0
    finally:
        holder.kill()
        holder.communicate()
        device.close()


def test_renamed_backing_file_is_refused(image: Path, attach_loop: LoopMaker) -> None:
    node = attach_loop(image, "--direct-io=on")
    hidden = image.with_name("other.img")
    os.link(image, hidden)  # the inode lives on under another name
    os.unlink(image)
    with pytest.raises(DeviceNotUsable, match=r"lun\.img"):
        open_device(node)


def test_backing_file_replaced_under_its_name_is_refused(image: Path, attach_loop: LoopMaker) -> None:
    node = attach_loop(image, "--direct-io=on")
    subprocess.run(["mount", "--bind", "/etc/hostname", str(image)], check=True, timeout=10)
    try:
        with pytest.raises(DeviceNotUsable, match="no longer at"):
            open_device(node)
    finally:
        subprocess.run(["umount", str(image)], check=True, timeout=10)


def test_mounted_device_is_busy(image: Path, tmp_path: Path, attach_loop: LoopMaker) -> None:
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True, timeout=30)
    node = attach_loop(image, "--direct-io=on")
    where = tmp_path / "mnt"
    where.mkdir()
    subprocess.run(["mount", node, str(where)], check=True, timeout=30)
    try:
        with pytest.raises(DeviceBusy, match=node):
            open_device(node)
        open_device(node, read_only=True).close()
    finally:
        subprocess.run(["umount", str(where)], check=True, timeout=30)
    open_device(node).close()


def test_disk_without_a_file_locks_on_the_host(
    image: Path, tmp_path: Path, attach_loop: LoopMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No spare disk here: the loop device's walk is cut short, all else is real."""
    from vmfs.devices import block
    from vmfs.devices.loop import LocalDisk

    node = attach_loop(image, "--direct-io=on")
    monkeypatch.setattr(block, "find_bottom", lambda *_, **__: LocalDisk(8, 16, 0))
    devices = [BlockDevice.open(node, lock_folder=tmp_path / "locks") for _ in range(2)]
    try:
        assert devices[0].lock_methods() == (LockMethod.OFD_HOST,)
        assert [path.name for path in (tmp_path / "locks").iterdir()] == ["8:16"]
        old, new = bytes(512), b"n" * 512
        assert devices[0].compare_and_write(0, old, new)
        assert not devices[1].compare_and_write(0, old, new)
        assert devices[1].compare_and_write(0, new, old)
    finally:
        for device in devices:
            device.close()
