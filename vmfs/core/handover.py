"""A file that is open for writing passes to another host, with its lock, while both have it open.

As in a live migration: the hypervisor on the destination opens the disk while the guest runs on the source. So the
destination is told first that it will get the file (`accept`); whoever then opens it for writing there gets a handle
that *waits*: it reads as any reader does, and its writes wait for the lock. `hand_over` on the source holds writes
back, lets those under way end, commits, and gives the lock away (`vmfs.cluster.handover`). Its own handles wait then in
their turn: they read, their writes fail with ESTALE, and they become writers again when the file is handed back.
"""

from __future__ import annotations

import logging
import stat
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from errno import EINVAL, EROFS
from typing import Final

from vmfs.cluster.locktable import Tenure
from vmfs.core.attributes import Attributes
from vmfs.core.inodes import Inodes
from vmfs.core.openfile import Handle, OpenFile, OpenFiles
from vmfs.core.state import Core
from vmfs.core.succession import Legacy
from vmfs.errors import HandOverFailed, VmfsError
from vmfs.estate.handles import HandleState
from vmfs.ondisk.inode import Inode
from vmfs.ondisk.lock import Guards, Holder, LockMode
from vmfs.ondisk.slot import SlotState

log = logging.getLogger("vmfs.core")

_PINS_POLL_SECONDS: Final = 0.002
_JOIN_SECONDS: Final = 5.0  # for an acceptance that the storage holds up while the mount ends


@dataclass(slots=True)
class _Incoming:
    """A file that this host is to get. `cancelled` is set by whoever wants it no more."""

    number: int
    generation: int
    until: float
    cancelled: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None


