"""The seven steps. Each does one thing that a user would, checks the outcome, and returns the figures it saw."""

import errno
import os
import shutil
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from demo.errors import CommandError, DemoError, GuestError
from demo.qemu import Machine
from demo.stage import HOSTS, Stage

GIB = 1 << 30
LUN_BYTES = 4 * GIB
DISK_BYTES = 2 * GIB
GROWN_BYTES = 3 * GIB
PAYLOAD_MIB = 24
# Enough for a first boot by emulation on a busy machine; five to ten times what it takes.
GUEST_SECONDS = 40.0
VISIBLE_SECONDS = 5.0
_RECORDS_BETWEEN = 40
_POLL_SECONDS = 0.05


@dataclass(slots=True)
class Story:
    """What later steps need to know of earlier ones."""

    stage: Stage
    machine: Machine | None = None
    points: list["Point"] = field(default_factory=list)

    def running(self) -> Machine:
        """The virtual machine, which has to be running. Raises GuestError."""
        if self.machine is None or not self.machine.is_running():
            raise GuestError("the virtual machine does not run any more")
        return self.machine


@dataclass(frozen=True, slots=True)
class Point:
    """A restore point: its id, and the last record that was on stable storage when its backup began."""

    id: str
    records: int
    read_bytes: int
    stored_bytes: int
    rung: str
    """How the backup found what it had to read."""


def share_a_volume(story: Story) -> str:
    """A sparse LUN is formatted, and mounted by two hosts at the same time."""
    stage = story.stage
    with stage.path("lun.img").open("wb") as lun:
        lun.truncate(LUN_BYTES)
    begun = time.monotonic()
    stage.commands.run("vmfsctl", "format", "--name", "ds1", "lun.img")
    formatted = time.monotonic()
    for host in HOSTS:
        stage.path(host).mkdir()
        stage.commands.run("vmfsctl", "mount", "lun.img", host, "--host", host, "--log-file", f"{host}.log")
    mounted = time.monotonic()
    hosts = stage.commands.json("vmfsctl", "hosts", "esx1")["hosts"]
    live = sorted(host["name"] for host in hosts if host["state"] == "live")
    require(live == sorted(HOSTS), f"the live hosts are {live}, not {sorted(HOSTS)}")
    return (
        f"a LUN of {size(LUN_BYTES)} that takes {size(allocated(stage, 'lun.img'))}; formatted in "
        f"{formatted - begun:.1f} s, mounted twice in {mounted - formatted:.1f} s; live hosts: {', '.join(live)}"
    )


def run_a_machine(story: Story) -> str:
    """A thin disk is made, and a Linux guest on it writes and fsyncs numbered records."""
    stage = story.stage
    stage.path("esx1/vm1").mkdir()
    stage.commands.run("vmfsctl", "disk", "create", "esx1/vm1/vm1.vmdk", "--size", "2G")
    thin_bytes = allocated(stage, "esx1/vm1/vm1-flat.vmdk")
    story.machine = machine = stage.start_machine(
        "vm1", "esx1/vm1/vm1-flat.vmdk", f"records=/dev/vda payload={PAYLOAD_MIB}"
    )
    ready = machine.wait_for(r"GUEST-READY uptime=(\S+) kernel=(\S+)", GUEST_SECONDS)
    booted = time.monotonic() - machine.started_at
    machine.wait_for(f"DISKSIZE {DISK_BYTES}", GUEST_SECONDS)
    machine.wait_for(f"PAYLOAD {PAYLOAD_MIB << 20}", GUEST_SECONDS)
    first, begun = machine.wait_for_record(1, GUEST_SECONDS), time.monotonic()
    last = machine.wait_for_record(first + _RECORDS_BETWEEN, GUEST_SECONDS)
    rate = (last - first) / (time.monotonic() - begun)
    return (
        f"Linux {ready[2]} up in {booted:.1f} s; ext4 made, {PAYLOAD_MIB} MiB written, then {rate:.0f} records a "
        f"second, each with its fsync; the disk of {size(DISK_BYTES)} took {size(thin_bytes)} when new and takes "
        f"{size(allocated(stage, 'esx1/vm1/vm1-flat.vmdk'))}"
    )


