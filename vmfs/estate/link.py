"""The socket between a mount's process and its supervisor: small messages in both directions, descriptors with them.

A socket pair of type SOCK_SEQPACKET: a message is one JSON object of at most 1 KiB. The process inherits its end, the
estate's memory and, when it takes over, the descriptor of /dev/fuse; their numbers are in the variable AZEKURA_LINK.

    from the process    {"keep": true} and a descriptor   the mount's connection to the kernel, to be kept
                        {"serving": true, "resend": R}    it serves; R: the kernel can send requests again
                        {"ended": true}                   the kernel has ended the session: do not start another
                        {"restart": true}                 start another process in its place, it ends now
"""

from __future__ import annotations

import json
import os
import socket
from typing import Final

from vmfs.estate.layout import Estate

VARIABLE: Final = "AZEKURA_LINK"
MESSAGE_MAX_BYTES: Final = 1024


class Link:
    """The process's end. Messages may be sent by any thread."""

    def __init__(self, connection: socket.socket, estate: Estate, fuse_fd: int | None, supervisor: int) -> None:
        self._connection = connection
        self.estate = estate
        self.fuse_fd = fuse_fd
        """The session to go on with; None: this process mounts."""
        self.supervisor = supervisor
        """The supervisor's pid."""

    @classmethod
    def inherited(cls) -> Link:
        """What the supervisor gave this process."""
        given = json.loads(os.environ.pop(VARIABLE))
        for fd in given["fds"]:
            os.set_inheritable(fd, False)
        link, memory, *rest = given["fds"]
        connection = socket.socket(fileno=link)
        return cls(connection, Estate(memory), rest[0] if rest else None, os.getppid())

    def keep(self, fuse_fd: int) -> None:
        """The connection to the kernel is kept from now on, whatever happens to this process."""
        self._send({"keep": True}, fuse_fd)

    def serving(self, *, resend: bool) -> None:
        """This process serves."""
        self._send({"serving": True, "resend": resend})

    def ended(self) -> None:
        """The kernel has ended the session."""
        self._send({"ended": True})

    def restart(self) -> None:
        """Have another process started when this one has ended."""
        self._send({"restart": True})

    def _send(self, message: dict[str, bool], fd: int | None = None) -> None:
        data = json.dumps(message).encode()
        try:
            if fd is None:
                self._connection.send(data)
            else:
                socket.send_fds(self._connection, [data], [fd])
        except (BrokenPipeError, ConnectionResetError):
            pass  # the supervisor is gone: the mount goes on without one
