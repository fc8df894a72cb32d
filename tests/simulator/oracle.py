"""What must never happen, watched at every request that changes the disk.

- A slot changes hands only as the rules say; nothing of an incarnation lands once its journal is being read by its
  recoverer (or once its slot is free).
- A lock is taken from nobody who lives by the slots on the disk at that moment.
- A block of metadata is written only by the host that holds its lock exclusively, or by the recoverer of that host.

It sees the disk as it is, in true time; it knows the formats, and none of the product's own reasoning.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from tests.simulator.lun import Io, Lun
from tests.simulator.model import Violation
from vmfs.cluster.fenceproof import PROOF_OFFSET
from vmfs.errors import VmfsError
from vmfs.geometry import Geometry
from vmfs.ondisk.header import MAGIC as METADATA_MAGIC
from vmfs.ondisk.header import METADATA_BLOCK_BYTES, BlockType
from vmfs.ondisk.inode import ADDRESS_SHIFT
from vmfs.ondisk.lock import MAGIC as LOCK_MAGIC
from vmfs.ondisk.lock import Holder, LockMode, LockRecord, parse_lock
from vmfs.ondisk.slot import SlotRecord, SlotState, parse_slot
from vmfs.ondisk.superblock import Superblock

if TYPE_CHECKING:
    from tests.simulator.host import Process

_SECTOR: Final = 512
_TYPE: Final = slice(4, 6)
_OWNER: Final = slice(48, 56)


class Oracle:
    """Watches one LUN. Raises Violation out of the request that breaks a rule."""

    def __init__(self, lun: Lun, superblock: Superblock, *, exact: bool) -> None:
        """`exact`: slots and locks can be read off the disk at any moment (a Disk-Paxos register cannot)."""
        self._exact = exact
        self._lun = lun
        self._sb = superblock
        self._geometry = Geometry(superblock)
        self._prefix = superblock.volume.bytes[:8]
        self._proving_grounds = (superblock.probe_address, PROOF_OFFSET)
        self._slots: dict[int, SlotRecord] = {}
        self.holders: dict[Process, Holder] = {}
        self.ended: dict[Holder, str] = {}
        """Incarnations of which nothing may land any more, and why."""
        self.recoveries = 0
        self.on_released: Callable[[], None] = lambda: None
        self.on_broken: Callable[[Holder, Process], None] = lambda holder, by: None
        self.reread()

    # -- slots --------------------------------------------------------------------------------------------------

    def slot(self, number: int) -> SlotRecord:
        """A slot as it is on the disk."""
        return self._slots[number]

    def _read_slot(self, number: int) -> SlotRecord:
        at = self._geometry.slot_address(number)
        return parse_slot(bytes(self._lun.memory[at : at + _SECTOR]), at, self._prefix, number)

    def _slot_at(self, offset: int) -> int | None:
        index, rest = divmod(offset - self._sb.slots_address, self._sb.lock_block_bytes)
        return index if rest == 0 and 0 <= index < self._sb.max_hosts else None

    def reread(self) -> None:
        """After a power cut: all processes are gone, and slots may be older than they were."""
        self.ended.clear()
        if self._exact:
            for slot in range(self._sb.max_hosts):
                self._slots[slot] = self._read_slot(slot)

    def is_over(self, holder: Holder) -> bool:
        """Whether an incarnation has ended, by the disk."""
        return self._slots[holder.slot].incarnation > holder.incarnation

    # -- every change -------------------------------------------------------------------------------------------

    def before_write(self, io: Io, offset: int, data: bytes) -> None:
        """A change is just landing; the disk still holds what was there."""
        if not self._exact:
            return
        process = io.path.process
        me = self.holders.get(process)
        if offset in self._proving_grounds:
            return  # what is written there means nothing, and is written by whoever mounts
        if me is not None and me in self.ended:
            age = self._lun.scheduler.now - io.submitted
            raise Violation(
                f"{io.kind} of {len(data)} bytes at {offset:#x} by {process.name} (slot {me.slot}, incarnation "
                f"{me.incarnation}) lands after {self.ended[me]}; it was submitted {age:.3f} s ago"
            )
        if io.kind == "caw":
            if data[:4] == LOCK_MAGIC:
                self._lock_changes(process, me, offset, data)
            else:
                number = self._slot_at(offset)
                if number is not None:
                    self._slot_changes(process, number, data)
            return
        for at in range(offset - offset % METADATA_BLOCK_BYTES, offset + len(data), METADATA_BLOCK_BYTES):
            inner = at - offset
            if inner >= 0 and data[inner : inner + 4] == METADATA_MAGIC:
                self._metadata_changes(process, me, at, data[inner : inner + METADATA_BLOCK_BYTES])

    def landed(self, io: Io) -> None:
        """A request has landed: a recoverer that reads a journal begins its replay."""
        if io.kind != "read" or not self._exact:
            return
        start = self._sb.journals_address
        index = (io.offset - start) // self._sb.journal_bytes
        if io.offset >= start and 0 <= index < self._sb.max_hosts:
            record = self._slots[index]
            me = self.holders.get(io.path.process)
            if record.state is SlotState.RECOVERING and record.recoverer == me:
                self.ended.setdefault(record.holder, f"its recoverer {io.path.process.name} began to read its journal")

    def _slot_changes(self, process: Process, number: int, data: bytes) -> None:
        old = self._slots[number]
        new = parse_slot(data, self._geometry.slot_address(number), self._prefix, number)
        if new.sequence <= old.sequence:
            raise Violation(f"slot {number}: image {new.sequence} replaces image {old.sequence}")
        me = self.holders.get(process)
        if new.state is SlotState.FREE:
            self._slot_is_freed(process, old)
        elif old.state is SlotState.FREE or (new.in_place and new.occupant != old.occupant):
            if new.state not in (SlotState.LIVE, SlotState.RECOVERING) or new.last_incarnation <= old.last_incarnation:
                raise Violation(f"slot {number}: {process.name} claims it as {new.state.name} {new.occupant}")
            self.holders[process] = new.occupant
        elif new.state is SlotState.LIVE or new.in_place:
            if new.occupant not in (me, old.occupant) or me != old.occupant:
                raise Violation(f"slot {number}: {process.name} beats as {new.occupant}, and it is {old.occupant}'s")
            if old.in_place and not new.in_place:
                self.ended.setdefault(old.holder, "its slot was recovered in place")
        elif new.state is SlotState.RECOVERING and new.recoverer != me:
            raise Violation(f"slot {number}: {process.name}, which is {me}, makes {new.recoverer} its recoverer")
        self._slots[number] = new
        if old.state is SlotState.LIVE and new.state is SlotState.RECOVERING:
            self.on_broken(old.holder, process)
        if new.state is not old.state:
            self._lun.note("slot", process.name, number, old.state.name, new.state.name, new.incarnation)

    def _slot_is_freed(self, process: Process, old: SlotRecord) -> None:
        me = self.holders.get(process)
        if old.state is SlotState.RECOVERING:
            if old.recoverer != me:
                raise Violation(f"slot {old.slot} is freed by {process.name}, and {old.recoverer} recovers it")
            self.recoveries += 1
            self.ended.setdefault(old.holder, "its slot was recovered")
        elif old.state is SlotState.LIVE:
            if old.holder != me:
                raise Violation(f"slot {old.slot} of {old.holder} is freed by {process.name}, which is {me}")
            self.ended.setdefault(old.holder, "it had freed its own slot")
        else:
            raise Violation(f"slot {old.slot} is freed from {old.state.name}")

    # -- locks --------------------------------------------------------------------------------------------------

    def lock(self, address: int) -> LockRecord | None:
        """A lock as it is on the disk; None when there is none."""
        try:
            return parse_lock(bytes(self._lun.memory[address : address + _SECTOR]), address, self._prefix)
        except VmfsError:
            return None

    def _lock_changes(self, process: Process, me: Holder | None, offset: int, data: bytes) -> None:
        old, new = self.lock(offset), parse_lock(data, offset, self._prefix)
        if old is None:
            raise Violation(f"lock {offset:#x}: {process.name} replaces what is no lock")
        gone = [h for h in old.all_holders if h not in new.all_holders and h != me]
        living = [h for h in gone if not self.is_over(h) and not self._recovers(me, h)]
        if living:
            raise Violation(f"lock {offset:#x}: {process.name} takes it from {living}, who holds it")
        came = [h for h in new.all_holders if h not in old.all_holders]
        if any(h != me for h in came):
            raise Violation(f"lock {offset:#x}: {process.name}, which is {me}, gives it to {came}")
        kept = old.mode is LockMode.EXCLUSIVE and old.owner == new.owner != me
        if kept and new.version != old.version:
            raise Violation(f"lock {offset:#x}: {process.name} changes its version while {old.owner} holds it")
        if new.stamp <= old.stamp:
            raise Violation(f"lock {offset:#x}: stamp {new.stamp} replaces {old.stamp}")
        if new.mode is LockMode.FREE and old.mode is not LockMode.FREE:
            self.on_released()
        if came or gone or old.mode is not new.mode:
            self._lun.note("lock", process.name, offset, old.mode.name, new.mode.name, new.version)

    # -- metadata -----------------------------------------------------------------------------------------------

    def _metadata_changes(self, process: Process, me: Holder | None, at: int, block: bytes) -> None:
        if len(block) < METADATA_BLOCK_BYTES:
            return
        kind = int.from_bytes(block[_TYPE], "little")
        if kind == BlockType.INODE and self._lies_in_groups(at):
            lock = self._geometry.inode_lock_address(at >> ADDRESS_SHIFT)
        elif kind == BlockType.GROUP:
            index = int.from_bytes(block[_OWNER], "little")
            if index >= self._geometry.group_count or self._geometry.group_block_address(index) != at:
                return
            lock = self._geometry.group_lock_address(index)
        elif kind == BlockType.CHUNK and self._lies_in_groups(at):
            lock = self._geometry.group_lock_address(self._geometry.group_of(at)[0])
        else:
            return
        record = self.lock(lock)
        if record is None or record.owner is None:
            raise Violation(f"{BlockType(kind).name} at {at:#x} is written by {process.name}; nobody holds its lock")
        if record.owner == me:
            return
        if self._recovers(me, record.owner):
            return  # replay
        raise Violation(
            f"{BlockType(kind).name} at {at:#x} is written by {process.name} ({me}); its lock is held by {record.owner}"
        )

    def is_recovering(self, io: Io) -> bool:
        """Whether the request comes from a thread that recovers a slot (and not from a heartbeat, which must go on)."""
        me = self.holders.get(io.path.process)
        if io.task is None or "heartbeat" in io.task.name or me is None:
            return False
        return any(r.state is SlotState.RECOVERING and r.recoverer == me for r in self._slots.values())

    def _recovers(self, me: Holder | None, dead: Holder) -> bool:
        """Whether `me` is recovering that incarnation now."""
        slot = self._slots[dead.slot]
        return slot.holder == dead and slot.state is SlotState.RECOVERING and slot.recoverer == me

    def _lies_in_groups(self, at: int) -> bool:
        try:
            self._geometry.group_of(at)
        except VmfsError:
            return False
        return True