def refuse_the_other_host(story: Story) -> str:
    """The second host sees and reads the files, and cannot open the running disk for writing."""
    stage, machine = story.stage, story.running()
    seen = sorted(entry.name for entry in stage.path("esx2/vm1").iterdir())
    require(seen == ["vm1-flat.vmdk", "vm1.vmdk"], f"esx2 sees {seen}")
    flat = stage.path("esx2/vm1/vm1-flat.vmdk")
    require(flat.stat().st_size == DISK_BYTES, f"esx2 sees {flat.stat().st_size} bytes")
    with flat.open("rb") as file:
        file.seek(1080)
        require(file.read(2) == b"\x53\xef", "esx2 does not read the guest's ext4 superblock")
    try:
        os.close(os.open(flat, os.O_RDWR))
    except OSError as error:
        require(error.errno == errno.EBUSY, f"esx2's open for writing failed as {error}, not as EBUSY")
    else:
        raise DemoError("esx2 opened the running machine's disk for writing")
    try:
        stage.start_machine("vm1-again", "esx2/vm1/vm1-flat.vmdk", "records=/dev/vda").kill()
    except GuestError as error:
        require("busy" in str(error), f"QEMU on esx2 failed, but not at the lock: {error}")
    else:
        raise DemoError("the machine started a second time, on esx2")
    holders = lock_holders(stage)
    require(holders == ["esx1"], f"vmfsctl locks names {holders} as the holder")
    return (
        f"esx2 lists {' and '.join(seen)} and reads ext4's superblock; opening for writing: EBUSY, starting the "
        f"machine: refused; holder by vmfsctl locks: {holders[0]}; the guest is at record {machine.last_record()}"
    )


def back_up_twice(story: Story) -> str:
    """The running machine is backed up, goes on, and is backed up again."""
    stage, machine = story.stage, story.running()
    stage.commands.run("datarecovery", "store", "create", "store")
    for _ in range(2):
        records = machine.wait_for_record(machine.last_record() + _RECORDS_BETWEEN, GUEST_SECONDS)
        made = stage.commands.json("datarecovery", "backup", "--store", "store", "--vm", "vm1", "esx1/vm1/vm1.vmdk")
        total, rung = made["total"], made["disks"][0]["rung"]
        story.points.append(Point(made["id"], records, total["read"], total["stored"], rung))
        during = machine.last_record() - records
        stage.show(
            f"restore point {made['id']}: read {size(total['read'])}, stored {size(total['stored'])} in "
            f"{total['seconds']:.1f} s ({rung}); {records} records were safe before it, "
            f"{during} came meanwhile"
        )
    first, second = story.points
    machine.wait_for_record(machine.last_record() + 1, GUEST_SECONDS)
    require(first.read_bytes >= PAYLOAD_MIB << 20, "the first backup did not read the guest's data")
    require(second.rung == "vmfs-diff", f"the second backup was made by {second.rung}, not by the diff of two clones")
    require(second.read_bytes * 2 < first.read_bytes, "the second backup read more than half of the first")
    return (
        f"read {size(first.read_bytes)} then {size(second.read_bytes)}, stored {size(first.stored_bytes)} then "
        f"{size(second.stored_bytes)}; the guest ran on"
    )


def grow_the_disk(story: Story) -> str:
    """The disk grows under the running guest, which sees its new size."""
    stage, machine = story.stage, story.running()
    stage.commands.run("vmfsctl", "extend", "disk", "esx1/vm1/vm1.vmdk", "3G", "--yes")
    begun = time.monotonic()
    machine.resize_disk(GROWN_BYTES)
    machine.wait_for(f"DISKSIZE {GROWN_BYTES}", GUEST_SECONDS)
    seen = time.monotonic() - begun
    before = machine.last_record()
    after = machine.wait_for_record(before + 5, GUEST_SECONDS)
    return f"the guest saw {size(GROWN_BYTES)} {seen:.2f} s after QEMU was told, and went on to record {after}"


