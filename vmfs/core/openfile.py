"""Files that are open on this mount: their maps, their sizes, and the gate that holds their writers back.

An `OpenFile` is one inode, however many handles it has. While any of them may write, the inode's lock is held and the
file is *owned*: its view is exact. Otherwise its readers look without the lock, and look again when what they know is
older than BELIEVE_SECONDS.

The gate: a data thread announces the file in `busy` before it looks at `gated`, and a closer sets `gated` before it
looks at `busy`; so, as one of the two comes first, either the thread sees the gate or the closer sees the thread.
"""

from __future__ import annotations

import stat
import threading
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from errno import ESTALE
from typing import Final

from vmfs.cluster.locktable import Tenure
from vmfs.core.groups import Run
from vmfs.core.inodes import Inodes, Seen, stale
from vmfs.core.state import BELIEVE_SECONDS, Core
from vmfs.core.unlocked import Changed
from vmfs.core.views import View
from vmfs.core.writeranges import WriteRanges
from vmfs.ondisk.orphans import OrphanKind

_DRAIN_POLL_SECONDS: Final = 0.0002  # a write of 4 KiB takes about as long
_CHANGES_MAX: Final = 1000  # of a map while one leaf of it is read: at a commit each that is minutes


class OpenFile:
    """One inode that is open here."""

    __slots__ = (
        "_answered", "_asked", "_inodes", "core", "gated", "generation", "handles", "lock", "number", "owned",
        "refresh_mutex", "reserve", "seen", "setid", "since", "size", "slow_mutex", "touched", "version", "view",
        "writers",
    )  # fmt: skip

    def __init__(self, core: Core, inodes: Inodes, number: int, generation: int) -> None:
        self.core = core
        self._inodes = inodes
        self.number = number
        self.generation = generation
        self.lock = inodes.lock_address(number)
        self.view = View(core.transactions.mutex, self._load)
        self.size = 0
        self.handles = 0
        self.writers = 0
        self.owned = False
        self.gated = False
        self.setid = False
        """It has set-user-id or set-group-id: a write clears them."""
        self.touched = False
        """Written in place since the times were last set."""
        self.since = -1e18
        self._asked = self._answered = 0
        """How often somebody wanted it looked at anew; which of them the last look came after."""
        self.version = -1
        self.seen: Seen | None = None
        """The inode that readers without the lock have validated; the view's leaves are its own."""
        self.reserve: list[Run] = []
        """Promised blocks for the next writes at the end of the file. Guarded by the control mutex."""
        self.slow_mutex = WriteRanges()
        """Held, for its blocks, by a write that changes the map; whole by one that changes the size, and by whoever
        freezes the file. Taken before the control mutex."""
        self.refresh_mutex = threading.Lock()

    def _load(self, index: int) -> array[int]:
        for _ in range(_CHANGES_MAX):
            # Not of an inode looked at anew: that may be another file's by now, and its age is not `since`.
            seen = self.seen
            if self.owned or seen is None:
                seen = self._inodes.look(self.number)
                if seen.inode.inode_generation != self.generation:
                    raise stale(self.number)
            try:
                return self._inodes.flat_leaf(seen, index)
            except Changed:
                self.expire()
                self.refresh()
        raise OSError(ESTALE, f"the map of inode {self.number} does not come to rest")

    def start_writing(self) -> None:
        """One more writer, whose pin keeps the lock; the control mutex is held. OSError(ESTALE): removed."""
        if not self.writers:
            inode = self._inodes.owned(self.number, self.generation).inode
            self.view.reset()
            self.seen = None
            self.size = inode.size
            self.version = inode.version
            self.setid = bool(inode.mode & (stat.S_ISUID | stat.S_ISGID))
            self.owned = True
        self.writers += 1

    def end_writing(self) -> None:
        """One writer less; the control mutex is held."""
        self.writers -= 1
        if self.writers:
            return
        self.drop_reserve()
        self.owned = False
        self.since = -1e18

    def drop_reserve(self) -> None:
        """Give promised blocks back; the control mutex is held."""
        for run in self.reserve:
            self.core.groups.take_back(run)
        self.reserve = []

    def refresh(self) -> None:
        """Make sure that a reader without the lock knows the file as of BELIEVE_SECONDS ago at most.

        Raises OSError(ESTALE) when the file was removed, DamagedBlock, DeviceError.
        """
        if self.owned or self._is_known():
            return
        with self.refresh_mutex:
            if self._is_known():
                return
            asked = self._asked
            seen = self._inodes.look(self.number)
            if seen.inode.inode_generation != self.generation:
                raise stale(self.number)
            with self.core.transactions.mutex:
                if self.owned:
                    return
                if not seen.inode.nlink and (self.number, self.generation) not in self.core.orphans.entries:
                    raise stale(self.number)  # another host is removing it, block by block: holes are no zeros of its
                if seen.inode.version != self.version:
                    self.view.reset()
                    self.version = seen.inode.version
                self.seen = seen
                self.size = seen.inode.size
                self.since = seen.since
                self._answered = asked

    def _is_known(self) -> bool:
        return self._answered == self._asked and self.core.clock.now() - self.since <= BELIEVE_SECONDS

    def look_again(self) -> None:
        """Have the next reader look at the inode again, whoever is looking at it now."""
        with self.core.transactions.mutex:
            self._asked += 1

    def expire(self) -> None:
        """Have the next reader look again, and forget the map."""
        self.look_again()
        self.version = -1
        self._inodes.forget(self.number)


