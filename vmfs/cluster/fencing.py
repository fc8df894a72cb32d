"""How a dead host is kept from writing (rules R2 and R3): by persistent reservations on every extent, or not at all.

Which of the two is the volume's, chosen at format (`vmfs.ondisk.superblock.INCOMPAT_RESERVATIONS`): hosts that do not
register among hosts that reserve would be refused their writes, and hosts that do not preempt would break others that
still write. Whoever mounts registers its key on all extents *before* its claim; whoever breaks a slot takes the dead
incarnation's key away on all extents *after* the slot says RECOVERING and before it reads the dead host's journal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, Protocol

from vmfs.clock import Clock
from vmfs.cluster.keys import KeyKind, holder_of, key_of, kind_of
from vmfs.cluster.nexuslock import NexusBusy, NexusLock
from vmfs.devices.contract import Device
from vmfs.devices.extents import ExtentSet
from vmfs.devices.reservations import WRITE_EXCLUSIVE_ALL_REGISTRANTS, PlainPreempt, Reservations
from vmfs.devices.writegate import WriteGate
from vmfs.errors import FenceFailed, FencingUnusable, ReservationConflict, VmfsError
from vmfs.ondisk.lock import Holder

_DRAIN_POLL_S: Final = 0.005


class Fence(Protocol):
    """What a membership does about writes of the dead. One for each mount; calls come from one thread at a time, but
    `cut_off`, which any thread may call.

    Every method may raise DeviceError and DeviceGone.
    """

    def guard(self, on_refused: Callable[[str], None]) -> None:
        """Once, before the first write: `on_refused(message)` is called when a LUN refuses a change of this mount."""
        ...

    def prepare(self, me: Holder) -> None:
        """Before a claim: have this incarnation's writes admitted. Raises FencingUnusable. May be called again."""
        ...

    def prove(self, me: Holder) -> None:
        """After the claim: show that a host whose key is taken away is refused. Raises FencingUnusable."""
        ...

    def cut_off(self, dead: Sequence[Holder]) -> None:
        """End all writes of dead incarnations, on every extent, for good. Raises FenceFailed."""
        ...

    def sweep(self, incarnation_of: Callable[[int], int | None]) -> int:
        """Take away what incarnations that are over have left; how much that was.

        `incarnation_of(slot)` reads a slot afresh; None: there is no such slot, or it cannot be read.
        """
        ...

    def come_back(self, me: Holder, still_ours: Callable[[], bool]) -> bool:
        """After a refusal: have this incarnation admitted again if `still_ours` says that its slot is; else False.

        Nothing passes before `reopen`.
        """
        ...

    def reopen(self) -> None:
        """After `come_back`: let changes pass again."""
        ...

    def leave(self) -> None:
        """After the slot was given up: this mount writes no more."""
        ...

    def describe(self) -> str:
        """What is in use and what that means, for people."""
        ...


class NoFence:
    """Nothing keeps the dead from writing. Breaks rest on the break time (A1), or on a process that is gone."""

    def guard(self, on_refused: Callable[[str], None]) -> None:
        pass

    def prepare(self, me: Holder) -> None:
        pass

    def prove(self, me: Holder) -> None:
        pass

    def cut_off(self, dead: Sequence[Holder]) -> None:
        pass

    def sweep(self, incarnation_of: Callable[[int], int | None]) -> int:
        return 0

    def come_back(self, me: Holder, still_ours: Callable[[], bool]) -> bool:
        return still_ours()

    def reopen(self) -> None:
        pass

    def leave(self) -> None:
        pass

    def describe(self) -> str:
        return "no storage fencing"


