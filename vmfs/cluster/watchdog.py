"""A watchdog device that ends this machine when its lease is gone (Linux watchdog-api.rst).

Opened, it counts down; each keep-alive starts it anew; at zero the machine is reset, whatever its programs do. It is
fed only while the lease is valid, with a timeout so short that the machine is gone before another host may break it
(`Timers.watchdog_timeout_us`): a paused process or machine never gets to write late. The price: a lease that runs out
because the storage hangs resets the machine too. At `disarm` the "magic close" stops it; a process that is killed
leaves it running, and the machine is reset unless another mount opens it in time.
"""

from __future__ import annotations

import fcntl
import logging
import os
import struct
import threading
from collections.abc import Callable
from typing import Final

from vmfs.clock import Clock
from vmfs.errors import VmfsError, WatchdogUnusable

# linux/watchdog.h: _IOWR('W', 6, int), _IOR('W', 7, int), _IOR('W', 5, int)
WDIOC_SETTIMEOUT: Final = 0xC0045706
WDIOC_GETTIMEOUT: Final = 0x80045707
WDIOC_KEEPALIVE: Final = 0x80045705
MAGIC_CLOSE: Final = b"V"
_FEEDS_PER_TIMEOUT: Final = 4
_US_PER_S: Final = 1_000_000
_log = logging.getLogger(__name__)

IoctlInt = Callable[[int, int, int], int]
"""(descriptor, request, value) -> the value that the kernel answered."""


def ioctl_int(fd: int, request: int, value: int) -> int:
    """An ioctl of one int, in and out. OSError as the kernel says."""
    answer = fcntl.ioctl(fd, request, struct.pack("i", value))
    return int(struct.unpack("i", answer)[0])


class Watchdog:
    """One watchdog device. `arm` starts the thread "vmfs-watchdog", which ends at `disarm`.

    The thread alone feeds; `_stopping` is all that is shared.
    """

    def __init__(self, path: str, volume_name: str, clock: Clock, *, ioctl: IoctlInt = ioctl_int) -> None:
        self._path = path
        self._volume = volume_name
        self._clock = clock
        self._ioctl = ioctl
        self._fd = -1
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def path(self) -> str:
        """The device."""
        return self._path

    def arm(self, timeout_us: int, lease_valid: Callable[[float], bool]) -> None:
        """Start the count-down, and feed it from now on while `lease_valid(Clock.now())`.

        Raises WatchdogUnusable: it cannot be opened, or does not take this timeout; it is not counting then.
        """
        seconds = timeout_us // _US_PER_S
        try:
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
        except OSError as error:
            raise WatchdogUnusable(self._path, f"cannot be opened: {error.strerror}") from error
        try:
            taken = self._ioctl(self._fd, WDIOC_SETTIMEOUT, seconds)
            if not 0 < taken <= seconds:
                raise WatchdogUnusable(self._path, f"was asked for a timeout of {seconds} s and has {taken} s")
            self._ioctl(self._fd, WDIOC_KEEPALIVE, 0)
        except (OSError, VmfsError) as error:
            self._close()
            if isinstance(error, VmfsError):
                raise
            raise WatchdogUnusable(self._path, f"does not take a timeout of {seconds} s: {error.strerror}") from error
        self._thread = threading.Thread(
            target=self._feed, args=(seconds / _FEEDS_PER_TIMEOUT, lease_valid), name="vmfs-watchdog", daemon=True
        )
        self._thread.start()
        _log.info("%s: watchdog %s is armed, with a timeout of %d s", self._volume, self._path, seconds)

    def disarm(self) -> None:
        """Stop feeding and counting: this mount has left in order. Does nothing when it is not armed."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._fd >= 0:
            self._close()
            _log.info("%s: watchdog %s disarmed", self._volume, self._path)

    def _feed(self, every_s: float, lease_valid: Callable[[float], bool]) -> None:
        told = False
        while not self._clock.wait(self._stopping, every_s):
            if lease_valid(self._clock.now()):
                told = False
                try:
                    self._ioctl(self._fd, WDIOC_KEEPALIVE, 0)
                except OSError as error:
                    _log.error("%s: watchdog %s was not fed: %s", self._volume, self._path, error.strerror)
            elif not told:
                told = True
                _log.error("%s: no lease: watchdog %s is not fed, it will reset this machine", self._volume, self._path)

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        try:
            os.write(fd, MAGIC_CLOSE)
        except OSError as error:
            _log.error("%s: watchdog %s does not stop: %s", self._volume, self._path, error.strerror)
        os.close(fd)
