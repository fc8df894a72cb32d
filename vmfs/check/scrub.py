"""Looking at a volume while hosts use it: it takes no lock, writes nothing and holds up nobody.

What looks wrong may be in the midst of a change, so it is believed in two cases only:

- Its lock was free (or void) before it was examined, and was the same image afterwards: no host gives a lock up before
  all that it covers is durable in place (rule R5 of docs/locking.md), and none changes anything without it.
- Its lock is held, and the very same bytes fail their checksum for longer than any write takes, while the holder's
  heartbeat goes on: a host writes a block whole in a moment, and a dead one's half-written block is its journal's.

Everything else is looked at again until it is well or believed; what stays in use throughout is said to have been
passed over. What several locks cover together (links, leaks, the counts of layers) is for the check of an unmounted
volume.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from vmfs.check.findings import Finding, Kind, Report
from vmfs.check.fixed import Holders, LockChecker, check_journal_headers, check_slots, check_superblocks
from vmfs.check.live import LiveGroups, examine_inode, inode_number, units_of
from vmfs.check.source import Source
from vmfs.check.survey import Progress
from vmfs.clock import Clock, SystemClock
from vmfs.errors import DamagedBlock, DeviceError, UnsupportedFormat
from vmfs.liveness import Slots, read_slots
from vmfs.lockmethod import registers_of
from vmfs.ondisk import chunk, group, orphans
from vmfs.ondisk.header import METADATA_BLOCK_BYTES
from vmfs.ondisk.lock import Guards, LockMode, LockRecord, parse_lock
from vmfs.ondisk.slot import SlotState
from vmfs.volume import Volume, open_volume

STABLE_SECONDS: Final = 2.0  # no write of one block takes so long on a host whose heartbeats land
_PATIENCE_HEARTBEATS: Final = 4  # for one object that stays in use
_PATIENCE_SECONDS: Final = 10.0
_PAUSE_SECONDS: Final = 0.02
_DAMAGE: Final = frozenset({
    Kind.GROUP_DAMAGED, Kind.CHUNK_DAMAGED, Kind.INODE_DAMAGED, Kind.NODE_DAMAGED, Kind.DIRECTORY_DAMAGED,
    Kind.ORPHANS_DAMAGED, Kind.JOURNAL_DAMAGED, Kind.SUPERBLOCK_DAMAGED, Kind.SLOT_DAMAGED, Kind.LOCK_DAMAGED,
    Kind.LOCK_IMPOSSIBLE,
})  # fmt: skip

Examine = Callable[[], list[Finding]]
_Damage = tuple[tuple[Kind, int | None, bytes], ...]


def scrub_volume(volume: Volume, progress: Progress | None = None, *, clock: Clock | None = None) -> Report:
    """Look at a volume that hosts may have mounted; it may be open for reading only.

    Raises DeviceError when the slots, or anything else at a fixed place, cannot be read.
    """
    return _Scrub(volume, progress or (lambda *_: None), clock or SystemClock()).run()


@dataclass(slots=True)
class _Watched:
    """Damage under a lock that is held: since when it is the same, and the holder's sequence then."""

    since: float
    damage: _Damage
    sequences: dict[int, int]


