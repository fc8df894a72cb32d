"""Runs the same calls on a volume and on ext4 at the same time, and names what differs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
BATTERY_SECONDS = 240
SHOWN = 40  # differences; the first tell enough


def _start(module: str, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", module, *arguments, str(folder)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)


def run(module: str, folder: Path, *arguments: str) -> str:
    """What the module prints."""
    with _start(module, folder, *arguments) as process:
        out = process.communicate(timeout=BATTERY_SECONDS)[0]
    assert process.returncode == 0
    return out


def compared(module: str, ours: Path, ext4: Path, *arguments: str, expected: Mapping[str, str]) -> int:
    """Run the module in both folders; the number of calls.

    `expected`: part of a case's name -> why its two results differ. All others must not, and these must.
    """
    both = [_start(module, folder, *arguments) for folder in (ours, ext4)]
    outputs = [process.communicate(timeout=BATTERY_SECONDS)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    here, theirs = (json.loads(out) for out in outputs)
    assert [case[0] for case in here] == [case[0] for case in theirs]
    differing = [(mine, other) for mine, other in zip(here, theirs, strict=True) if mine != other]
    surprising = [pair for pair in differing if not any(part in pair[0][0] for part in expected)]
    shown = [f"{m[0]}:\n  here {m[1:]}\n  ext4 {o[1:]}" for m, o in surprising[:SHOWN]]
    print(f"{len(here)} calls, {len(differing)} differ, {len(surprising)} of them without a reason")
    assert not surprising, "\n".join(shown)
    unused = [part for part in expected if not any(part in mine[0] for mine, _ in differing)]
    assert not unused, "these do not differ any more"
    return len(here)
