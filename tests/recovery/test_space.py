"""What a dead host had promised itself is free; what it had freed is held back from whoever takes its groups (R8)."""

from __future__ import annotations

import random

import pytest

from tests.crash.ports import DirectPort
from tests.crash.power import mount, new_volume
from tests.crash.seeds import replay, rounds
from tests.recovery.deaths import DyingDevice, recovered

pytestmark = pytest.mark.expected_log(
    r"the power was cut|mount failed|recovered host|removing files|"
    r"a lock could not be given up|not answered"
)

_BYTES = 2 << 20


@rounds(1)
def test_the_space_of_a_dead_host(seed: int) -> None:
    print(replay(seed))
    rng = random.Random(seed)
    ram = new_volume(rng)
    device = DyingDevice(ram, seed)
    host = mount(device, rng)
    port = DirectPort(host)
    free = host.space.free_blocks()
    removed = port.create("removed")
    port.write(removed, 0, b"r" * (1 << 20))
    port.write(removed, 1 << 20, b"r" * (1 << 20))
    port.fsync(removed, data_only=False)
    port.close(removed)
    port.unlink("removed")
    host.reaper.work()
    port.fsync_directory("")
    core = host.core
    freed = {i: h.obj.group.quarantine for i, h in core.groups.held.items() if h.obj.group.quarantine}
    assert sum(bits.bit_count() for bits in freed.values()) * core.block_bytes == _BYTES
    grows = port.create("grows")
    port.write(grows, 0, b"g" * core.block_bytes)
    port.write(grows, core.block_bytes, b"g" * core.block_bytes)  # promises a run of blocks to what comes behind
    with core.transactions.mutex:
        promised = {i: h.promised for i, h in core.groups.held.items() if h.promised}
    assert promised
    device.freeze(fail_after_seconds=0.0)  # "grows" was not fsynced: it may be gone
    host.abandon()
    device.close()
    with recovered(ram, rng) as heir:
        groups = heir.core.groups
        for index in {*freed, *promised}:
            assert heir.space.take(index, 10.0)
        with heir.core.transactions.mutex:
            for index, bits in freed.items():
                held = groups.held[index]
                assert held.obj.group.quarantine & bits == bits
                assert not held.allocatable() & bits
                assert [b & bits for _, b in held.waiting] == [bits]
            for index, bits in promised.items():
                assert not groups.held[index].promised & bits
        again = DirectPort(heir)
        kept = len(again.read("grows")) if "grows" in again.list("") else 0
        # What the metadata of a first file takes stays taken: its chunk.
        used = free - heir.space.free_blocks() - -(-kept // heir.core.block_bytes)
        assert 0 <= used <= 1
