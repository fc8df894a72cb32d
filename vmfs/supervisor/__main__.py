"""The supervisor's process. Started by `vmfs.supervisor.launch` with the variable AZEKURA_SUPERVISOR."""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import Final

from vmfs.estate.memory import create_memory
from vmfs.logfields import about
from vmfs.mountlog import MountLog
from vmfs.supervisor.keeper import Keeper
from vmfs.supervisor.memory import SPARED_FIRST, lock_memory, spare

VARIABLE: Final = "AZEKURA_SUPERVISOR"


def main() -> int:
    """Supervise one mount until it is over."""
    given = json.loads(os.environ.pop(VARIABLE))
    job, report = int(given["job"]), int(given["report"])
    for fd in (job, report):
        os.set_inheritable(fd, False)
    described = json.loads(os.pread(job, os.fstat(job).st_size, 0))
    options = described["options"]
    MountLog(described["log"], options["log_format"]).start(logging.INFO, shared=True)
    about(mountpoint=options["mountpoint"], host=options["host"])
    lock_memory()
    spare(SPARED_FIRST)
    return Keeper(create_memory(), job, report, options["mountpoint"]).run()


if __name__ == "__main__":
    sys.exit(main())
