"""Chooses between KVM and emulation (TCG) by trying, and remembers the outcome until the machine reboots.

A /dev/kvm that opens proves nothing: there are hosts where it opens, reports its version and runs a boot sector, and
where Linux stops as it enters protected mode. So the guest's own kernel is booted under KVM, once.
"""

import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from appliance.tinyguest import TinyGuest
from demo.errors import GuestError
from demo.qemu import QEMU, Machine, MachineConfig

KVM_DEVICE = Path("/dev/kvm")
# With KVM the tiny guest is up in a second or so; emulation takes two to four, so a slower KVM gains nothing.
_BOOT_TIMEOUT_SECONDS = 5.0
_VERSION_TIMEOUT_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Choice:
    """QEMU's name of the accelerator, and why it was taken."""

    name: str
    reason: str


def choose(guest: TinyGuest, cache: Path, kvm_device: Path = KVM_DEVICE) -> Choice:
    """The fastest accelerator under which `guest` boots.

    `cache` is a file that holds the last outcome and the machine state for which it is good. Raises GuestError when
    QEMU is not installed.
    """
    if not os.access(kvm_device, os.R_OK | os.W_OK):
        return Choice("tcg", f"{kvm_device} is not there, or not ours to open")
    conditions = [_boot_id(), _qemu_version(), guest.initrd.name]
    remembered = _read(cache, conditions)
    if remembered is not None:
        return remembered
    choice = _try_kvm(guest)
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.write_text(json.dumps({"conditions": conditions, **asdict(choice)}))
    return choice


def _try_kvm(guest: TinyGuest) -> Choice:
    with tempfile.TemporaryDirectory(prefix="azekura-kvm-") as directory:
        try:
            with Machine(MachineConfig("kvm-probe", guest, "kvm"), Path(directory)) as machine:
                ready = machine.wait_for(r"GUEST-READY uptime=(\S+) .*", _BOOT_TIMEOUT_SECONDS)
        except GuestError:
            return Choice("tcg", f"{KVM_DEVICE} opens, but Linux does not boot with it")
    return Choice("kvm", f"Linux boots with it ({ready[1]} s)")


def _read(cache: Path, conditions: list[str]) -> Choice | None:
    try:
        known = json.loads(cache.read_text())
        if known["conditions"] == conditions and known["name"] in ("kvm", "tcg"):
            return Choice(known["name"], str(known["reason"]))
    except (OSError, ValueError, LookupError, TypeError):
        return None  # no cache, or a damaged one: find out again
    return None


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _qemu_version() -> str:
    qemu = shutil.which(QEMU)
    if qemu is None:
        raise GuestError(f"{QEMU} is not installed: run `make setup`")
    result = subprocess.run(
        [qemu, "--version"], capture_output=True, text=True, timeout=_VERSION_TIMEOUT_SECONDS, check=True
    )
    return result.stdout.partition("\n")[0]
