"""What a mount does by itself: it publishes its changes often enough that other hosts see them within a second."""

from __future__ import annotations

import logging
import threading

from vmfs.core.attributes import Attributes
from vmfs.core.openfile import OpenFiles
from vmfs.core.state import PUBLISH_SECONDS, Core
from vmfs.core.transactions import MountFailed
from vmfs.errors import LeaseLost, VmfsError

log = logging.getLogger("vmfs.core")


class Publisher:
    """A thread that commits the running transaction, and sets the times of files that are written in place."""

    def __init__(self, core: Core, files: OpenFiles, attributes: Attributes) -> None:
        self._core = core
        self._files = files
        self._attributes = attributes
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vmfs-publisher", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; what it would have published is left to the caller's last commit."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._core.clock.wait(self._stopping, PUBLISH_SECONDS):
            try:
                self.publish()
            except (LeaseLost, MountFailed) as error:
                log.debug("nothing is published any more: %s", error)
            except VmfsError as error:
                log.error("volume %s: publishing changes: %s", self._core.name, error)

    def publish(self) -> None:
        """One round. Raises VmfsError."""
        for file in list(self._files.table.values()):
            if file.owned and file.touched:
                self._attributes.set_times(file)
        with self._core.transactions.mutex:
            self._core.groups.end_quarantines()
        self._core.transactions.commit()
