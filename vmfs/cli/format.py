"""`vmfsctl format`: a new volume on one device or several. The work is `vmfs.mkfs`'s."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import click

from thin.size import parse_size
from vmfs.cli.asking import confirm
from vmfs.cli.credentials import credentials_option
from vmfs.cli.formatfencing import WantedFencing
from vmfs.cli.output import show_fields, show_json, show_table, size_text
from vmfs.cli.progress import Bars
from vmfs.devices import Device, LockMethod, open_device
from vmfs.errors import BadFormatOption, DeviceNotUsable
from vmfs.mkfs import FormatOptions, FormatPlan, check_free, make_volume, plan
from vmfs.volume import method_name

_US_PER_S = 1_000_000
_OFD = (LockMethod.OFD_FILE, LockMethod.OFD_HOST)


@click.command("format", short_help="Make a new volume on a device.")
@click.argument("devices", metavar="DEVICE...", nargs=-1, required=True)
@click.option("--name", "label", required=True, help="The volume's name, for people: 1 to 63 bytes.")
@click.option("--block-size", default="64K", show_default=True, metavar="SIZE", help="64K, 256K or 1M.")
@click.option(
    "--max-hosts", type=int, metavar="N", help="How many hosts may mount it: 1 to 256.  [default: 64; with paxos 8]"
)
@click.option(
    "--lock-method",
    type=click.Choice(["auto", "ofd", "ats", "paxos"]),
    default="auto",
    show_default=True,
    help="How hosts exclude each other: by file locks, COMPARE AND WRITE, or Disk-Paxos. auto: the best that works.",
)
@click.option("--heartbeat", type=float, metavar="SECONDS", help="How often hosts show that they live (3 of 16 s).")
@click.option("--lease", default=16.0, show_default=True, metavar="SECONDS", help="How long a host may be silent.")
@click.option(
    "--fencing",
    type=click.Choice(["auto", "reservations", "none"]),
    default="auto",
    show_default=True,
    help="How a dead host is kept from writing. auto: by reservations where the LUN proves that they work.",
)
@click.option(
    "--in-flight", type=float, metavar="SECONDS", help="Without fencing: how long a write may stay on its way to it."
)
@click.option(
    "--preempt-wait",
    type=float,
    metavar="SECONDS",
    help="Fence by PREEMPT on a LUN without PREEMPT AND ABORT: how long a write may execute after it.",
)
@click.option("--journal-size", metavar="SIZE", help="Of each host's journal: 256K to 64M (1M to 16M by the device).")
@click.option("--sector-size", type=int, metavar="BYTES", help="512 or 4096, not less than the device's.")
@click.option("--create-size", metavar="SIZE", help="Make each file DEVICE first, sparse, of this size: 4G.")
@click.option("--no-discard", is_flag=True, help="Do not give the device's old content back to the storage.")
@click.option("--dry-run", is_flag=True, help="Make all checks, show what would be written, change nothing.")
@click.option("--force", is_flag=True, help="Destroy what the device holds.")
@click.option("--yes", is_flag=True, help="Do not ask before something is destroyed.")
@credentials_option
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def format_command(
    devices: tuple[str, ...],
    label: str,
    block_size: str,
    max_hosts: int | None,
    lock_method: str,
    heartbeat: float | None,
    lease: float,
    fencing: str,
    in_flight: float | None,
    preempt_wait: float | None,
    journal_size: str | None,
    sector_size: int | None,
    create_size: str | None,
    no_discard: bool,
    dry_run: bool,
    force: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Make a new volume on DEVICE...: block devices that all hosts see, or files that stand in for them.

    The first one has the hosts' slots and journals besides file data; the others, of any size, add room for data.

    A device that holds a file system, a partition table or the like is refused, and what it holds is named. One that
    a host has mounted is refused even with --force.

    \b
    Examples:
      vmfsctl format --name ds1 /dev/sdb --dry-run
      vmfsctl format --name ds1 /dev/sdb
      vmfsctl format --name large /dev/sdb /dev/sdc /dev/sdd
      vmfsctl format --name lab lun.img --create-size 4G --lease 4
    """
    options = FormatOptions(
        label=label,
        block_bytes=parse_size(block_size),
        max_hosts=max_hosts,
        lease_us=_microseconds("a lease of", lease),
        heartbeat_us=None if heartbeat is None else _microseconds("a heartbeat of", heartbeat),
        journal_bytes=None if journal_size is None else parse_size(journal_size),
        sector_bytes=sector_size,
        discard=not no_discard,
    )
    wanted = WantedFencing(fencing, in_flight, preempt_wait)
    _refuse_twice(devices)
    with ExitStack() as stack:
        opened = [stack.enter_context(_opened(path, create_size, dry_run)) for path in devices]
        first, *more = opened
        options, why = wanted.of_all(opened, replace(options, lock_method=_method(lock_method, first)), prove=False)
        planned = plan(first, options, more)
        found = {}
        for path, each in zip(devices, opened, strict=True):
            held = check_free(each, force=force or dry_run, waiting=lambda text: click.echo(text, err=True))
            if held:
                found[path] = held
        if not dry_run:
            for path, held in found.items():
                click.echo(f"overwriting on {path}: {held}", err=True)
            if found and not yes:
                confirm(f"Everything on {', '.join(found)} will be lost. Go on?")
            options, why = wanted.of_all(opened, options, prove=True)
            planned = plan(first, options, more)
            with Bars("writing") as bars:
                make_volume(first, planned, bars.step, more)
        _show(devices, planned, found, why, dry_run=dry_run, as_json=as_json)


