"""kill -9 of the mount's process under a running guest that writes: the guest goes on, and nothing is lost."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.tinyguest import TinyGuest, build
from demo.qemu import Machine, MachineConfig
from tests.crash.seeds import replay, rounds
from tests.supervisor.test_takeover import KILLED, kill_worker
from tests.vmfs.datastore import Datastore, datastore_in

DISK_BYTES = 64 << 20
GUEST_SECONDS = 120.0  # of patience with a busy machine: the guest is emulated
CACHE = Path(__file__).resolve().parents[2] / ".cache"


@pytest.fixture(scope="module")
def guest() -> TinyGuest:
    return build(CACHE / "tinyguest")


@pytest.fixture
def datastore(tmp_path: Path) -> Iterator[Datastore]:
    with datastore_in(tmp_path, "1G") as made:
        made.expect(KILLED)
        yield made


def _start(guest: TinyGuest, disk: Path, words: str, folder: Path, name: str) -> Machine:
    return Machine(MachineConfig(name, guest, "tcg", words, disk), folder)


def _kills(datastore: Datastore, guest: TinyGuest, seed: int, kills: int) -> None:
    print(replay(seed))
    rng = random.Random(seed)
    mount = datastore.mount("esx1", supervised=True)
    disk = mount / "disk.raw"
    with disk.open("wb") as file:  # thin: most of what the guest writes is written for the first time
        os.truncate(file.fileno(), DISK_BYTES)
    waits = []
    with _start(guest, disk, "records=/dev/vda payload=1", datastore.folder, "writing") as machine:
        last = machine.wait_for_record(3, GUEST_SECONDS)
        for _ in range(kills):
            time.sleep(rng.uniform(0.0, 0.5))
            began = time.monotonic()
            kill_worker(mount)
            last = machine.wait_for_record(machine.last_record() + 1, GUEST_SECONDS)
            waits.append(time.monotonic() - began)
            last = machine.wait_for_record(last + 5, GUEST_SECONDS)
        machine.press_power_button()
        machine.wait_for("POWEROFF", GUEST_SECONDS)
        machine.wait_ended(GUEST_SECONDS)
        last = machine.last_record()
    with _start(guest, disk, "verify=/dev/vda", datastore.folder, "reading") as machine:
        found = machine.wait_for(r"VERIFIED records=(\d+) damaged=(\d+) payload=(\w+)", GUEST_SECONDS)
        machine.wait_ended(GUEST_SECONDS)
    assert int(found[1]) >= last
    assert (int(found[2]), found[3]) == (0, "ok")
    print(f"{kills} kills, {last} records; from the kill to the guest's next record {max(waits):.2f} s at most, "
          f"{sorted(waits)[len(waits) // 2]:.2f} s as a rule")  # fmt: skip


@rounds(1)
def test_a_guest_goes_on(datastore: Datastore, guest: TinyGuest, seed: int) -> None:
    _kills(datastore, guest, seed, 5)


@pytest.mark.soak
@rounds(1)
def test_a_guest_goes_on_through_twenty_kills(datastore: Datastore, guest: TinyGuest, seed: int) -> None:
    _kills(datastore, guest, seed, 20)
