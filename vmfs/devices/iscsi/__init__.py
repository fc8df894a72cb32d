"""LUNs over iSCSI from this process, by libiscsi: `iscsi://portal[:port]/target/lun`.

`address` is the URL, `credentials` the file with CHAP secrets, `library` the C library's calls, `session` one login,
`pool` several of them as one SCSI transport, and `device` the `Device` on it.
Stands on `vmfs.devices.scsi`. The kernel's own initiator is not used: it needs root, modules and a daemon, and keeps
writes under way for minutes after their writer has died.
"""

from __future__ import annotations

from vmfs.devices.iscsi.device import IscsiDevice

__all__ = ["IscsiDevice"]
