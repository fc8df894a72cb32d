"""A mount's process, as the supervisor starts it: the first one mounts, the later ones take over."""

from __future__ import annotations

import functools
import json
import logging
import os
from typing import Final

from vmfs.control.contract import MountOptions
from vmfs.control.records import from_json
from vmfs.core.mounting import serve
from vmfs.daemon import serve_and_report, tell
from vmfs.estate.link import VARIABLE, Link
from vmfs.mountlog import MountLog
from vmfs.supervisor.memory import SPARED, lock_memory, spare

NOBODY: Final = -1


def main() -> None:
    """Serve the mount until it is unmounted."""
    given = json.loads(os.environ[VARIABLE])
    job, report = int(given["job"]), int(given["report"])
    described = json.loads(os.pread(job, os.fstat(job).st_size, 0))
    os.close(job)
    if report != NOBODY:
        os.set_inheritable(report, False)
        tell(report, {"pid": os.getpid()})
    link = Link.inherited()
    lock_memory()
    spare(SPARED)
    options = from_json(MountOptions, described["options"])
    code = 1
    log = MountLog(described["log"], options.log_format)
    try:
        code = serve_and_report(options, functools.partial(serve, link=link), log, report)
    finally:
        logging.shutdown()
        os._exit(code)  # without waiting for threads that may hang in the storage


if __name__ == "__main__":
    main()
