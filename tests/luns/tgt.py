"""tgtd, a target without COMPARE AND WRITE (which it advertises) and without PREEMPT AND ABORT, on this machine."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

from tests.luns.lun import Lun, free_port, sparse_file, wait_accepting

TARGET = "iqn.2026-01.io.azekura.test:tgt"
LUN_BYTES = (512 << 20, 512 << 20, 8 << 20)
"""The sizes of the LUNs, by number."""
_COMMAND_SECONDS = 30


class TgtTarget:
    """A running tgtd with a control port of its own. `kill` ends it at once; `start` brings it back with its LUNs."""

    def __init__(self, folder: Path) -> None:
        self._tgtd = _program("tgtd")
        self._tgtadm = _program("tgtadm")
        self._folder = folder
        self._control = 1000 + os.getpid() % 30_000
        self._files = [sparse_file(folder / f"lun{i}.raw", size) for i, size in enumerate(LUN_BYTES)]
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def portal(self) -> str:
        return f"127.0.0.1:{self._port}"

    def lun(self, number: int) -> Lun:
        # tgtd keeps LUN 0 for its controller.
        return Lun(self.portal, TARGET, number + 1, self._files[number], has_compare_and_write=False)

    def start(self) -> None:
        """Begin to serve."""
        with (self._folder / "tgtd.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", self._tgtd, "-f", "-C", str(self._control),
                 "--iscsi", f"portal={self.portal}"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        wait_accepting(self.portal)
        self._admin("--op", "new", "--mode", "target", "--tid", "1", "-T", TARGET)
        for number, file in enumerate(self._files):
            self._admin("--op", "new", "--mode", "logicalunit", "--tid", "1", "--lun", str(number + 1), "-b", str(file))
        self._admin("--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL")

    def kill(self) -> None:
        """It asks a SIGTERM to wait for its initiators; this does not."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(_COMMAND_SECONDS)
            self._process = None

    def close(self) -> None:
        """Nothing of it is left."""
        self.kill()
        for file in self._files:
            file.unlink()
        Path(f"/var/run/tgtd/socket.{self._control}").unlink(missing_ok=True)
        Path(f"/var/run/tgtd/socket.{self._control}.lock").unlink(missing_ok=True)

    def _admin(self, *arguments: str) -> None:
        command = [self._tgtadm, "-C", str(self._control), "--lld", "iscsi", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=False)
        assert done.returncode == 0, (command, done.stdout, done.stderr)


def _program(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    assert found is not None, f"there is no {name}: run `make setup`"
    return found
