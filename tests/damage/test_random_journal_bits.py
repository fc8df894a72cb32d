"""One bit flipped in the journal that a host left when it died, in one of its blocks at a time.

The next mount puts the bit right, says so, and gives all that was acknowledged.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from dataclasses import dataclass

import pytest

from tests.damage.ramscene import Host, RamScene, errno_of, flip, make_ram_scene
from tests.damage.test_random_bits import BITS, Log, judge, log
from vmfs.check import check_volume
from vmfs.check.dryrun import ScratchDevice
from vmfs.check.recovery import pending_images
from vmfs.core.replay import JournalPlace, read_records
from vmfs.errors import VmfsError
from vmfs.fuse.contract import ROOT_ID
from vmfs.liveness import read_slots
from vmfs.ondisk.header import METADATA_BLOCK_BYTES
from vmfs.ondisk.journal import HEADER_BLOCKS, record_blocks
from vmfs.ondisk.slot import SlotState
from vmfs.volume import open_volume

__all__ = ["log"]  # the fixture

TRIALS = int(os.environ.get("AZEKURA_ROUNDS", "40"))
ACKED = {f"/acked-{i}": bytes([i + 1]) * 70_000 for i in range(4)}


@pytest.fixture(autouse=True, scope="module")
def _need_root() -> None:
    """Nothing is mounted in the kernel here."""


@dataclass(slots=True)
class Crashed:
    """A volume whose host died with all its changes in the journal, the last ones not in place."""

    scene: RamScene
    device: ScratchDevice
    journal: int
    last_record: range
    blocks: list[int]
    """The journal's header and every block of a record, by address."""
    contents: dict[str, str]


@pytest.fixture(scope="module")
def crashed() -> Crashed:
    scene = make_ram_scene()
    device = scene.copy()
    host = Host(device, boot=1)
    for name, data in ACKED.items():
        host.write(ROOT_ID, name[1:], {0: data}, sync=True)
    host.volume.abandon()
    healthy = Host(ScratchDevice(device), boot=2)
    contents = healthy.contents()
    assert not healthy.end()
    volume = open_volume([device])
    [record] = [r for r in read_slots(volume).records if r.state is not SlotState.FREE]
    address = volume.geometry.journal_address(record.slot)
    place = JournalPlace(address, volume.superblock.journal_bytes, volume.uuid, record.slot, record.incarnation)
    records = read_records(device.read(address, place.size_bytes), place)
    # A power cut takes what was written in place after the last flush: what the last record holds, of locks that are
    # held still (no lock is given up before all under it was flushed).
    before = {i.address: i.data for r in records[:-1] for i in r.images}
    pending = pending_images(volume, record)
    for image in records[-1].images:
        if image.address not in pending:
            continue
        old = before.get(image.address) or scene.device.read(image.address, METADATA_BLOCK_BYTES)
        device.write(image.address, old)
    lengths = [record_blocks(len(r.images), len(r.revokes)) for r in records]
    end = HEADER_BLOCKS + sum(lengths)
    size = METADATA_BLOCK_BYTES
    blocks = [address + i * size for i in range(end)]
    last = range(address + (end - lengths[-1]) * size, address + end * size)
    return Crashed(scene, device, address, last, blocks, contents)


def look(crashed: Crashed, device: ScratchDevice, boot: int) -> tuple[str, dict[str, str]]:
    """Mount as the host's next boot; ("" or why not, what is there)."""
    try:
        host = Host(device, boot=boot)
    except VmfsError as error:
        return str(error), {}
    found: dict[str, str] = host.contents()
    for name in ACKED:
        if name not in found:
            try:
                host.look(ROOT_ID, name, name[1:].encode(), found)
            except OSError as error:
                found[name] = errno_of(error)
    return host.end(), found


@pytest.mark.expected_log("volume|slot|journal|lease|heartbeat")
def test_a_bit_of_a_dead_hosts_journal(crashed: Crashed, log: Log) -> None:
    seed = int(os.environ.get("AZEKURA_SEED", random.randrange(1 << 32)))
    print(f"AZEKURA_SEED={seed}; a journal of {len(crashed.blocks)} blocks")
    rng = random.Random(seed)
    table: Counter[str] = Counter()
    for number in range(TRIALS):
        address, bit = rng.choice(crashed.blocks), rng.randrange(BITS)
        where = f"trial {number}: bit {bit} of the block at {address:#x} (AZEKURA_SEED={seed})"
        device = ScratchDevice(crashed.device)
        flip(device, address, bit)
        log.lines.clear()
        problem, found = look(crashed, device, boot=2)
        assert not problem, (where, problem)
        old = {n: v for n, v in crashed.scene.contents.items() if n != "/"}
        assert judge({n: v for n, v in found.items() if n not in ACKED and n != "/"}, old, where) == 0
        # One wrong bit is put right: what was acknowledged is there, all of it.
        missing = [n for n in ACKED if found[n] != crashed.contents[n]]
        assert not missing, (where, [(n, found[n]) for n in missing], log.lines)
        # A header copy stays as it is until that slot's next host writes it.
        assert {f.address for f in check_volume(open_volume([device])).findings} <= {address}, where
        told = any(f"journal block at {address:#x} had one wrong bit" in text for text in log.lines)
        table["put right" if told else "not needed any more"] += 1
    print(", ".join(f"{count} {outcome}" for outcome, count in table.items()))
