"""The heartbeat slot: who has this volume mounted, and that it lives.

Slot i is a lock block at the superblock's `slots_address` + i * lock_block_bytes. One record in its first sector
(`vmfs.ondisk.lockblock`: magic, address, volume, checksum, crash rules). Magic b"AZHB", layout version 1:

    offset  size  field
         6     1  state, one of `SlotState`
         7     1  zero
        24     8  incarnation: grows by 1 at each claim, and by 1 when the slot becomes free again;
                  (slot, incarnation) names one mount of one host for ever
        32     8  sequence: grows with every image ever written to this slot, whoever writes it
        40     4  slot index
        44     4  pid of the mounting process
        48     8  that process's start time in clock ticks since boot (field 22 of /proc/PID/stat: pids are reused)
        56     8  inode number of that process's pid namespace (a pid of another namespace proves nothing)
        64    16  host UUID
        80    16  boot id
        96     8  wall time of the image, ns since the epoch; for people only
       104     8  heartbeat interval in effect, microseconds
       112     8  lease in effect, microseconds
       120     8  protocol features in use by this mount; 0 in version 1
       128     8  recoverer's incarnation
       136     4  recoverer's slot, or NO_SLOT
       140     4  number of requests
       144    64  host name: length u8, utf-8, zeros
       208   192  8 requests of 24 bytes: kind u16, addressee's slot u16, serial u32, target address u64, argument u64
       400    40  zero

States:

    FREE        nobody's; a claim makes it LIVE with incarnation + 1
    LIVE        its owner rewrites it every interval; it lives as long as the image changes
    RECOVERING  its owner is dead, and (recoverer's slot, incarnation) is replaying its journal. The identity stays
                the dead owner's, the incarnation too: its locks stay held until the slot is free.
                Where the recoverer's slot is this very slot, a mount that found no free one has claimed it *in place*:
                identity and heartbeat are that mount's, which is named by the recoverer's incarnation. When the replay
                is done, the slot becomes LIVE with that incarnation. A request of kind IN_PLACE notes the highest
                incarnation that claimed it in place, and stays until the slot is free: none is ever used twice
    DEAD        known to be dead, and no one recovers it now (a recoverer handed it back)
    FAILED      its journal could not be replayed; waits for an operator
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final
from uuid import UUID

from vmfs.errors import DamagedBlock
from vmfs.ondisk.lock import Holder
from vmfs.ondisk.lockblock import NO_SLOT, seal, unseal

MAGIC: Final = b"AZHB"
LAYOUT_VERSION: Final = 1
MAX_REQUESTS: Final = 8  # what fits the record; more wait for a place
HOST_NAME_MAX_BYTES: Final = 63  # as a DNS label

_BODY: Final = struct.Struct("<QQIIQQ16s16sQQQQQIIB63s")
_REQUEST: Final = struct.Struct("<HHIQQ")
_BODY_BYTES: Final = 416
_NIL: Final = UUID(int=0)


class SlotState(IntEnum):
    """What a slot is. Numbers are on disk."""

    FREE = 0
    LIVE = 1
    DEAD = 2
    RECOVERING = 3
    FAILED = 4


class RequestKind(IntEnum):
    """What a host asks of another through its own slot. Numbers are on disk; unknown kinds are passed over."""

    ASK_RELEASE = 1
    """Give up the lock at `target` as soon as you can (argument: 0)."""
    IN_PLACE = 2
    """Nothing is asked: a note in a dead slot of the incarnation (argument) that last claimed it in place."""


@dataclass(frozen=True, slots=True)
class Request:
    """Something asked of the host in slot `to_slot`. Stands until the asker takes it out again."""

    kind: int
    to_slot: int
    serial: int
    target: int
    argument: int


@dataclass(frozen=True, slots=True)
class SlotRecord:
    """A decoded slot. `address` is the lock block's volume address; times on disk are microseconds and ns."""

    address: int
    volume_prefix: bytes
    slot: int
    state: SlotState = SlotState.FREE
    incarnation: int = 0
    sequence: int = 0
    host_name: str = ""
    host_uuid: UUID = _NIL
    boot_id: UUID = _NIL
    pid: int = 0
    start_ticks: int = 0
    pid_namespace: int = 0
    wall_ns: int = 0
    interval_us: int = 0
    lease_us: int = 0
    features: int = 0
    recoverer: Holder | None = None
    requests: tuple[Request, ...] = ()

    def __post_init__(self) -> None:
        if problem := self._problem():
            raise ValueError(f"slot record {self.slot}: {problem}")

    def _problem(self) -> str | None:
        if len(self.host_name.encode()) > HOST_NAME_MAX_BYTES:
            return f"the host name is longer than {HOST_NAME_MAX_BYTES} bytes"
        if "\0" in self.host_name:
            return "the host name holds a NUL"
        if len(self.requests) > MAX_REQUESTS:
            return f"{len(self.requests)} requests"
        if (self.state is SlotState.RECOVERING) != (self.recoverer is not None):
            return f"state {self.state.name} with recoverer {self.recoverer}"
        return None

    @property
    def holder(self) -> Holder:
        """(slot, incarnation) of this record."""
        return Holder(self.slot, self.incarnation)

    @property
    def in_place(self) -> bool:
        """Whether a mount has claimed this dead slot in place, and recovers it from within (R12)."""
        return self.recoverer is not None and self.recoverer.slot == self.slot

    @property
    def occupant(self) -> Holder:
        """Who keeps this slot alive: its owner, or the mount that has claimed it in place."""
        return self.recoverer if self.recoverer is not None and self.in_place else self.holder

    @property
    def notes(self) -> tuple[Request, ...]:
        """What is kept of the requests of a dead owner."""
        return tuple(r for r in self.requests if r.kind == RequestKind.IN_PLACE)

    @property
    def last_incarnation(self) -> int:
        """The highest incarnation that was ever used in this slot."""
        return max(self.incarnation, *(r.argument for r in self.notes), 0)

    @property
    def claimed_by(self) -> tuple[Holder, ...]:
        """Every mount that may have claimed this dead slot in place."""
        return tuple(Holder(self.slot, i) for i in range(self.incarnation + 1, self.last_incarnation + 1))

    def freed(self, wall_ns: int) -> SlotRecord:
        """The image after its owner has left or was recovered: free, next incarnation, nobody's name."""
        return SlotRecord(
            self.address, self.volume_prefix, self.slot, SlotState.FREE,
            self.last_incarnation + 1, self.sequence + 1, wall_ns=wall_ns,
        )  # fmt: skip

    def turned(self, state: SlotState, recoverer: Holder | None = None) -> SlotRecord:
        """The image of the same (dead) owner in another state; its requests are void."""
        return replace(self, state=state, recoverer=recoverer, sequence=self.sequence + 1, requests=self.notes)

    def claimed_in_place(self, claimer: SlotRecord) -> SlotRecord:
        """The image of this dead slot, claimed in place by a mount whose name, timers and time `claimer` has."""
        mine = self.last_incarnation + 1
        return replace(
            claimer, state=SlotState.RECOVERING, incarnation=self.incarnation, sequence=self.sequence + 1,
            recoverer=Holder(self.slot, mine), requests=(Request(RequestKind.IN_PLACE, self.slot, 0, 0, mine),),
        )  # fmt: skip

    def settled_in_place(self, wall_ns: int) -> SlotRecord:
        """The image of a slot claimed in place whose dead owner is recovered: its claimer's own."""
        return replace(
            self, state=SlotState.LIVE, incarnation=self.occupant.incarnation, sequence=self.sequence + 1,
            recoverer=None, requests=(), wall_ns=wall_ns,
        )  # fmt: skip

    def pack(self, sector_bytes: int) -> bytes:
        """The sector's image; write it followed by zeros up to the end of the lock block at format."""
        name = self.host_name.encode()
        recoverer = self.recoverer or Holder(NO_SLOT, 0)
        body = bytearray(_BODY_BYTES)
        _BODY.pack_into(
            body, 0, self.incarnation, self.sequence, self.slot, self.pid, self.start_ticks, self.pid_namespace,
            self.host_uuid.bytes, self.boot_id.bytes, self.wall_ns, self.interval_us, self.lease_us, self.features,
            recoverer.incarnation, recoverer.slot, len(self.requests), len(name), name,
        )  # fmt: skip
        for i, r in enumerate(self.requests):
            at = _BODY.size + i * _REQUEST.size
            _REQUEST.pack_into(body, at, r.kind, r.to_slot, r.serial, r.target, r.argument)
        return seal(
            bytes(body), magic=MAGIC, version=LAYOUT_VERSION, kinds=(self.state, 0),
            address=self.address, volume_prefix=self.volume_prefix, sector_bytes=sector_bytes,
        )  # fmt: skip