def lose_and_restore(story: Story) -> str:
    """The machine is powered off and its disk deleted; both points are restored to the other host and booted there."""
    stage, machine = story.stage, story.running()
    machine.press_power_button()
    machine.wait_for("POWEROFF", GUEST_SECONDS)
    machine.wait_ended(GUEST_SECONDS)
    written = machine.last_record()
    # With the clone that the last backup keeps there to compare with: a restore needs the store alone.
    shutil.rmtree(stage.path("esx1/vm1"))
    wait_until(lambda: not stage.path("esx2/vm1").exists(), VISIBLE_SECONDS, "esx2 still sees the deleted disk")
    listed = [point["id"] for point in stage.commands.json("datarecovery", "list", "--store", "store")]
    require(set(listed) == {point.id for point in story.points}, f"the store lists {listed}")
    machines = []
    for number, point in enumerate(story.points, 1):
        target = f"esx2/restored{number}"
        stage.commands.run("datarecovery", "restore", "--store", "store", point.id, target)
        machines.append(
            (point, stage.start_machine(f"restored{number}", f"{target}/vm1-flat.vmdk", "verify=/dev/vda"))
        )
    figures = []
    for point, restored in machines:
        restored.wait_for(f"DISKSIZE {DISK_BYTES}", GUEST_SECONDS)
        found = restored.wait_for(r"VERIFIED records=(\d+) damaged=(\d+) payload=(\w+)", GUEST_SECONDS)
        restored.wait_ended(GUEST_SECONDS)
        records, damaged, payload = int(found[1]), int(found[2]), found[3]
        require(damaged == 0, f"{point.id} has {damaged} damaged records")
        require(payload == "ok", f"{point.id}: the payload is {payload}")
        require(records >= point.records, f"{point.id} has {records} records; {point.records} were safe before it")
        figures.append(f"{point.id}: {records} records without a gap ({point.records} were safe), payload whole")
    return f"written in all: {written}; on esx2 after the restore, " + "; ".join(figures)


def check_the_volume(story: Story) -> str:
    """Both hosts unmount, and neither the volume nor the store has anything wrong."""
    commands = story.stage.commands
    verified = commands.run("datarecovery", "verify", "--store", "store").strip().splitlines()[-1]
    for host in HOSTS:
        commands.run("vmfsctl", "umount", host)
    checked = commands.run("vmfsctl", "check", "lun.img").strip().splitlines()
    return f"store: {verified}; volume: {checked[-1].strip() if checked else 'clean'}"


STEPS: tuple[tuple[str, Callable[[Story], str]], ...] = (
    ("One LUN, mounted by two hosts at the same time", share_a_volume),
    ("A virtual machine on a thin disk, on esx1", run_a_machine),
    ("esx2 sees the files and is refused the lock", refuse_the_other_host),
    ("Two backups of the running machine", back_up_twice),
    ("The disk grows while the machine runs", grow_the_disk),
    ("Disk lost; both restore points restored to esx2 and booted", lose_and_restore),
    ("Store and volume are checked", check_the_volume),
)


def lock_holders(stage: Stage) -> list[str]:
    """Who holds the lock of the running machine's disk, as esx2 sees it. Raises CommandError."""
    locks = stage.commands.json("vmfsctl", "locks", "esx2/vm1/vm1-flat.vmdk")["locks"]
    holders = {holder for lock in locks if lock["what"] == "file" for holder in lock["holders"]}
    if not holders:
        raise CommandError("vmfsctl locks shows no lock of the running machine's disk")
    return sorted(holders)


def require(holds: bool, otherwise: str) -> None:
    """Raise DemoError with `otherwise` unless it `holds`."""
    if not holds:
        raise DemoError(otherwise)


def wait_until(condition: Callable[[], bool], timeout_seconds: float, otherwise: str) -> None:
    """Wait for `condition`; raise DemoError with `otherwise` when the time is over."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        require(time.monotonic() < deadline, otherwise)
        time.sleep(_POLL_SECONDS)


def allocated(stage: Stage, name: str) -> int:
    """Bytes that a file takes on its file system."""
    status = stage.path(name).stat()
    require(stat.S_ISREG(status.st_mode), f"{name} is no regular file")
    return status.st_blocks * 512


def size(count: int) -> str:
    """Bytes for people."""
    if count >= GIB:
        return f"{count / GIB:g} GiB"
    return f"{count / (1 << 20):.1f} MiB" if count >= 1 << 20 else f"{count / 1024:.0f} KiB"
