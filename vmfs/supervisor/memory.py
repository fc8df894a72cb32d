"""Memory that stays where it is, and a process that the kernel kills last when there is none left.

A process that serves its own machine's storage must not wait for that storage: a page of it that was written to a swap
file on a mounted volume would be read back by itself.
"""

from __future__ import annotations

import ctypes
import logging
import os
from typing import Final

MCL_CURRENT: Final = 1
MCL_FUTURE: Final = 2
MCL_ONFAULT: Final = 4
SPARED_FIRST: Final = -1000  # of oom_score_adj: never
SPARED: Final = -900  # after everybody else, and before the supervisor, which would start it again

log = logging.getLogger(__name__)


def lock_memory() -> bool:
    """Keep in memory what is there and whatever is used later (stacks and buffers as far as they are used).

    False, with a line in the log, where this process may not (CAP_IPC_LOCK, RLIMIT_MEMLOCK).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) == 0:
        return True
    log.info("memory is not locked: %s", os.strerror(ctypes.get_errno()))
    return False


def spare(score: int) -> bool:
    """Set this process's oom_score_adj. False, with a line in the log, where it may not (CAP_SYS_RESOURCE)."""
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as adjustment:
            adjustment.write(str(score))
    except OSError as error:
        log.info("oom_score_adj stays as it is: %s", error.strerror)
        return False
    return True
