"""Registers for disks without COMPARE AND WRITE: Disk Paxos over one sector a host (CASPaxos, on one disk).

A swap writes its ballot into the own sector (`vmfs.ondisk.paxosblock`), reads all sectors, writes the new image with
that ballot, and reads all sectors again. Whoever sees a higher ballot than his own begins again with a higher one,
after a random pause. Four I/Os when nobody interferes; no clock decides anything, and a host that died at any point
holds nobody up: the next swap finishes, or displaces, what it began.

*When a swap fails* because the register holds another image, that image is written at the own ballot first: only then
was it really what the register held. When the own image was proposed, displaced or built upon, and a third image is
there, the parent that each image names tells which: built upon means success. Where even that cannot be told, the swap
raises DeviceError like any swap of unknown fate (rule R10).

*What a read returns.* `look` reads once: the image of the highest ballot, the one that a swap would start from. It may
be a proposal that a higher ballot, begun before it was written, displaces. `read` reads again until, after a read that
showed an image at ballot b, a later one shows no ballot above b: whoever begins a higher one now reads that image
first, so it counted, then. Where a host died between its two writes, a higher ballot stays: then `read` finishes the
register itself. A tool, or a mount that has no slot yet, may not: for them `read` is `look` with patience.

*Who may write.* A sector has one writer: the host in that slot, one thread at a time (a lock for each register, held
over its I/O), and

- never while the fate of an earlier write of its own to that sector is unknown. After a write that raised, the sector
  is left alone until it shows that write or `flight_seconds` have passed, the longest time that a write may take to
  land (P + F of A1, docs/locking.md). The next swap there waits for it;
- only with a valid lease, or (heartbeats, which go on without one) right after it has read its own sector in its own
  slot's register and found what it wrote there. A host that claims a slot marks this very sector and waits
  `flight_seconds` before it believes that it is alone (`vmfs.cluster.entering`).
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

from vmfs.clock import Clock
from vmfs.cluster.entering import Home, enter
from vmfs.cluster.paxosmemory import Known, RegisterMemory
from vmfs.devices.extents import ExtentSet
from vmfs.errors import DamagedBlock, DeviceError, DeviceGone
from vmfs.ondisk.lockblock import RECORD_BYTES
from vmfs.ondisk.paxosblock import (
    NO_CLAIMANT,
    PaxosBlock,
    PaxosLayout,
    Sector,
    fresh_block,
    next_ballot,
    parse_block,
    record_hash,
)

ATTEMPTS: Final = 24  # at ever higher ballots, before the caller is told that a register is contended
READ_ATTEMPTS: Final = 8  # of a register that another host is changing, before it is finished
REREADS: Final = 4  # of a block with a sector that does not parse: a torn read is whole a moment later
PAUSE_S: Final = 0.002  # the first; a proposal's four I/Os take about as long on a fast disk
PAUSE_MAX_S: Final = 0.1
_DOUBT_POLL_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class _Doubt:
    """A write of the own sector that raised: what was sent, and when it can land no more (Clock.now() seconds)."""

    sent: Sector
    until: float


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What a ballot that won has settled: the record that the register held then, and what the swap came to."""

    record: bytes
    done: bool | None