class ReservationFence:
    """Persistent reservations of type 7h on every extent.

    Keeps one `Reservations` for each device, since an implementation may remember the key that it registered.
    """

    def __init__(
        self,
        extents: ExtentSet,
        volume_name: str,
        clock: Clock,
        *,
        abort_wait_s: float = 0.0,
        proof: Callable[[Device, Reservations, Holder], bool] = lambda device, theirs, me: False,
    ) -> None:
        """`abort_wait_s`: where the LUNs have PREEMPT only, how long the longest command of theirs may execute (R2).

        `proof`: as `vmfs.cluster.fenceproof.prove_for_mount` gives it.
        """
        self._extents = extents
        self._volume = volume_name
        self._clock = clock
        self._abort_wait_s = abort_wait_s
        self._proof = proof
        self._proved = 0
        self._known: dict[int, Reservations] = {}  # by extent
        self._gate: WriteGate | None = None
        self._nexuses: dict[int, NexusLock] = {}  # by extent
        self._key = 0

    def guard(self, on_refused: Callable[[str], None]) -> None:
        self._gate = self._extents.gate = WriteGate(on_refused)

    def prepare(self, me: Holder) -> None:
        self._key = key_of(me)
        self._hold_nexuses()
        for device, theirs in self._each():
            theirs.register(self._key)
            found = theirs.reservation()
            if found is None:
                theirs.reserve()
                found = theirs.reservation()
            if found is None or found.type != WRITE_EXCLUSIVE_ALL_REGISTRANTS:
                kind = "cannot be reserved" if found is None else f"has a reservation of type {found.type:x}h"
                raise FencingUnusable(self._volume, device.name, f"{kind} (needed: 7h)")

    def _hold_nexuses(self) -> None:
        """Where this machine has one nexus for all its processes, have it to ourselves."""
        for index in range(len(self._extents)):
            device = self._extents.device(index)
            fd = device.fileno()
            if fd is None or index in self._nexuses:
                continue
            try:
                self._nexuses[index] = NexusLock(fd)
            except NexusBusy:
                reason = "is in use by another mount on this machine, which has one nexus to it for all of them"
                raise FencingUnusable(self._volume, device.name, reason) from None

    def prove(self, me: Holder) -> None:
        self._proved = sum(self._proof(device, theirs, me) for device, theirs in self._each())

    def describe(self) -> str:
        count = len(self._extents)
        where = "1 extent" if count == 1 else f"{count} extents"
        proof = "proved at mount" if self._proved == count else "which this path cannot prove (one nexus a machine)"
        text = f"reservations (7h) on {where}, {proof}: a LUN refuses the writes of a host that was broken"
        if self._abort_wait_s:
            text += f" {self._abort_wait_s:g} s after its key was taken away (no abort)"
        return text

    def cut_off(self, dead: Sequence[Holder]) -> None:
        keys = [key_of(holder) for holder in dead]
        for device, theirs in self._each():
            for key in keys:
                self._take_away(device, theirs, key)
        if self._abort_wait_s:
            # Even when nobody had the keys: whoever took them away may have died before it had waited.
            self._clock.sleep(self._abort_wait_s)
        for device, theirs in self._each():
            self._check_closed(device, theirs, keys)

    def _check_closed(self, device: Device, theirs: Reservations, keys: Sequence[int]) -> None:
        present = theirs.keys()
        for key in keys:
            if key in present:
                raise FenceFailed(self._volume, device.name, f"key {key:#x} is registered still")
        if self._key not in present:
            refused = ReservationConflict(device.name, "fencing", 0, 0, "this host's own registration is gone")
            if self._gate is not None:
                self._gate.close(str(refused))
            raise refused
        found = theirs.reservation()
        if found is None:
            theirs.reserve()
        elif found.type != WRITE_EXCLUSIVE_ALL_REGISTRANTS:
            raise FenceFailed(self._volume, device.name, f"it has a reservation of type {found.type:x}h, not 7h")

    def _take_away(self, device: Device, theirs: Reservations, key: int) -> bool:
        if not self._abort_wait_s:
            return theirs.preempt_and_abort(key)
        if not isinstance(theirs, PlainPreempt):
            raise FenceFailed(self._volume, device.name, "there is no PREEMPT on this path")
        return theirs.preempt(key)

    def sweep(self, incarnation_of: Callable[[int], int | None]) -> int:
        taken = 0
        for device, theirs in self._each():
            for key in set(theirs.keys()):
                if self._is_over(key, incarnation_of):
                    taken += self._take_away(device, theirs, key)
        return taken

    def _is_over(self, key: int, incarnation_of: Callable[[int], int | None]) -> bool:
        kind = kind_of(key)
        if kind is None or key == self._key:
            return False
        if kind is KeyKind.TOOL:
            return True  # tools write to volumes that nobody has mounted
        holder = holder_of(key)
        found = incarnation_of(holder.slot)
        return found is not None and found > holder.incarnation  # R7's test: a claim that is under way is not over

    def come_back(self, me: Holder, still_ours: Callable[[], bool]) -> bool:
        gate = self._gate
        if not still_ours():
            return False
        if gate is not None:
            # What passed the lease before the refusal ends first: it was never admitted by the key of now.
            waiting = gate.waits_for()
            while waiting():
                self._clock.sleep(_DRAIN_POLL_S)
        self.prepare(me)
        if not still_ours():
            self.leave()
            return False
        return True

    def reopen(self) -> None:
        if self._gate is not None:
            self._gate.open()

    def leave(self) -> None:
        failure: VmfsError | None = None
        for theirs in self._known.values():
            try:
                theirs.unregister()
            except VmfsError as error:  # the other extents must not keep a registration because of this one
                failure = error
        for held in self._nexuses.values():
            held.release()
        self._nexuses.clear()
        if failure is not None:
            raise failure

    def _each(self) -> Iterator[tuple[Device, Reservations]]:
        """The reservations of every extent. Raises DeviceGone, and FencingUnusable where one has none."""
        for index in range(len(self._extents)):
            device = self._extents.device(index)
            theirs = self._known.get(index)
            if theirs is None:
                theirs = device.reservations()
                if theirs is None:
                    raise FencingUnusable(self._volume, device.name, "has none on this path")
                self._known[index] = theirs
            yield device, theirs
