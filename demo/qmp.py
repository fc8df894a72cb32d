"""A small client of the QEMU Machine Protocol: JSON objects, one a line, over a stream socket.

Specification: docs/interop/qmp-spec.rst in the QEMU source. One command is under way at a time, so replies need no
ids; events that arrive between are dropped, since this project watches the serial console and the process instead.
"""

import json
import socket
from typing import Any

from demo.errors import GuestError

# An answer takes milliseconds; a machine whose main loop is stuck this long is broken.
_REPLY_TIMEOUT_SECONDS = 30.0


class Qmp:
    """One negotiated connection. Not thread-safe. `close()` ends it and leaves the machine running."""

    def __init__(self, connection: socket.socket) -> None:
        """Take over `connection`, read the greeting and leave negotiation mode. Raises GuestError."""
        connection.settimeout(_REPLY_TIMEOUT_SECONDS)
        self._connection = connection
        self._lines = connection.makefile("rb")
        if "QMP" not in self._receive():
            raise GuestError("QEMU did not greet as its machine protocol says")
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: object) -> Any:
        """Run `command`; argument names are written with `_` for `-`. Raises GuestError with QEMU's reason."""
        request: dict[str, object] = {"execute": command}
        if arguments:
            request["arguments"] = {name.replace("_", "-"): value for name, value in arguments.items()}
        try:
            self._connection.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise GuestError(f"QEMU takes no command {command}: {error}") from error
        while True:
            reply = self._receive()
            if "return" in reply:
                return reply["return"]
            if "error" in reply:
                raise GuestError(f"QEMU refused {command}: {reply['error'].get('desc', 'no reason given')}")

    def close(self) -> None:
        """Close the connection."""
        self._lines.close()
        self._connection.close()

    def _receive(self) -> dict[str, Any]:
        try:
            line = self._lines.readline()
            reply = json.loads(line) if line else None
        except (OSError, ValueError) as error:
            raise GuestError(f"QEMU's answer could not be read: {error}") from error
        if not isinstance(reply, dict):
            raise GuestError("QEMU closed its control connection")
        return reply
