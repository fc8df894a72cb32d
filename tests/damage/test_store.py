"""A corrupted chunk in a backup store, from end to end through the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def datarecovery(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from datarecovery.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_corrupted_chunk_is_named_and_never_restored(tmp_path: Path) -> None:
    store, disk, out = tmp_path / "store", tmp_path / "disk.img", tmp_path / "out"
    content = os.urandom(2 << 20)
    disk.write_bytes(content)
    assert datarecovery("store", "create", store).returncode == 0
    points = []
    for _ in range(2):
        done = datarecovery("backup", "--store", store, "--vm", "vm1", "--json", disk)
        assert done.returncode == 0, done.stderr
        points.append(json.loads(done.stdout))
    assert datarecovery("verify", "--store", store).returncode == 0

    pack = max(store.rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    with pack.open("r+b") as file:
        file.seek(pack.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))

    verified = datarecovery("verify", "--store", store)
    assert verified.returncode == 1
    ids = [point.get("point") or point.get("id") for point in points]
    assert all(point in verified.stdout + verified.stderr for point in ids), (ids, verified.stdout, verified.stderr)
    out.mkdir()
    (out / "disk.img").write_bytes(b"mine")
    restored = datarecovery("restore", "--store", store, "vm1@latest", out)
    assert restored.returncode != 0
    assert (out / "disk.img").read_bytes() == b"mine"
    assert os.listdir(out) == ["disk.img"]
    (out / "disk.img").unlink()
    restored = datarecovery("restore", "--store", store, "vm1@latest", out)
    assert restored.returncode != 0
    assert "damaged" in restored.stderr
    assert os.listdir(out) == []
    assert "Traceback" not in verified.stderr + restored.stderr
