"""Puts the tiny guest's initramfs together: busybox, the kernel's virtio drivers, our init, and mkfs.ext4 if wanted.

The archive is not compressed: an emulated processor would take longer to unpack it than to read it.
"""

import hashlib
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from appliance.tinyguest.cpio import Archive
from appliance.tinyguest.errors import GuestToolMissingError
from appliance.tinyguest.kernel import GuestKernel, find_kernel, read_module

DEFAULT_TREE = Path(__file__).resolve().parents[2] / ".cache" / "guest"
"""Where `make setup` unpacks the distribution's packages of the guest's kernel and of a static busybox."""

_EMPTY_DIRECTORIES = ("dev", "mnt", "proc", "run", "sys", "tmp")
# busybox's acpid runs this when the power button is pressed; the main loop of the init sees the file.
_POWER_BUTTON_EVENT = "etc/acpi/PWRF/00000080"
_POWER_BUTTON_SCRIPT = b"#!/bin/busybox sh\n: > /run/power-button\n"
_LIBRARY = re.compile(r"(?:\S+ => )?(?P<path>/\S+) \(0x[0-9a-f]+\)")
_LDD_TIMEOUT_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Role:
    """What a guest is for: its init (a file of this package), and what that needs."""

    name: str
    init: str
    drivers: tuple[str, ...]
    applets: tuple[str, ...]
    directories: tuple[str, ...] = ()
    makes_ext4: bool = False


WORKLOAD = Role(
    name="tinyguest",
    init="init.sh",
    # The disk; the ACPI power button, which reaches acpid as an input device; the file system; and entropy, for want of
    # which mkfs.ext4 would wait four seconds for its UUID.
    drivers=("virtio_pci", "virtio_blk", "button", "evdev", "ext4", "virtio_rng"),
    applets=(
        "sh", "acpid", "awk", "head", "insmod", "mount", "od", "poweroff", "sha256sum", "sync", "touch", "tr",
        "umount", "uname", "usleep", "wc",
    ),
    makes_ext4=True,
)  # fmt: skip
"""Writes numbered records to its disk, or verifies them."""
ARRAY = Role(
    name="array",
    init="array.sh",
    drivers=(
        "virtio_pci", "virtio_blk", "virtio_net", "virtio_rng", "crc32c_generic", "iscsi_target_mod",
        "target_core_iblock",
    ),
    applets=("sh", "insmod", "ip", "ln", "mkdir", "mount", "poweroff", "printf", "sleep", "uname", "wc"),
    # Where LIO keeps registrations that outlive a power cut, in older and in newer kernels.
    directories=("var", "var/target", "var/target/pr", "etc", "etc/target", "etc/target/pr"),
)  # fmt: skip
"""Serves its disks over iSCSI: a Linux storage array."""
SCSI_HOST = Role(
    name="scsihost",
    init="scsihost.sh",
    drivers=(
        "virtio_pci", "virtio_blk", "virtio_rng", "crc32c_generic", "ext4", "sd_mod", "tcm_loop", "target_core_iblock",
        "dm_multipath", "dm_round_robin", "fuse",
    ),
    applets=("sh", "chroot", "insmod", "ln", "mkdir", "mount", "poweroff", "uname", "usleep", "wc"),
    directories=("sysroot", *ARRAY.directories),
)  # fmt: skip
"""Runs a task on SCSI disks that two adapters share."""


@dataclass(frozen=True, slots=True)
class TinyGuest:
    """What QEMU boots with `-kernel kernel -initrd initrd`."""

    kernel: Path
    initrd: Path
    release: str


def build(
    output_dir: Path,
    tree: Path = DEFAULT_TREE,
    mkfs: str = "mkfs.ext4",
    role: Role = WORKLOAD,
) -> TinyGuest:
    """Build the guest into `output_dir`, or return the one already there if nothing in it would differ.

    `tree` holds the unpacked packages; `mkfs` is looked up on the path and in the sbin directories. Safe to
    call from several processes at once. Raises KernelNotFoundError, ModuleMissingError,
    GuestToolMissingError, OSError.
    """
    kernel = find_kernel(tree)
    archive = _archive(kernel, role, _find_busybox(tree), _find_mkfs(mkfs) if role.makes_ext4 else None)
    digest = hashlib.sha256(archive).hexdigest()[:16]
    initrd = output_dir / f"{role.name}-{kernel.release}-{digest}.cpio"
    if not initrd.exists():
        output_dir.mkdir(parents=True, exist_ok=True)
        unfinished = initrd.with_suffix(f".{os.getpid()}.tmp")
        unfinished.write_bytes(archive)
        unfinished.rename(initrd)
    return TinyGuest(kernel.image, initrd, kernel.release)


def _archive(kernel: GuestKernel, role: Role, busybox: Path, mkfs: Path | None) -> bytes:
    archive = Archive()
    for name in (*_EMPTY_DIRECTORIES, *role.directories):
        archive.directory(name)
    archive.file("bin/busybox", busybox.read_bytes(), 0o755)
    for applet in role.applets:
        archive.symlink(f"bin/{applet}", "busybox")
    if mkfs is not None:
        archive.file("sbin/mkfs.ext4", mkfs.read_bytes(), 0o755)
        for library in _libraries(mkfs):
            archive.file(str(library), library.read_bytes(), 0o755)
    modules = kernel.load_order(role.drivers)
    for module in modules:
        archive.file(f"modules/{_plain_name(module)}", read_module(module))
    archive.file("modules/order", "".join(f"{_plain_name(module)}\n" for module in modules).encode())
    archive.file(_POWER_BUTTON_EVENT, _POWER_BUTTON_SCRIPT, 0o755)
    init = resources.files("appliance.tinyguest").joinpath(role.init).read_bytes()
    archive.file("init", init, 0o755)
    return archive.image()


def _find_busybox(tree: Path) -> Path:
    for directory in ("bin", "usr/bin"):
        busybox = tree / directory / "busybox"
        if busybox.is_file():
            return busybox
    raise GuestToolMissingError("busybox", f"there is none under {tree}")


def _find_mkfs(name: str) -> Path:
    search = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    found = shutil.which(name, path=search)
    if found is None:
        raise GuestToolMissingError(name, "it is not on this machine")
    return Path(found)


def _libraries(program: Path) -> list[Path]:
    """The shared libraries that `program` loads, its loader among them, at the paths it looks for them."""
    result = subprocess.run(
        ["ldd", str(program)], capture_output=True, text=True, timeout=_LDD_TIMEOUT_SECONDS, check=False
    )
    if result.returncode:
        raise GuestToolMissingError(str(program), (result.stderr or result.stdout).strip())
    matches = (_LIBRARY.fullmatch(line.strip()) for line in result.stdout.splitlines())
    return [Path(match["path"]) for match in matches if match]


def _plain_name(module: Path) -> str:
    return module.name.partition(".ko")[0] + ".ko"
