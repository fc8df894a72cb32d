"""How one process of a mount follows another: the kernel and the guests only wait.

The new process is a mount of its own: a slot and an incarnation of its own (so storage fencing and recovery know it
from the dead one), under the same host name, so that it recovers the dead one's slot before anything else. Three things
more than any recovery does it do, out of the estate that the dead process left:

1. *Commits*: what programs were told of and what the dead journal does not have goes into that journal, as its writer
   would have put it there. Then the journal is replayed as ever, by this host or, should it die, by any other.
2. *Locks*: while the dead slot is still RECOVERING by this mount, nobody else can have its locks (R6). Those of the
   files that are open for writing pass to this mount, and only then the dead slot becomes free. Where another host was
   faster than this process, the lock says so: it names another owner, or a later version. Then that file was out of our
   hands, and its open files are *lost*: each use of them fails with ESTALE.
3. *Requests* that the kernel sends again: one whose change is in the estate or the journal was done, and is answered
   instead of being done twice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from errno import ESTALE
from typing import Final

from vmfs.cluster.locktable import Tenure
from vmfs.core.inodes import Inodes
from vmfs.core.journal import Journal
from vmfs.core.leased import LeasedIO
from vmfs.core.openfile import Handle, OpenFile, OpenFiles
from vmfs.core.recovering import journal_place, replay_slot
from vmfs.core.replay import read_journal, read_records
from vmfs.core.state import Core
from vmfs.errors import VmfsError
from vmfs.estate.handles import HandleState, HandleTable, LeftHandle
from vmfs.estate.layout import Estate
from vmfs.estate.shadow import Batch, pending
from vmfs.ondisk.header import METADATA_BLOCK_BYTES
from vmfs.ondisk.journal import parse_header
from vmfs.ondisk.lock import Guards, Holder, LockMode, LockRecord
from vmfs.volume import Volume

log = logging.getLogger("vmfs.core")

NEVER: Final = -1  # the generation of no inode: a lost file's, so that nothing is ever read through it


@dataclass(slots=True)
class Legacy:
    """What the file system must know of the process before, and tell the one after. Empty without a supervisor."""

    table: HandleTable | None = None
    applied: frozenset[int] = frozenset()
    """Requests that were done and perhaps not answered."""
    opened: dict[int, int] = field(default_factory=dict)
    """By request: the open file that it made, and that the kernel may not know."""

    @contextmanager
    def once(self, core: Core, unique: int) -> Iterator[bool]:
        """Around a request that must not be done twice: whether it was done by the process before."""
        core.transactions.request.unique = unique
        try:
            yield unique in self.applied
        finally:
            core.transactions.request.unique = 0

    def add(self, fh: int, handle: Handle, unique: int) -> None:
        """The kernel is about to hear of this open file; the control mutex is held. OSError(ENFILE)."""
        if self.table is not None:
            state = HandleState.WRITING if handle.writes else HandleState.READING
            file = handle.file
            self.table.put(LeftHandle(fh, file.number, file.generation, handle.flags, state, unique))

    def turn(self, fh: int, state: HandleState) -> None:
        """It may do something else from now on; the control mutex is held."""
        if self.table is not None:
            self.table.turn(fh, state)

    def drop(self, fh: int) -> None:
        """It is closed; the control mutex is held."""
        if self.table is not None:
            self.table.drop(fh)


class Heir:
    """Takes over what the process before left. Used by the thread that mounts, before anything is served."""

    def __init__(self, core: Core, inodes: Inodes, files: OpenFiles, estate: Estate, legacy: Legacy) -> None:
        assert legacy.table is not None
        self._core = core
        self._inodes = inodes
        self._files = files
        self._estate = estate
        self._legacy = legacy
        self._table = legacy.table
        self._waiting: dict[int, list[tuple[int, Handle]]] = {}
        """By inode: open files that may write, and have no lock yet."""
        self.locks = 0
        self.lost = 0

    def restore(self) -> None:
        """Make the open files again, so that no removal touches them; who writes still lacks the lock."""
        uniques = self._estate.applied()
        for batch in pending(self._estate):
            uniques.update(batch.uniques)
        self._legacy.applied = frozenset(uniques - {0})
        files = self._files
        with self._core.transactions.mutex:
            for left in self._table.all():
                if left.state is HandleState.LOST:
                    files.handles[left.fh] = self._lost_handle(left.number, left.flags)
                    continue
                file = files.get(self._core, self._inodes, left.number, left.generation)
                handle = files.handles[left.fh] = Handle(file, left.flags, None)
                if left.state is HandleState.WRITING:
                    self._waiting.setdefault(left.number, []).append((left.fh, handle))
                if left.unique:
                    self._legacy.opened[left.unique] = left.fh
            files.next_fh = self._table.next_fh
        self._estate.note_takeover()
        self._estate.add_holder(self._core.membership.holder)

    # -- within the recovery of the dead slot ----------------------------------------------------------

    def finish_commits(self, dead: Holder) -> None:
        """Before the replay: put what the dead incarnation had not committed into its journal.

        Raises DamagedBlock, DeviceError, LeaseLost; it can be done again.
        """
        core = self._core
        finish_commits(self._estate, core.volume, core.io, core.locks.peek, dead)

    def take_locks(self, dead: Holder) -> None:
        """Behind the replay, while the slot is not free: the locks of files that are open for writing pass to us."""
        for number in list(self._waiting):
            self._inherit(number, (dead,))

    # -- when nothing dead is left ---------------------------------------------------------------------

    def settle(self) -> None:
        """The rest: what another host has recovered before us is ours still when nobody has taken it since."""
        estate = self._estate
        undone = pending(estate)
        out_of_hand = {i.lock_address for b in undone for _, i in b.images.values()}
        for batch in undone:
            log.error(
                "volume %s: another host recovered slot %d, incarnation %d first: %d blocks of its last moment are "
                "lost, and the files that they belong to",
                self._core.name, batch.holder.slot, batch.holder.incarnation, len(batch.images),
            )  # fmt: skip
            estate.committed = batch.number
        for number in list(self._waiting):
            if self._inodes.lock_address(number) in out_of_hand or not self._inherit(number, estate.holders()):
                self._lose(number)

    def _inherit(self, number: int, former: tuple[Holder, ...]) -> bool:
        """Take the lock over from one of `former`, if nobody else has had it since. False: it stays as it is."""
        core = self._core
        address = self._inodes.lock_address(number)
        try:
            owner_seen = core.locks.peek(address)
            owner = owner_seen.owner
            if owner is None or owner not in former:
                return False
            tenure = core.locks.inherit(address, Guards.INODE, owner)
            if tenure is None:
                return False
            if owner != core.membership.holder and tenure.version != owner_seen.version + 1:
                core.locks.unpin(tenure)  # somebody came and went between the two looks
                return False
            self._start(number, tenure)
        except (VmfsError, OSError) as error:
            log.error("volume %s: the open files of inode %d are lost: %s", core.name, number, error)
            if number in self._waiting:
                self._lose(number)
        return True

    def _start(self, number: int, tenure: Tenure) -> None:
        core = self._core
        pins = [tenure]
        pins += [
            core.locks.acquire(tenure.address, Guards.INODE, LockMode.EXCLUSIVE, wait=0)
            for _ in self._waiting[number][1:]
        ]
        with core.transactions.mutex:
            core.store.hold(tenure.address, tenure.version)
            self._inodes.forget(number)
            for (_, handle), pin in zip(self._waiting[number], pins, strict=True):
                handle.file.start_writing()
                handle.tenure = pin
            handle.file.touched = True  # it may have been written in place since its times were set
            del self._waiting[number]
        self.locks += 1

    def _lose(self, number: int) -> None:
        with self._core.transactions.mutex:
            for fh, handle in self._waiting.pop(number):
                self._table.lose(fh)
                self._files.put(handle.file)
                self._files.handles[fh] = self._lost_handle(number, handle.flags)
                self.lost += 1
        log.error(
            "volume %s: another host may have had inode %d meanwhile: whoever has it open for writing here gets "
            "ESTALE, and must close it",
            self._core.name, number,
        )  # fmt: skip

    def _lost_handle(self, number: int, flags: int) -> Handle:
        return Handle(OpenFile(self._core, self._inodes, number, NEVER), flags, None, lost=True)


def finish_commits(
    estate: Estate, volume: Volume, io: LeasedIO, peek: Callable[[int], LockRecord], dead: Holder
) -> None:
    """Put what a dead incarnation had not committed into its journal, which this mount is about to replay.

    `peek` reads a lock. Raises DamagedBlock, DeviceError, LeaseLost; it can be done again.
    """
    for batch in pending(estate):
        if batch.holder == dead:
            _commit(batch, volume, io, peek)
            estate.committed = batch.number


def _commit(batch: Batch, volume: Volume, io: LeasedIO, peek: Callable[[int], LockRecord]) -> None:
    dead = batch.holder
    # What is there is replayed first, so that there is room, and so that the record follows the last one.
    replay_slot(volume, io, peek, dead.slot, dead)
    place = journal_place(volume, dead.slot, dead.incarnation)
    data = read_journal(io, place)
    blocks = place.size_bytes // METADATA_BLOCK_BYTES
    header = parse_header(memoryview(data), place.address, place.volume, dead.slot, blocks)
    records = read_records(data, place)
    journal = Journal(
        io, address=place.address, size_bytes=place.size_bytes, volume=place.volume, slot=dead.slot,
        incarnation=dead.incarnation,
    )  # fmt: skip
    journal.take_over(records[-1].sequence + 1 if records else header.tail_sequence, header.generation)
    io.flush()  # the file data that the images point at
    images = [image for _, image in sorted(batch.images.values(), key=lambda item: item[0])]
    revokes = list(batch.revokes.values())
    position = journal.place_for(len(images), len(revokes))
    assert position is not None, "an emptied journal has room"
    journal.append(images, revokes, position)
    log.info(
        "volume %s: committed %d blocks in the place of slot %d, incarnation %d",
        volume.superblock.label, len(images), dead.slot, dead.incarnation,
    )  # fmt: skip


def lost(number: int) -> OSError:
    """What each use of a lost open file ends in."""
    return OSError(ESTALE, f"inode {number} was in another host's hands while it was open here; open it again")
