"""What the checker says: findings, and the report that collects them. The kinds are `vmfs.check.kinds`'s."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from vmfs.check.kinds import MEANING, REPAIRS, WARNINGS, Kind, Severity

__all__ = ["Counts", "Finding", "Kind", "Report", "Severity"]

MAX_FINDINGS_PER_KIND: Final = 100  # a ruined volume has millions; the rest is counted

# The exit codes of fsck(8), which scripts and service managers know.
EXIT_CLEAN: Final = 0
EXIT_MENDED: Final = 1
EXIT_LEFT: Final = 4
EXIT_NOT_CHECKED: Final = 8


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. `address` is a volume address, `inode` an inode's number, where there is one."""

    kind: Kind
    message: str
    address: int | None = None
    inode: int | None = None
    path: str | None = None
    """A name of that inode from the volume's root, where one is known."""

    @property
    def severity(self) -> Severity:
        return Severity.WARNING if self.kind in WARNINGS else Severity.ERROR

    @property
    def meaning(self) -> str:
        """What it means for whoever uses the volume."""
        return MEANING[self.kind]

    @property
    def repair(self) -> str | None:
        """What `--repair` does about it; None: nothing."""
        return REPAIRS.get(self.kind)

    def as_dict(self) -> dict[str, Any]:
        """For JSON. Addresses are in hexadecimal, as messages have them."""
        return {
            "severity": self.severity.value,
            "kind": self.kind.value,
            "address": None if self.address is None else f"{self.address:#x}",
            "inode": self.inode,
            "path": self.path,
            "message": self.message,
            "meaning": self.meaning,
            "repair": self.repair,
        }


@dataclass(slots=True)
class Counts:
    """What was looked at."""

    groups: int = 0
    chunks: int = 0
    inodes: int = 0
    files: int = 0
    directories: int = 0
    layers: int = 0
    entries: int = 0
    data_blocks: int = 0
    journal_blocks_pending: int = 0
    void_locks: int = 0
    """Locks that dead hosts left behind: void, taken over by whoever wants them next (rule R7)."""
    lost_blocks: int = 0
    """Blocks that an earlier repair marked lost: reads of them fail."""

    def as_dict(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class Report:
    """The result of a check. Fewer than all findings are kept of a kind; `totals` counts them all."""

    volume: str
    label: str
    findings: list[Finding] = field(default_factory=list)
    totals: Counter[Kind] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    """What whoever reads the report should know and is no finding: a journal that waits for its recovery."""
    counts: Counts = field(default_factory=Counts)
    fixes: dict[int, dict[str, int]] = field(default_factory=dict)
    """By inode: fields of it that can be counted or known otherwise, and are wrong, with what they should be."""

    def add(
        self, kind: Kind, message: str, *, address: int | None = None, inode: int | None = None, **fix: int
    ) -> None:
        """Note a finding. `fix`: the inode's fields, and what they should be. All are kept, however many there are."""
        if fix and inode is not None:
            self.fixes.setdefault(inode, {}).update(fix)
        self.totals[kind] += 1
        if self.totals[kind] <= MAX_FINDINGS_PER_KIND:
            self.findings.append(Finding(kind, message, address, inode))

    def take(self, findings: Iterable[Finding]) -> None:
        """Note findings that another report has collected."""
        for finding in findings:
            self.add(finding.kind, finding.message, address=finding.address, inode=finding.inode)

    def name_paths(self, paths: dict[int, str]) -> None:
        """Put the paths of inodes into the findings."""
        self.findings = [replace(f, path=paths.get(f.inode)) if f.inode else f for f in self.findings]

    @property
    def clean(self) -> bool:
        return not self.totals

    @property
    def exit_code(self) -> int:
        """Of a check that mended nothing."""
        return EXIT_CLEAN if self.clean else EXIT_LEFT

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "volume": self.volume,
            "label": self.label,
            "clean": self.clean,
            "findings": [f.as_dict() for f in self.findings],
            "totals": {kind.value: count for kind, count in sorted(self.totals.items())},
            "notes": self.notes,
            "counts": self.counts.as_dict(),
        }
