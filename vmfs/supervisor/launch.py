"""Starting a mount under a supervisor: what `vmfsctl mount` does unless it is told otherwise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from vmfs.control.contract import MountOptions
from vmfs.control.records import to_json
from vmfs.daemon import await_report
from vmfs.mountlog import MountLog

VARIABLE: Final = "AZEKURA_SUPERVISOR"
_PACKAGES: Final = str(Path(__file__).resolve().parents[2])


def run_supervised(options: MountOptions, where: str) -> tuple[int, int]:
    """Start a supervisor, and with it the mount's process; (that one's pid, the supervisor's) when the mount serves.

    `where`: the log, as MountLog takes it. Raises MountDidNotStart, and LogUnusable. Interrupted (KeyboardInterrupt),
    it tells the mount's process to give up.
    """
    log = MountLog(where, options.log_format)
    log.check()
    job = os.memfd_create("azekura-mount", os.MFD_CLOEXEC)
    os.write(job, json.dumps({"options": to_json(options), "log": where}).encode())
    reading, writing = os.pipe2(os.O_CLOEXEC)
    given = json.dumps({"job": job, "report": writing})
    # Both processes run this very installation, wherever they are started from.
    path = os.pathsep.join([_PACKAGES, *filter(None, [os.environ.get("PYTHONPATH")])])
    try:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "vmfs.supervisor", options.mountpoint],  # the name is for people who look at ps
            pass_fds=(job, writing), cwd="/", umask=0o022, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env=os.environ | {VARIABLE: given, "PYTHONPATH": path},
        )  # fmt: skip
        os.close(writing)
        pid = await_report(reading, log)
    finally:
        os.close(reading)
        os.close(job)
    supervisor.returncode = 0  # it outlives this process: no complaint that nobody waited for it
    return pid, supervisor.pid
