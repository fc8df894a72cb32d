"""Figures as tables, on the terminal and in docs/benchmarks.md.

The document is put together from sections, each kept by one benchmark between two marks of its name:

    <!-- begin NAME -->  ...  <!-- end NAME -->

so that a benchmark that runs alone replaces its own figures only.
"""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
_HEAD = """# Benchmarks

`make bench` measures all of this anew, and writes this page; a machine that does something else meanwhile shows in the
figures. Ratios compare two measurements that were made in turn in one run. Absolute figures are this machine's alone.
"""


@dataclass(frozen=True, slots=True)
class Table:
    """A titled table; `notes` stand above it."""

    title: str
    notes: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """For the document: the first column left-aligned, the others right-aligned."""
        lines = [
            f"### {self.title}",
            "",
            self.notes,
            "",
            "| " + " | ".join(self.head) + " |",
            "|---" + "|---:" * (len(self.head) - 1) + "|",
            *("| " + " | ".join(row) + " |" for row in self.rows),
        ]
        return "\n".join(lines)

    def text(self) -> str:
        """For the terminal."""
        table = [self.head, *self.rows]
        widths = [max(len(row[i]) for row in table) for i in range(len(self.head))]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
            for row in table
        ]
        return "\n".join([self.title, *lines])


def machine() -> str:
    """One sentence about what the figures were measured on."""
    model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    cores = len(os.sched_getaffinity(0))
    return (
        f"{cores} cores ({model[1] if model else platform.machine()}), {memory_gib:.0f} GiB of memory, "
        f"Linux {platform.release().split('-')[0]}, Python {platform.python_version()}"
    )


def write_section(name: str, title: str, command: str, tables: Sequence[Table], document: Path = DOCUMENT) -> None:
    """Replace one benchmark's section of the document, or add it at the end."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    load = os.getloadavg()[1]
    facts = f"`{command}`, {time.strftime('%Y-%m-%d')}; {machine()}; load average over 5 minutes {load:.1f}."
    body = "\n\n".join([begin, f"## {title}", facts, *(t.markdown() for t in tables), end])
    text = document.read_text() if document.exists() else _HEAD
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if pattern.search(text):
        text = pattern.sub(lambda _: body, text)
    else:
        text = f"{text.rstrip()}\n\n{body}\n"
    document.write_text(text)
