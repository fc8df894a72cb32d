"""`vmfsctl format`: a new volume on a device. The work is `vmfs.mkfs`'s."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import click

from thin.size import parse_size
from vmfs.cli.asking import confirm
from vmfs.cli.formatfencing import WantedFencing
from vmfs.cli.output import show_fields, show_json, show_table, size_text
from vmfs.cli.progress import Bars
from vmfs.devices import Device, open_device
from vmfs.errors import BadFormatOption
from vmfs.mkfs import FormatOptions, FormatPlan, check_free, make_volume, plan
from vmfs.volume import method_name

_US_PER_S = 1_000_000


@click.command("format", short_help="Make a new volume on a device.")
@click.argument("device")
@click.option("--name", "label", required=True, help="The volume's name, for people: 1 to 63 bytes.")
@click.option("--block-size", default="64K", show_default=True, metavar="SIZE", help="64K, 256K or 1M.")
@click.option("--max-hosts", default=64, show_default=True, metavar="N", help="How many hosts may mount it: 1 to 256.")
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
@click.option("--create-size", metavar="SIZE", help="Make the file DEVICE first, sparse, of this size: 4G.")
@click.option("--no-discard", is_flag=True, help="Do not give the device's old content back to the storage.")
@click.option("--dry-run", is_flag=True, help="Make all checks, show what would be written, change nothing.")
@click.option("--force", is_flag=True, help="Destroy what the device holds.")
@click.option("--yes", is_flag=True, help="Do not ask before something is destroyed.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def format_command(
    device: str,
    label: str,
    block_size: str,
    max_hosts: int,
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
    """Make a new volume on DEVICE: a block device that all hosts see, or a file that stands in for one.

    A device that holds a file system, a partition table or the like is refused, and what it holds is named. One that
    a host has mounted is refused even with --force.

    \b
    Examples:
      vmfsctl format --name ds1 /dev/sdb --dry-run
      vmfsctl format --name ds1 /dev/sdb
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
    with _opened(device, create_size, dry_run) as opened:
        options, why = wanted.unproved(opened, options)
        planned = plan(opened, options)
        found = check_free(opened, force=force or dry_run, waiting=lambda text: click.echo(text, err=True))
        if not dry_run:
            if found:
                click.echo(f"overwriting on {device}: {found}", err=True)
                if not yes:
                    confirm(f"Everything on {device} will be lost. Go on?")
            options, why = wanted.prove(opened, options)
            planned = plan(opened, options)
            with Bars("writing") as bars:
                make_volume(opened, planned, bars.step)
        _show(device, planned, found, why, dry_run=dry_run, as_json=as_json)


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


def _show(device: str, planned: FormatPlan, found: str | None, why: str, *, dry_run: bool, as_json: bool) -> None:
    sb = planned.superblock
    geometry = planned.geometry
    data_bytes = geometry.total_blocks() * sb.block_bytes
    if as_json:
        show_json({
            "device": device, "dry_run": dry_run, "overwrites": found, "volume": str(sb.volume), "label": sb.label,
            "size_bytes": sb.extents[0].size_bytes, "data_bytes": data_bytes, "block_bytes": sb.block_bytes,
            "sector_bytes": sb.sector_bytes, "max_hosts": sb.max_hosts, "journal_bytes": sb.journal_bytes,
            "groups": sb.group_count, "blocks_per_group": sb.blocks_per_group,
            "lock_method": method_name(sb.lock_method), "fencing": why, "break_seconds": sb.timers.break_us / _US_PER_S,
            "heartbeat_seconds": sb.timers.heartbeat_us / _US_PER_S,
            "lease_seconds": sb.timers.lease_us / _US_PER_S, "parts": planned.parts(),
        })  # fmt: skip
        return
    if dry_run:
        click.echo("nothing was written; this would be:")
        if found:
            click.echo(f"OVERWRITTEN, and only with --force: {found}")
    show_fields([
        ("volume", sb.label),
        ("uuid", None if dry_run else str(sb.volume)),
        ("device", f"{device} ({size_text(sb.extents[0].size_bytes)}, sectors of {sb.sector_bytes} bytes)"),
        ("for data", f"{size_text(data_bytes)} in blocks of {size_text(sb.block_bytes)}"),
        ("hosts at most", f"{sb.max_hosts}, a journal of {size_text(sb.journal_bytes)} each"),
        ("groups", f"{sb.group_count} of {sb.blocks_per_group} blocks"),
        ("locks by", method_name(sb.lock_method)),
        ("fencing", why),
        (
            "timers",
            f"heartbeat {sb.timers.heartbeat_us / _US_PER_S:g} s, lease {sb.timers.lease_us / _US_PER_S:g} s, "
            f"break {sb.timers.break_us / _US_PER_S:g} s",
        ),
    ])  # fmt: skip
    if dry_run:
        rows = [(p.name, str(p.offset), size_text(p.size_bytes)) for p in planned.parts()]
        show_table(("part", "at byte", "size"), rows, right=("at byte", "size"))
