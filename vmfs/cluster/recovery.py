"""Dead slots: how a death is proved, and the states that a dead slot goes through (rules R2 and R6).

LIVE (dead) -> RECOVERING by (our slot, our incarnation) -> FREE with the next incarnation. A recoverer that cannot go
on hands the slot back as DEAD; a replay that meets a bad block leaves it FAILED, for an operator. RECOVERING lives
exactly as long as the recoverer's incarnation: it is overtaken only once that incarnation has itself been recovered.

Between RECOVERING and the first read for the replay the dead host is fenced off (`vmfs.cluster.fencing`). On a volume
without storage fencing the break of a host of another machine rests on the break time alone (A1 of docs/locking.md). A
process of this very boot is never broken while it exists: one that is silent is killed first (`vmfs.cluster.evict`).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from enum import Enum

from vmfs.clock import Clock
from vmfs.cluster.casio import swap_settled
from vmfs.cluster.evict import evict, may_evict
from vmfs.cluster.fencing import Fence, NoFence
from vmfs.cluster.identity import HostIdentity, is_process_alive, is_stopped
from vmfs.cluster.region import RegionSnapshot, SlotRegion, SlotView
from vmfs.cluster.watcher import Watcher
from vmfs.errors import SlotNotDead, VmfsError
from vmfs.ondisk.lock import Holder
from vmfs.ondisk.slot import SlotRecord, SlotState


class DeathProof(Enum):
    """Why a slot may be recovered by this host, now."""

    PROCESS_GONE = "its process, of this boot of this machine, has ended"
    REBOOTED = "this machine has booted again since, under the same name"
    STOPPED = "its process, of this machine, has been silent for so long that it is killed first"
    SILENT = "it has not changed for the break time"
    HANDED_BACK = "a recoverer handed it back as dead"
    RECOVERER_GONE = "its recoverer was itself recovered"
    OURS = "this host is recovering it already"
    OPERATOR = "an operator ordered it"


class Recovery:
    """Proofs of death and the transitions of dead slots, on behalf of the mount that `me` names (None: it has no slot).

    `_mutex` guards the record of what this mount recovers; it is not held over I/O. One slot must not be recovered by
    two threads at a time: the caller sees to that.
    """

    def __init__(
        self,
        region: SlotRegion,
        identity: HostIdentity,
        watcher: Watcher,
        clock: Clock,
        volume_name: str,
        me: Callable[[], Holder | None],
        check_lease: Callable[[], None],
        fence: Fence | None = None,
        *,
        settle_s: float = 0.0,
    ) -> None:
        """`settle_s`: how long a write of this mount that has failed may still be on its way (F of A1), at the most."""
        self._fence = fence or NoFence()
        self._settle_s = settle_s
        self._region = region
        self._identity = identity
        self._watcher = watcher
        self._clock = clock
        self._volume = volume_name
        self._me = me
        self._check_lease = check_lease
        self._mutex = threading.Lock()
        self._begun: dict[int, Holder] = {}
        self._unsettled: dict[int, float] = {}
        """By slot: until when a write of its replay that has failed may land."""

    def proof(self, view: SlotView, now: float) -> DeathProof | None:
        """Why this slot is dead, as far as this host can tell at `now`; None when it lives, is free, or who knows."""
        record = view.record
        if record is None or record.holder == self._me():
            return None
        if record.state is SlotState.LIVE:
            return self._proof_of_live(record, view, now)
        if record.state is SlotState.DEAD:
            return DeathProof.HANDED_BACK
        if record.state is SlotState.RECOVERING and record.recoverer is not None:
            if record.recoverer == self._me():
                return DeathProof.OURS
            if record.in_place:  # the identity and the heartbeat are its claimer's
                return self._proof_of_live(record, view, now)
            recoverer = self._region.read(record.recoverer.slot).record
            if recoverer is not None and recoverer.incarnation > record.recoverer.incarnation:
                return DeathProof.RECOVERER_GONE
        return None

    def _proof_of_live(self, record: SlotRecord, view: SlotView, now: float) -> DeathProof | None:
        alive = is_process_alive(record, self._identity)
        if alive is False:
            return DeathProof.PROCESS_GONE
        if alive:
            stuck = self._watcher.is_stuck(view, now, stopped=is_stopped(record))
            return DeathProof.STOPPED if stuck and may_evict(record, self._identity) else None
        if is_earlier_boot(record, self._identity):
            return DeathProof.REBOOTED
        return DeathProof.SILENT if self._watcher.is_broken_by_silence(view, now) else None

    def dead(self, snapshot: RegionSnapshot) -> dict[int, DeathProof]:
        """The slots of the snapshot that this host may recover now; not its own."""
        now, me = self._clock.now(), self._me()
        others = (view for view in snapshot.views if me is None or view.slot != me.slot)
        proofs = ((view.slot, self.proof(view, now)) for view in others)
        return {slot: proof for slot, proof in proofs if proof is not None}

    def recoverable(self, slot: int) -> int | None:
        """Which slot to recover first so that `slot` becomes free: itself, or its dead recoverer; None: not yet."""
        for _ in range(self._region.count):
            view = self._region.read(slot)
            if self.proof(view, self._clock.now()) is not None:
                return slot
            if view.record is None or view.record.recoverer is None or view.record.in_place:
                return None
            slot = view.record.recoverer.slot
        return None

    def begin(self, slot: int, *, operator: bool = False) -> SlotRecord:
        """Take a dead slot as RECOVERING by this mount, fence its owner off, and return that owner's record (R2).

        `operator` says that its host is dead, and allows a FAILED slot too. Raises SlotNotDead, LeaseExpired,
        LeaseLost, DamagedBlock, DeviceError, DeviceGone, FenceFailed; the slot is handed back when it cannot be fenced.
        """
        view = self._region.read(slot)
        record = view.require()
        proof = self.proof(view, self._clock.now())
        if proof is None and operator:
            proof = self._operators_proof(record)
        if proof is None:
            raise SlotNotDead(self._volume, slot, f"it is {record.state.name} and not known to be dead")
        if proof is DeathProof.STOPPED and not evict(record, self._identity, self._volume):
            raise SlotNotDead(self._volume, slot, f"its process {record.pid} here is silent and does not end")
        # The dead owner's key, and its dead recoverers', which may have had a replay under way: the last one's, and
        # those of all that claimed the slot in place (any other one's own slot was broken before it was overtaken).
        named = (record.holder, record.recoverer, *record.claimed_by)
        dead = list(dict.fromkeys(h for h in named if h is not None and h != self._me()))
        if proof is not DeathProof.OURS:
            taken = record.turned(SlotState.RECOVERING, self._me())
            if not self._swap(slot, view.raw, taken):
                raise SlotNotDead(self._volume, slot, "it changed meanwhile")
            record = taken
        with self._mutex:
            self._begun[slot] = record.holder
        try:
            self._fence.cut_off(dead)
        except VmfsError:
            if not record.in_place:  # else it is this mount's only slot, and dead with it
                with contextlib.suppress(VmfsError):
                    self.hand_back(slot)
            raise
        return record

    def _operators_proof(self, record: SlotRecord) -> DeathProof | None:
        """An operator cannot declare dead this mount itself, nor a process that can be seen to live on this machine."""
        ours = record.occupant == self._me()
        declared = record.state in (SlotState.LIVE, SlotState.FAILED) or record.in_place
        alive = record.state is not SlotState.FAILED and is_process_alive(record, self._identity)
        return DeathProof.OPERATOR if declared and not ours and not alive else None

    def settled(self, slot: int) -> None:
        """The slot that this mount claimed in place is its own now, or is given up: nothing is left to hand back."""
        with self._mutex:
            self._begun.pop(slot, None)

    def finish(self, slot: int) -> None:
        """Free a slot whose journal this mount has replayed and flushed: its locks are void from now on.

        Raises SlotNotDead when it is not being recovered by this mount, and as `begin` does.
        """
        self._leave_recovering(slot, lambda r: r.freed(self._clock.wall_ns()))

    def hand_back(self, slot: int) -> None:
        """Leave the recovery of a slot to another host. Raises as `finish`."""
        self._leave_recovering(slot, lambda r: r.turned(SlotState.DEAD))

    def fail(self, slot: int) -> None:
        """Mark a slot whose journal cannot be replayed, for an operator. Raises as `finish`."""
        self._leave_recovering(slot, lambda r: r.turned(SlotState.FAILED))

    def hand_back_all(self) -> None:
        """Hand back whatever this mount has not finished."""
        with self._mutex:
            slots = list(self._begun)
        for slot in slots:
            self.hand_back(slot)

    def disturbed(self, slot: int) -> None:
        """A write of the replay may have failed. It may still land, over what others write there once the slot is free:
        so this mount does not let go of the slot before it can land no more."""
        with self._mutex:
            self._unsettled[slot] = self._clock.now() + self._settle_s

    def _leave_recovering(self, slot: int, turn: Callable[[SlotRecord], SlotRecord]) -> None:
        with self._mutex:
            begun = self._begun.get(slot)
            until = self._unsettled.pop(slot, 0.0)
        self._clock.sleep(until - self._clock.now())
        view = self._region.read(slot)
        record = view.require()
        if begun is None or record.recoverer != self._me() or record.holder != begun:
            raise SlotNotDead(self._volume, slot, f"it is {record.state.name}, and not in recovery by this mount")
        new = turn(record)
        if not self._swap(slot, view.raw, new):
            # The answer to our image may have been lost, and another host have gone on from it.
            found = self._region.read(slot).require()
            if found.recoverer == self._me() or found.sequence <= new.sequence:
                raise SlotNotDead(self._volume, slot, "it changed meanwhile")
        with self._mutex:
            self._begun.pop(slot, None)

    def _swap(self, slot: int, old: bytes, new: SlotRecord) -> bool:
        raw = new.pack(self._region.sector_bytes)
        address = self._region.address(slot)
        return swap_settled(
            self._region.registers, address, old, raw, clock=self._clock, before_each=self._check_lease
        )


def is_earlier_boot(record: SlotRecord, here: HostIdentity) -> bool:
    """Whether the slot was this very machine's, under this name, before it booted again.

    The name must be the same too: machines cloned with their machine-id would else break one another.
    """
    return (
        record.host_name == here.name and record.host_uuid == here.host_uuid and record.boot_id != here.boot_id
    )
