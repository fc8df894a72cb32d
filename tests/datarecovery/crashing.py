"""Run as a process of its own: the command line, killed by SIGKILL at the N-th change that it makes to a file system.

    python crashing.py N ARGUMENTS...

Every function by which the store changes anything counts; the kill comes in the middle of a write (half of it done), or
right before or right after the call, as N says.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

_LOCK = threading.Lock()
_LEFT = 0


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _counted(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        global _LEFT
        with _LOCK:
            _LEFT -= 1
            mine = _LEFT
            if mine == 0:
                if name == "pwritev":
                    original(arguments[0], list(arguments[1])[:1], arguments[2])
                elif name == "pwrite":
                    original(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2], arguments[2])
                elif os.getpid() % 2:
                    original(*arguments, **options)
                _die()
        return original(*arguments, **options)

    return call


def main() -> None:
    global _LEFT
    _LEFT = int(sys.argv[1])
    for name in ("pwrite", "pwritev", "write", "fsync", "fdatasync", "rename", "unlink", "ftruncate", "link", "mkdir"):
        setattr(os, name, _counted(name, getattr(os, name)))
    from datarecovery.cli import main as command

    sys.argv = ["datarecovery", *sys.argv[2:]]
    command()


if __name__ == "__main__":
    main()
