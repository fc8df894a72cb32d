"""Bugs, one for each rule of docs/locking.md, planted into the production code while a simulation runs.

Each is what somebody might well have written. `planted("R5")` patches a function for as long as its context lasts; the
table of which seed catches which bug is in docs/simulator.md and in `CAUGHT_BY`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from vmfs.cluster.casio import STORAGE_ERRORS
from vmfs.cluster.fencing import ReservationFence
from vmfs.cluster.lockio import LockSectors
from vmfs.cluster.membership import Membership
from vmfs.cluster.recovery import DeathProof, Recovery
from vmfs.cluster.region import SlotView
from vmfs.cluster.watcher import Watcher
from vmfs.core import recovering
from vmfs.core.groups import Groups
from vmfs.core.mounting import MountedVolume
from vmfs.core.openfile import OpenFile, OpenFiles
from vmfs.core.replay import JournalPlace, Replayed, read_journal, read_records
from vmfs.core.transactions import Transactions
from vmfs.devices.reservations import PlainPreempt
from vmfs.errors import ReservationConflict
from vmfs.ondisk import header
from vmfs.ondisk.header import METADATA_BLOCK_BYTES
from vmfs.ondisk.lock import Holder, LockRecord
from vmfs.ondisk.slot import SlotState

Patch = tuple[object, str, object]


def _r1() -> list[Patch]:
    """The lease is looked at when a request begins, and not again before its submissions."""
    return [(Membership, "check_lease", lambda self: None), (Membership, "lease_valid", lambda self, now: True)]


def _r2() -> list[Patch]:
    """PREEMPT without ABORT, and without waiting for what the LUN has accepted."""

    def take_away(self: ReservationFence, device: object, theirs: object, key: int) -> bool:
        assert isinstance(theirs, PlainPreempt)
        return theirs.preempt(key)

    return [(ReservationFence, "_take_away", take_away)]


def _r3() -> list[Patch]:
    """A host whose registration was taken away registers again by itself, and repeats the request."""
    guard = ReservationFence.guard

    def guard_again(self: ReservationFence, on_refused: Callable[[str], None]) -> None:
        guard(self, on_refused)
        gate = self._gate
        assert gate is not None

        def run(change: Callable[[], Any], device: str) -> Any:
            try:
                return change()
            except ReservationConflict:
                for _, theirs in self._each():
                    theirs.register(self._key)
                return change()

        gate.run = run  # type: ignore[method-assign, assignment]

    return [(ReservationFence, "guard", guard_again)]


def _r4() -> list[Patch]:
    """A watcher goes on counting over a time in which it could not see anything itself."""

    def observe(self: Watcher, snapshot: Any) -> None:
        for view in snapshot.views:
            known = self._seen.get(view.slot)
            if known is None or known[0] != view.raw:
                self._seen[view.slot] = (view.raw, view.completed)

    return [(Watcher, "observe", observe), (Watcher, "restart", lambda self: None)]


def _r5_generation() -> list[Patch]:
    """Replay writes what has a newer generation than what is in place, whoever holds the lock."""

    def replay(io: Any, place: JournalPlace, holds: Callable[[int, int], bool]) -> Replayed:
        records = read_records(read_journal(io, place), place)
        newest = {image.address: image for record in records for image in record.images}
        written = []
        for address, image in newest.items():
            there = io.read(address, METADATA_BLOCK_BYTES)
            if not header.checksum_matches(there) or _generation(there) < _generation(image.data):
                written.append((address, image.data))
        io.write_blocks(written)
        io.flush()
        return Replayed(len(records), len(written))

    return [(recovering, "replay", replay)]


def _generation(block: bytes) -> int:
    return int.from_bytes(block[24:32], "little")


def _r5_flush() -> list[Patch]:
    """A lock is given up when its blocks are in place, and before they are flushed."""

    def settle(self: Transactions) -> None:
        self.commit()
        self._note_settled(self._in_place)

    return [(Transactions, "settle", settle)]


def _r6() -> list[Patch]:
    """A recovery that shows no progress for the break time is taken over, though the recoverer lives."""
    proof = Recovery.proof

    def hasty(self: Recovery, view: SlotView, now: float) -> DeathProof | None:
        record = view.record
        recovering = record is not None and record.state is SlotState.RECOVERING and record.recoverer != self._me()
        if recovering and self._watcher.is_broken_by_silence(view, now):
            return DeathProof.SILENT
        return proof(self, view, now)

    return [(Recovery, "proof", hasty)]


def _r7() -> list[Patch]:
    """A hold is void when its slot, as last seen, carries another incarnation."""

    def is_void(self: LockSectors, holder: Holder) -> bool:
        snapshot = self._membership.snapshot
        view = self._membership.read_slot(holder.slot) if snapshot is None else snapshot.views[holder.slot]
        return view.record is not None and view.record.incarnation != holder.incarnation

    return [(LockSectors, "is_void", is_void)]


def _r8() -> list[Patch]:
    """A freed block may be allocated again at once."""
    free = Groups.free

    def free_at_once(self: Groups, op: Any, blocks: Any) -> None:
        addresses = list(blocks)
        free(self, op, addresses)
        for address in addresses:
            index, bit = self._geometry.group_of(address)
            self.held[index].obj.group.quarantine &= ~(1 << bit)

    return [(Groups, "free", free_at_once)]


def _r9() -> list[Patch]:
    """A freeze closes the gate and does not wait for the writes that have passed it."""

    @contextmanager
    def closed_gate(self: OpenFiles, file: OpenFile) -> Iterator[None]:
        file.gated = True
        try:
            yield
        finally:
            file.gated = False

    return [(OpenFiles, "closed_gate", closed_gate)]


def _r10() -> list[Patch]:
    """A lock whose compare-and-write was not answered counts as taken."""

    def swap(self: LockSectors, old: bytes, new: LockRecord) -> bytes | None:
        self._membership.check_lease()
        image = new.pack(len(old))
        try:
            return image if self._membership.region.registers.swap(new.address, old, image) else None
        except STORAGE_ERRORS:
            return image

    return [(LockSectors, "_swap", swap)]


def _r11() -> list[Patch]:
    """A resource group is given up while blocks of it are promised and being written."""
    return [(MountedVolume, "_is_quiet", lambda self, tenure: True)]


def _r12_in_place() -> list[Patch]:
    """A dead host's slot is claimed in place, and its journal is not replayed before."""

    def claim_only(volume: Any, membership: Membership, *_: object) -> None:
        membership.begin_recovery(membership.holder.slot)

    return [(recovering, "replay_in_place", claim_only)]


