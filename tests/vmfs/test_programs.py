"""Programs that know nothing of this file system keep their data on it: QEMU, ext4 on a loop device."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.vmfs.datastore import Mount, until
from vmfs.client import Mount as Client

MIB = 1 << 20


def _run(*command: object) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


def _disk(path: Path, size: int, seed: int) -> None:
    """A sparse disk with data here and there, whole blocks and parts of sectors."""
    rng = random.Random(seed)
    with open(path, "wb") as file:
        for _ in range(40):
            file.seek(rng.randrange(size - 600_000))
            file.write(rng.randbytes(rng.choice((1, 511, 4096, 65536, 500_000))))
        file.truncate(size)


@pytest.mark.parametrize("cache", ["none", "writeback"])
@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_qemu_converts_into_the_volume_and_out_again(here: Path, tmp_path: Path, kind: str, cache: str) -> None:
    source, inside, back = tmp_path / "source", here / f"disk.{kind}", tmp_path / "back"
    _disk(source, 96 * MIB, seed=1)
    _run("qemu-img", "convert", "-f", "raw", "-O", kind, "-t", cache, source, inside)
    _run("qemu-img", "compare", "-f", "raw", "-F", kind, source, inside)
    _run("qemu-img", "convert", "-f", kind, "-O", "raw", "-T", cache, inside, back)
    _run("qemu-img", "compare", "-f", "raw", "-F", "raw", source, back)
    assert _run("qemu-img", "check", inside) if kind == "qcow2" else True
    assert inside.stat().st_blocks * 512 < 48 * MIB, "a thin file takes what was written"


def test_qemu_io_patterns_come_back(here: Path) -> None:
    """Many requests at once, with discards and zeros between them."""
    disk = here / "disk"
    _run("qemu-img", "create", "-f", "raw", disk, "64M")
    orders = [
        "aio_write -P 1 0 8M", "aio_write -P 2 8M 4M", "aio_write -P 3 12M 64k", "aio_flush",
        "discard 1M 2M", "write -z 4M 1M", "aio_write -P 5 3500k 4k", "aio_flush", "flush",
        "read -P 1 0 1M", "read -P 0 1M 2M", "read -P 5 3500k 4k", "read -P 0 4M 1M", "read -P 2 8M 4M",
        "read -P 3 12M 64k", "read -P 0 13M 51M",
    ]  # fmt: skip
    commands = [part for order in orders for part in ("-c", order)]
    out = _run("qemu-io", "-t", "none", "-i", "threads", "-d", "unmap", "-f", "raw", *commands, disk)
    assert "verification failed" not in out


@contextmanager
def _loop(path: Path) -> Iterator[Path]:
    device = _run("losetup", "--find", "--show", "--direct-io=on", path).strip()
    try:
        yield Path(device)
    finally:
        _run("losetup", "--detach", device)


@contextmanager
def _mounted(device: Path, at: Path) -> Iterator[Path]:
    at.mkdir()
    _run("mount", "-t", "ext4", device, at)
    try:
        yield at
    finally:
        _run("umount", at)


def _fill(root: Path, seed: int) -> dict[str, bytes]:
    rng = random.Random(seed)
    made = {f"d{i % 7}/f{i}": rng.randbytes(rng.randrange(200_000)) for i in range(60)}
    for name, content in made.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(content)
    return made


def test_ext4_on_a_loop_device(here: Path, esx1: Mount, tmp_path: Path) -> None:
    """And a clone of it, made while it is mounted, is what a power cut would have left: it replays its journal."""
    disk = here / "disk"
    with open(disk, "wb") as file:
        file.truncate(256 * MIB)
    _run("mkfs.ext4", "-q", disk)
    with _loop(disk) as device, _mounted(device, tmp_path / "ext4") as root:
        made = _fill(root, 2)
        for name in list(made)[::5]:
            (root / name).unlink()
            del made[name]
        os.sync()
        _run("fstrim", root)
        Client.for_path(esx1.path).clone(disk, here / "clone")
        (root / "after").write_bytes(b"not in the clone")
    with _loop(here / "clone") as device, _mounted(device, tmp_path / "again") as root:
        assert {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("d*/*")} == made
        assert not (root / "after").exists()
    for path in (disk, here / "clone"):
        _run("fsck.ext4", "-fn", path)


def test_a_thin_file_takes_what_was_written(here: Path) -> None:
    path = here / "thin"
    with open(path, "wb") as file:
        file.truncate(1 << 40)
    assert (path.stat().st_size, path.stat().st_blocks) == (1 << 40, 0)
    with open(path, "r+b") as file:
        for offset in (0, 5 * MIB + 3, 700 << 30):
            file.seek(offset)
            file.write(b"x")
    assert path.stat().st_blocks * 512 == 3 << 16
    assert _run("du", "--block-size=1", path).split()[0] == str(3 << 16)
    os.truncate(path, 10)
    until("the cut blocks are gone", lambda: path.stat().st_blocks * 512 == 1 << 16, 2)


def test_free_space_follows(here: Path) -> None:
    """statfs counts what files take, and what deleted ones give back (after their quarantine)."""

    def free() -> int:
        found = os.statvfs(here)
        return found.f_bfree * found.f_frsize

    before = free()
    (here / "big").write_bytes(os.urandom(20 * MIB))
    assert before - 21 * MIB <= free() <= before - 20 * MIB
    (here / "big").unlink()
    until("the space is back", lambda: free() >= before - MIB, 5)


def test_a_program_runs_from_the_volume(here: Path) -> None:
    script, program = here / "script", here / "program"
    script.write_text("#!/bin/sh\necho it runs\n")
    script.chmod(0o755)
    program.write_bytes(Path("/bin/cat").read_bytes())
    program.chmod(0o755)
    assert _run(script) == "it runs\n"
    assert _run(program, script) == script.read_text()
