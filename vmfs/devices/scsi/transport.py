"""What carries SCSI commands to one logical unit: the contract, and what comes back."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol

from vmfs.devices.contract import ReadableBuffer


class Status(enum.IntEnum):
    """SCSI status codes (SAM-5, 5.3.1). A target may send others."""

    GOOD = 0x00
    CHECK_CONDITION = 0x02
    CONDITION_MET = 0x04
    BUSY = 0x08
    RESERVATION_CONFLICT = 0x18
    TASK_SET_FULL = 0x28
    ACA_ACTIVE = 0x30
    TASK_ABORTED = 0x40


@dataclass(frozen=True, slots=True)
class Answer:
    """A command's end: the target has answered, well or badly."""

    status: int
    sense: bytes = b""
    """Sense data as the target sent it; empty when it sent none."""
    received_bytes: int = 0
    """How many bytes of the data-in buffer are the target's."""


class Repeat(enum.Enum):
    """Whether a command may be sent again when it is not known what came of it."""

    NEVER = "never"
    """Its effect depends on what is there: a compare-and-write."""
    FREELY = "freely"
    """It changes nothing, or nothing that a lease covers."""
    WITH_LEASE = "with lease"
    """It writes. A sending later than the caller's look at the lease needs a look of its own (rule R1)."""


class ScsiTransport(Protocol):
    """One I_T nexus and logical unit, or several nexuses of one host that are used in turn. Thread-safe."""

    @property
    def name(self) -> str:
        """What messages call the LUN."""
        ...

    def execute(
        self,
        cdb: bytes,
        *,
        data_out: ReadableBuffer | None = None,
        data_in: memoryview | None = None,
        repeat: Repeat = Repeat.FREELY,
    ) -> Answer:
        """Send one command and wait for its answer, in bounded time.

        `data_in` is writable and contiguous; it is not touched any more once this has returned or raised. At most one
        of the two buffers is given. Raises DeviceError when there is no answer: the command's fate is then unknown.
        """
        ...
