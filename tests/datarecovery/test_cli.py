"""The command line: what it prints, its exit codes, and that no error is a traceback."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from datarecovery.progress import TerminalProgress
from tests.datarecovery.conftest import Run
from tests.datarecovery.disks import write_disk

COMMANDS = [(), ("store",), ("store", "create"), ("store", "reindex"), ("backup",), ("list",), ("show",), ("restore",),
            ("verify",)]


def test_a_store_from_creation_to_restore(run: Run, tmp_path: Path) -> None:
    folder, disk = tmp_path / "store", tmp_path / "a.raw"
    data = write_disk(disk, 1, 40)
    assert "created" in run("store", "create", folder).stdout
    done = run("backup", "--store", folder, "--vm", "web", disk)
    point = done.stdout.strip()
    assert re.fullmatch("[0-9a-f]{16}", point)
    assert "full-read: a file outside VMFS keeps no record of changes" in done.stderr
    made = json.loads(run("backup", "--store", folder, "--vm", "web", disk, "--json").stdout)
    assert made["previous"] == point
    assert made["total"]["stored"] == 0
    assert made["disks"][0]["figures"].keys() == {
        "logical", "read", "changed", "stored", "deduplicated", "seconds", "ratio"
    }
    listed = json.loads(run("list", "--store", folder, "--json").stdout)
    assert [one["id"] for one in listed] == [point, made["id"]]
    shown = run("list", "--store", folder).stdout.splitlines()
    assert shown[0].split() == ["POINT", "VM", "CREATED", "DISKS", "SIZE", "READ", "STORED", "HOW"]
    assert [line.split()[0] for line in shown[1:]] == [point, made["id"]]
    assert f"restore point {made['id']}, number 2 of VM web" in run("show", "--store", folder, "web@latest").stdout
    assert json.loads(run("show", "--store", folder, point, "--json").stdout)["id"] == point
    restored = json.loads(run("restore", "--store", folder, point[:14], tmp_path / "out", "--json").stdout)
    assert Path(restored["disks"][0]["path"]).read_bytes() == data
    assert "written" in run("restore", "--store", folder, "web@latest", tmp_path / "out2").stdout
    assert run("verify", "--store", folder).stdout.startswith("2 restore points, 1 pack, ")
    assert json.loads(run("verify", "--store", folder, "--quick", "--json").stdout)["clean"] is True
    assert "rebuilt" in run("store", "reindex", folder).stdout


def test_exit_codes(run: Run, tmp_path: Path) -> None:
    folder, disk = tmp_path / "store", tmp_path / "a.raw"
    write_disk(disk, 2, 10)
    run("store", "create", folder)
    run("store", "create", folder, check=3)
    run("store", "create", disk, check=3)
    run("store", "create", tmp_path / "x", "--level", 99, check=2)
    for command in (["list"], ["verify"], ["show", "a@latest"], ["restore", "a@latest", tmp_path / "o"]):
        assert "not a backup store" in run(command[0], "--store", tmp_path / "none", *command[1:], check=3).stderr
    run("backup", "--store", folder, "--vm", "a", check=2)
    run("backup", "--store", folder, "--vm", "a@b", disk, check=2)
    assert "cannot be opened" in run("backup", "--store", folder, "--vm", "a", tmp_path / "none", check=6).stderr
    run("restore", "--store", folder, "a@latest", tmp_path / "out", check=4)
    run("backup", "--store", folder, "--vm", "a", disk)
    away = tmp_path / "not" / "mounted"
    assert f"{away.parent} is not there" in run("restore", "--store", folder, "a@latest", away, check=2).stderr
    assert f"{away.parent} is not there" in run("store", "create", away, check=2).stderr
    assert not away.parent.exists()
    assert "exists already" in run("restore", "--store", folder, "a@latest", tmp_path, check=7).stderr
    path = next((folder / "packs").rglob("*.pack"))
    kept = path.read_bytes()
    path.write_bytes(kept[:200] + b"#" + kept[201:])
    found = run("verify", "--store", folder, check=1)
    assert "cannot be restored whole" in found.stdout
    assert len(json.loads(run("verify", "--store", folder, "--json", check=1).stdout)["damaged_points"]) == 1
    assert "is damaged" in run("restore", "--store", folder, "a@latest", tmp_path / "out", check=5).stderr
    assert not (tmp_path / "out").exists()
    path.write_bytes(kept)
    manifest = next((folder / "points").rglob("*.point"))
    manifest.write_bytes(manifest.read_bytes()[:-1])
    assert manifest.stem in run("list", "--store", folder, check=5).stderr
    os.truncate(folder / "store", 10)
    assert "is damaged" in run("list", "--store", folder, check=3).stderr


def test_version(run: Run) -> None:
    assert re.fullmatch(r"datarecovery, version \d+\.\d+\.\d+\n", run("--version").stdout)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(run: Run, command: tuple[str, ...]) -> None:
    text = run(*command, "--help").stdout
    assert "Usage:" in text
    if command != ("store",):
        assert "Example" in text


def test_progress_line(capsys: pytest.CaptureFixture[str]) -> None:
    import sys

    now = [10.0]
    line = TerminalProgress(sys.stderr, "backup web", clock=lambda: now[0])
    for done in range(0, 101, 10):
        now[0] += 1
        line(done * 10**6, 100 * 10**6)
    line.close()
    shown = capsys.readouterr().err
    assert "backup web:  50 %  50 of 100 MB  8 MB/s  6 s left" in shown
    assert shown.endswith("\r")
