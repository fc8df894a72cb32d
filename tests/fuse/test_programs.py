"""Programs that nobody here wrote, on a served file."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.fuse.served import Served

IMAGE_BYTES = 64 << 20


def run(*command: str) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


@pytest.mark.parametrize("direct", ["on", "off"])
def test_a_file_system_in_a_file(ram: Served, tmp_path: Path, direct: str) -> None:
    image, inner = ram / "disk.img", tmp_path / "inner"
    inner.mkdir()
    with open(image, "wb") as f:
        f.truncate(IMAGE_BYTES)
    run("mkfs.ext4", "-q", "-F", image)
    loop = run("losetup", "--find", "--show", f"--direct-io={direct}", image)
    body = os.urandom(1 << 20)
    try:
        run("mount", loop, str(inner))
        try:
            for number in range(8):
                (inner / f"f{number}").write_bytes(body)
        finally:
            run("umount", str(inner))
    finally:
        run("losetup", "--detach", loop)
    run("e2fsck", "-f", "-n", image)
    assert os.stat(image).st_blocks * 512 < IMAGE_BYTES // 2, "thin"
    assert "fsync" in ram.fs.calls or "fdatasync" in ram.fs.calls


def test_copying_a_tree(ram: Served, tmp_path: Path) -> None:
    source = Path(os.__file__).parent / "json"
    run("cp", "-a", str(source), ram / "copy")
    run("diff", "-r", str(source), ram / "copy")
    shutil.rmtree(ram / "copy")
    assert os.listdir(ram.path) == []
