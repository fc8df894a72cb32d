"""The lock record: who may touch what it guards, and in which tenure.

One record in the first sector of a lock block (`vmfs.ondisk.lockblock`: magic, address, volume, checksum, crash rules).
Magic b"AZLK", layout version 1:

    offset  size  field
         6     1  guards: what it guards, one of `Guards`
         7     1  mode, one of `LockMode`
        24     8  lock version: grows at each change of holder; the same while it is held exclusively; kept by a release
                  (the next holder counts on), grown by a release that follows an answer that was lost
        32     8  stamp: grows with every compare-and-write of this sector
        40     4  owner's slot (exclusive), else NO_SLOT
        44     4  flags: bit 0: the owner keeps it until it is asked (ask through its heartbeat slot)
        48     8  owner's incarnation
        56     4  waiter's slot, or NO_SLOT: who waits for it (a hint for the holder; one at a time)
        60     4  waiter's intent: the mode it wants
        64     8  waiter's incarnation
        72     4  hand-over: destination slot, or NO_SLOT
        76     4  hand-over: one of `HandOver`: 0 exactly when there is no destination
        80     8  hand-over: destination's incarnation
        88    32  value block: owned by the guarded object, rewritten when a holder gives the lock up
       120     4  number of holders (shared, multi-writer)
       124     4  zero
       128   256  16 holders of 16 bytes: slot u32, zero u32, incarnation u64
       384    56  zero

An exclusive lock can be handed over to another incarnation (`vmfs.cluster.handover`). The owner offers, the destination
accepts, and one more compare-and-write by the owner makes the destination the owner, at a new version. Whenever the
owner changes, nothing of a hand-over stays. Programs from before there was one take a lock that is being handed over
for damaged.

A holder is (slot, incarnation). Its hold is void when that slot, read afresh, carries a *greater* incarnation (rule R7
of docs/locking.md): ending an incarnation ends all its locks at once, without a scan.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final

from vmfs.errors import DamagedBlock
from vmfs.ondisk.lockblock import NO_SLOT, seal, unseal

MAGIC: Final = b"AZLK"
LAYOUT_VERSION: Final = 1
MAX_HOLDERS: Final = 16  # what fits the record beside the rest
VALUE_BYTES: Final = 32
FLAG_KEPT_UNTIL_ASKED: Final = 1
KNOWN_FLAGS: Final = FLAG_KEPT_UNTIL_ASKED

_BODY: Final = struct.Struct("<QQIIQIIQIIQ32sII")
_HOLDER: Final = struct.Struct("<IIQ")
_BODY_BYTES: Final = 416


class Guards(IntEnum):
    """What a lock guards. Numbers are on disk: never reuse one."""

    SUPERBLOCK = 1
    RESOURCE_GROUP = 2
    INODE = 3
    ORPHANS = 4
    JOURNAL = 5
    TEST = 255
    """For the test suite and `compare_and_write` probes; no such lock is in a volume."""


class LockMode(IntEnum):
    """How a lock is held. Numbers are on disk."""

    FREE = 0
    EXCLUSIVE = 1
    SHARED = 2
    MULTI_WRITER = 3


class HandOver(IntEnum):
    """How far the hand-over of an exclusive lock is. Numbers are on disk."""

    NONE = 0
    OFFERED = 1
    ACCEPTED = 2


@dataclass(frozen=True, slots=True)
class Holder:
    """One mount of one host, for ever: (slot, incarnation)."""

    slot: int
    incarnation: int


@dataclass(frozen=True, slots=True)
class LockRecord:
    """A decoded lock. `address` is the lock block's volume address, `volume_prefix` 8 bytes of the volume's UUID."""

    address: int
    volume_prefix: bytes
    guards: Guards
    mode: LockMode = LockMode.FREE
    version: int = 0
    stamp: int = 0
    owner: Holder | None = None
    holders: tuple[Holder, ...] = ()
    waiter: Holder | None = None
    waiter_intent: LockMode = LockMode.FREE
    flags: int = 0
    value: bytes = bytes(VALUE_BYTES)
    destination: Holder | None = None
    hand_over: HandOver = HandOver.NONE

    def __post_init__(self) -> None:
        if problem := self._problem():
            raise ValueError(f"lock record for {self.address:#x}: {problem}")

    def _problem(self) -> str | None:
        exclusive = self.mode is LockMode.EXCLUSIVE
        listed = self.mode in (LockMode.SHARED, LockMode.MULTI_WRITER)
        if exclusive != (self.owner is not None):
            return f"mode {self.mode.name} with owner {self.owner}"
        if listed != bool(self.holders) or len(self.holders) > MAX_HOLDERS:
            return f"mode {self.mode.name} with {len(self.holders)} holders"
        if len(set(self.holders)) != len(self.holders):
            return "a holder is listed twice"
        if (self.waiter is None) != (self.waiter_intent is LockMode.FREE):
            return f"waiter {self.waiter} with intent {self.waiter_intent.name}"
        if (self.destination is None) != (self.hand_over is HandOver.NONE):
            return f"hand-over {self.hand_over.name} to {self.destination}"
        if self.destination is not None and (not exclusive or self.destination == self.owner):
            return f"mode {self.mode.name}, {self.owner}, is handed over to {self.destination}"
        if len(self.value) != VALUE_BYTES or self.flags & ~KNOWN_FLAGS:
            return f"value of {len(self.value)} bytes, flags {self.flags:#x}"
        return None

    @property
    def all_holders(self) -> tuple[Holder, ...]:
        """Whoever holds it, in any mode."""
        return (self.owner,) if self.owner is not None else self.holders

    def taken(
        self,
        by: Holder,
        mode: LockMode,
        *,
        version: int,
        beside: tuple[Holder, ...] = (),
        flags: int = 0,
    ) -> LockRecord:
        """The image in which `by` holds it in `mode`, from lock version `version` on, beside the given sharers.

        No waiter is marked in it: whoever still waits marks it again.
        """
        listed = mode is not LockMode.EXCLUSIVE
        return replace(
            self, mode=mode, version=version, stamp=self.stamp + 1, flags=flags,
            owner=None if listed else by, holders=(*beside, by) if listed else (),
            waiter=None, waiter_intent=LockMode.FREE, destination=None, hand_over=HandOver.NONE,
        )  # fmt: skip

    def without(self, *gone: Holder, version: int, value: bytes | None = None) -> LockRecord:
        """The image without those holders: free when none is left. The waiter's mark stays: it says whose turn it is.

        `value` replaces the value block. A hand-over by, or to, one of `gone` is over.
        """
        owner = None if self.owner in gone else self.owner
        others = tuple(h for h in self.holders if h not in gone)
        held = owner is not None or others
        goes_on = owner is not None and self.destination not in gone
        return replace(
            self, mode=self.mode if held else LockMode.FREE, owner=owner, holders=others,
            flags=self.flags if held else 0, version=version, stamp=self.stamp + 1,
            value=self.value if value is None else value,
            destination=self.destination if goes_on else None,
            hand_over=self.hand_over if goes_on else HandOver.NONE,
        )  # fmt: skip

    def marked(self, waiter: Holder | None, intent: LockMode) -> LockRecord:
        """The image with this waiter's mark, or with none."""
        return replace(self, waiter=waiter, waiter_intent=intent, stamp=self.stamp + 1)

    def offered(self, to: Holder | None, state: HandOver = HandOver.OFFERED) -> LockRecord:
        """The image in which the owner's lock is offered to `to`, or accepted by it; None: to nobody."""
        return replace(
            self, destination=to, hand_over=HandOver.NONE if to is None else state, stamp=self.stamp + 1
        )

    def pack(self, sector_bytes: int) -> bytes:
        """The sector's image; write it followed by zeros up to the end of the lock block at format."""
        owner, waiter, to = self.owner or _NOBODY, self.waiter or _NOBODY, self.destination or _NOBODY
        body = bytearray(_BODY_BYTES)
        _BODY.pack_into(
            body, 0, self.version, self.stamp, owner.slot, self.flags, owner.incarnation,
            waiter.slot, self.waiter_intent, waiter.incarnation, to.slot, self.hand_over, to.incarnation,
            self.value, len(self.holders), 0,
        )  # fmt: skip
        for i, h in enumerate(self.holders):
            _HOLDER.pack_into(body, _BODY.size + i * _HOLDER.size, h.slot, 0, h.incarnation)
        return seal(
            bytes(body), magic=MAGIC, version=LAYOUT_VERSION, kinds=(self.guards, self.mode),
            address=self.address, volume_prefix=self.volume_prefix, sector_bytes=sector_bytes,
        )  # fmt: skip


