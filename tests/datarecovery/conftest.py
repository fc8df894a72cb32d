"""Fixtures of the tests of Data Recovery: a store, and a way to run the command line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from datarecovery.store.store import Store
from tests.datarecovery.disks import make_store

TOOL = [sys.executable, "-c", "from datarecovery.cli import main; main()"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path / "store")


Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run() -> Run:
    """Run the command line; `check` is the exit code that must come out."""

    def runner(*arguments: object, check: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*TOOL, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == check, (done.returncode, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done

    return runner
