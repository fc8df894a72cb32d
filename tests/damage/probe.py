"""Reads a mounted volume in a process of its own, so that a call that hangs hangs no test; says what each call gave.

    python probe.py ROOT PATH...   ->  {"PATH": digest, "PATH": "EIO", ...}

A name that ends in a slash is listed; others are read whole. `probe` runs it with a time limit.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

LIMIT_SECONDS = 30.0  # for all of a volume's calls together: each is bounded, and far below


def _outcome(path: str) -> str:
    try:
        if path.endswith("/"):
            return f"{len(os.listdir(path))} names"
        if os.path.islink(path):
            return os.readlink(path)
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def probe(root: Path, names: Iterable[str], seconds: float = LIMIT_SECONDS) -> dict[str, str]:
    """What reading each name gives: a digest, a link's target, "N names", or an errno's name."""
    command = [sys.executable, __file__, str(root), *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    root = sys.argv[1]
    print(json.dumps({name: _outcome(os.path.join(root, name)) for name in sys.argv[2:]}))