class _Scrub:
    """One scrub. For one thread."""

    def __init__(self, volume: Volume, say: Progress, clock: Clock) -> None:
        self._volume = volume
        self._say = say
        self._clock = clock
        self._registers = registers_of(volume.superblock, volume.extents, clock, random.SystemRandom())
        self._report = Report(str(volume.superblock.volume), volume.superblock.label)
        heartbeat = volume.superblock.timers.heartbeat_us / 1e6
        self._stable = max(STABLE_SECONDS, 2 * heartbeat)
        self._patience = max(_PATIENCE_SECONDS, _PATIENCE_HEARTBEATS * heartbeat, 2 * self._stable)
        self._passed_over = 0
        self._holders = Holders(read_slots(volume), volume.superblock.max_hosts)

    def run(self) -> Report:
        self._say("fixed parts", 0, 1)
        self._fixed()
        self._say("fixed parts", 1, 1)
        chunks = self._groups()
        suspects = self._inodes(chunks)
        for done, number in enumerate(suspects):
            self._say("what was in use", done, len(suspects))
            lock = self._volume.geometry.inode_lock_address(number)
            self._settle(lock, lambda n=number: self._examine(n))  # type: ignore[misc]
        if self._passed_over:
            self._report.notes.append(
                f"{self._passed_over} objects were in use throughout and could not be judged; look again later"
            )
        self._report.notes.append(
            "looked at while in use: links, leaks and layers' counts are compared on an unmounted volume only"
        )
        return self._report

    # -- believing ---------------------------------------------------------------------------------

    def _settle(self, lock: int | None, examine: Examine) -> None:
        """Examine until it is well, believed, or was in use for too long. `lock`: None for what is a slot's own."""
        if not examine():  # as nearly always: nothing need be known of its lock
            return
        until = self._clock.now() + self._patience
        watched: _Watched | None = None
        while True:
            before = self._lock(lock)
            slots = read_slots(self._volume)
            found = examine()
            if not found:
                return
            if before is not None and self._is_quiet(before, slots) and self._lock(lock) == before:
                self._report.take(found)
                return
            watched = self._watch(watched, found, slots)
            if self._is_stable(watched, before, slots):
                self._report.take(f for f in found if f.kind in _DAMAGE)
                return
            if self._clock.now() >= until:
                self._passed_over += 1
                return
            self._clock.sleep(_PAUSE_SECONDS)

    def _lock(self, address: int | None) -> LockRecord | None:
        if address is None:
            return None
        try:
            return parse_lock(self._registers.read(address), address, self._volume.prefix)
        except (DamagedBlock, UnsupportedFormat):
            return None

    @staticmethod
    def _is_quiet(lock: LockRecord, slots: Slots) -> bool:
        by_slot = {r.slot: r for r in slots.records}
        return lock.mode is LockMode.FREE or all(
            h.slot in by_slot and by_slot[h.slot].incarnation > h.incarnation for h in lock.all_holders
        )

    def _watch(self, before: _Watched | None, found: list[Finding], slots: Slots) -> _Watched:
        damage = tuple((f.kind, f.address, self._bytes(f.address)) for f in found if f.kind in _DAMAGE)
        if before is not None and before.damage == damage:
            return before
        return _Watched(self._clock.now(), damage, {r.slot: r.sequence for r in slots.records})

    def _bytes(self, address: int | None) -> bytes:
        try:
            return self._volume.extents.read(address or 0, METADATA_BLOCK_BYTES)
        except DeviceError:
            return b""

    def _is_stable(self, watched: _Watched, lock: LockRecord | None, slots: Slots) -> bool:
        if not watched.damage or self._clock.now() - watched.since < self._stable:
            return False
        held = {(h.slot, h.incarnation) for h in lock.all_holders} if lock is not None else None
        # An impossible holder is nobody; without a lock to read, whoever has the volume mounted may be at it.
        busy = [
            r for r in slots.records
            if r.state is not SlotState.FREE and (held is None or (r.slot, r.incarnation) in held)
        ]  # fmt: skip
        return all(r.state is SlotState.LIVE and r.sequence > watched.sequences.get(r.slot, 0) for r in busy)

    # -- what lies at fixed places -----------------------------------------------------------------

    def _fixed(self) -> None:
        sb = self._volume.superblock
        self._settle(sb.superblock_lock, self._superblocks)
        self._settle(sb.superblock_lock, lambda: self._lock_block(sb.superblock_lock, Guards.SUPERBLOCK, "superblock"))
        self._settle(None, self._slots)
        for slot in range(sb.max_hosts):
            self._settle(None, lambda s=slot: self._orphans(s))  # type: ignore[misc]

    def _superblocks(self) -> list[Finding]:
        report = Report("", "")
        devices = [self._volume.extents.device(i) for i in range(len(self._volume.superblock.extents))]
        check_superblocks(open_volume(devices, read_only=True), report)  # afresh: it may have grown
        return report.findings

    def _slots(self) -> list[Finding]:
        report = Report("", "")
        slots = read_slots(self._volume)
        check_slots(slots, report)
        count = self._volume.superblock.max_hosts
        check_journal_headers(Source(self._volume), Holders(read_slots(self._volume), count), report)
        return [f for f in report.findings if f.kind is not Kind.SLOT_FAILED]

    def _orphans(self, slot: int) -> list[Finding]:
        address = self._volume.geometry.orphans_address(slot)
        block = self._volume.extents.read(address, METADATA_BLOCK_BYTES)
        try:
            orphans.parse(block, address, self._volume.uuid, slot)
        except DamagedBlock as error:
            return [Finding(Kind.ORPHANS_DAMAGED, f"slot {slot}: {error.what}", address)]
        return []

    def _lock_block(self, address: int, guards: Guards, name: str) -> list[Finding]:
        block = self._volume.extents.read(address, METADATA_BLOCK_BYTES)
        report = Report("", "")
        LockChecker(self._volume, self._holders, report).check(block, address, guards, name)
        if report.findings:  # by the slots as they are now, read after the lock
            report = Report("", "")
            self._checker(report).check(block, address, guards, name)
        return report.findings

    def _checker(self, report: Report) -> LockChecker:
        self._holders = Holders(read_slots(self._volume), self._volume.superblock.max_hosts)
        return LockChecker(self._volume, self._holders, report)

    # -- groups, chunks, inodes --------------------------------------------------------------------

    def _groups(self) -> list[tuple[int, int]]:
        """Look at every group's lock and block; returns (address, group) of the chunks."""
        geometry = self._volume.geometry
        chunks: list[tuple[int, int]] = []
        for index in range(geometry.group_count):
            self._say("groups", index, geometry.group_count)
            lock = geometry.group_lock_address(index)
            self._settle(None, lambda a=lock, i=index: self._lock_block(a, Guards.RESOURCE_GROUP, f"group {i}"))  # type: ignore[misc]
            self._settle(lock, lambda i=index: self._group(i, []))  # type: ignore[misc]
            self._group(index, chunks)
        self._report.counts.groups = geometry.group_count
        return chunks

    def _group(self, index: int, chunks: list[tuple[int, int]]) -> list[Finding]:
        volume = self._volume
        geometry = volume.geometry
        address = geometry.group_block_address(index)
        try:
            block = volume.extents.read(address, METADATA_BLOCK_BYTES)
            found = group.parse(block, address, volume.uuid, index, geometry.group_blocks(index))
        except DamagedBlock as error:
            return [Finding(Kind.GROUP_DAMAGED, f"group {index}: {error.what}", address)]
        for bit in range(geometry.group_blocks(index)):
            if found.meta >> bit & 1:
                chunks.append((geometry.block_address(index, bit), index))
        return []

    def _inodes(self, chunks: list[tuple[int, int]]) -> list[int]:
        """Examine every inode once; returns those that are to be looked at again."""
        source = Source(self._volume)
        groups = LiveGroups(source)
        scratch = Report("", "")
        locks = self._checker(scratch)
        geometry = self._volume.geometry
        counts = self._report.counts
        suspects: list[int] = []
        for done, (address, index) in enumerate(chunks):
            self._say("inodes", done, len(chunks))
            counts.chunks += 1
            heads: list[chunk.ChunkHead] = []
            lock = geometry.group_lock_address(index)
            self._settle(lock, lambda a=address, i=index, h=heads: self._chunk(a, i, h))  # type: ignore[misc]
            for unit in units_of(heads[-1], geometry.inode_units) if heads else ():
                number = inode_number(address, unit, geometry.inode_units)
                counts.inodes += 1
                scratch.findings.clear()
                scratch.totals.clear()
                if examine_inode(source, groups, locks, number) or scratch.findings:
                    suspects.append(number)
        return suspects

    def _chunk(self, address: int, index: int, heads: list[chunk.ChunkHead]) -> list[Finding]:
        volume = self._volume
        try:
            block = volume.extents.read(address, METADATA_BLOCK_BYTES)
            heads.append(chunk.parse(block, address, volume.uuid, index, volume.geometry.units_per_chunk))
        except DamagedBlock as error:
            return [Finding(Kind.CHUNK_DAMAGED, f"chunk of group {index}: {error.what}", address)]
        return []

    def _examine(self, number: int) -> list[Finding]:
        source = Source(self._volume)
        report = Report("", "")
        lock = self._volume.geometry.inode_lock_address(number)
        source.unit(lock)  # read before the slots: a holder in it is never newer than its slot
        found = examine_inode(source, LiveGroups(source), self._checker(report), number)
        return report.findings + found
