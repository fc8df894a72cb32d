"""A device whose next operations meet the fates that a test orders, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum

from vmfs.devices.ram import RamDevice
from vmfs.errors import DeviceError


class Fate(Enum):
    OK = "done and answered"
    NOT_DONE = "raises, and was not done"
    ANSWER_LOST = "raises, and was done"
    LATE = "raises, and lands when the test says so"
    MISCOMPARE = "says that it differs, and was not done"
    TORN = "half of the sector is there, and it raises"


class ScriptedDevice:
    """A RamDevice whose compare_and_write takes its fate from `fates`; reads fail while `read_fails`."""

    def __init__(self, inner: RamDevice) -> None:
        self.inner = inner
        self.fates: deque[Fate] = deque()
        self.late: list[tuple[int, bytes, bytes]] = []
        self.read_fails = False
        self.all_fail = False
        self.sent: list[tuple[int, bytes, bytes]] = []
        self.before_caw: Callable[[int], None] = lambda offset: None

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    def read(self, offset: int, length: int) -> bytes:
        if self.read_fails or self.all_fail:
            raise DeviceError("scripted", "read", offset, length, "ordered")
        return self.inner.read(offset, length)

    def compare_and_write(self, offset: int, old: bytes, new: bytes) -> bool:
        self.before_caw(offset)
        self.sent.append((offset, old, new))
        fate = Fate.NOT_DONE if self.all_fail else self.fates.popleft() if self.fates else Fate.OK
        if fate is Fate.OK:
            return self.inner.compare_and_write(offset, old, new)
        if fate is Fate.MISCOMPARE:
            return False
        if fate is Fate.ANSWER_LOST:
            self.inner.compare_and_write(offset, old, new)
        elif fate is Fate.LATE:
            self.late.append((offset, old, new))
        elif fate is Fate.TORN:
            half = len(old) // 2
            self.inner.write(offset, new[:half] + old[half:])
        raise DeviceError("scripted", "compare_and_write", offset, len(new), fate.value)

    def land_late(self) -> list[bool]:
        """Let what is late land now; whether each still matched."""
        late, self.late = self.late, []
        return [self.inner.compare_and_write(*one) for one in late]
