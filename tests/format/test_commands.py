"""`vmfsctl format` and `vmfsctl check` as commands: exit codes, messages, JSON."""

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from vmfs.cli.failures import EXIT_INTERNAL, run
from vmfs.cli.group import vmfsctl as command_group
from vmfs.devices import open_device
from vmfs.volume import newest_superblock, open_volume


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def vmfsctl(*args: str, answer: str = "") -> Done:
    """The program from its command line to its exit code, in this process: a start of Python costs more than a run."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.StringIO(answer))
        code = run(command_group, args)
    assert code != EXIT_INTERNAL, err.getvalue()
    return Done(code, out.getvalue(), err.getvalue())


@pytest.fixture
def lun(tmp_path: Path) -> str:
    path = tmp_path / "lun.img"
    path.touch()
    os.truncate(path, 128 << 20)
    return str(path)


def _label(path: str) -> str:
    device = open_device(path, read_only=True)
    try:
        return newest_superblock(device).label
    finally:
        device.close()


def test_format_then_check(lun: str) -> None:
    done = vmfsctl("format", "--name", "ds1", lun, "--json", "--lease", "1.5", "--heartbeat", "0.25")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["label"], said["lease_seconds"], said["heartbeat_seconds"]) == ("ds1", 1.5, 0.25)
    assert said["data_bytes"] == next(p["size_bytes"] for p in said["parts"] if p["name"] == "data")
    done = vmfsctl("check", lun)
    assert (done.returncode, done.stdout.splitlines()[-1].endswith(": clean")) == (0, True)


def test_a_second_format_needs_force_and_a_yes(lun: str) -> None:
    assert vmfsctl("format", "--name", "old", lun).returncode == 0
    refused = vmfsctl("format", "--name", "new", lun)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "Azekura VMFS volume" in refused.stderr
    declined = vmfsctl("format", "--name", "new", lun, "--force", answer="n\n")
    assert declined.returncode != 0
    assert _label(lun) == "old"
    done = vmfsctl("format", "--name", "new", lun, "--force", "--yes")
    assert done.returncode == 0
    assert "overwriting" in done.stderr
    assert '"old"' in done.stderr
    assert _label(lun) == "new"


def test_dry_run_changes_nothing(lun: str) -> None:
    done = vmfsctl("format", "--name", "ds1", lun, "--dry-run")
    assert done.returncode == 0
    assert "journals" in done.stdout
    assert os.stat(lun).st_blocks == 0


def test_a_new_file_is_made_only_when_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "new.img"
    assert vmfsctl("format", "--name", "ds1", str(path)).returncode == 2
    assert not path.exists()
    assert vmfsctl("format", "--name", "ds1", str(path), "--create-size", "1M").returncode == 2
    assert not path.exists()  # too small: gone again
    assert vmfsctl("format", "--name", "ds1", str(path), "--create-size", "1G", "--dry-run").returncode == 0
    assert not path.exists()
    assert vmfsctl("format", "--name", "ds1", str(path), "--create-size", "1G").returncode == 0
    assert (path.stat().st_size, _label(str(path))) == (1 << 30, "ds1")
    again = vmfsctl("format", "--name", "ds2", str(path), "--create-size", "1G", "--force", "--yes")
    assert again.returncode != 0
    assert _label(str(path)) == "ds1"  # a file that is there is not made


@pytest.mark.parametrize(
    "arguments",
    [
        ["--block-size", "3K"], ["--max-hosts", "300"], ["--lease", "nan"], ["--lease", "0.2"], ["--heartbeat", "-1"],
        ["--journal-size", "1K"], ["--sector-size", "100"], ["--block-size", "x"],
    ],
)  # fmt: skip
def test_bad_options_change_nothing(lun: str, arguments: list[str]) -> None:
    done = vmfsctl("format", "--name", "ds1", lun, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.strip()
    assert os.stat(lun).st_blocks == 0


def test_other_file_systems_are_named(lun: str) -> None:
    subprocess.run(["mkfs.ext4", "-q", "-L", "precious", lun], check=True)
    done = vmfsctl("format", "--name", "ds1", lun)
    assert done.returncode == 2
    assert "ext4 file system" in done.stderr
    subprocess.run(["e2fsck", "-fn", lun], check=True, capture_output=True)
    assert "ext4" in vmfsctl("check", lun).stderr


def test_check_finds_a_flipped_bit(lun: str) -> None:
    assert vmfsctl("format", "--name", "ds1", lun).returncode == 0
    device = open_device(lun)
    volume = open_volume([device])
    address = volume.geometry.group_block_address(1)
    block = bytearray(device.read(address, 4096))
    block[200] ^= 4
    device.write(address, bytes(block))
    device.close()
    done = vmfsctl("check", lun)
    assert done.returncode == 4
    assert f"group 1: group block: checksum does not match [group-damaged]\n    at {address:#x}" in done.stdout
    report = json.loads(vmfsctl("check", lun, "--json").stdout)
    assert (report["clean"], report["findings"][0]["kind"]) == (False, "group-damaged")


def test_check_repairs_a_flipped_bit(lun: str) -> None:
    assert vmfsctl("format", "--name", "ds1", lun).returncode == 0
    before = Path(lun).read_bytes()
    device = open_device(lun)
    address = open_volume([device]).geometry.group_block_address(1)
    block = bytearray(device.read(address, 4096))
    block[200] ^= 4
    device.write(address, bytes(block))
    device.close()
    damaged = Path(lun).read_bytes()
    done = vmfsctl("check", "--repair", "--dry-run", lun)
    assert done.returncode == 1
    assert "would be done: group 1: group block: checksum does not match: the one bit" in done.stdout
    assert Path(lun).read_bytes() == damaged
    done = vmfsctl("check", "--repair", lun, "--json")
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert (report["clean_now"], len(report["mended"]), report["left"]) == (True, 1, [])
    assert Path(lun).read_bytes()[address : address + 4096] == before[address : address + 4096]
    assert vmfsctl("check", lun).returncode == 0
    assert vmfsctl("check", "--repair", lun).returncode == 0


def test_check_asks_before_it_gives_up_files(lun: str) -> None:
    assert vmfsctl("format", "--name", "ds1", lun).returncode == 0
    done = vmfsctl("check", "--repair", "--remove-damaged", lun)
    assert done.returncode == 2
    assert "--yes" in done.stderr
    assert vmfsctl("check", "--repair", "--remove-damaged", "--yes", lun).returncode == 0
    assert vmfsctl("check", "--dry-run", lun).returncode == 2


def test_check_says_why_it_cannot_look(lun: str, tmp_path: Path) -> None:
    missing = str(tmp_path / "none")
    for target, reason in ((lun, "holds no Azekura VMFS volume"), (missing, missing), (str(tmp_path), "mounted")):
        done = vmfsctl("check", target)
        assert (done.returncode, done.stdout) == (8, "")
        assert reason in done.stderr


def test_check_of_a_truncated_lun(lun: str) -> None:
    assert vmfsctl("format", "--name", "ds1", lun).returncode == 0
    os.truncate(lun, 100 << 20)
    done = vmfsctl("check", lun)
    assert done.returncode == 8
    assert "is truncated" in done.stderr
    assert os.stat(lun).st_size == 100 << 20


def test_check_shows_its_progress_when_asked(lun: str) -> None:
    assert vmfsctl("format", "--name", "ds1", lun).returncode == 0
    assert "checking groups" in vmfsctl("check", "--progress", lun).stderr
    assert vmfsctl("check", lun).stderr == ""
