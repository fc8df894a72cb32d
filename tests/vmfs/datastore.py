"""A volume on a file LUN, formatted and mounted by `vmfsctl` as people do it, and everything put away at the end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# The shortest timers that are supported: a lease of one second, a heartbeat five times in it.
QUICK_TIMERS = ("--heartbeat", "0.2", "--lease", "1")
COMMAND_SECONDS = 60
END_SECONDS = 15
_LOG_PROBLEM = re.compile(r"^\S+ \S+ (WARNING|ERROR|CRITICAL) |^Traceback ", re.MULTILINE)


def vmfsctl(*arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run `vmfsctl`; with `check`, it must succeed."""
    command = [sys.executable, "-c", "from vmfs.cli import main; main()", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
    if check:
        assert done.returncode == 0, (arguments, done.returncode, done.stdout, done.stderr)
    return done


def until(what: str, condition: Callable[[], bool], seconds: float, every: float = 0.01) -> float:
    """Poll until the condition holds (what it looks for may not be there yet); the seconds that it took."""
    began = time.monotonic()
    while True:
        try:
            held = condition()
        except FileNotFoundError:
            held = False
        took = time.monotonic() - began
        if held:
            return took
        assert took < seconds, f"not within {seconds} s: {what}"
        time.sleep(every)


class Mount:
    """One mount of a volume, served by a process of its own."""

    def __init__(
        self, datastore: Datastore, path: Path, host: str, options: tuple[str, ...], *, supervised: bool = False,
        device: str | None = None,
    ) -> None:  # fmt: skip
        self.datastore = datastore
        self.path = path
        self.host = host
        self.log = path.with_name(f"{path.name}.log")
        self._read_to = 0
        path.mkdir(exist_ok=True)
        # A test that kills a mount's process means a host that dies: nobody may start another one.
        alone = () if supervised else ("--no-supervisor",)
        given = device or datastore.lun
        out = vmfsctl("mount", given, path, "--host", host, "--log-file", self.log, "--json", *alone, *options)
        self.pid: int = json.loads(out.stdout)["pid"]
        self.supervisor: int | None = json.loads(out.stdout)["supervisor"]
        self.mounted = True

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def umount(self) -> None:
        """Unmount in order."""
        vmfsctl("umount", self.path)
        self.mounted = False

    def kill(self) -> None:
        """The host dies (SIGKILL). What programs have open in it fails with ENOTCONN from now on."""
        if self.supervisor is not None:
            os.kill(self.supervisor, signal.SIGKILL)
        os.kill(self.pid, signal.SIGKILL)

    def put_away(self) -> None:
        """Whatever state it is in: nothing of it is left."""
        if not self.mounted:
            return
        self.mounted = False
        subprocess.run(["umount", "--lazy", str(self.path)], capture_output=True, check=False)
        if Path(f"/proc/{self.pid}").exists():
            deadline = time.monotonic() + END_SECONDS
            while Path(f"/proc/{self.pid}").exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            if Path(f"/proc/{self.pid}").exists():
                os.kill(self.pid, signal.SIGKILL)

    def log_text(self) -> str:
        """All that the mount has logged, over all its lives."""
        return self.log.read_text() if self.log.exists() else ""

    def info(self) -> dict[str, Any]:
        """`vmfsctl info`."""
        found: dict[str, Any] = json.loads(vmfsctl("info", "--json", self.path).stdout)
        return found


class Datastore:
    """A volume and its mounts. `expect` a log line, or its WARNINGs and ERRORs fail the test."""

    def __init__(self, folder: Path, size: str = "4G", *options: str, quick: bool = True) -> None:
        self.folder = folder
        self.lun: Path | str = folder / "lun.img"
        self.mounts: list[Mount] = []
        self._expected: list[str] = []
        timers = QUICK_TIMERS if quick else ()
        vmfsctl("format", "--name", "ds1", "--create-size", size, *timers, *options, self.lun)

    def mount(
        self, host: str, *options: str, boot_id: uuid.UUID | None = None, at: str | None = None,
        supervised: bool = False, device: str | None = None,
    ) -> Mount:  # fmt: skip
        """Mount it as a host of that name, on a directory of that name; `device`: how this host reaches the LUN."""
        boot = () if boot_id is None else ("--boot-id", str(boot_id))
        where = self.folder / (at or host)
        mounted = Mount(self, where, host, (*boot, *options), supervised=supervised, device=device)
        self.mounts.append(mounted)
        return mounted

    def expect(self, pattern: str) -> None:
        """Log lines of a mount that match may be WARNINGs or ERRORs."""
        self._expected.append(pattern)

    def check(self) -> str:
        """`vmfsctl check` must find nothing. The volume is mounted nowhere."""
        done = vmfsctl("check", self.lun, check=False)
        assert done.returncode == 0, f"check exited {done.returncode}:\n{done.stdout}{done.stderr}"
        return done.stdout

    def umount_all(self) -> None:
        """Unmount in order whatever is mounted."""
        for mount in self.mounts:
            if mount.mounted:
                mount.umount()

    def problems(self) -> list[str]:
        """What the mounts logged and nobody asked for."""
        found = []
        for log in sorted({m.log for m in self.mounts}):
            lines = log.read_text().splitlines() if log.exists() else []
            found += [
                f"{log.name}: {line}"
                for line in lines
                if _LOG_PROBLEM.search(line) and not any(re.search(p, line) for p in self._expected)
            ]
        return found

    def close(self) -> None:
        """Put everything away, whatever happened."""
        for mount in self.mounts:
            mount.put_away()
        if isinstance(self.lun, Path):
            self.lun.unlink(missing_ok=True)


@contextmanager
def datastore_in(folder: Path, size: str = "4G", *options: str) -> Iterator[Datastore]:
    """A volume that must be clean, and its logs too, when all was well so far."""
    datastore = Datastore(folder, size, *options)
    try:
        yield datastore
        datastore.umount_all()
        datastore.check()
        problems = datastore.problems()
        assert not problems, "log lines that the test did not ask for:\n" + "\n".join(problems)
    finally:
        datastore.close()
