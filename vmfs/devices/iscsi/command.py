"""One SCSI command under way in libiscsi: its task, its memory, and how its thread learns that it has ended."""

from __future__ import annotations

import ctypes
import threading
from typing import Final

from vmfs.devices.contract import ReadableBuffer
from vmfs.devices.iscsi import library
from vmfs.devices.iscsi.library import Library, Task
from vmfs.devices.scsi.transport import Answer, Status

_SENSE_AT: Final = 2  # after its length, in the data segment of a SCSI response (RFC 7143, 11.4.7)


class Command:
    """Made and freed by the thread that wants the answer; `end` and `leads` are the session's, under its mutex."""

    def __init__(
        self, lib: Library, cdb: bytes, data_out: ReadableBuffer | None, data_in: memoryview | None
    ) -> None:
        """The buffer stays where it is until `free`. MemoryError when there is none for the task."""
        direction, self._memory, self.length = _memory(data_out, data_in)
        self._library = lib
        self._received_at_most = self.length if direction == library.XFER_READ else 0
        self.task: int = lib.create_task(len(cdb), cdb, direction, self.length)
        self.deadline = 0.0
        self.status: int | None = None
        self.leads = False
        """Its thread moves the bytes. Set at once, or before `ended_or_leads` is released while it is under way."""
        self.ended_or_leads = threading.Lock()
        self.ended_or_leads.acquire()
        if not self.task:
            raise MemoryError
        if self.length:
            add = lib.add_data_out if direction == library.XFER_WRITE else lib.add_data_in
            if add(self.task, self.length, ctypes.addressof(self._memory)):
                self.free()
                raise MemoryError

    def end(self, status: int) -> None:
        """It has ended, with a status of SCSI's or of libiscsi's own."""
        if self.status is None:
            self.status = status
            if not self.leads:
                self.ended_or_leads.release()

    def answer(self) -> Answer:
        """What the target said."""
        task, status = Task.from_address(self.task), self.status
        assert status is not None
        if status != Status.CHECK_CONDITION:
            missing = task.residual if task.residual_status == library.RESIDUAL_UNDERFLOW else 0
            return Answer(status, b"", max(0, self._received_at_most - missing))
        data: int | None = task.datain
        segment = ctypes.string_at(data, task.datain_bytes) if data and task.datain_bytes > 0 else b""
        length = int.from_bytes(segment[:_SENSE_AT], "big")
        return Answer(status, segment[_SENSE_AT : _SENSE_AT + length])

    def free(self) -> None:
        """Give task and buffer back. A second call does nothing."""
        task, self.task = self.task, 0
        if task:
            self._library.free_task(task)
        self._memory = ctypes.c_char()


def _memory(
    data_out: ReadableBuffer | None, data_in: memoryview | None
) -> tuple[int, ctypes.Array[ctypes.c_char] | ctypes.c_char, int]:
    """(direction, something that lies at the data's address and keeps it there, its length)."""
    if data_in is not None and data_in.nbytes:
        return library.XFER_READ, ctypes.c_char.from_buffer(data_in), data_in.nbytes
    view = memoryview(data_out or b"")
    if not view.nbytes:
        return library.XFER_NONE, ctypes.c_char(), 0
    if view.readonly:  # ctypes gives no address of such memory
        return library.XFER_WRITE, (ctypes.c_char * view.nbytes).from_buffer_copy(view), view.nbytes
    return library.XFER_WRITE, ctypes.c_char.from_buffer(view), view.nbytes
