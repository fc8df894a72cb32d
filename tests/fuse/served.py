"""A RamFs mounted for real, served by this process's own threads.

A test must not touch a mapping of a served file itself: a page fault keeps the interpreter's lock, and the
threads that would answer it need that. It starts a program for it.
"""

from collections.abc import Callable
from pathlib import Path

from tests.fuse.ramfs import RamFs
from vmfs.fuse.errors import MountBusy, NotMounted
from vmfs.fuse.mount import MountOptions, mount, unmount
from vmfs.fuse.session import Session

END_TIMEOUT_S = 10.0


class Served:
    """The mount at `path` of `fs`; `one / "name"` is a path in it."""

    def __init__(self, path: Path, fs: RamFs, mask: int = 0, options: MountOptions | None = None) -> None:
        self.path = path
        self.fs = fs
        self.session = Session(mount(str(path), "ram", options), fs, fs, mask=mask, name="ram")
        self.negotiated = self.session.start()

    def __truediv__(self, name: str) -> str:
        return str(self.path / name)

    def end(self) -> None:
        try:
            unmount(str(self.path))
        except NotMounted:
            pass
        except MountBusy:
            unmount(str(self.path), lazy=True, force=True)
            raise
        finally:
            assert self.session.wait(END_TIMEOUT_S), "the session did not end"


Serve = Callable[..., Served]
