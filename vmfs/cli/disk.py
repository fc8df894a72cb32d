"""`vmfsctl disk create`, `vmfsctl disk info`, `vmfsctl extend disk`: faces of `thin.disk`, without logic."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import click

from thin import disk
from thin.descriptor import CreateType, DiskKind
from thin.disk import DiskInfo, ExtendPlan
from thin.errors import ThinError
from thin.flat import Progress
from thin.size import format_size, parse_change, parse_size
from vmfs.cli.asking import confirm

if TYPE_CHECKING:
    from click._termui_impl import ProgressBar  # click exports its class to nobody

P = ParamSpec("P")
R = TypeVar("R")


class DiskCommandError(click.ClickException):
    """A ThinError as click reports it: the message on standard error, and the error's own exit code."""

    def __init__(self, error: ThinError) -> None:
        super().__init__(str(error))
        self.exit_code = error.exit_code  # type: ignore[misc]  # click reads it from the instance


def _reported(command: Callable[P, R]) -> Callable[P, R]:
    """The one place where errors of `thin` become exit codes."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except ThinError as error:
            raise DiskCommandError(error) from error

    return run


@click.group("disk", short_help="Make virtual disks and look at them.")
def disk_group() -> None:
    """Make virtual disks (a descriptor NAME.vmdk and its data, NAME-flat.vmdk) and look at them."""


@disk_group.command("create", short_help="Make a new virtual disk.")
@click.argument("path", type=click.Path(readable=False))
@click.option("--size", required=True, metavar="SIZE", help="Virtual size: 20G, 512M, 1.5T (binary units).")
@click.option(
    "--type",
    "kind",
    type=click.Choice([kind.value for kind in DiskKind]),
    default=DiskKind.THIN.value,
    show_default=True,
    help="thin takes space at the first write; lazyzeroed reserves it now; eagerzeroed also writes zeros now.",
)
@click.option(
    "--create-type",
    type=click.Choice([create_type.value for create_type in CreateType]),
    default=CreateType.VMFS.value,
    show_default=True,
    help="What the descriptor declares: vmfs for ESX, monolithicFlat for VMware Workstation.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the new disk as JSON.")
@_reported
def create_command(path: str, size: str, kind: str, create_type: str, as_json: bool) -> None:
    """Make a new virtual disk: the descriptor PATH, which ends in .vmdk, and its flat extent beside it.

    Nothing is overwritten, and nothing is left behind when it fails.

    \b
    Example:
      vmfsctl disk create /mnt/ds1/web/web.vmdk --size 20G --type thin
    """
    with _progress("zeroing") as progress:
        made = disk.create(path, parse_size(size), DiskKind(kind), CreateType(create_type), progress)
    _show(made, as_json)


@disk_group.command("info", short_help="Show what a virtual disk is.")
@click.argument("path", type=click.Path(readable=False))
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@_reported
def info_command(path: str, as_json: bool) -> None:
    """Show what the virtual disk at PATH is, what it takes, and what is wrong with it.

    PATH is its descriptor, its flat extent, or a raw file.

    \b
    Example:
      vmfsctl disk info /mnt/ds1/web/web.vmdk --json
    """
    _show(disk.info(path), as_json)


@click.command("disk", short_help="Grow a virtual disk, also while its VM runs.")
@click.argument("path", type=click.Path(readable=False))
@click.argument("size")
@click.option("--dry-run", is_flag=True, help="Make all checks, say what would be done, change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask. (A disk cannot be made smaller again.)")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@_reported
def extend_disk(path: str, size: str, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Grow the virtual disk at PATH to SIZE (30G), or by SIZE (+10G), keeping its type.

    It may be in use by a VM of this host, which has to be told of the new size afterwards. One that was cut short is
    completed by running it again.

    \b
    Example:
      vmfsctl extend disk /mnt/ds1/web/web.vmdk +10G --yes
    """
    change = parse_change(size)
    plan = disk.plan_extend(path, change)
    if dry_run:
        _show_plan(plan, as_json)
        return
    if plan.needed and not yes:
        confirm(f"{_plan_text(plan)}. It cannot be made smaller again. Go on?")
    with _progress("zeroing") as progress:
        _show(disk.extend(path, change, progress), as_json)


@contextmanager
def _progress(label: str) -> Iterator[Progress]:
    """A progress bar on standard error that appears at the first report, and only on a terminal."""
    stream = sys.stderr
    if not stream.isatty():
        yield lambda done, total: None
        return
    reported = 0
    with ExitStack() as shown:
        bar: ProgressBar[int] | None = None

        def report(done: int, total: int) -> None:
            nonlocal bar, reported
            if bar is None:
                # Steps of 1/200: a redraw at every MiB would cost more than writing it.
                step = max(1, total // 200)
                bar = shown.enter_context(
                    click.progressbar(length=total, label=label, file=stream, update_min_steps=step)
                )
            bar.update(done - reported)
            reported = done

        yield report


def _show(found: DiskInfo, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2))
        return
    rows = [
        ("descriptor", None if found.descriptor_path is None else click.format_filename(found.descriptor_path)),
        ("flat extent", click.format_filename(found.flat_path)),
        ("virtual size", _size_text(found.virtual_size_bytes)),
        ("allocated", _size_text(found.allocated_bytes)),
        ("type", "raw" if found.kind is None else found.kind.value),
        ("createType", None if found.create_type is None else found.create_type.value),
        ("content id", None if found.cid is None else f"{found.cid:08x}"),
        ("uuid", found.uuid),
        ("adapter", found.adapter),
        ("hardware version", found.hardware_version),
    ]
    for label, value in rows:
        if value is not None:
            click.echo(f"{label + ':':<18}{value}")
    for problem in found.problems:
        click.echo(f"{'problem:':<18}{problem}")


def _show_plan(plan: ExtendPlan, as_json: bool) -> None:
    if as_json:
        fields = {
            "dry_run": True,
            "descriptor": str(plan.descriptor_path),
            "flat": str(plan.flat_path),
            "kind": plan.kind.value,
            "old_size_bytes": plan.old_size_bytes,
            "flat_size_bytes": plan.flat_size_bytes,
            "new_size_bytes": plan.new_size_bytes,
            "needed": plan.needed,
        }
        click.echo(json.dumps(fields, indent=2))
        return
    click.echo(f"{_plan_text(plan)} (dry run: nothing is changed)")


def _plan_text(plan: ExtendPlan) -> str:
    name = click.format_filename(plan.descriptor_path)
    if not plan.needed:
        return f"{name} has {_size_text(plan.new_size_bytes)} already"
    return (
        f"{name} ({plan.kind.value}) grows from {_size_text(plan.old_size_bytes)} "
        f"to {_size_text(plan.new_size_bytes)}"
    )


def _size_text(size_bytes: int) -> str:
    text = format_size(size_bytes)
    return text if text.endswith(" B") else f"{text} ({size_bytes} bytes)"
