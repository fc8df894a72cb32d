"""Finding and taking a free heartbeat slot, and refusing a second live mount under one host name.

The claim is one compare-and-write of a FREE slot; whoever loses it tries the next one. Where no slot is free, as
after the power cut of a site, one whose owner is dead is claimed *in place* (R12): it becomes RECOVERING by its own
next incarnation, which is this mount's, and which replays the journal before it is anything else. A name is in use
when a slot carries it whose owner is not known to be dead: a process of this boot that exists is alive and refused at
once; an earlier boot of this machine is dead at once; of anything else the slot is watched for the break time, and
refused as soon as it changes. Two mounts that start under one name at once take different slots; each looks again
*after* its claim, so at least one sees the other and gives way (maybe both, and both look again after a random
pause).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from vmfs.clock import Clock
from vmfs.cluster.casio import swap_settled
from vmfs.cluster.heartbeat import SentImage, SlotKeeper
from vmfs.cluster.identity import HostIdentity, is_process_alive
from vmfs.cluster.recovery import DeathProof, is_earlier_boot
from vmfs.cluster.region import RegionSnapshot, SlotRegion, SlotView
from vmfs.cluster.timers import Timers
from vmfs.cluster.watcher import Watcher
from vmfs.errors import HostNameInUse, NoFreeSlot
from vmfs.ondisk.lock import Holder
from vmfs.ondisk.slot import SlotRecord, SlotState

_TRIES: Final = 4  # of two mounts under one name that keep meeting
_LOOKS_PER_INTERVAL: Final = 2  # at a slot that is being watched
_WATCH_SLACK_INTERVALS: Final = 2  # beyond the break time: for the first look and the last


@dataclass(frozen=True, slots=True)
class Claimed:
    """The slot that was taken, and the dead slots under the same name, to be recovered first."""

    image: SentImage
    predecessors: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Claimer:
    """One claim of one mount. Not for use by two threads."""

    region: SlotRegion
    identity: HostIdentity
    timers: Timers
    clock: Clock
    watcher: Watcher
    random: random.Random
    volume_name: str
    dead: Callable[[RegionSnapshot], dict[int, DeathProof]]
    """Which slots are known to be dead: `Recovery.dead`."""
    is_usable: Callable[[int], bool] = lambda slot: True
    """Whether the volume has whole what belongs to a free slot."""
    prepare: Callable[[Holder], None] = lambda me: None
    """Registers the incarnation that a claim would be with the LUNs: `Fence.prepare` (R3)."""

    def claim(self) -> Claimed:
        """Take a slot. May take the break time B when a slot under this name has to be watched.

        Raises HostNameInUse, NoFreeSlot, DeviceError, DeviceGone.
        """
        for _ in range(_TRIES):
            dead = self._prove_name_unused()
            image = self._take_slot()
            mine = image.record.occupant
            if not self._others_of_this_name(self.region.read_all(), dead, mine):
                return Claimed(image, tuple(sorted(h.slot for h in dead if h.slot != mine.slot)))
            SlotKeeper(self.region, self.clock, image).free()
            self.clock.sleep(self.random.uniform(0.0, self.timers.interval_s))
        raise HostNameInUse(self.identity.name, self.volume_name, "another mount that is starting now; try again")

    def _others_of_this_name(
        self, snapshot: RegionSnapshot, dead: frozenset[Holder], mine: Holder | None
    ) -> list[SlotRecord]:
        return [
            r
            for r in snapshot.records
            if r.host_name == self.identity.name and (r.state is SlotState.LIVE or r.in_place)
            and r.occupant != mine and r.occupant not in dead
        ]  # fmt: skip

    def _prove_name_unused(self) -> frozenset[Holder]:
        """The dead mounts under this name. Raises HostNameInUse as soon as one proves to be alive."""
        dead: set[Holder] = set()
        while True:
            snapshot = self.region.read_all()
            self.watcher.observe(snapshot)
            known = frozenset(dead)
            watched = []
            for record in self._others_of_this_name(snapshot, known, None):
                alive = is_process_alive(record, self.identity)
                if alive:
                    holder = f"process {record.pid} on this machine"
                    raise HostNameInUse(self.identity.name, self.volume_name, holder)
                silent = self.watcher.is_broken_by_silence(snapshot.views[record.slot], self.clock.now())
                if alive is False or silent or is_earlier_boot(record, self.identity):
                    dead.add(record.occupant)
                else:
                    watched.append(record)
            if not watched:
                handed_back = (
                    r.holder for r in snapshot.records
                    if r.host_name == self.identity.name and r.state is SlotState.DEAD
                )  # fmt: skip
                return frozenset(dead.union(handed_back))
            self._watch(watched)

    def _watch(self, watched: list[SlotRecord]) -> None:
        self.clock.sleep(self.timers.interval_s / _LOOKS_PER_INTERVAL)
        for before in watched:
            now_there = self.region.read(before.slot).record
            if now_there is None or now_there.occupant != before.occupant or now_there.sequence == before.sequence:
                continue
            if now_there.state is SlotState.LIVE or now_there.in_place:
                holder = f"host UUID {before.host_uuid}, process {before.pid}, on another machine or boot"
                raise HostNameInUse(self.identity.name, self.volume_name, holder)

    def _take_slot(self) -> SentImage:
        """Claim the first free slot, else a dead one in place (R12); from a fresh look while others are faster."""
        silent: dict[int, bytes] | None = None
        began = self.clock.now()
        while True:
            snapshot = self.region.read_all()
            self.watcher.observe(snapshot)
            for patient in (False, True):
                for view, claimed in self._claimable(snapshot):
                    if image := self._claim(view, claimed, patient=patient):
                        return image
            if silent is None:
                silent = {r.slot: snapshot.views[r.slot].raw for r in snapshot.records if self._may_be_dead(r)}
            silent = {slot: raw for slot, raw in silent.items() if snapshot.views[slot].raw == raw}
            soon_free = any(r.state is SlotState.RECOVERING and not r.in_place for r in snapshot.records)
            patience = self.timers.break_s + _WATCH_SLACK_INTERVALS * self.timers.interval_s
            if not (silent or soon_free) or self.clock.now() - began > patience:
                raise NoFreeSlot(self.volume_name, self.region.count, _census(snapshot))
            self.clock.sleep(self.timers.interval_s / _LOOKS_PER_INTERVAL)

    def _claimable(self, snapshot: RegionSnapshot) -> Iterator[tuple[SlotView, SlotRecord]]:
        """The slots that may be claimed, best first, each with the image that claims it."""
        for r in snapshot.records:
            if r.state is SlotState.FREE and self.is_usable(r.slot):
                yield snapshot.views[r.slot], self._claim_image(r)
        # A process that has to be ended first is for who has a slot already.
        proofs = self.dead(snapshot).items()
        dead = [snapshot.views[slot].require() for slot, proof in proofs if proof is not DeathProof.STOPPED]
        self.random.shuffle(dead)  # many hosts may look for one at the same time
        for r in sorted(dead, key=lambda r: r.host_name != self.identity.name):  # its own predecessor's first
            yield snapshot.views[r.slot], r.claimed_in_place(self._claim_image(r))

    def _may_be_dead(self, record: SlotRecord) -> bool:
        """Whether watching this slot could prove a death."""
        beats = record.state is SlotState.LIVE or record.in_place
        return beats and is_process_alive(record, self.identity) is None

    def _claim(self, found: SlotView, image: SlotRecord, *, patient: bool) -> SentImage | None:
        """Put the image in the place of what was found there; None: someone was faster.

        `patient`: even where a host that was claiming the slot must first prove to be gone.
        """
        registers = self.region.registers
        self.prepare(image.occupant)
        if not registers.enter(found.slot, found.address, found.raw, patient=patient):
            return None
        raw = image.pack(self.region.sector_bytes)
        submitted = self.clock.now()
        if swap_settled(registers, found.address, found.raw, raw, clock=self.clock):
            return SentImage(image, raw, submitted)
        return None

    def _claim_image(self, free: SlotRecord) -> SlotRecord:
        me = self.identity
        return SlotRecord(
            free.address, free.volume_prefix, free.slot, SlotState.LIVE, free.incarnation + 1, free.sequence + 1,
            host_name=me.name, host_uuid=me.host_uuid, boot_id=me.boot_id, pid=me.pid, start_ticks=me.start_ticks,
            pid_namespace=me.pid_namespace, wall_ns=self.clock.wall_ns(),
            interval_us=self.timers.interval_us, lease_us=self.timers.lease_us,
        )  # fmt: skip


def _census(snapshot: RegionSnapshot) -> str:
    counts = {state: sum(r.state is state for r in snapshot.records) for state in SlotState}
    parts = [f"{count} {state.name.lower()}" for state, count in counts.items() if count]
    if snapshot.damaged:
        parts.append(f"{len(snapshot.damaged)} damaged")
    return ", ".join(parts)
