"""One command from its sending to a result: what may be sent again is, and what is wrong becomes an error of ours.

A target answers BUSY, TASK SET FULL or a unit attention without having executed the command, so it is sent again even
when it may not be repeated. ABORTED COMMAND and TASK ABORTED leave its fate open, as a lost connection does.
"""

from __future__ import annotations

import time
from errno import ENOSPC
from typing import Final

from vmfs.devices.contract import ReadableBuffer
from vmfs.devices.reservations import REFUSED
from vmfs.devices.scsi.sense import BECOMING_READY, SPACE_ALLOCATION_FAILED, Key, Sense, parse_sense
from vmfs.devices.scsi.transport import Answer, Repeat, ScsiTransport, Status
from vmfs.errors import DeviceError, ReservationConflict

UNIT_ATTENTIONS_MAX: Final = 8  # a target queues a few for a new nexus; one that never ends is broken
BUSY_TRIES: Final = 100
BUSY_PAUSE_SECONDS: Final = 0.02  # with BUSY_TRIES: two seconds, then the caller learns that the target is swamped


class CommandRefused(DeviceError):
    """The target ended the command with CHECK CONDITION; `sense` says why."""

    def __init__(self, device: str, operation: str, offset: int, length: int, sense: Sense) -> None:
        super().__init__(device, operation, offset, length, str(sense))
        self.sense = sense
        if sense.code == SPACE_ALLOCATION_FAILED:
            self.errno = ENOSPC  # a hypervisor pauses its guest at this one, and goes on when there is space again

    @property
    def is_unsupported(self) -> bool:
        """Whether the target has no such command, or not in this form."""
        return self.sense.key is Key.ILLEGAL_REQUEST


def issue(
    transport: ScsiTransport,
    cdb: bytes,
    operation: str,
    offset: int = 0,
    length: int = 0,
    *,
    data_out: ReadableBuffer | None = None,
    data_in: memoryview | None = None,
    repeat: Repeat = Repeat.FREELY,
) -> Answer:
    """Give a command; its answer when it ended well. `operation`, `offset`, `length` are for messages.

    Raises ReservationConflict; CommandRefused for any sense that is not good; DeviceError for other statuses, and when
    no answer came.
    """
    attentions = busy = 0
    while True:
        answer = transport.execute(cdb, data_out=data_out, data_in=data_in, repeat=repeat)
        if answer.status == Status.GOOD:
            return answer
        if answer.status == Status.RESERVATION_CONFLICT:
            raise ReservationConflict(transport.name, operation, offset, length, REFUSED)
        if answer.status in (Status.BUSY, Status.TASK_SET_FULL) and busy < BUSY_TRIES:
            busy += 1
            time.sleep(BUSY_PAUSE_SECONDS)
            continue
        if answer.status != Status.CHECK_CONDITION:
            raise DeviceError(transport.name, operation, offset, length, f"the target answers {_status(answer.status)}")
        sense = parse_sense(answer.sense)
        if sense.key is Key.UNIT_ATTENTION and attentions < UNIT_ATTENTIONS_MAX:
            attentions += 1
            continue
        if sense.key is Key.NOT_READY and sense.code == BECOMING_READY and busy < BUSY_TRIES:
            busy += 1
            time.sleep(BUSY_PAUSE_SECONDS)
            continue
        if sense.key is Key.RECOVERED_ERROR:
            return answer
        raise CommandRefused(transport.name, operation, offset, length, sense)


def issue_read(transport: ScsiTransport, cdb: bytes, operation: str, allocation_bytes: int) -> bytes:
    """Give a command that answers with at most `allocation_bytes` of data. Raises as `issue`."""
    buffer = bytearray(allocation_bytes)
    answer = issue(transport, cdb, operation, 0, allocation_bytes, data_in=memoryview(buffer))
    return bytes(buffer[: answer.received_bytes])


def _status(status: int) -> str:
    try:
        return Status(status).name.replace("_", " ")
    except ValueError:
        return f"an unknown status {status:#04x}"
