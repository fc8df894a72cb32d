"""The disks of the guest: which /dev/sd? is which LUN by which adapter."""

from __future__ import annotations

import os
from pathlib import Path


def disks() -> list[list[str]]:
    """By LUN, the nodes by the first and the second adapter."""
    found: dict[int, list[tuple[int, str]]] = {}
    for folder in Path("/sys/block").glob("sd*"):
        # host, channel, target, LUN
        host, _, _, lun = (int(part) for part in os.path.basename(os.path.realpath(folder / "device")).split(":"))
        found.setdefault(lun, []).append((host, f"/dev/{folder.name}"))
    return [[node for _, node in sorted(found[lun])] for lun in sorted(found)]