PLANTS: Final[dict[str, Callable[[], list[Patch]]]] = {
    "R1": _r1,
    "R2": _r2,
    "R3": _r3,
    "R4": _r4,
    "R5": _r5_generation,
    "R5-flush": _r5_flush,
    "R6": _r6,
    "R7": _r7,
    "R8": _r8,
    "R9": _r9,
    "R10": _r10,
    "R11": _r11,
    "R12": _r12_in_place,
}


@contextmanager
def planted(rule: str) -> Iterator[None]:
    """Inside, the production code has the bug of that rule."""
    undo: list[Patch] = []
    try:
        for owner, name, value in PLANTS[rule]():
            undo.append((owner, name, owner.__dict__[name]))
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in undo:
            setattr(owner, name, value)


# Rule: the mode and the seed that caught its plant when this was written. Every change of the product changes what
# happens in a seed: where one does not catch its plant any more, others are tried before a rule counts as not tested.
CAUGHT_BY: Final[dict[str, tuple[str, int]]] = {
    "R1": ("plain", 1),
    "R2": ("reservations", 95),
    "R3": ("reservations", 7),
    "R4": ("plain", 52),
    "R5": ("plain", 5),
    "R5-flush": ("plain", 10),
    "R6": ("reservations", 220),
    "R7": ("plain", 6),
    "R8": ("plain", 32),
    "R9": ("plain", 42),
    "R10": ("plain", 19),
    "R11": ("plain", 2),
    "R12": ("plain", 6),
}