def parse_slot(sector: bytes, address: int, volume_prefix: bytes, slot: int) -> SlotRecord:
    """Decode the sector read from `address`, where slot number `slot` lies.

    Raises:
        DamagedBlock: not a whole, valid slot record of this place and volume.
        UnsupportedFormat: a layout version that this program does not know.
    """
    what = f"heartbeat slot {slot}"
    state, second, body = unseal(
        sector, magic=MAGIC, version=LAYOUT_VERSION, what=what, address=address, volume_prefix=volume_prefix
    )
    (incarnation, sequence, index, pid, ticks, namespace, host_uuid, boot_id, wall_ns, interval_us, lease_us, features,
     recoverer_inc, recoverer_slot, count, name_length, name) = _BODY.unpack_from(body, 0)  # fmt: skip
    end = _BODY.size + min(count, MAX_REQUESTS) * _REQUEST.size
    requests = tuple(Request(*_REQUEST.unpack_from(body, at)) for at in range(_BODY.size, end, _REQUEST.size))
    if second or count > MAX_REQUESTS or any(body[end:]) or any(name[name_length:]):
        raise DamagedBlock(address, f"{what}: reserved fields are set")
    if index != slot or name_length > HOST_NAME_MAX_BYTES:
        raise DamagedBlock(address, f"{what}: it says that it is slot {index}, name of {name_length} bytes")
    try:
        if recoverer_slot == NO_SLOT and recoverer_inc:
            raise ValueError(f"no recoverer, of incarnation {recoverer_inc}")
        return SlotRecord(
            address, volume_prefix, slot, SlotState(state), incarnation, sequence, name[:name_length].decode(),
            UUID(bytes=host_uuid), UUID(bytes=boot_id), pid, ticks, namespace, wall_ns, interval_us, lease_us, features,
            None if recoverer_slot == NO_SLOT else Holder(recoverer_slot, recoverer_inc), requests,
        )  # fmt: skip
    except ValueError as e:  # UnicodeDecodeError is one
        raise DamagedBlock(address, f"{what}: {e}") from e
