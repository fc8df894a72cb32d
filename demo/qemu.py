"""One QEMU machine that boots the tiny guest from a raw disk file, watched through its serial console."""

import contextlib
import re
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from appliance.tinyguest import TinyGuest
from demo.errors import GuestError
from demo.qmp import Qmp

QEMU = "qemu-system-x86_64"
_DISK_NODE = "disk0"
_POLL_SECONDS = 0.02
_END_TIMEOUT_SECONDS = 10.0
_SHOWN_LINES = 8


@dataclass(frozen=True, slots=True)
class DataDisk:
    """A raw file as one more virtio disk, after `MachineConfig.disk`."""

    path: Path
    sector_bytes: int = 512

    def arguments(self, node: str) -> list[str]:
        """QEMU's arguments for it: what the guest discards, the file gives back; no cache of this machine between."""
        file_name = str(self.path).replace(",", ",,")
        sectors = f"logical_block_size={self.sector_bytes},physical_block_size={max(4096, self.sector_bytes)}"
        return [
            "-blockdev",
            f"driver=raw,node-name={node},cache.direct=on,discard=unmap,"
            f"file.driver=file,file.aio=threads,file.cache.direct=on,file.filename={file_name}",
            "-device",
            f"virtio-blk-pci,drive={node},{sectors}",
        ]


@dataclass(frozen=True, slots=True)
class MachineConfig:
    """What to start. `words` go on the guest's kernel command line: see the tiny guest's init."""

    name: str
    guest: TinyGuest
    accelerator: str
    words: str = ""
    disk: Path | None = None
    memory_mib: int = 128
    data_disks: tuple[DataDisk, ...] = ()
    forward: tuple[int, int] | None = None
    """(port of 127.0.0.1 here, port in the guest): a network card, on a network of QEMU's own."""

    def arguments(self, qmp_fd: int, serial: Path) -> list[str]:
        """QEMU's command line. The flat file of a virtual disk is attached as raw, past the host's page cache."""
        arguments = [
            QEMU, "-name", self.name, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-machine", "pc", "-accel", self.accelerator, "-m", str(self.memory_mib),
            "-chardev", f"socket,id=qmp,fd={qmp_fd}", "-mon", "chardev=qmp,mode=control",
            "-serial", f"file:{serial}", "-device", "virtio-rng-pci",
            "-kernel", str(self.guest.kernel), "-initrd", str(self.guest.initrd),
            "-append", f"console=ttyS0 quiet panic=-1 {self.words}",
        ]  # fmt: skip
        if self.disk is not None:
            file_name = str(self.disk).replace(",", ",,")
            arguments += [
                "-blockdev",
                f"driver=raw,node-name={_DISK_NODE},cache.direct=on,"
                f"file.driver=file,file.aio=threads,file.cache.direct=on,file.filename={file_name}",
                "-device",
                f"virtio-blk-pci,drive={_DISK_NODE}",
            ]
        for index, disk in enumerate(self.data_disks):
            arguments += disk.arguments(f"data{index}")
        if self.forward is not None:
            here, there = self.forward
            network = f"user,id=net0,restrict=on,hostfwd=tcp:127.0.0.1:{here}-:{there}"
            arguments += ["-netdev", network, "-device", "virtio-net-pci,netdev=net0,romfile="]
        return arguments


class Machine:
    """A running QEMU process. As a context manager it is killed on the way out if it still runs."""

    def __init__(self, config: MachineConfig, directory: Path, environment: dict[str, str] | None = None) -> None:
        """Start the machine; its serial console and QEMU's own messages go to files in `directory`.

        Raises GuestError when QEMU refuses to start, with QEMU's reason.
        """
        self.config = config
        self.started_at = time.monotonic()
        self._serial = directory / f"{config.name}.serial"
        self._messages = directory / f"{config.name}.qemu"
        self._serial.write_bytes(b"")
        ours, theirs = socket.socketpair()
        with theirs, self._messages.open("wb") as messages:
            # The machine dies with this process whatever ends it, and Ctrl-C at the terminal is ours to handle.
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *config.arguments(theirs.fileno(), self._serial)],
                stdin=subprocess.DEVNULL,
                stdout=messages,
                stderr=messages,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env=environment,
            )
        try:
            self._qmp = Qmp(ours)
        except GuestError as error:
            ours.close()
            self._end()
            reason = self._messages.read_text(errors="replace").strip() or str(error)
            raise GuestError(f"{config.name} did not start: {reason}") from error

    def __enter__(self) -> "Machine":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self._process.pid

    def is_running(self) -> bool:
        """Whether the QEMU process lives."""
        return self._process.poll() is None

    def console(self) -> str:
        """All that the guest has written on its serial console."""
        return self._serial.read_bytes().decode(errors="replace").replace("\r", "")

    def last_record(self) -> int:
        """The highest record number that the guest has reported as on stable storage; 0 if none."""
        found = re.findall(r"^RECORD (\d+)$", self.console(), re.MULTILINE)
        return int(found[-1]) if found else 0

    def wait_for(self, pattern: str, timeout_seconds: float) -> re.Match[str]:
        """Wait until a whole console line matches `pattern`.

        Raises GuestError when the guest reports a failure, when the machine ends, or when the time is over.
        """
        line = re.compile(rf"^(?:{pattern})$", re.MULTILINE)
        deadline = time.monotonic() + timeout_seconds
        while True:
            is_running, late = self.is_running(), time.monotonic() > deadline
            console = self.console()
            if match := line.search(console):
                return match
            if failure := re.search(r"^FAILED (.*)$", console, re.MULTILINE):
                raise GuestError(f"{self.config.name}: the guest failed: {failure[1]}")
            if late or not is_running:
                what = f"did not say {pattern!r} in {timeout_seconds:g} s" if is_running else "ended early"
                raise GuestError(f"{self.config.name} {what}; its console ends with:\n{self._tail()}")
            time.sleep(_POLL_SECONDS)

    def wait_for_record(self, number: int, timeout_seconds: float) -> int:
        """Wait until record `number` or a later one is stable; returns the last. Raises GuestError."""
        deadline = time.monotonic() + timeout_seconds
        while (last := self.last_record()) < number:
            if not self.is_running() or time.monotonic() > deadline or "\nFAILED " in self.console():
                raise GuestError(f"{self.config.name}: record {number} did not come; console:\n{self._tail()}")
            time.sleep(_POLL_SECONDS)
        return last

    def resize_disk(self, size_bytes: int) -> None:
        """Tell the running guest that its disk, already grown on the host, has `size_bytes`. Raises GuestError."""
        self._qmp.execute("block_resize", node_name=_DISK_NODE, size=size_bytes)

    def press_power_button(self) -> None:
        """Ask the guest by ACPI to shut down. Raises GuestError."""
        self._qmp.execute("system_powerdown")

    def wait_ended(self, timeout_seconds: float) -> None:
        """Wait for the QEMU process to end by itself. Raises GuestError when it does not, or ends in error."""
        try:
            status = self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired as error:
            raise GuestError(f"{self.config.name} still runs; its console ends with:\n{self._tail()}") from error
        if status:
            reason = self._messages.read_text(errors="replace").strip()
            raise GuestError(f"{self.config.name}: QEMU ended with status {status}: {reason}")

    def kill(self) -> None:
        """End the machine at once, as a power cut would; harmless when it has ended."""
        self._qmp.close()
        self._end()

    def _end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait(_END_TIMEOUT_SECONDS)

    def _tail(self) -> str:
        return "\n".join(f"    {line}" for line in self.console().splitlines()[-_SHOWN_LINES:])
