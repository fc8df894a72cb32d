"""One bit flipped in each of many random metadata blocks, one at a time.

A mount reads everything and writes a little: what it gives is right, or EIO with the block's address in the log. Then
`check --repair` mends the block, and a mount gives everything that the first one did not change.
"""

from __future__ import annotations

import logging
import os
import random
from collections import Counter, defaultdict
from collections.abc import Iterator

import pytest

from tests.check.fastclock import FastClock
from tests.damage.ramscene import BLOCK, CLOCK_RATE, CONTEXT, EIO, Host, RamScene, errno_of, flip, make_ram_scene
from vmfs.check import repair_volume
from vmfs.devices import Device
from vmfs.errors import VmfsError
from vmfs.fuse.contract import ROOT_ID
from vmfs.volume import open_volume

BLOCKS = int(os.environ.get("AZEKURA_ROUNDS", "200"))
BITS = 4096 * 8
ALLOWED = {"", EIO, "EBUSY", "EROFS"}
WRITTEN_NAMES = ("/new", "/moved")


@pytest.fixture(autouse=True, scope="module")
def _need_root() -> None:
    """Nothing is mounted in the kernel here."""


@pytest.fixture(scope="module")
def ram() -> RamScene:
    return make_ram_scene()


class Log(logging.Handler):
    """What a trial logs, kept apart from the test's own records."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        assert record.exc_info is None, record.getMessage()  # a traceback
        self.lines.append(record.getMessage())


@pytest.fixture
def log() -> Iterator[Log]:
    handler = Log()
    logger = logging.getLogger("vmfs")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


def use(device: Device) -> tuple[str, dict[str, str]]:
    """Mount, read everything, write a little, unmount: (what it came to, what was read)."""
    try:
        host = Host(device)
    except VmfsError as error:
        return f"no mount: {error}", {}
    found = host.contents()
    problems = [write_a_little(host), host.end()]
    return "; ".join(p for p in problems if p), found


def write_a_little(host: Host) -> str:
    """Create, write, rename, remove. "" or the errno's name of what failed."""
    try:
        host.write(ROOT_ID, "new", {0: b"n" * BLOCK, 3 * BLOCK: b"m" * 100}, sync=True)
        host.write(ROOT_ID, "gone", {0: b"g" * BLOCK})
        host.fs.rename(CONTEXT, ROOT_ID, b"gone", ROOT_ID, b"moved", 0)
        host.fs.unlink(CONTEXT, ROOT_ID, b"moved")
    except (VmfsError, OSError) as error:
        return errno_of(error)
    return ""


def judge(found: dict[str, str], wanted: dict[str, str], where: str) -> int:
    """Everything is right or EIO. Returns how many are EIO. A directory that is EIO hides what lies in it."""
    hidden = tuple(name.rstrip("/") + "/" for name, value in found.items() if value == EIO)
    bad = 0
    for name, value in wanted.items():
        if name not in found:
            assert name.startswith(hidden), f"{where}: {name} is not there"
        elif found[name] != value:
            assert found[name] == EIO, f"{where}: {name} is {found[name]}, not {value}"
            bad += 1
    for name in found.keys() - wanted.keys():
        # A directory's inode that cannot be read is met as a name.
        assert found[name] == EIO, f"{where}: {name} was not there before"
        assert name + "/" in wanted, f"{where}: {name} was not there before"
        bad += 1
    return bad


def without_new(found: dict[str, str]) -> dict[str, str]:
    """What the trial itself has left does not count, nor does the root's list of names."""
    return {n: v for n, v in found.items() if n not in WRITTEN_NAMES and n != "/" and not n.startswith("/lost+found")}


def trial(ram: RamScene, log: Log, kind: str, address: int, bit: int, where: str) -> list[str]:
    """One flipped bit, from the mount to the repair. Returns the outcomes."""
    log.lines.clear()
    device = ram.copy()
    flip(device, address, bit)
    problem, found = use(device)
    outcomes = []
    assert problem in ALLOWED or " " in problem, where
    eio = judge(found, ram.contents, where) if found else 0
    if eio or problem:
        assert any(f"{address:#x}" in text for text in [*log.lines, problem]), (where, problem, log.lines)
        outcomes.append("EIO, said where" if eio else "write EIO, said where" if found else "mount refused, said where")
    else:
        outcomes.append("no effect")
    done = repair_volume(open_volume([device]), clock=FastClock(CLOCK_RATE), rng=random.Random(1))
    assert done.exit_code in (0, 1), (where, [f.message for f in done.left.findings], done.problem)
    outcomes.append("repaired" if done.exit_code else "nothing to repair")
    if done.exit_code:
        problem, found = use(device)
        assert not problem, (where, problem)
        wanted = {n: v for n, v in ram.contents.items() if n != "/"}
        assert without_new(found) == wanted, where
    return outcomes


@pytest.mark.expected_log("volume address 0x|removing|lease|heartbeat")
def test_one_bit_in_each_of_many_blocks(ram: RamScene, log: Log) -> None:
    seed = int(os.environ.get("AZEKURA_SEED", random.randrange(1 << 32)))
    print(f"AZEKURA_SEED={seed}")
    rng = random.Random(seed)
    kinds = sorted(ram.blocks)
    table: dict[str, Counter[str]] = defaultdict(Counter)
    for number in range(BLOCKS):
        kind = kinds[number % len(kinds)]
        address, bit = rng.choice(ram.blocks[kind]), rng.randrange(BITS)
        where = f"block {number}: bit {bit} of the {kind} at {address:#x} (AZEKURA_SEED={seed})"
        table[kind].update([" / ".join(trial(ram, log, kind, address, bit, where))])
    for kind in kinds:
        print(f"{kind:16} {sum(table[kind].values()):4}  " + ", ".join(f"{n} {o}" for o, n in table[kind].items()))


@pytest.mark.expected_log("volume address 0x|removing|extent 255|lost|not there")
def test_a_lost_part_of_a_map_fails_for_ever_and_the_rest_is_kept(ram: RamScene) -> None:
    """A ruined map node: reads of what it led to are EIO before and after the repair, and the file can be removed."""
    device = ram.copy()
    address = ram.blocks["map node"][0]
    device.write(address + 512, random.Random(1).randbytes(512))
    first = repair_volume(open_volume([device]), clock=FastClock(CLOCK_RATE), rng=random.Random(1))
    assert first.exit_code == 1, first.left.findings
    assert any("lost earlier" in note for note in first.left.notes)
    _, found = use(device)
    lost = [name for name, value in ram.contents.items() if name in found and found[name] != value and name != "/"]
    assert lost
    assert all(found[name] == EIO for name in lost)
    host = Host(device)
    for name in lost:
        host.fs.unlink(CONTEXT, ROOT_ID, name[1:].encode())
    host.end()
    repair_volume(open_volume([device]), clock=FastClock(CLOCK_RATE), rng=random.Random(1))
    again = repair_volume(open_volume([device]), clock=FastClock(CLOCK_RATE), rng=random.Random(1))
    assert (again.exit_code, again.left.counts.lost_blocks) == (0, 0), again.left.notes