class FileHandOvers:
    """Both sides of the hand-over of files, for one mount.

    The control mutex guards `_incoming` and `_giving`, as it does handles and owners of open files. One thread for each
    file that is to come, "vmfs-accept-NUMBER", ends when the file has come, or will not.
    """

    def __init__(
        self, core: Core, inodes: Inodes, files: OpenFiles, attributes: Attributes, legacy: Legacy
    ) -> None:
        self._core = core
        self._inodes = inodes
        self._files = files
        self._attributes = attributes
        self._legacy = legacy
        self._incoming: dict[int, _Incoming] = {}
        self._giving: set[int] = set()

    # -- the source --------------------------------------------------------------------------------

    def hand_over(self, number: int, host: str, wait_seconds: float) -> float:
        """Give the file to the host of that name, which has accepted it or will within `wait_seconds`.

        Returns for how long this host's writes were held back until the file was the other's, in seconds. Raises
        HandOverFailed, and the file stays writable here; LeaseLost, MountClosing, DamagedBlock, DeviceError.
        """
        core = self._core
        what = f"inode {number}"
        to = self._find_host(what, host)
        lock = self._inodes.lock_address(number)
        file = self._files.table.get(number)
        if file is None or not file.writers or core.locks.held(lock) is None:
            raise HandOverFailed(what, "it is not open for writing on this host")
        if (number, file.generation) in core.orphans.entries:
            raise HandOverFailed(what, "what was cut off it is still being freed; try again")
        with core.transactions.mutex:
            if number in self._giving:
                raise HandOverFailed(what, "it is being handed over already")
            self._giving.add(number)
        try:
            tenure = core.locks.acquire(lock, Guards.INODE, LockMode.EXCLUSIVE, wait=0)
            try:
                seconds = self._give(file, tenure, to, core.clock.now() + wait_seconds)
            except BaseException:
                if not tenure.lost:
                    with suppress(VmfsError):  # else the offer ends with the lock
                        core.locks.hand_overs.withdraw(tenure, to)
                raise
            finally:
                core.locks.unpin(tenure)
        finally:
            with core.transactions.mutex:
                self._giving.discard(number)
        log.info("volume %s: %s was handed over to host %s in %.3f s", core.name, what, host, seconds)
        return seconds

    def _find_host(self, what: str, host: str) -> Holder:
        membership = self._core.membership
        if host == membership.identity.name:
            raise HandOverFailed(what, f"{host} is this host; name another one")
        for record in membership.region.read_all().records:
            if record.state is SlotState.LIVE and record.host_name == host:
                return record.holder
        raise HandOverFailed(what, f"no host {host!r} has the volume mounted; `vmfsctl hosts` names those that have")

    def _give(self, file: OpenFile, tenure: Tenure, to: Holder, until: float) -> float:
        core = self._core
        overs = core.locks.hand_overs
        overs.offer(tenure, to, until)  # writes go on
        self._attributes.set_times(file)
        handles = self._seize(file, tenure, until)
        began = core.clock.now()
        try:
            with file.slow_mutex, self._files.closed_gate(file):
                self._stop_writing(file, tenure, handles)
                gone = False
                try:
                    gone = overs.complete(tenure, to)
                finally:
                    if not tenure.lost:
                        for pin in self._start_writing(file, dict.fromkeys(handles, tenure), tenure):
                            core.locks.unpin(pin)
        finally:
            overs.end(tenure)
        if not gone:
            raise HandOverFailed(f"inode {file.number}", f"host {core.membership.name_of(to)} wants it no more")
        return core.clock.now() - began

    def _seize(self, file: OpenFile, tenure: Tenure, until: float) -> list[int]:
        """Wait until only open files (and the caller) use the lock, and keep all others from it; their numbers."""
        core = self._core
        while True:
            with core.transactions.mutex:
                handles = [fh for fh, h in list(self._files.handles.items()) if h.tenure is tenure]
                if core.locks.hand_overs.try_seize(tenure, len(handles) + 1):
                    return handles
            if core.clock.now() >= until:
                raise HandOverFailed(f"inode {file.number}", "operations on it here do not end; try again")
            core.clock.sleep(_PINS_POLL_SECONDS)

    def _stop_writing(self, file: OpenFile, tenure: Tenure, handles: list[int]) -> None:
        """From here on nobody here takes the file for his own. Writes that were held back find that out."""
        with self._core.transactions.mutex:
            for fh in handles:
                handle = self._files.handles.get(fh)
                if handle is not None and handle.tenure is tenure:
                    handle.tenure = None
                    handle.waits = True
                    self._legacy.turn(fh, HandleState.READING)
                    file.end_writing()

    def _start_writing(self, file: OpenFile, pins: dict[int, Tenure], tenure: Tenure) -> list[Tenure]:
        """Make waiting handles writers, each with its pin; the pins of those that are not there any more come back.

        The lock is held. Raises OSError(ESTALE) when the file is no more, DamagedBlock, DeviceError.
        """
        core = self._core
        left = []
        with core.transactions.mutex:
            core.store.hold(tenure.address, tenure.version)
            self._inodes.forget(file.number)
            for fh, pin in pins.items():
                handle = self._files.handles.get(fh)
                if handle is None or not handle.waits:
                    left.append(pin)
                    continue
                file.start_writing()
                handle.tenure, handle.waits = pin, False
                self._legacy.turn(fh, HandleState.WRITING)
            file.touched = True  # it may have been written in place since its times were set
        return left

    # -- the destination ---------------------------------------------------------------------------

    def accept(self, number: int, wait_seconds: float) -> None:
        """Wait in the background for another host to hand the file over to this one, for `wait_seconds` at most.

        Raises HandOverFailed when no other host holds it, or it is waited for already; OSError(EINVAL, EROFS, ESTALE);
        DamagedBlock, DeviceError.
        """
        core = self._core
        inode = self._inodes.look(number, fresh=True).inode
        if not stat.S_ISREG(inode.mode) or inode.is_layer:
            raise OSError(EINVAL, f"inode {number} is no regular file")
        if core.read_only:
            raise OSError(EROFS, "the mount is read-only")
        lock = self._inodes.lock_address(number)
        view = core.locks.holders(lock)
        owner = view.record.owner
        if owner is None or owner in view.void:
            raise HandOverFailed(f"inode {number}", "no host has it open for writing; just open it")
        if owner == core.membership.holder:
            raise HandOverFailed(f"inode {number}", "this host has it already")
        self._expect(inode, core.clock.now() + wait_seconds)

    def _expect(self, inode: Inode, until: float) -> None:
        with self._core.transactions.mutex:
            if inode.number in self._incoming:
                raise HandOverFailed(f"inode {inode.number}", "this host waits for it already")
            incoming = _Incoming(inode.number, inode.inode_generation, until)
            incoming.thread = threading.Thread(
                target=self._receive, args=(incoming,), name=f"vmfs-accept-{inode.number}", daemon=True
            )
            self._incoming[inode.number] = incoming
            incoming.thread.start()

    def cancel(self, number: int) -> None:
        """Wait no more for the file. HandOverFailed when it is not waited for."""
        with self._core.transactions.mutex:
            incoming = self._incoming.get(number)
        if incoming is None:
            raise HandOverFailed(f"inode {number}", "this host does not wait for it")
        incoming.cancelled.set()
        assert incoming.thread is not None
        incoming.thread.join(_JOIN_SECONDS)

    def expects(self, file: OpenFile | Inode) -> bool:
        """Whether this host waits for the file, so that it can be opened for writing without its lock."""
        incoming = self._incoming.get(file.number)
        generation = file.generation if isinstance(file, OpenFile) else file.inode_generation
        return incoming is not None and incoming.generation == generation

    def close(self) -> None:
        """Wait for nothing any more."""
        with self._core.transactions.mutex:
            all_of_them = list(self._incoming.values())
        for incoming in all_of_them:
            incoming.cancelled.set()
        for incoming in all_of_them:
            assert incoming.thread is not None
            incoming.thread.join(_JOIN_SECONDS)

    def _waiting(self, incoming: _Incoming) -> dict[int, Handle]:
        return {
            fh: h for fh, h in list(self._files.handles.items())
            if h.waits and (h.file.number, h.file.generation) == (incoming.number, incoming.generation)
        }  # fmt: skip

    def _receive(self, incoming: _Incoming) -> None:
        """The thread of one file that is to come."""
        core, number = self._core, incoming.number
        try:
            tenure = core.locks.hand_overs.receive(
                self._inodes.lock_address(number), Guards.INODE, incoming.until,
                lambda: bool(self._waiting(incoming)), incoming.cancelled.is_set,
            )  # fmt: skip
            try:
                self._begin(incoming, tenure)
            finally:
                core.locks.unpin(tenure)
            log.info("volume %s: inode %d was handed over to this host", core.name, number)
        except (VmfsError, OSError) as error:
            level = logging.INFO if incoming.cancelled.is_set() or not self._waiting(incoming) else logging.WARNING
            log.log(level, "volume %s: inode %d is not waited for any more: %s", core.name, number, error)
        finally:
            with core.transactions.mutex:
                if self._incoming.get(number) is incoming:
                    del self._incoming[number]

    def _begin(self, incoming: _Incoming, tenure: Tenure) -> None:
        core = self._core
        waiting = self._waiting(incoming)
        if not waiting:
            return
        pins = {fh: core.locks.acquire(tenure.address, Guards.INODE, LockMode.EXCLUSIVE, wait=0) for fh in waiting}
        try:
            left = self._start_writing(next(iter(waiting.values())).file, pins, tenure)
        except BaseException:
            left = [pin for fh, pin in pins.items() if waiting[fh].tenure is None]
            raise
        finally:
            for pin in left:
                core.locks.unpin(pin)
