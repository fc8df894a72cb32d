"""Linux LIO in the tiny guest: the array that has all that a volume asks for. Ready in some four seconds."""

from __future__ import annotations

from pathlib import Path

from appliance.tinyguest import ARRAY, build
from demo.qemu import DataDisk, Machine, MachineConfig
from tests.luns.lun import Lun, free_port, sparse_file, wait_accepting

TARGET = "iqn.2026-01.io.azekura.test:array"
CHAP_TARGET = "iqn.2026-01.io.azekura.test:chap"
CHAP_USER, CHAP_PASSWORD = "esx", "the-hosts-own-secret"
CHAP_TARGET_USER, CHAP_TARGET_PASSWORD = "array1", "the-arrays-secret"  # six letters: see iscsi.credentials
LARGE_BYTES, SMALL_BYTES = 512 << 20, 8 << 20
LUNS = ((512, LARGE_BYTES), (4096, LARGE_BYTES), (512, LARGE_BYTES), (512, SMALL_BYTES), (4096, SMALL_BYTES))
"""(bytes of a sector, size) of the LUNs, by number."""
BOOT_SECONDS = 120.0
_CACHE = Path(__file__).resolve().parents[2] / ".cache"
_ISCSI_PORT = 3260


class LioArray:
    """A running array. `kill` is a power cut; after `start` it has its disks again, and forgot its registrations."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._guest = build(_CACHE / "tinyguest", role=ARRAY)
        self._files = [sparse_file(folder / f"lun{i}.raw", size) for i, (_, size) in enumerate(LUNS)]
        self._machine: Machine | None = None
        self._port = free_port()
        self.start()

    @property
    def portal(self) -> str:
        return f"127.0.0.1:{self._port}"

    @property
    def machine(self) -> Machine:
        assert self._machine is not None
        return self._machine

    def lun(self, number: int, target: str = TARGET) -> Lun:
        return Lun(self.portal, target, number, self._files[number], has_compare_and_write=True)

    def start(self) -> None:
        """Boot, and wait until it serves."""
        words = (
            f"target={TARGET} chap={CHAP_TARGET} user={CHAP_USER} password={CHAP_PASSWORD} "
            f"target_user={CHAP_TARGET_USER} target_password={CHAP_TARGET_PASSWORD}"
        )
        disks = tuple(DataDisk(file, sector) for file, (sector, _) in zip(self._files, LUNS, strict=True))
        forward = (self._port, _ISCSI_PORT)
        config = MachineConfig("array", self._guest, "tcg", words, None, 256, disks, forward)
        self._machine = Machine(config, self._folder)
        self._machine.wait_for("ARRAY-READY .*", BOOT_SECONDS)
        wait_accepting(self.portal)

    def kill(self) -> None:
        self.machine.kill()

    def close(self) -> None:
        """Nothing of it is left."""
        self.kill()
        for file in self._files:
            file.unlink()
