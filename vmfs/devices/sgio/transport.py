"""SCSI commands to a disk of this machine, by the ioctl SG_IO on its block device.

Sources: linux/include/scsi/sg.h (struct sg_io_hdr, version 3 of the interface), drivers/scsi/scsi_ioctl.c, The Linux
SCSI Generic HOWTO. The kernel sends such a command once and does not repeat it. It hands back the target's status and
sense; a host status where the target has not answered; and it waits for its own error handling when the time is over,
so nothing of the command is under way any more when the call returns.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import logging
import mmap
import os
import struct
import threading
from collections.abc import Callable, Sequence
from typing import Final

from vmfs.devices.contract import ReadableBuffer
from vmfs.devices.scsi.transport import Answer, Repeat
from vmfs.errors import DeviceError, DeviceGone, DeviceNotUsable

TIMEOUT_MS: Final = 30_000  # the kernel's own for a disk's reads and writes; its error handling comes on top

_SG_IO: Final = 0x2285
_INTERFACE: Final = ord("S")
_NO_DATA, _TO_DEVICE, _FROM_DEVICE = -1, -2, -3
_SENSE_BYTES: Final = 96
# interface, direction, CDB bytes, sense bytes, iovecs, data bytes, *data, *CDB, *sense, timeout in ms, flags, id,
# *user; then the answer: status, masked status, message status, sense bytes written, host status, driver status,
# residual bytes, milliseconds taken, information. Native alignment.
_HEADER = struct.Struct("@iiBBHIPPPIIiPBBBBHHiII0P")
_ANSWER_AT: Final = struct.calcsize("@iiBBHIPPPIIiP")
_ANSWER = struct.Struct("@BBBBHHiII")
_DID_NO_CONNECT: Final = 1  # the only host status that says for sure that the target has not seen the command

log = logging.getLogger("vmfs.devices")


class PathFailed(DeviceError):
    """No answer from the target by this path. `was_sent`: it may have executed the command all the same."""

    def __init__(self, device: str, operation: str, reason: str, *, was_sent: bool) -> None:
        super().__init__(device, operation, 0, 0, reason)
        self.was_sent = was_sent


class SgPath:
    """A `ScsiTransport` over one node of a disk. Thread-safe: keeps a descriptor, and whether its disk is gone for good
    (one that comes back by the same name is another)."""

    def __init__(self, node: str, *, read_only: bool) -> None:
        """DeviceNotUsable when it cannot be opened."""
        self._node = node
        self.is_gone = False
        try:
            self._fd = os.open(node, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise DeviceNotUsable(node, f"cannot be opened for SCSI commands: {error.strerror}") from error

    @property
    def name(self) -> str:
        return self._node

    def execute(
        self,
        cdb: bytes,
        *,
        data_out: ReadableBuffer | None = None,
        data_in: memoryview | None = None,
        repeat: Repeat = Repeat.FREELY,
    ) -> Answer:
        """As the contract; sent once, whatever `repeat` says. Raises PathFailed, DeviceGone."""
        if self._fd < 0:
            raise DeviceGone(f"device {self._node}", "it was closed")
        length = len(data_out or data_in or b"")
        direction = _NO_DATA if not length else _TO_DEVICE if data_out is not None else _FROM_DEVICE
        command, sense = bytearray(cdb), bytearray(_SENSE_BYTES)
        operation = f"SCSI command {cdb[0]:02x}"
        # Memory of its own, on whole pages: LIO's COMPARE AND WRITE goes wrong on others, where it runs in this kernel.
        with mmap.mmap(-1, max(length, 1)) as data:
            data[: len(data_out or b"")] = data_out or b""
            header = bytearray(
                _HEADER.pack(
                    _INTERFACE, direction, len(cdb), _SENSE_BYTES, 0, length, _address(data), _address(command),
                    _address(sense), TIMEOUT_MS, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                )
            )  # fmt: skip
            try:
                fcntl.ioctl(self._fd, _SG_IO, header, True)
            except OSError as error:
                raise self._refused(operation, error) from error
            found = data[: len(data_in)] if data_in is not None else b""
        status, _, _, sense_bytes, host, driver, residual, _, _ = _ANSWER.unpack_from(header, _ANSWER_AT)
        if status == 0 and host:
            reason = f"no answer (host status {host:#04x}, driver status {driver:#04x}); is the path to the array up?"
            raise PathFailed(self._node, operation, reason, was_sent=host != _DID_NO_CONNECT)
        received = 0
        if data_in is not None:
            received = min(max(0, length - residual), length)
            data_in[:received] = found[:received]
        return Answer(status, bytes(sense[:sense_bytes]), received)

    def _refused(self, operation: str, error: OSError) -> DeviceError | DeviceGone:
        """The kernel has not sent the command."""
        if error.errno == errno.EPERM:
            reason = "the kernel lets only root send it (CAP_SYS_RAWIO)"
            return DeviceError(self._node, operation, 0, 0, reason)
        if error.errno in (errno.ENODEV, errno.ENXIO):
            self.is_gone = True
            return PathFailed(self._node, operation, "the disk is gone", was_sent=False)
        return PathFailed(self._node, operation, error.strerror or str(error), was_sent=False)

    def close(self) -> None:
        """Release the node; a second call does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class SgPaths:
    """A `ScsiTransport` over all paths of one LUN: one is used until it fails, then the next.

    Thread-safe: `_mutex` guards changes of the tuple of paths, of which every call takes what there is. Which path is
    used is one number, and threads that set it at once mean the same failure.
    """

    def __init__(self, name: str, find_nodes: Callable[[], Sequence[str]], *, read_only: bool) -> None:
        """`find_nodes` says by which nodes the LUN is reached now. DeviceNotUsable when none can be opened."""
        self._name = name
        self._find_nodes = find_nodes
        self._read_only = read_only
        self._mutex = threading.Lock()
        self._paths: tuple[SgPath, ...] = ()
        self._gone: list[SgPath] = []
        self._current = 0
        self.look()

    def look(self) -> tuple[SgPath, ...]:
        """The paths that there are now: some may have come or gone. DeviceNotUsable when there is none."""
        with self._mutex:
            known = {path.name: path for path in self._paths if not path.is_gone}
            found: list[SgPath] = []
            failure = DeviceNotUsable(self._name, "it has no paths now")
            for node in self._find_nodes():
                try:
                    found.append(known.get(node) or SgPath(node, read_only=self._read_only))
                except DeviceNotUsable as error:
                    failure = error
                    log.warning("%s: a path is not used: %s", self._name, error)
            if not found:
                raise failure
            # Others may be using those that are dropped: they are closed at the end.
            self._gone += [path for path in self._paths if path not in found]
            self._paths = tuple(found)
            return self._paths

    @property
    def name(self) -> str:
        return self._name

    def execute(
        self,
        cdb: bytes,
        *,
        data_out: ReadableBuffer | None = None,
        data_in: memoryview | None = None,
        repeat: Repeat = Repeat.FREELY,
    ) -> Answer:
        """As the contract. A command that a failed path may have executed goes by another only if it may be repeated.

        A write may not: nobody has looked at the lease since (rule R1).
        """
        paths, first = self._paths, self._current
        for step in range(len(paths)):
            index = (first + step) % len(paths)
            try:
                answer = paths[index].execute(cdb, data_out=data_out, data_in=data_in, repeat=repeat)
            except PathFailed as error:
                self._current = (index + 1) % len(paths)
                last = step == len(paths) - 1
                if last or (error.was_sent and repeat is not Repeat.FREELY):
                    raise
                log.warning("%s: another path is taken: %s", self._name, error)
            else:
                return answer
        raise AssertionError("there is at least one path")

    def close(self) -> None:
        """Release all nodes."""
        for path in (*self._paths, *self._gone):
            path.close()


def _address(data: bytearray | mmap.mmap) -> int:
    """Where the bytes lie. The caller keeps `data`, and its length, until the kernel is done with it."""
    return ctypes.addressof(ctypes.c_char.from_buffer(data))
