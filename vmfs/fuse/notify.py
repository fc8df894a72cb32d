"""Messages to the kernel that it did not ask for: drop what is cached of an inode, or of a name.

Each call returns when the kernel has done it. It may wait for locks that a request under way holds (the
page's, the directory's): call it on a thread of your own, holding no lock that answering a request takes, and
never from within an `Operations` or `DataPlane` call on the same inode or directory.
"""

from __future__ import annotations

import errno
import os
import threading

from vmfs.fuse.layouts import NOTIFY_INVAL_ENTRY_OUT, NOTIFY_INVAL_INODE_OUT, OUT_HEADER
from vmfs.fuse.protocol import NOTIFY_INVAL_ENTRY, NOTIFY_INVAL_INODE, NOTIFY_RESEND

_NOTHING_CACHED = (errno.ENOENT,)
_GONE = (errno.ENODEV, errno.ECONNABORTED, errno.ENOTCONN)


class Notifier:
    """Sends invalidations on a session's descriptor, as long as that is open.

    `_lock` guards `_fd` and `_busy`; it is not held while the kernel works, since one message may wait for
    what another one does.
    """

    def __init__(self, fd: int) -> None:
        self._lock = threading.Lock()
        self._quiet = threading.Condition(self._lock)
        self._fd: int | None = fd
        self._busy = 0

    def inval_inode(self, nodeid: int, offset: int = 0, length: int = 0) -> bool:
        """Forget the attributes of an inode, and its cached pages in [offset, offset + length), to the end
        when `length` is 0. With `offset` -1 only the attributes.

        True when it was cached, False when not, or when the mount is gone. Raises OSError for other failures.
        """
        return self._send(NOTIFY_INVAL_INODE, NOTIFY_INVAL_INODE_OUT.pack(nodeid, offset, length))

    def inval_entry(self, parent: int, name: bytes) -> bool:
        """Forget a name in a directory (found or not found). Returns and raises as `inval_inode`."""
        head = NOTIFY_INVAL_ENTRY_OUT.pack(parent, len(name), 0)
        return self._send(NOTIFY_INVAL_ENTRY, head + name + b"\0")

    def resend(self) -> None:
        """Have the kernel send every request again that was read and not answered (Linux 6.9 and later).

        Only when whoever read them is dead. Raises OSError: EINVAL from an older kernel.
        """
        self._send(NOTIFY_RESEND, b"")

    def close(self) -> None:
        """Wait for messages under way, refuse later ones. The descriptor may be closed afterwards."""
        with self._lock:
            self._fd = None
            while self._busy:
                self._quiet.wait()

    def _send(self, code: int, message: bytes) -> bool:
        with self._lock:
            if self._fd is None:
                return False
            fd = self._fd
            self._busy += 1
        try:
            os.write(fd, OUT_HEADER.pack(OUT_HEADER.size + len(message), code, 0) + message)
            return True
        except OSError as error:
            if error.errno in _NOTHING_CACHED or error.errno in _GONE:
                return False
            raise
        finally:
            with self._lock:
                self._busy -= 1
                self._quiet.notify_all()
