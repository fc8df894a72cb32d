"""Mending a volume that no host has mounted: look, mend one kind of damage, look again, until nothing more can be done.

The steps come in the order in which they need each other: single bits first (what they hide is whole again), then what
refers to other things (inodes, maps, directories), then what is counted from it (bitmaps, links). Each step writes only
what the next look of an interrupted repair understands, so a repair can be run again wherever it was cut off.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from vmfs.check.alone import Alone
from vmfs.check.atomic import Mender
from vmfs.check.findings import EXIT_CLEAN, EXIT_LEFT, EXIT_MENDED, Report
from vmfs.check.kinds import Kind
from vmfs.check.mend_counts import mend_counts, mend_orphan_lists, mend_removals
from vmfs.check.mend_fixed import mend_journal_headers, mend_locks, mend_single_bits, mend_superblocks
from vmfs.check.mend_maps import finish_truncations, mend_inodes, mend_maps, mend_shared_blocks
from vmfs.check.mend_names import attach_lost, mend_directories
from vmfs.check.mend_space import mend_space
from vmfs.check.shop import Shop
from vmfs.check.survey import Progress, Survey, survey
from vmfs.clock import Clock, SystemClock
from vmfs.cluster.fencing import Fence
from vmfs.cluster.identity import HostIdentity
from vmfs.errors import NoSpace
from vmfs.liveness import Slots, read_slots, refuse_when_mounted
from vmfs.ondisk.slot import SlotState
from vmfs.volume import Volume

_ROUNDS_MAX: Final = 12  # damage behind damage; each round but the last mends something


@dataclass(slots=True)
class Repaired:
    """What a repair found, did, and left."""

    found: Report
    left: Report
    done: list[str] = field(default_factory=list)
    """What was mended, in order."""
    problem: str | None = None
    """Why the repair could not go on, where it could not."""

    @property
    def exit_code(self) -> int:
        if not self.left.clean or self.problem is not None:
            return EXIT_LEFT
        return EXIT_MENDED if self.done else EXIT_CLEAN

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the report of what was found, with what was done and what is left."""
        left = self.left.as_dict()
        return self.found.as_dict() | {
            "mended": self.done, "left": left["findings"], "left_totals": left["totals"], "problem": self.problem,
            "clean_now": self.left.clean and self.problem is None,
        }  # fmt: skip


def repair_volume(
    volume: Volume,
    progress: Progress | None = None,
    *,
    clock: Clock | None = None,
    rng: random.Random | None = None,
    identity: HostIdentity | None = None,
    waiting: Callable[[str], None] | None = None,
    remove_damaged: bool = False,
    discard_journals: bool = False,
    fence: Fence | None = None,
) -> Repaired:
    """Check a volume, mend what can be mended, and check it again. Nothing is written when nothing is wrong.

    `identity`: as whom the repair takes part in the volume, for tests. `remove_damaged`: remove files of which nothing,
    or an unknown part, can be read. `discard_journals`: give up journals that cannot be replayed. `fence`: instead of
    the volume's own, where nobody else sees what is written.

    Raises:
        VolumeInUse: a host has it mounted.
        JournalUnreadable: and `discard_journals` was not given. Nothing but slots was mended.
        DeviceError, LeaseLost: the storage failed; run it again.
    """
    time = clock or SystemClock()
    say = progress or (lambda *_: None)
    slots = refuse_when_mounted(volume, time, waiting, to_write=True)
    first = survey(volume, slots, say)
    result = Repaired(first.report, first.report)
    if first.report.clean:
        return result
    source = rng or random.SystemRandom()
    alone = Alone(
        volume, time, source, result.done.append, identity=identity, discard_journals=discard_journals, fence=fence
    )
    alone.mend_slots(first.locks.highest)
    with alone:
        mender = Mender(alone)
        shop = Shop(volume, alone, mender, source, time, result.done.append, remove_damaged)
        try:
            _mend(shop, say)
        except NoSpace as error:
            result.problem = str(error)
        mender.flush()
        result.left = _look(shop, say).report
    return result


def _mend(shop: Shop, say: Progress) -> None:
    seen = _look(shop, say)
    for _ in range(_ROUNDS_MAX):
        if not seen.report.totals:
            return
        before = shop.mender.written
        for step in _STEPS:
            if not step.kinds.isdisjoint(seen.report.totals) or step.always(shop):
                written = shop.mender.written
                say(step.name, 0, 1)
                step.mend(shop, seen)
                shop.mender.flush()
                if shop.mender.written != written:
                    seen = _look(shop, say)
        if shop.mender.written == before:
            return


