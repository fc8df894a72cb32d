"""One swap of a register carried to a known end.

A swap that raised may have landed, or may land later. The images of slots and locks never come back
(`vmfs.ondisk.lockblock`), so the fate can be found out (rule R4): read again; the new image means that it landed; the
old image means: send the very same image again (a late first attempt and its repetition cannot both land); anything
else means that someone else was faster.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from vmfs.clock import Clock
from vmfs.cluster.registers import Registers
from vmfs.errors import DeviceError, DeviceGone

STORAGE_ERRORS: Final = (DeviceError, DeviceGone)
ATTEMPTS: Final = 5
PAUSE_S: Final = 0.01  # between attempts after an error; a fabric that switches paths needs a moment


def swap_settled(
    registers: Registers,
    address: int,
    old: bytes,
    new: bytes,
    *,
    clock: Clock,
    before_each: Callable[[], None] | None = None,
) -> bool:
    """Put `new` in the place of `old`: True when it was done, False when the register holds, or got, another image.

    `before_each` runs before every submission and may raise (a lease that has run out). Raises DeviceError or
    DeviceGone when the fate is still unknown after ATTEMPTS: it may then still land.
    """
    for attempt in range(1, ATTEMPTS + 1):
        if before_each is not None:
            before_each()
        try:
            if registers.swap(address, old, new):
                return True
            found = registers.read(address)
        except STORAGE_ERRORS:
            if attempt == ATTEMPTS:
                raise
            clock.sleep(PAUSE_S * attempt)
            continue
        if found == new:
            return True
        if found != old:
            return False
    name, reason = registers.extents.locate(address)[0].name, "it refuses to replace the very bytes that it returns"
    raise DeviceError(name, "compare_and_write", address, len(new), reason)
