"""The stage of one run: its directory, its two hosts' mounts, its commands and machines; all gone at the end."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from appliance.tinyguest import TinyGuest
from demo import traces
from demo.commands import Commands
from demo.errors import DemoError
from demo.qemu import Machine, MachineConfig

HOSTS = ("esx1", "esx2")
_NEEDED_BYTES = 1 << 30
_LOG_LINES = 12


class Stage:
    """A context manager: on the way out machines are killed, mounts undone, processes ended and files removed.

    `parent` is where the run's directory is made; it needs a file system with O_DIRECT and 1 GiB of free space.
    """

    def __init__(
        self, parent: Path, programs: Path, guest: TinyGuest, accelerator: str, show: Callable[[str], None]
    ) -> None:
        for directory in traces.abandoned(parent):
            show(f"taking away what an earlier run left when it was killed: {directory}")
            left = traces.clear(directory)
            if left:
                raise DemoError("; ".join(left))
        free = shutil.disk_usage(parent).free
        if free < _NEEDED_BYTES:
            raise DemoError(f"{parent} has {free >> 20} MiB free and the demo needs 1024: choose another by --dir")
        self.directory = Path(tempfile.mkdtemp(prefix=traces.PREFIX, dir=parent))
        self._lock = traces.claim(self.directory)
        self._environment = {**os.environ, traces.MARK: str(self.directory)}
        self._guest = guest
        self._accelerator = accelerator
        self._machines: list[Machine] = []
        self.show = show
        self.commands = Commands(programs, self.directory, self._environment, show)
        self.left: list[str] = []

    def __enter__(self) -> "Stage":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for machine in self._machines:
            machine.kill()
        self.left = traces.clear(self.directory)
        os.close(self._lock)

    def path(self, name: str) -> Path:
        """The absolute path of what the commands call `name`."""
        return self.directory / name

    def start_machine(self, name: str, disk: str, words: str) -> Machine:
        """Boot the tiny guest from the flat file `disk`. Raises GuestError."""
        config = MachineConfig(name, self._guest, self._accelerator, words, self.path(disk))
        machine = Machine(config, self.directory, self._environment)
        self._machines.append(machine)
        return machine

    def log_tails(self) -> str:
        """The last lines of each mount's log, for who looks into a failure."""
        parts = []
        for host in HOSTS:
            log = self.path(f"{host}.log")
            if log.is_file():
                lines = log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
                parts += [f"the log of {host}'s mount ends with:", *(f"    {line}" for line in lines)]
        return "\n".join(parts)
