"""The calls of libiscsi (1.19; iscsi/iscsi.h and iscsi/scsi-lowlevel.h) by ctypes.

Of its structures only the beginning of struct scsi_task is used; that it lies as expected is checked when the library
is loaded. Calls that cannot block are made without giving up Python's lock, which would cost more than they take.

The synchronous calls are not used: they wait without a limit, and one that ends by an error leaves a request behind
that refers to its stack.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any, Final

from vmfs.errors import DeviceNotUsable

NAMES: Final = ("libiscsi.so.7", "libiscsi.so.8", "libiscsi.so.9", "libiscsi.so.10")
XFER_NONE: Final = 0
XFER_READ: Final = 1
XFER_WRITE: Final = 2
SESSION_NORMAL: Final = 2
DIGEST_NONE_CRC32C: Final = 1  # no header digest is offered first: TCP has a checksum of its own
STATUS_FROM_LIBRARY: Final = 0x0F000000  # statuses from here on are libiscsi's own: cancelled, error, timeout
RESIDUAL_UNDERFLOW: Final = 1

_POINTER = ctypes.c_void_p
_INT = ctypes.c_int
_TEXT = ctypes.c_char_p
_U32 = ctypes.c_uint32

CALLBACK = ctypes.CFUNCTYPE(None, _POINTER, _INT, _POINTER, _POINTER)
"""void (*)(context, status, command data, private data)"""


class _Sense(ctypes.Structure):
    _fields_ = (
        ("error_type", ctypes.c_ubyte),
        ("key", _INT),
        ("ascq", _INT),
        ("flags", ctypes.c_ubyte),
        ("bit_pointer", ctypes.c_ubyte),
        ("field_pointer", ctypes.c_uint16),
    )


class Task(ctypes.Structure):
    """struct scsi_task as far as `datain`, which holds the response's data segment when a command failed."""

    _fields_ = (
        ("status", _INT),
        ("cdb_size", _INT),
        ("xfer_dir", _INT),
        ("expxferlen", _INT),
        ("cdb", ctypes.c_ubyte * 16),
        ("residual_status", _INT),
        ("residual", ctypes.c_size_t),
        ("sense", _Sense),
        ("datain_bytes", _INT),
        ("datain", _POINTER),
    )


Serve = Callable[[int | None, int], int]
"""iscsi_service(context, events of poll): less than 0 when the connection has ended."""


class Library:
    """libiscsi. Contexts and tasks are opaque numbers; a context is for one thread at a time."""

    def __init__(self, name: str) -> None:
        quick = ctypes.PyDLL(name)
        slow = ctypes.CDLL(name)

        def call(library: ctypes.CDLL, symbol: str, result: Any, *arguments: Any) -> Callable[..., Any]:
            function = getattr(library, symbol)
            function.restype, function.argtypes = result, arguments
            return function  # type: ignore[no-any-return]

        self.create_context = call(slow, "iscsi_create_context", _POINTER, _TEXT)
        self.destroy_context = call(slow, "iscsi_destroy_context", _INT, _POINTER)
        self.set_log_level = call(slow, "iscsi_set_log_level", None, _POINTER, _INT)
        self.set_target_name = call(slow, "iscsi_set_targetname", _INT, _POINTER, _TEXT)
        self.set_session_type = call(slow, "iscsi_set_session_type", _INT, _POINTER, _INT)
        self.set_header_digest = call(slow, "iscsi_set_header_digest", _INT, _POINTER, _INT)
        self.set_isid_random = call(slow, "iscsi_set_isid_random", _INT, _POINTER, _U32, _U32)
        self.set_no_reconnect = call(slow, "iscsi_set_noautoreconnect", None, _POINTER, _INT)
        self.set_chap = call(slow, "iscsi_set_initiator_username_pwd", _INT, _POINTER, _TEXT, _TEXT)
        self.set_target_chap = call(slow, "iscsi_set_target_username_pwd", _INT, _POINTER, _TEXT, _TEXT)
        # Resolves the portal's name, so it may block.
        self.connect = call(slow, "iscsi_full_connect_async", _INT, _POINTER, _TEXT, _INT, CALLBACK, _POINTER)
        self.logout = call(slow, "iscsi_logout_async", _INT, _POINTER, CALLBACK, _POINTER)
        self.error = call(slow, "iscsi_get_error", _TEXT, _POINTER)
        self.descriptor = call(quick, "iscsi_get_fd", _INT, _POINTER)
        self.events = call(quick, "iscsi_which_events", _INT, _POINTER)
        # Never blocks, but copies: worth giving up the lock for what is large.
        self.serve_small = call(quick, "iscsi_service", _INT, _POINTER, _INT)
        self.serve_large = call(slow, "iscsi_service", _INT, _POINTER, _INT)
        self.command = call(
            quick, "iscsi_scsi_command_async", _INT, _POINTER, _INT, _POINTER, CALLBACK, _POINTER, _POINTER
        )
        self.create_task = call(quick, "scsi_create_task", _POINTER, _INT, _TEXT, _INT, _INT)
        self.free_task = call(quick, "scsi_free_scsi_task", None, _POINTER)
        self.add_data_in = call(quick, "scsi_task_add_data_in_buffer", _INT, _POINTER, _INT, _POINTER)
        self.add_data_out = call(quick, "scsi_task_add_data_out_buffer", _INT, _POINTER, _INT, _POINTER)
        self._check_layout(name)

    def _check_layout(self, name: str) -> None:
        """A task that is made here must show in `Task` what it was made of."""
        cdb = bytes(range(0x81, 0x91))
        made = self.create_task(len(cdb), cdb, XFER_WRITE, 0x1234567)
        task = Task.from_address(made)
        fits = (task.cdb_size, task.xfer_dir, task.expxferlen, bytes(task.cdb)) == (16, XFER_WRITE, 0x1234567, cdb)
        fits = fits and not (task.status or task.residual or task.datain_bytes or task.datain)
        self.free_task(made)
        if not fits:
            raise DeviceNotUsable(name, "its structures are not those that this program knows; report its version")


@functools.cache
def load() -> Library:
    """The library, once for the process. DeviceNotUsable when it is not installed or not usable."""
    for name in NAMES:
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return Library(name)
    raise DeviceNotUsable("iscsi://", f"needs {NAMES[0]}: install the package libiscsi7")
