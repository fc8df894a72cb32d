"""A LUN spoken to in SCSI commands, whatever carries them: iSCSI from this process, or SG_IO through the kernel.

`transport` is the contract of the carrier. `commands`, `sense` and `pages` are the bytes (SPC-4, SBC-3), in pure
functions. `issue` gives one command and says what came of it; `facts` asks a LUN what it is; `reservations` and `disk`
are the `Reservations` and the `Device` that stand on them all.
Stands on `vmfs.devices.contract`, `vmfs.devices.reservations` and `vmfs.errors`.
"""
