"""What this host asks of others, through its own heartbeat slot."""

from __future__ import annotations

import threading

from vmfs.errors import RequestsFull
from vmfs.ondisk.slot import MAX_REQUESTS, Request


class RequestBoard:
    """The requests that stand in this host's slot. Usable from any thread; `_mutex` guards the list.

    A request stands until it is cleared: the addressee sees it at each of its heartbeats, and answers it by acting.
    """

    def __init__(self, volume_name: str) -> None:
        self._volume = volume_name
        self._mutex = threading.Lock()
        self._standing: dict[int, Request] = {}
        self._serial = 0

    def post(self, kind: int, to_slot: int, target: int, argument: int) -> int:
        """Add a request and return its serial; the same request twice has one serial. Raises RequestsFull."""
        with self._mutex:
            for r in self._standing.values():
                if (r.kind, r.to_slot, r.target, r.argument) == (kind, to_slot, target, argument):
                    return r.serial
            if len(self._standing) >= MAX_REQUESTS:
                raise RequestsFull(self._volume, MAX_REQUESTS)
            self._serial += 1
            self._standing[self._serial] = Request(kind, to_slot, self._serial, target, argument)
            return self._serial

    def clear(self, serial: int) -> bool:
        """Take a request out; False when there is none of that serial."""
        with self._mutex:
            return self._standing.pop(serial, None) is not None

    def current(self) -> tuple[Request, ...]:
        """What the next image carries."""
        with self._mutex:
            return tuple(self._standing.values())
