"""Every row of docs/consistency.md names the test that proves it; the test is there."""

from __future__ import annotations

import re
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_NAME = re.compile(r"`(?:(\w+)/)?(test_\w+)`")


def test_every_row_has_a_test_that_exists() -> None:
    text = (_ROOT / "docs" / "consistency.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| what |")]
    rows = [line for line in rows if not line.startswith("| operation |")]
    assert len(rows) > 25
    for row in rows:
        assert _NAME.search(row) or "| the same" in row, f"who proves this? {row}"
    there = {
        (path.parent.name, name)
        for path in (_ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)\(", path.read_text(), re.MULTILINE)
    }
    for folder, name in _NAME.findall(text):
        assert (folder or "consistency", name) in there, f"{folder or 'consistency'}: {name}"