_NOBODY: Final = Holder(NO_SLOT, 0)


def parse_lock(sector: bytes, address: int, volume_prefix: bytes) -> LockRecord:
    """Decode the sector read from `address`.

    Raises:
        DamagedBlock: not a whole, valid lock record of this place and volume.
        UnsupportedFormat: a layout version that this program does not know.
    """
    guards, mode, body = unseal(
        sector, magic=MAGIC, version=LAYOUT_VERSION, what="lock", address=address, volume_prefix=volume_prefix
    )
    (version, stamp, owner_slot, flags, owner_inc, waiter_slot, intent, waiter_inc,
     over_slot, over_state, over_inc, value, count, zero) = _BODY.unpack_from(body, 0)  # fmt: skip
    end = _BODY.size + min(count, MAX_HOLDERS) * _HOLDER.size
    entries = [_HOLDER.unpack_from(body, at) for at in range(_BODY.size, end, _HOLDER.size)]
    spare = zero or any(pad for _, pad, _ in entries) or any(body[end:])
    if spare or count > MAX_HOLDERS:
        raise DamagedBlock(address, "lock: reserved fields are set")
    try:
        return LockRecord(
            address, volume_prefix, Guards(guards), LockMode(mode), version, stamp, _holder(owner_slot, owner_inc),
            tuple(Holder(slot, inc) for slot, _, inc in entries), _holder(waiter_slot, waiter_inc),
            LockMode(intent), flags, value, _holder(over_slot, over_inc), HandOver(over_state),
        )  # fmt: skip
    except ValueError as e:
        raise DamagedBlock(address, f"lock: {e}") from e


def _holder(slot: int, incarnation: int) -> Holder | None:
    if slot != NO_SLOT:
        return Holder(slot, incarnation)
    if incarnation:
        raise ValueError(f"nobody, of incarnation {incarnation}")
    return None
