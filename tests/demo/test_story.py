"""The demo itself: all seven steps on the real thing, within its time, and nothing left behind."""

import re
import subprocess
import sys
from pathlib import Path

from demo import traces

ROOT = Path(__file__).resolve().parents[2]
DEMO_SECONDS = 290.0


def test_the_whole_story(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "demo.run", "--dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEMO_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^VERDICT: all 7 steps did what they show, in \d+ s", done.stdout, re.MULTILINE)
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []
    assert traces.mounts(tmp_path) == []
    assert traces.loops(tmp_path) == []