def handed_over(number: int) -> OSError:
    """What a write ends in whose file another host has."""
    return OSError(ESTALE, f"inode {number} was handed over to another host, or has not been handed over to this one")


@dataclass(slots=True)
class Handle:
    """An open file description."""

    file: OpenFile
    flags: int
    tenure: Tenure | None
    """The pin on the file's lock of one that may write."""
    lost: bool = False
    """See `vmfs.core.succession`."""
    waits: bool = False
    """Opened for writing while the lock is another host's. See `vmfs.core.handover`."""

    @property
    def writes(self) -> bool:
        return self.tenure is not None


@dataclass(slots=True)
class OpenFiles:
    """All open files. `table` and `handles` are changed under the control mutex, and read without it."""

    table: dict[int, OpenFile] = field(default_factory=dict)
    handles: dict[int, Handle] = field(default_factory=dict)
    busy: dict[int, OpenFile | None] = field(default_factory=dict)
    """By data thread: the file into which it is writing."""
    next_fh: int = 1

    def get(self, core: Core, inodes: Inodes, number: int, generation: int) -> OpenFile:
        """The open file of an inode, made when it is not open; give it back with `put`. The control mutex is held.

        OSError(ESTALE) for one that is being removed: nobody who had it open is left, and its blocks go.
        """
        file = self.table.get(number)
        if file is None or file.generation != generation:
            if core.orphans.entries.get((number, generation)) == OrphanKind.REMOVE:
                raise stale(number)
            file = self.table[number] = OpenFile(core, inodes, number, generation)
        file.handles += 1
        return file

    def put(self, file: OpenFile) -> None:
        """The counterpart of `get`; the control mutex is held."""
        file.handles -= 1
        if not file.handles and self.table.get(file.number) is file:
            del self.table[file.number]

    def add(self, handle: Handle) -> int:
        """A number for a new handle; the control mutex is held."""
        fh = self.next_fh
        self.next_fh += 1
        self.handles[fh] = handle
        return fh

    @contextmanager
    def quiet(self, core: Core, inodes: Inodes, number: int, generation: int) -> Iterator[OpenFile]:
        """The file, open or not, with no write of this host's under way, nor begun by who opens it meanwhile.

        The caller has its lock. Readers go on: what they know of the map is the caller's to reset.
        """
        with core.transactions.mutex:
            file = self.get(core, inodes, number, generation)
        try:
            with file.slow_mutex, self.closed_gate(file):
                yield file
        finally:
            with core.transactions.mutex:
                self.put(file)

    @contextmanager
    def closed_gate(self, file: OpenFile) -> Iterator[None]:
        """Hold back the file's writers: none is under way inside. The caller holds `slow_mutex`."""
        file.gated = True
        try:
            while any(f is file for f in list(self.busy.values())):
                file.core.clock.sleep(_DRAIN_POLL_SECONDS)
            yield
        finally:
            file.gated = False
