"""What is mounted on this machine: the kernel's list of mounts, joined with what each mount's process says of itself.

Nothing is kept in a file of ours that could be out of date.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Final

from vmfs.client import Mount
from vmfs.control.contract import VolumeInfo
from vmfs.control.errors import ControlError, ControlForbidden, MountDead
from vmfs.errors import VmfsError
from vmfs.fuse.mount import FSTYPE, list_mounts

ASK_SECONDS: Final = 5.0  # a stopped process must not hang the list of the others

STATE_DEAD: Final = "dead (umount it)"
STATE_SILENT: Final = "not answering"
STATE_PRIVATE: Final = "known to root only"


@dataclass(frozen=True, slots=True)
class MountedVolume:
    """One mount. `info` is None when its process did not give it, and `problem` says why."""

    mountpoint: str
    label: str
    state: str
    """The mount's own word, or STATE_DEAD, STATE_PRIVATE, or STATE_SILENT."""
    info: VolumeInfo | None
    problem: str | None = None


def mounted_volumes(*, ask_seconds: float = ASK_SECONDS) -> list[MountedVolume]:
    """All volumes mounted in this mount namespace, in the order of mounting. All are asked at the same time."""
    asked = [_Asked(m.target, m.source.removeprefix("vmfs:"), ask_seconds) for m in list_mounts() if m.fstype == FSTYPE]
    return [a.result() for a in asked]


def ask_mount(mountpoint: str, label: str, *, ask_seconds: float = ASK_SECONDS) -> MountedVolume:
    """One mount, known to be one of ours. Returns within `ask_seconds`, whatever state its process is in."""
    return _Asked(mountpoint, label, ask_seconds).result()


class _Asked:
    """A question to one mount, on a thread of its own: a system call on a stuck mount cannot be given a time limit.

    The thread is left behind when it is stuck; it ends with the mount.
    """

    def __init__(self, mountpoint: str, label: str, ask_seconds: float) -> None:
        self._mountpoint = mountpoint
        self._label = label
        self._ask_seconds = ask_seconds
        self._found: MountedVolume | None = None
        self._thread = threading.Thread(target=self._ask, name=f"ask {mountpoint}", daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        try:
            info = Mount.for_path(self._mountpoint, answer_seconds=self._ask_seconds).info()
        except MountDead as error:
            self._found = self._without(STATE_DEAD, error)
        except ControlForbidden as error:
            self._found = self._without(STATE_PRIVATE, error)
        except VmfsError as error:
            self._found = self._without(STATE_SILENT, error)
        else:
            self._found = MountedVolume(self._mountpoint, info.volume.label, info.mount.state, info)

    def _without(self, state: str, error: VmfsError) -> MountedVolume:
        return MountedVolume(self._mountpoint, self._label, state, None, str(error))

    def result(self) -> MountedVolume:
        self._thread.join(self._ask_seconds)
        if self._found is not None:
            return self._found
        return self._without(STATE_SILENT, ControlError(f"no answer within {self._ask_seconds:g} s"))