def _refuse_twice(devices: Sequence[str]) -> None:
    """What can be told without a write. Two paths to one LUN are found when it is written to (`vmfs.mkfs`)."""
    for index, path in enumerate(devices):
        for other in devices[:index]:
            local = os.path.exists(path) and os.path.exists(other)
            if path == other or (local and os.path.samefile(path, other)):
                raise DeviceNotUsable(path, f"is the same as {other}; give each device once")


def _method(name: str, first: Device) -> LockMethod | None:
    if name == "ofd":
        return next((m for m in first.lock_methods() if m in _OFD), LockMethod.OFD_FILE)
    return {"ats": LockMethod.SCSI_CAW, "paxos": LockMethod.PAXOS}.get(name)


def _microseconds(option: str, seconds: float) -> int:
    if not 0 < seconds <= 3600:  # NaN is not either
        raise BadFormatOption(option, f"{seconds} s", "it must be more than 0 and at most an hour")
    return round(seconds * _US_PER_S)


@contextmanager
def _opened(path: str, create_size: str | None, dry_run: bool) -> Iterator[Device]:
    """The device, open; a file that was made for this and was not formatted is gone again afterwards."""
    made = create_size is not None
    if create_size is not None:
        size = parse_size(create_size)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, size)
        except (OSError, OverflowError) as error:
            os.unlink(path)
            raise BadFormatOption("a size of", create_size, f"{path} cannot be made so large") from error
        finally:
            os.close(fd)
    keep = False
    try:
        opened = open_device(path, read_only=dry_run and not made)
        try:
            yield opened
            keep = not dry_run
        finally:
            opened.close()
    finally:
        if made and not keep:
            os.unlink(path)


def _show(
    devices: Sequence[str], planned: FormatPlan, found: dict[str, str], why: str, *, dry_run: bool, as_json: bool
) -> None:
    sb = planned.superblock
    geometry = planned.geometry
    data_bytes = geometry.total_blocks() * sb.block_bytes
    sizes = [extent.size_bytes for extent in sb.extents]
    if as_json:
        show_json({
            "device": devices[0], "dry_run": dry_run, "overwrites": "; ".join(found.values()) or None,
            "volume": str(sb.volume), "label": sb.label,
            "extents": [{"device": d, "size_bytes": n} for d, n in zip(devices, sizes, strict=True)],
            "size_bytes": sum(sizes), "data_bytes": data_bytes, "block_bytes": sb.block_bytes,
            "sector_bytes": sb.sector_bytes, "max_hosts": sb.max_hosts, "journal_bytes": sb.journal_bytes,
            "groups": sb.group_count, "blocks_per_group": sb.blocks_per_group,
            "lock_method": method_name(sb.lock_method), "lock_method_reason": planned.lock_reason,
            "lock_block_bytes": sb.lock_block_bytes,
            "fencing": why, "break_seconds": sb.timers.break_us / _US_PER_S,
            "heartbeat_seconds": sb.timers.heartbeat_us / _US_PER_S,
            "lease_seconds": sb.timers.lease_us / _US_PER_S, "parts": planned.parts(),
        })  # fmt: skip
        return
    if dry_run:
        click.echo("nothing was written; this would be:")
        for path, held in found.items():
            click.echo(f"OVERWRITTEN on {path}, and only with --force: {held}")
    show_fields([
        ("volume", sb.label),
        ("uuid", None if dry_run else str(sb.volume)),
        *(
            ("device", f"{path} ({size_text(size)}, sectors of {sb.sector_bytes} bytes)")
            for path, size in zip(devices, sizes, strict=True)
        ),
        ("for data", f"{size_text(data_bytes)} in blocks of {size_text(sb.block_bytes)}"),
        ("hosts at most", f"{sb.max_hosts}, a journal of {size_text(sb.journal_bytes)} each"),
        ("groups", f"{sb.group_count} of {sb.blocks_per_group} blocks"),
        ("locks by", f"{method_name(sb.lock_method)} ({planned.lock_reason})"),
        ("fencing", why),
        (
            "timers",
            f"heartbeat {sb.timers.heartbeat_us / _US_PER_S:g} s, lease {sb.timers.lease_us / _US_PER_S:g} s, "
            f"break {sb.timers.break_us / _US_PER_S:g} s",
        ),
    ])  # fmt: skip
    if dry_run:
        rows = [(p.name, devices[p.extent], str(p.offset), size_text(p.size_bytes)) for p in planned.parts()]
        show_table(("part", "on", "at byte", "size"), rows, right=("at byte", "size"))
