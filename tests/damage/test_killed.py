"""The mount's process is killed under open files: everyone is told, nobody hangs, and the next mount goes on."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.vmfs.datastore import Datastore, datastore_in, until, vmfsctl

CLIENT = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
print("open", flush=True)
sys.stdin.readline()
for call in (lambda: os.pwrite(fd, b"x" * 4096, 0), lambda: os.fsync(fd), lambda: os.stat(sys.argv[1]),
             lambda: os.open(sys.argv[1], os.O_RDONLY)):
    try:
        call()
        print("done")
    except OSError as error:
        print(error.errno)
"""
CLIENT_SECONDS = 20
FAILED = r"Input/output|not connected|aborted"


def test_kill_9_under_open_files(tmp_path: Path) -> None:
    with datastore_in(tmp_path, "96M", "--max-hosts", "4", "--journal-size", "256K") as datastore:
        datastore.expect("recovered host esx1")
        mount = datastore.mount("esx1")
        (mount / "synced").write_bytes(b"s" * 300_000)
        with (mount / "synced").open("r+b") as file:
            os.fsync(file.fileno())
        client = subprocess.Popen(
            [sys.executable, "-c", CLIENT, str(mount / "synced")], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        try:
            assert client.stdout is not None
            assert client.stdout.readline() == "open\n"
            os.kill(mount.pid, signal.SIGKILL)
            until("it is gone", lambda: not Path(f"/proc/{mount.pid}").exists(), 10)
            out, _ = client.communicate("go\n", timeout=CLIENT_SECONDS)
        finally:
            client.kill()
            client.wait()
        answers = out.split()
        assert len(answers) == 4
        assert set(answers) <= {str(errno.ENOTCONN), str(errno.ECONNABORTED), str(errno.EIO)}
        done = vmfsctl("umount", mount.path)
        assert "no process served any more" in done.stdout
        mount.mounted = False
        again = datastore.mount("esx1")
        assert (again / "synced").read_bytes() == b"s" * 300_000


def test_lazily_unmounted_under_an_open_file(tmp_path: Path) -> None:
    with datastore_in(tmp_path, "96M", "--max-hosts", "4", "--journal-size", "256K") as datastore:
        mount = datastore.mount("esx1")
        with (mount / "file").open("xb", buffering=0) as file:
            vmfsctl("umount", "--lazy", mount.path)
            mount.mounted = False
            file.write(b"l" * 100_000)
            os.fsync(file.fileno())
            with pytest.raises(AssertionError, match="already mounted by a host named esx1"):
                datastore.mount("esx1", at="again")
        until("its process ends", lambda: not Path(f"/proc/{mount.pid}").exists(), 20)
        assert (datastore.mount("esx1") / "file").read_bytes() == b"l" * 100_000


def test_the_whole_lun_is_cut_away(tmp_path: Path) -> None:
    """A LUN truncated to nothing under a mount: EIO everywhere, and nothing is written to what is left."""
    datastore = Datastore(tmp_path, "96M", "--max-hosts", "4", "--journal-size", "256K")
    mount = datastore.mount("esx1")
    (mount / "file").write_bytes(b"f" * 300_000)
    os.truncate(datastore.lun, 0)
    with pytest.raises(OSError, match=FAILED):
        (mount / "other").write_bytes(b"o" * 300_000)
    with pytest.raises(OSError, match=FAILED):
        (mount / "file").read_bytes()
    vmfsctl("umount", "--lazy", mount.path)
    mount.mounted = False
    until("its process ends", lambda: not Path(f"/proc/{mount.pid}").exists(), 20)
    assert datastore.lun.stat().st_size == 0
    assert "Traceback" not in mount.log_text()
    datastore.close()
