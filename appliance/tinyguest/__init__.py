"""A tiny Linux guest for demonstrations and tests: a distribution's kernel and an initramfs built here.

What lives here: the newc archive writer (`cpio`), the search for a kernel and the modules it needs
(`kernel`), the guest's own init for each of its roles (`init.sh`: a workload; `array.sh`: a storage array that serves
LUNs over iSCSI; `scsihost.sh`: a host with SCSI disks, which runs a task of the caller's) and the builder that puts
them together (`build`). The result boots in a few seconds under pure emulation with 128 MiB of memory, through QEMU's
`-kernel` and `-initrd`.

It stands on the unpacked files of a kernel package and of busybox, and on the machine's mkfs.ext4; it needs
no root, and never touches the machine's own kernel. What the guest does is chosen by words on its kernel
command line, which the init specifies together with the lines it answers on the serial console.
"""

from appliance.tinyguest.build import ARRAY, SCSI_HOST, WORKLOAD, Role, TinyGuest, build
from appliance.tinyguest.errors import (
    GuestToolMissingError,
    KernelNotFoundError,
    ModuleMissingError,
    TinyGuestError,
)

__all__ = [
    "ARRAY",
    "SCSI_HOST",
    "WORKLOAD",
    "GuestToolMissingError",
    "KernelNotFoundError",
    "ModuleMissingError",
    "Role",
    "TinyGuest",
    "TinyGuestError",
    "build",
]
