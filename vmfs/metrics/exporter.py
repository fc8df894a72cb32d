"""The HTTP server that hands the metrics out. It reads only, and asks nobody who they are: loopback is the default."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIServer

from prometheus_client import start_http_server

from vmfs.core.parts import Parts
from vmfs.metrics.address import MetricsUnusable, parse_address
from vmfs.metrics.measured import measured_parts
from vmfs.metrics.meters import EventCounter, Meters

if TYPE_CHECKING:
    from vmfs.core.mounting import MountedVolume


class Exporter:
    """Serves the metrics of one mount, from construction until `close`. One thread, and one a scrape."""

    def __init__(self, where: str) -> None:
        """Raises MetricsUnusable: no such address here, or the port is in use."""
        address, port = parse_address(where)
        self._meters = meters = Meters()
        self._counter = EventCounter(meters)
        try:
            started: tuple[WSGIServer, threading.Thread] = start_http_server(port, address, meters.registry)
        except OSError as error:
            raise MetricsUnusable(where, error.strerror or str(error)) from error
        self._server, self._thread = started
        self._thread.name = "metrics"
        logging.getLogger().addHandler(self._counter)

    @property
    def parts(self) -> Parts:
        """What the mount is to be made of so that it is counted."""
        return measured_parts(self._meters)

    def show(self, mounted: MountedVolume, mountpoint: str, takeovers: int) -> None:
        """Have the state of this mount in every scrape from now on."""
        from vmfs.metrics.state import StateCollector

        self._meters.registry.register(StateCollector(mounted, mountpoint, takeovers))

    def close(self) -> None:
        """Serve no more."""
        logging.getLogger().removeHandler(self._counter)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
