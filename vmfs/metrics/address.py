"""Where metrics are served: [ADDR:]PORT."""

from __future__ import annotations

import errno
import importlib.util
from typing import Final

from vmfs.errors import EXIT_NOT_TRIED, VmfsError

LOOPBACK: Final = "127.0.0.1"
_PORT_MAX: Final = 65535


class MetricsUnusable(VmfsError):
    """Metrics cannot be served as asked."""

    exit_code = EXIT_NOT_TRIED
    errno = errno.EINVAL

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"metrics cannot be served at {where}: {reason}")


def parse_address(text: str) -> tuple[str, int]:
    """(address, port) of "9100", "10.0.0.5:9100" or "[::1]:9100"; the loopback address where only a port is given.

    Raises MetricsUnusable.
    """
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise MetricsUnusable(text, "an IPv6 address is written in brackets: [::1]:9100")
    elif ":" in text and not host:
        raise MetricsUnusable(text, "an address is missing before the colon; for all of them: 0.0.0.0:PORT")
    if not (port.isascii() and port.isdigit() and 0 < int(port) <= _PORT_MAX):
        raise MetricsUnusable(text, f"{port!r} is no port (1 to {_PORT_MAX})")
    return host or LOOPBACK, int(port)


def check_installed(where: str) -> None:
    """Raise MetricsUnusable where the library is missing that speaks to Prometheus."""
    if importlib.util.find_spec("prometheus_client") is None:
        raise MetricsUnusable(where, "the package prometheus_client is missing; install azekura[metrics]")
