"""How a host without a slot becomes the one writer of a slot's sector: a delta lease (Paxos registers only).

A host that mounts has no sector yet, so it cannot make a swap; and two that mount at once would both write the sector
of the free slot that they chose. So it first marks that sector, in the slot's own register, with a random number (the
*claimant*), waits until everybody who had not seen the mark has surely written, and reads again:

1. The register holds the expected image (a free slot), and the sector no claimant; else try another slot.
2. Write the sector as it is, with the own claimant.
3. Wait `flight_seconds`, the longest time from a look to the landing of a write that relied on it (P + F of A1).
4. Read again. The own claimant there: the sector is ours. Whoever looked before our mark landed has written by now,
   over ours (then we lose) or under it (then he loses); whoever looks later sees the mark.

The same wait outlasts the last writes of the slot's owner before us: without a lease, it writes only just after it
saw its own sector untouched.

A claimer may use the sector until GRACE_FLIGHTS more such times have passed since it wrote its mark and waited; then it
holds the slot, or it must begin again. The mark stays until then. So a mark that has not changed for WATCH_FLIGHTS was
left by a claimer that is gone, and another may take its place: a crash in here blocks nobody for ever.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from vmfs.ondisk.lockblock import RECORD_BYTES
from vmfs.ondisk.paxosblock import NO_CLAIMANT, PaxosBlock

if TYPE_CHECKING:
    from vmfs.cluster.paxos import PaxosRegisters

GRACE_FLIGHTS: Final = 1.0  # for the swap that takes the slot: four I/Os
WATCH_FLIGHTS: Final = 3.5  # wait + grace + one write on its way, with 10 % of drift between two clocks, and room
_LOOKS_PER_FLIGHT: Final = 8


@dataclass(frozen=True, slots=True)
class Home:
    """The slot that a mount writes as, and its register. `claimant` stays in the sector until the slot is `taken`."""

    slot: int
    address: int
    claimant: bytes
    taken: bool = False


def enter(registers: PaxosRegisters, slot: int, address: int, image: bytes, *, patient: bool) -> bool:
    """Become the writer of sector `slot`; `image` is what the slot's register at `address` was seen to hold.

    False: it holds another image, or another host is claiming the slot. `patient`: watch a mark of another host until
    it proves to be abandoned (True) or changes. Raises DeviceError, DeviceGone, DamagedBlock.
    """
    clock, flight = registers.clock, registers.flight_seconds
    looked = clock.now()
    block = registers.look_block(address)
    if block.sectors[slot].claimant != NO_CLAIMANT:
        if not patient or not _stays_marked(registers, address, block):
            return False
        looked = clock.now()
        if registers.look_block(address) != block:
            return False
    if block.top.record != image[:RECORD_BYTES]:
        return False
    marked = replace(block.sectors[slot], claimant=registers.random.randbytes(len(NO_CLAIMANT)))
    submitted = clock.now()
    if submitted - looked > flight / 2:
        return False  # this machine was held up: what it saw may be old
    registers.put_sector(address, marked)
    clock.sleep(flight)
    block = registers.look_block(address)
    if block.sectors[slot] != marked or block.top.record != image[:RECORD_BYTES]:
        return False
    until = submitted + flight * (1 + GRACE_FLIGHTS)
    registers.act_while(lambda: clock.now() < until)
    registers.settle_in(Home(slot, address, marked.claimant), marked)
    return True


def _stays_marked(registers: PaxosRegisters, address: int, block: PaxosBlock) -> bool:
    """Whether the register stays as it is for so long that whoever marked it is gone."""
    clock = registers.clock
    until = clock.now() + registers.flight_seconds * WATCH_FLIGHTS
    while (left := until - clock.now()) > 0:
        clock.sleep(min(left, registers.flight_seconds / _LOOKS_PER_FLIGHT))
        if registers.look_block(address) != block:
            return False
    return True
