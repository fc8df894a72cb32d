"""Records to systemd's journal, with fields, over its native protocol.

A record is one datagram to the socket. Each field is `NAME=value` and a newline; one whose value has a newline in it is
`NAME`, a newline, the value's length as 64 bits (little-endian), the value, a newline. A record that is too large for
a datagram is written to a sealed memfd, whose descriptor is sent instead (systemd.io/JOURNAL_NATIVE_PROTOCOL).

Fields: MESSAGE, PRIORITY, SYSLOG_IDENTIFIER, SYSLOG_PID, CODE_FILE, CODE_LINE, CODE_FUNC, THREAD_NAME, LOGGER, and,
where there are any, AZEKURA_EVENT, AZEKURA_VOLUME, AZEKURA_HOST, AZEKURA_SLOT, AZEKURA_MOUNTPOINT.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import struct
from typing import Final

from vmfs.logfields import fields_of

SOCKET: Final = "/run/systemd/journal/socket"
_PREFIX: Final = "AZEKURA_"
_LENGTH: Final = struct.Struct("<Q")
_TOO_LARGE: Final = (errno.EMSGSIZE, errno.ENOBUFS)
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
_PRIORITIES: Final = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_PRIORITY_DEBUG: Final = 7


class JournalHandler(logging.Handler):
    """Sends records to the journal. A record that the journal does not take is lost: logging must not stop a mount."""

    def __init__(self, path: str = SOCKET) -> None:
        """Raises OSError where no journal listens at `path`."""
        super().__init__()
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            self._socket.connect(path)
        except OSError:
            self._socket.close()
            raise

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record; after a restart of the journal, over a new connection."""
        try:
            data = encode(self._fields(record))
            try:
                self._send(data)
            except BlockingIOError:
                raise  # it does not keep up: waiting for it would hold the mount up
            except OSError:
                self._socket.connect(self._path)
                self._send(data)
        except (OSError, ValueError):
            self.handleError(record)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()
        super().close()

    def handleError(self, record: logging.LogRecord) -> None:
        """Nobody reads this process's standard error: say nothing."""

    def _fields(self, record: logging.LogRecord) -> dict[str, str]:
        priority = next((p for level, p in _PRIORITIES if record.levelno >= level), _PRIORITY_DEBUG)
        fields = {
            "MESSAGE": self.format(record), "PRIORITY": str(priority), "SYSLOG_IDENTIFIER": "vmfs",
            "SYSLOG_PID": str(record.process), "CODE_FILE": record.pathname, "CODE_LINE": str(record.lineno),
            "CODE_FUNC": record.funcName, "THREAD_NAME": str(record.threadName), "LOGGER": record.name,
        }  # fmt: skip
        return fields | {_PREFIX + name.upper(): value for name, value in fields_of(record).items()}

    def _send(self, data: bytes) -> None:
        try:
            self._socket.send(data)
        except OSError as error:
            if error.errno not in _TOO_LARGE:
                raise
            self._send_as_file(data)

    def _send_as_file(self, data: bytes) -> None:
        fd = os.memfd_create("azekura-log", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            with open(fd, "wb", closefd=False) as file:
                file.write(data)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            socket.send_fds(self._socket, [b""], [fd])
        finally:
            os.close(fd)


def encode(fields: dict[str, str]) -> bytes:
    """The fields as the journal reads them."""
    parts: list[bytes] = []
    for name, text in fields.items():
        value = text.encode("utf-8", "backslashreplace")
        if b"\n" in value:
            parts += [name.encode(), b"\n", _LENGTH.pack(len(value)), value, b"\n"]
        else:
            parts += [name.encode(), b"=", value, b"\n"]
    return b"".join(parts)
