"""Requests that are being worked on, and who answers them: exactly one.

A thread that works on a request may hang in the storage for as long as the storage likes. So the right to answer a
request is a thing of its own: an entry in `UnderWay.requests`, which its worker takes out when it answers. Somebody
else who takes it out first answers in the worker's place; the worker finds it gone and keeps silent. Putting in and
taking out are single operations of a dict, which the interpreter does not cut in two: the hot path takes no lock.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock


class UnderWay:
    """The requests of one session. `_lock` guards `left_behind`."""

    def __init__(self) -> None:
        self.requests: dict[int, Callable[[], None] | None] = {}
        """By unique: what to do besides when another one answers."""
        self.left_behind = 0
        """Jobs that were answered in their worker's place, and whose workers have not come back."""
        self._lock = Lock()

    def old(self, before: set[int]) -> set[int]:
        """Those of `before` that are under way still."""
        return before.intersection(list(self.requests))

    def take(self, unique: int) -> Callable[[], None] | None:
        """Take the right to answer from its worker; None when it has answered, or nothing more is to be done."""
        return self.requests.pop(unique, None)

    def leave_behind(self) -> None:
        """A worker is not waited for any more."""
        with self._lock:
            self.left_behind += 1

    def came_back(self) -> None:
        """A worker that was not waited for has come back."""
        with self._lock:
            self.left_behind -= 1
