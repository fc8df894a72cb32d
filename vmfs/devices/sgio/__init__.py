"""SCSI disks of this machine (Fibre Channel, the kernel's iSCSI, SAS, multipath maps of them) with their SCSI commands.

Data goes through the block device as with any other disk. What a block device has no call for, COMPARE AND WRITE and
persistent reservations, goes to the same LUN by the ioctl SG_IO. `paths` finds the ways to the LUN in sysfs,
`transport` sends commands by them, `device` is the `Device`.
Stands on `vmfs.devices.block`, `vmfs.devices.scsi` and `vmfs.errors`.
"""

from vmfs.devices.sgio.device import ScsiBlockDevice
from vmfs.devices.sgio.paths import is_shareable_scsi

__all__ = ["ScsiBlockDevice", "is_shareable_scsi"]
