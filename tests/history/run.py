"""Hosts under load and faults for a time; then all that was recorded is judged.

    python -m tests.history.run apart --hosts 4 --seconds 600      # machines of their own, a file as LUN, no fencing
    python -m tests.history.run machine --hosts 4                  # processes of one machine: stopped ones are killed
    python -m tests.history.run paxos --hosts 4                    # as apart, with Disk-Paxos registers
    python -m tests.history.run lun --hosts 3                      # Linux LIO in a guest: reservations, lost paths
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.history.clients import FILE_PAGES, Site
from tests.history.disks import nothing_lost, one_writer
from tests.history.hosts import Host, Setting
from tests.history.names import Group
from tests.history.nemesis import Nemesis
from tests.history.records import History
from tests.luns.datastore import LunDatastore
from tests.luns.lun import Lun
from tests.vmfs.datastore import Datastore

MODES: Final = ("apart", "machine", "paxos", "lun")
# What hosts may say while such things are done to them. Never a traceback.
_EXPECTED: Final = (
    r"recovered|lease|heartbeat|fenced|taken for dead|is locked by host|killing it|silent",
    r"a connection is lost|its process (was killed|ended with)|may have had inode|answer",
)


@dataclass(slots=True)
class Report:
    """What a run was like."""

    history: History
    problems: list[str]
    fencing: str
    counts: dict[str, int] = field(default_factory=dict)

    def text(self) -> str:
        """For people."""
        lines = [f"fencing: {self.fencing}"]
        lines += [f"{number:8} {what}" for what, number in sorted(self.history.counts.items())]
        for name, only in (("all", False), ("undisturbed", True)):
            times = [t.seconds for t in self.history.takeovers if t.undisturbed or not only]
            if times:
                lines.append(
                    f"from death to another host's lock, {name}: {len(times)}, "
                    f"median {statistics.median(times):.2f} s, longest {max(times):.2f} s"
                )
        return "\n".join([*lines, f"problems: {len(self.problems)}", *self.problems[:20]])


def judge(history: History) -> Iterator[str]:
    """Everything that the history shows to be wrong."""
    yield from history.problems
    yield from one_writer(history.tenures)
    yield from nothing_lost(history.tenures, history.readings, FILE_PAGES)
    for group, ops in sorted(history.names.items()):
        for problem in Group(ops, history.over).problems():
            yield f"{group}: {problem}"


@contextmanager
def _volume(mode: str, folder: Path, lease_s: float, lun: Lun | None) -> Iterator[Datastore]:
    options = ("--lease", f"{lease_s:g}")
    if lun is not None:
        datastore: Datastore = LunDatastore(folder, lun, *options)
    else:
        more = ("--lock-method", "paxos") if mode == "paxos" else ()
        datastore = Datastore(folder, "1G", *options, *more, quick=False)
    try:
        yield datastore
    finally:
        datastore.close()


def run(
    mode: str, folder: Path, seed: int, *, hosts: int, seconds: float, lease_s: float, lun: Lun | None = None
) -> Report:
    """Mount that many hosts, let the nemesis loose for the time, judge everything, check the volume."""
    history = History()
    site = Site(history, files=hosts + 2)
    with ExitStack() as stack:
        # Relays end last: a mount that has lost its path cannot be put away in order.
        relays = [None if lun is None else stack.enter_context(lun.relay()) for _ in range(hosts)]
        datastore = stack.enter_context(_volume(mode, folder, lease_s, lun))
        for pattern in _EXPECTED:
            datastore.expect(pattern)
        setting = Setting(
            lease_s, lease_s * (31 / 32 if mode == "lun" else 1.25), 2, apart=mode != "machine",
            fenced=mode in ("machine", "lun"), one_at_a_time=mode == "lun",
            device_by=None if lun is None else lambda relay: lun.url_by(relay.portal),
        )  # fmt: skip
        made = [Host(datastore, site, setting, f"esx{n}", f"{seed}/{n}", relays[n]) for n in range(hosts)]
        made[0].up(start=False)
        fencing = made[0].fencing()
        site.prepare(made[0].root)
        made[0].client.start()
        for host in made[1:]:
            host.up()
        Nemesis(made, setting, history, seed).run(seconds)
        for host in made:
            host.down()
        made[0].up(start=False)
        for host in made[1:]:
            host.client.recovered()
        made[0].client.judge_all()
        made[0].down()
        problems = [*judge(history), *datastore.problems()]
        try:
            datastore.check()
        except AssertionError as error:
            problems.append(str(error))
        return Report(history, problems, fencing)


def main() -> None:
    """The measurement; see the module's head."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("--hosts", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--lease", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=int(os.environ.get("AZEKURA_SEED", random.getrandbits(31))))
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="azekura-history-") as name, ExitStack() as stack:
        folder = Path(name)
        lun = None
        if given.mode == "lun":
            from tests.luns.array import LioArray

            (folder / "array").mkdir()
            array = LioArray(folder / "array")
            stack.callback(array.close)
            lun = array.lun(0)
            lun.empty()
        report = run(
            given.mode, folder, given.seed, hosts=given.hosts, seconds=given.seconds, lease_s=given.lease, lun=lun
        )
        print(report.text())


if __name__ == "__main__":
    main()