class PaxosRegisters:
    """See the module. `_mutex` guards the dictionaries below and is never held over I/O; `_alone` gives each register
    one writer at a time in this process."""

    def __init__(
        self, extents: ExtentSet, layout: PaxosLayout, clock: Clock, rng: random.Random, flight_seconds: float
    ) -> None:
        self.extents = extents
        self.layout = layout
        self.clock = clock
        self.random = rng
        self.flight_seconds = flight_seconds
        self.home: Home | None = None
        self._home_written: tuple[Sector, ...] = ()  # what the own sector may hold there
        self._lease_valid: Callable[[], bool] = lambda: False
        self._memory = RegisterMemory()
        self._mutex = threading.Lock()
        self._doubts: dict[int, _Doubt] = {}
        self._writers: dict[int, tuple[threading.Lock, int]] = {}

    # -- reading ------------------------------------------------------------------------------------------------

    def image_bytes(self, address: int) -> int:
        return self.extents.locate(address)[0].logical_block_bytes

    def look(self, address: int) -> bytes:
        return self._image(address, self.look_block(address).top)

    def look_many(self, address: int, stride: int, count: int) -> list[bytes | DamagedBlock]:
        data = memoryview(self.extents.read(address, stride * count))
        found: list[bytes | DamagedBlock] = []
        for at in range(0, stride * count, stride):
            try:
                block = parse_block(data[at : at + self.layout.used_bytes], self.layout, address + at)
                found.append(self._image(address + at, block.top))
            except DamagedBlock as error:
                found.append(error)
        return found

    def read(self, address: int) -> bytes:
        before: PaxosBlock | None = None
        for attempt in range(READ_ATTEMPTS):
            block = self.look_block(address)
            if before is not None and before.top.bal >= block.highest:
                return self._image(address, before.top)
            clean = block.top.bal == block.highest
            before = block if clean else None
            if not clean and attempt < READ_ATTEMPTS - 1:
                self.pause(attempt)
        return self._finish(address)

    def _finish(self, address: int) -> bytes:
        """Settle a register that stays between two ballots, and return its image."""
        home = self.home
        if home is None:
            return self.look(address)
        with self._alone(address):
            self._settle_doubt(address)
            block = self.look_block(address)
            if not self._may_write():
                if address == home.address:
                    return self._image(address, block.top)
                raise self._error(address, "it is between two images, and this host has no lease to settle it")
            top = block.top.record
            known = Known(block.sectors[home.slot], block.highest, top)
            return self._propose(address, known, top, top).record.ljust(self.image_bytes(address), b"\0")

    def look_block(self, address: int) -> PaxosBlock:
        """All sectors, read once (again where one is torn). Raises DamagedBlock."""
        for attempt in range(REREADS):
            token = self._memory.token(address)
            raw = self.extents.read(address, self.layout.used_bytes)
            try:
                block = parse_block(raw, self.layout, address)
                break
            except DamagedBlock:
                if attempt == REREADS - 1 or not any(raw):
                    raise
            self.pause(attempt)
        if self.home is not None:
            own = block.sectors[self.home.slot]
            self._memory.looked(address, Known(own, block.highest, block.top.record), token)
        return block

    # -- changing -----------------------------------------------------------------------------------------------

    def swap(self, address: int, old: bytes, new: bytes) -> bool:
        home = self._home()
        with self._alone(address):
            self._settle_doubt(address)
            if address == home.address and not self._may_write():
                return False
            known = self._memory.get(address)
            if known is None or known.top_record != old[:RECORD_BYTES]:
                block = self.look_block(address)
                known = Known(block.sectors[home.slot], block.highest, block.top.record)
            done = self._propose(address, known, old[:RECORD_BYTES], new[:RECORD_BYTES]).done
        if done is None:
            raise self._error(address, "other hosts changed it so fast that the outcome is unknown")
        if done and address == home.address:
            self.home = replace(home, taken=True)
        return done

    def create(self, address: int, image: bytes, block_bytes: int) -> None:
        home = self._home()
        with self._alone(address):
            self._settle_doubt(address)
            self._memory.forget(address)
            block = fresh_block(image, self.layout, address, block_bytes, home.slot)
            try:
                self.extents.write(address, block)
            except (DeviceError, DeviceGone):
                own = parse_block(block, self.layout, address).sectors[home.slot]
                self._doubt(address, own)
                raise
            self._memory.forget(address)

    def enter(self, slot: int, address: int, image: bytes, *, patient: bool) -> bool:
        return enter(self, slot, address, image, patient=patient)

    def act_while(self, lease_valid: Callable[[], bool]) -> None:
        self._lease_valid = lease_valid

    def settle_in(self, home: Home, sector: Sector) -> None:
        """Write as this slot from now on; `sector` is its sector in its own register."""
        self.home, self._home_written = home, (sector,)
        self._memory.clear()

    def pause(self, attempt: int) -> None:
        """Wait for a random moment, longer with each attempt."""
        self.clock.sleep(self.random.uniform(PAUSE_S / 2, min(PAUSE_MAX_S, PAUSE_S * 2**attempt)))

    def _propose(self, address: int, known: Known, old: bytes, new: bytes) -> _Outcome:
        """Carry `new` through, from `old`; with both the same, settle whatever record there is."""
        home = self._home()
        own, highest = known.own, known.highest
        offered = False
        for attempt in range(ATTEMPTS):
            ballot = next_ballot(max(highest, own.mbal), self.layout, home.slot)
            own = self._write(address, replace(own, mbal=ballot))
            block = self.look_block(address)
            highest = block.highest
            if highest > ballot:
                self.pause(attempt)
                continue
            top, done = block.top, _verdict(block.top, old, new, offered)
            if top.record == old != new:
                top, offered = replace(top, record=new, parent=record_hash(old)), True
            own = self._write(address, replace(own, bal=ballot, record=top.record, parent=top.parent))
            highest = self.look_block(address).highest
            if highest <= ballot:
                return _Outcome(top.record, done)
            self.pause(attempt)
        raise self._error(address, f"it is contended: {ATTEMPTS} ballots were overtaken")

    def _write(self, address: int, sector: Sector) -> Sector:
        home = self._home()
        if not self._may_write():
            raise self._error(address, "this host has no lease, and its slot is not its own any more")
        if address == home.address:
            sector = replace(sector, claimant=NO_CLAIMANT if home.taken else home.claimant)
            self._home_written = (*self._home_written, sector)
        self.put_sector(address, sector)
        if address == home.address:
            self._home_written = (sector,)
        return sector

    def put_sector(self, address: int, sector: Sector) -> None:
        """Write the own sector, whatever the lease says. Raises DeviceError, DeviceGone: its fate is then unknown."""
        at = address + sector.index * self.layout.sector_bytes
        raw = sector.pack(self.layout, address).ljust(self.image_bytes(address), b"\0")
        self._memory.writing(address)
        try:
            self.extents.write(at, raw)
        except (DeviceError, DeviceGone):
            self._doubt(address, sector)
            raise
        self._memory.wrote(address, sector)

    def _doubt(self, address: int, sent: Sector) -> None:
        self._memory.forget(address)
        with self._mutex:
            self._doubts[address] = _Doubt(sent, self.clock.now() + self.flight_seconds)

    def _settle_doubt(self, address: int) -> None:
        """Wait until nothing of the own sector can land any more. Raises DeviceError, DeviceGone, DamagedBlock."""
        with self._mutex:
            doubt = self._doubts.get(address)
        while doubt is not None:
            left = doubt.until - self.clock.now()
            found = self._own_sector(address, doubt.sent.index)
            if left <= 0 or found == doubt.sent:
                if self.home is not None and address == self.home.address and found in self._home_written:
                    self._home_written = (found,)
                with self._mutex:
                    del self._doubts[address]
                self._memory.forget(address)  # a read that began in between may still come back with the sector before
                return
            self.clock.sleep(min(left, _DOUBT_POLL_S))

    def _own_sector(self, address: int, index: int) -> Sector | None:
        try:
            return self.look_block(address).sectors[index]
        except DamagedBlock:  # a block that is being created
            return None

    def _may_write(self) -> bool:
        """Whether this mount is still who it was: its lease is valid, or nobody has touched its own sector."""
        if self._lease_valid():
            return True
        home = self.home
        return home is not None and home.taken and (
            self.look_block(home.address).sectors[home.slot] in self._home_written
        )

    def _home(self) -> Home:
        if self.home is None:
            raise ValueError("no slot has been entered: there is no sector to write")
        return self.home

    @contextmanager
    def _alone(self, address: int) -> Iterator[None]:
        with self._mutex:
            lock, users = self._writers.get(address, (threading.Lock(), 0))
            self._writers[address] = lock, users + 1
        try:
            with lock:
                yield
        finally:
            with self._mutex:
                lock, users = self._writers[address]
                if users == 1:
                    del self._writers[address]
                else:
                    self._writers[address] = lock, users - 1

    def _image(self, address: int, sector: Sector) -> bytes:
        return sector.record.ljust(self.image_bytes(address), b"\0")

    def _error(self, address: int, reason: str) -> DeviceError:
        name = self.extents.locate(address)[0].name
        return DeviceError(name, "a swap of the register", address, self.layout.used_bytes, reason)


def _verdict(top: Sector, old: bytes, new: bytes, offered: bool) -> bool | None:
    """What the swap comes to once the ballot that found `top` has won; None: it cannot be told."""
    if top.record in (old, new):
        return True
    if not offered or top.parent == record_hash(old):
        return False
    return True if top.parent == record_hash(new) else None
