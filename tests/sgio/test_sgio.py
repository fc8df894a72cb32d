"""SCSI disks of the kernel: this project's own code in a guest that has such disks, two adapters to one array."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from appliance.tinyguest import SCSI_HOST, build
from appliance.tinyguest.build import DEFAULT_TREE
from demo.qemu import DataDisk, Machine, MachineConfig
from tests.luns.lun import sparse_file
from tests.sgio.taskdisk import make_task_disk

BOOT_SECONDS = 120.0
TASK_SECONDS = 120.0
_CACHE = Path(__file__).resolve().parents[2] / ".cache"
_LUNS = ((512, 8 << 20), (4096, 8 << 20), (512, 512 << 20))
"""(bytes of a sector, size) of the LUNs, by number."""


@pytest.fixture(scope="module")
def task_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("task") / "task.ext4"
    make_task_disk(path, DEFAULT_TREE / "bin" / "busybox")
    return path


def _run(task: str, task_disk: Path, folder: Path) -> str:
    """What the guest has said when its tests have ended, all well."""
    files = [DataDisk(task_disk)]
    files += [DataDisk(sparse_file(folder / f"lun{i}.raw", size), sector) for i, (sector, size) in enumerate(_LUNS)]
    guest = build(_CACHE / "tinyguest", role=SCSI_HOST)
    config = MachineConfig("scsihost", guest, "tcg", f"task={task}", None, 512, tuple(files))
    with Machine(config, folder) as machine:
        machine.wait_for("SCSI-READY .*", BOOT_SECONDS)
        ended = machine.wait_for(r"TASK-ENDED (\d+)", TASK_SECONDS)
        said = machine.console()
    print(said)
    assert ended[1] == "0", said
    return said


def test_block_devices_with_scsi_commands(task_disk: Path, tmp_path: Path) -> None:
    said = _run("devices", task_disk, tmp_path)
    passed = re.findall(r"^tests/\S+::(\w+)(?:\[(.+)\])? PASSED", said, re.MULTILINE)
    assert ("test_compare_and_write", "512") in passed
    assert ("test_compare_and_write", "4096") in passed
    assert ("test_two_hosts_exclude_each_other_by_the_lun", "") in passed
    assert ("test_whose_key_is_taken_away_is_refused_by_the_kernel", "") in passed
