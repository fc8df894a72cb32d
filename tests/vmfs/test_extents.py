"""Volumes of several devices: made, found by scanning, mounted in any order, and refused when one is missing."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.vmfs.datastore import QUICK_TIMERS, until, vmfsctl

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")

MIB = 1 << 20
SEEN_SECONDS = 30.0  # on a busy machine
SIZES = (64, 100, 70)
Attach = Callable[[Path], str]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Three files of different sizes, which are one volume."""
    made = [tmp_path / f"lun{i}" for i in range(len(SIZES))]
    for path, size in zip(made, SIZES, strict=True):
        path.touch()
        os.truncate(path, size * MIB)
    vmfsctl("format", "--name", "wide", *made, "--max-hosts", "4", "--journal-size", "256K", *QUICK_TIMERS)
    return made


@pytest.fixture
def attach() -> Iterator[Attach]:
    with ExitStack() as stack:

        def loop(path: Path) -> str:
            command = ["losetup", "--find", "--show", "--direct-io=on", str(path)]
            node = subprocess.check_output(command, text=True).strip()
            stack.callback(subprocess.run, ["losetup", "--detach", node], check=True, timeout=30)
            return node

        yield loop


def scanned(*places: Path) -> list[dict[str, Any]]:
    arguments = [part for place in places for part in ("--scan-in", place)]
    found: list[dict[str, Any]] = json.loads(vmfsctl("scan", "--json", *arguments).stdout)["volumes"]
    return found


def refusal(*arguments: object) -> str:
    done = vmfsctl(*arguments, check=False)
    assert done.returncode != 0, done.stdout
    return done.stderr


def test_a_file_larger_than_any_extent_on_loop_devices_found_by_scanning(
    files: list[Path], attach: Attach, tmp_path: Path
) -> None:
    """Loop devices over all three; one is given, the others are found; another host has them in another order."""
    nodes = [attach(path) for path in files]
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    with ExitStack() as stack:
        vmfsctl("mount", "--scan", nodes[1], one, "--host", "esx1", "--no-supervisor")
        stack.callback(vmfsctl, "umount", one)
        vmfsctl("mount", nodes[2], nodes[0], nodes[1], two, "--host", "esx2", "--no-supervisor")
        stack.callback(vmfsctl, "umount", two)
        devices = json.loads(vmfsctl("info", "--json", one).stdout)["volume"]["devices"]
        assert [d["size_bytes"] for d in devices] == [size * MIB for size in SIZES]
        content = os.urandom(MIB) * 150
        (one / "wide").write_bytes(content)
        # What was not synced is seen within a second or so; a comparison by assert would print 150 MiB.
        until("the other host sees it whole", lambda: (two / "wide").read_bytes() == content, SEEN_SECONDS)
        free = os.statvfs(one)
        assert free.f_blocks * free.f_frsize > sum(SIZES[:2]) * MIB
    assert "clean" in vmfsctl("check", *nodes).stdout


def test_a_missing_extent_is_named(files: list[Path], tmp_path: Path) -> None:
    [volume] = scanned(tmp_path)
    assert volume["complete"]
    assert [e["devices"] for e in volume["extents"]] == [[str(path)] for path in files]
    last = volume["extents"][2]
    files[2].rename(tmp_path.with_name(f"{tmp_path.name}-elsewhere"))
    [volume] = scanned(tmp_path)
    assert not volume["complete"]
    assert volume["extents"][2] == {**last, "devices": []}
    for said in (refusal("mount", *files[:2], tmp_path), refusal("mount", "--scan-in", tmp_path, tmp_path)):
        assert last["uuid"] in said
        assert str(SIZES[2] * MIB) in said
    assert "MISSING" in vmfsctl("scan", "--scan-in", tmp_path).stdout


def test_one_device_by_two_paths_is_refused(files: list[Path], attach: Attach, tmp_path: Path) -> None:
    first, again = attach(files[0]), attach(files[0])
    others = [attach(path) for path in files[1:]]
    said = refusal("mount", first, again, *others, tmp_path)
    assert "same extent" in said
    assert first in said
    said = refusal("mount", "--volume", "wide", "--scan", tmp_path)
    assert first in said
    assert again in said
    # Which one it is to be can be said.
    target = tmp_path / "mounted"
    target.mkdir()
    vmfsctl("mount", "--scan", again, target, "--no-supervisor")
    vmfsctl("umount", target)


def test_format_refuses_one_device_given_twice(tmp_path: Path, attach: Attach) -> None:
    path = tmp_path / "lun"
    path.touch()
    os.truncate(path, 64 * MIB)
    options = ("--name", "twice", "--max-hosts", "4", "--journal-size", "256K")
    before = path.read_bytes()
    assert "give each device once" in refusal("format", path, path, *options)
    assert path.read_bytes() == before
    first, again = attach(path), attach(path)
    assert "same storage" in refusal("format", first, again, *options)
    assert scanned(tmp_path) == []  # and no volume is there


def test_an_extent_that_is_too_small_is_refused(tmp_path: Path) -> None:
    large, small = tmp_path / "large", tmp_path / "small"
    for path, size in ((large, 64 * MIB), (small, 4 * MIB)):
        path.touch()
        os.truncate(path, size)
    said = refusal("format", large, small, "--name", "v", "--max-hosts", "4", "--journal-size", "256K")
    assert str(small) in said
    assert "at least" in said


def test_which_volume_is_meant_must_be_clear(files: list[Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    vmfsctl("format", "--name", "other", other, "--create-size", "64M", "--max-hosts", "4", "--journal-size", "256K")
    said = refusal("mount", "--scan-in", tmp_path, tmp_path)
    assert "wide" in said
    assert "other" in said
    assert "no volume" in refusal("mount", "--volume", "none", "--scan-in", tmp_path / "nowhere*", tmp_path)
    assert str(other) in refusal("mount", files[0], other, "--scan-in", tmp_path, tmp_path)