def _look(shop: Shop, say: Progress) -> Survey:
    """A fresh survey; where a group's bitmaps are gone, what only looks like a chunk is told apart from real ones."""
    no_chunks: set[int] = set()
    while True:
        seen = survey(shop.volume, _slots_as_free(shop), say, no_chunks=no_chunks)
        forged = {
            at for at in seen.maps.into_chunks
            if not seen.space.groups[shop.volume.geometry.group_of(at)[0]].readable
        }  # fmt: skip
        if forged <= no_chunks:
            return seen
        no_chunks |= forged


def _slots_as_free(shop: Shop) -> Slots:
    """The slots, of which the repair's own, and those that it took, hold nothing that a check would look at."""
    slots = read_slots(shop.volume)
    records = tuple(
        replace(r, state=SlotState.FREE, incarnation=r.incarnation + 1, recoverer=None)
        if r.state is not SlotState.FREE else r
        for r in slots.records
    )  # fmt: skip
    return Slots(records, slots.problems)


@dataclass(frozen=True, slots=True)
class _Step:
    """One kind of work: when there are findings of these kinds."""

    name: str
    kinds: frozenset[Kind]
    mend: Callable[[Shop, Survey], object]
    always: Callable[[Shop], bool] = lambda _: False


_STEPS: Final = (
    _Step("mending superblocks", frozenset({Kind.SUPERBLOCK_DAMAGED, Kind.SUPERBLOCK_OLD}), mend_superblocks),
    _Step("mending journals", frozenset({Kind.JOURNAL_DAMAGED}), mend_journal_headers),
    _Step("mending single bits", frozenset({
        Kind.GROUP_DAMAGED, Kind.CHUNK_DAMAGED, Kind.INODE_DAMAGED, Kind.NODE_DAMAGED, Kind.DIRECTORY_DAMAGED,
        Kind.ORPHANS_DAMAGED,
    }), mend_single_bits),
    _Step("mending locks", frozenset({Kind.LOCK_DAMAGED, Kind.LOCK_IMPOSSIBLE}), mend_locks),
    _Step("mending inodes", frozenset({Kind.INODE_DAMAGED, Kind.INODE_STATE_WRONG, Kind.LAYER_MISSING}), mend_inodes),
    _Step("mending maps", frozenset({
        Kind.NODE_DAMAGED, Kind.POINTER_WRONG, Kind.UNIT_SHARED, Kind.POINTER_BEYOND_END,
    }), mend_maps),
    _Step("finishing truncations", frozenset(), finish_truncations, lambda shop: not shop.finished),
    _Step("mending shared blocks", frozenset({Kind.BLOCK_SHARED}), mend_shared_blocks),
    _Step("mending directories", frozenset({
        Kind.DIRECTORY_DAMAGED, Kind.DIRECTORY_SHAPE_WRONG, Kind.ENTRY_WRONG, Kind.ENTRY_DANGLING, Kind.LINKS_WRONG,
        Kind.UNIT_SHARED, Kind.NODE_DAMAGED, Kind.POINTER_WRONG, Kind.INODE_LOST,
    }), mend_directories, lambda shop: bool(shop.anew)),
    _Step("mending removals", frozenset({Kind.INODE_UNREMOVED, Kind.LAYER_LOST, Kind.ORPHANS_DAMAGED}), mend_removals,
          lambda shop: True),
    _Step("mending lists of removals", frozenset({Kind.ORPHANS_DAMAGED, Kind.ORPHAN_WRONG}), mend_orphan_lists,
          lambda shop: bool(shop.finished)),
    _Step("mending bitmaps", frozenset({
        Kind.GROUP_DAMAGED, Kind.CHUNK_DAMAGED, Kind.GROUP_COUNTS_WRONG, Kind.BLOCK_NOT_ALLOCATED, Kind.BLOCK_LEAKED,
        Kind.UNIT_NOT_ALLOCATED, Kind.UNIT_LEAKED, Kind.INODE_STATE_WRONG,
    }), mend_space),
    _Step("naming what is lost", frozenset({Kind.INODE_LOST}), attach_lost),
    _Step("mending counts", frozenset({
        Kind.BLOCK_COUNT_WRONG, Kind.LAYER_CHILDREN_WRONG, Kind.LAYER_CYCLE, Kind.LINKS_WRONG, Kind.PARENT_WRONG,
        Kind.SIZE_WRONG, Kind.SHARED_COUNT_WRONG, Kind.LAYER_DEPTH_WRONG, Kind.INHERITS_BEYOND_END,
        Kind.ENTRY_COUNT_WRONG,
    }), mend_counts),
)  # fmt: skip
