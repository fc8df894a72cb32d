"""A LUN that becomes shorter than its volume: before a mount, and under one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.damage.probe import probe
from tests.damage.scene import CopiedDatastore, Scene, digest_of
from tests.vmfs.datastore import Datastore, until, vmfsctl

MIB = 1 << 20


@pytest.mark.parametrize("size", [0, 4096, 100_000, 64 * MIB, 96 * MIB - 4096])
def test_before_a_mount_it_is_refused(tmp_path: Path, scene: Scene, size: int) -> None:
    datastore = CopiedDatastore(tmp_path, scene)
    os.truncate(datastore.lun, size)
    done = vmfsctl("mount", datastore.lun, tmp_path, "--log-file", tmp_path / "log", check=False)
    assert done.returncode in (1, 2)
    assert str(datastore.lun) in done.stderr
    assert "Traceback" not in done.stderr + (tmp_path / "log").read_text()
    if size > 64 * 1024:
        assert "truncated" in done.stderr
    assert datastore.lun.stat().st_size == size
    datastore.close()


def write_all(fd: int) -> None:
    """Overwrite a file of 8 MiB."""
    for offset in range(0, 8 * MIB, MIB):
        os.pwrite(fd, bytes(MIB), offset)


def test_under_a_mount(tmp_path: Path) -> None:
    """What lies behind the cut is EIO and never zeros, also after writes; what lies before it is right."""
    datastore = Datastore(tmp_path, "96M", "--max-hosts", "4", "--journal-size", "256K")
    mount = datastore.mount("esx1")
    content = {f"file-{i}": os.urandom(8 * MIB) for i in range(6)}
    for name, data in content.items():
        (mount / name).write_bytes(data)
    os.sync()
    size = datastore.lun.stat().st_size
    with datastore.lun.open("rb") as lun:
        lun.seek(size // 2)
        tail = lun.read()
    os.truncate(datastore.lun, size // 2)

    found = probe(mount.path, content)
    lost = {name for name in content if found[name] == "EIO"}
    assert lost
    assert {name: found[name] for name in content if name not in lost} == {
        name: digest_of(data) for name, data in content.items() if name not in lost
    }
    assert len(lost) < len(content)
    with (mount / next(iter(lost))).open("r+b", buffering=0) as file, pytest.raises(OSError, match="Input/output"):
        write_all(file.fileno())
    assert datastore.lun.stat().st_size == size // 2, "a write made the file long again"
    assert set(probe(mount.path, lost).values()) == {"EIO"}
    assert f"{datastore.lun}: read of" in mount.log_text()
    assert "was it truncated?" in mount.log_text()
    assert "the device has shrunk to" in mount.log_text()
    vmfsctl("umount", mount.path)
    mount.mounted = False
    until("the process ends", lambda: not Path(f"/proc/{mount.pid}").exists(), 20)
    assert "Traceback" not in mount.log_text()

    with datastore.lun.open("r+b") as lun:
        lun.seek(size // 2)
        lun.write(tail)
    again = datastore.mount("esx1")
    unharmed = {name: digest_of(data) for name, data in content.items() if name not in lost}
    assert probe(again.path, unharmed) == unharmed
    again.umount()
    datastore.check()
    datastore.close()
