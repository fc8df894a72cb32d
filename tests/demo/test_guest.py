"""The tiny guest in QEMU on a plain raw file: what it writes survives, and what is damaged is found."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.tinyguest import KernelNotFoundError, TinyGuest, build
from demo import accelerator
from demo.errors import GuestError
from demo.qemu import Machine, MachineConfig

DISK_BYTES = 64 << 20
BOOT_SECONDS = 20.0
CACHE = Path(__file__).resolve().parents[2] / ".cache"


@pytest.fixture(scope="module")
def guest() -> TinyGuest:
    return build(CACHE / "tinyguest")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.truncate(DISK_BYTES)
    yield path
    path.unlink()


def start(guest: TinyGuest, disk: Path, words: str, name: str) -> Machine:
    return Machine(MachineConfig(name, guest, "tcg", words, disk), disk.parent)


def verify(guest: TinyGuest, disk: Path, name: str) -> tuple[int, int, str]:
    with start(guest, disk, "verify=/dev/vda", name) as machine:
        found = machine.wait_for(r"VERIFIED records=(\d+) damaged=(\d+) payload=(\w+)", BOOT_SECONDS)
        machine.wait_ended(BOOT_SECONDS)
    return int(found[1]), int(found[2]), found[3]


def test_records_survive_growth_power_off_and_power_cut_and_damage_is_found(guest: TinyGuest, disk: Path) -> None:
    with start(guest, disk, "records=/dev/vda payload=1", "first") as machine:
        machine.wait_for(f"DISKSIZE {DISK_BYTES}", BOOT_SECONDS)
        machine.wait_for("PAYLOAD 1048576", BOOT_SECONDS)
        machine.wait_for_record(10, BOOT_SECONDS)
        machine.resize_disk(2 * DISK_BYTES)
        machine.wait_for(f"DISKSIZE {2 * DISK_BYTES}", BOOT_SECONDS)
        machine.press_power_button()
        machine.wait_for("POWEROFF", BOOT_SECONDS)
        machine.wait_ended(BOOT_SECONDS)
        at_power_off = machine.last_record()
    with start(guest, disk, "records=/dev/vda", "second") as machine:
        at_power_cut = machine.wait_for_record(at_power_off + 10, BOOT_SECONDS)
        assert "FORMATTED" not in machine.console()
        machine.kill()
    records, damaged, payload = verify(guest, disk, "third")
    assert records >= at_power_cut
    assert (damaged, payload) == (0, "ok")

    image = disk.read_bytes()
    assert b"record 00000003\n" in image
    disk.write_bytes(image.replace(b"record 00000003\n", b"record 00000004\n"))
    assert verify(guest, disk, "fourth") == (records, 1, "ok")


def test_verify_never_makes_a_file_system(guest: TinyGuest, disk: Path) -> None:
    with start(guest, disk, "verify=/dev/vda", "blank") as machine:
        with pytest.raises(GuestError, match="mounting /dev/vda"):
            machine.wait_for("VERIFIED .*", BOOT_SECONDS)
        machine.wait_ended(BOOT_SECONDS)
    assert disk.read_bytes().count(b"\0") == DISK_BYTES


def test_a_missing_disk_is_qemus_own_message(guest: TinyGuest, tmp_path: Path) -> None:
    with pytest.raises(GuestError, match="nothing-here"):
        Machine(MachineConfig("none", guest, "tcg", disk=tmp_path / "nothing-here"), tmp_path)


def test_the_chosen_accelerator_boots_linux_and_is_remembered(guest: TinyGuest, tmp_path: Path) -> None:
    cache = tmp_path / "accelerator.json"
    choice = accelerator.choose(guest, cache)
    with Machine(MachineConfig("chosen", guest, choice.name), tmp_path) as machine:
        machine.wait_for("GUEST-READY .*", BOOT_SECONDS)
    assert accelerator.choose(guest, cache) == choice
    assert accelerator.choose(guest, cache, kvm_device=tmp_path / "no-kvm").name == "tcg"


def test_no_kernel_is_said(tmp_path: Path) -> None:
    with pytest.raises(KernelNotFoundError, match="make setup"):
        build(tmp_path, tree=tmp_path)
