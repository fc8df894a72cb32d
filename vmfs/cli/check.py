"""`vmfsctl check`: whether a volume's structure agrees with itself, and its repair. The work is `vmfs.check`'s."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict

import click

from vmfs.check.alone import JournalUnreadable
from vmfs.check.dryrun import ScratchDevice
from vmfs.check.findings import EXIT_LEFT, EXIT_NOT_CHECKED, Finding, Report
from vmfs.check.repair import Repaired, repair_volume
from vmfs.check.run import check_volume
from vmfs.check.scrub import scrub_volume
from vmfs.cli.asking import confirm
from vmfs.cli.credentials import credentials_option
from vmfs.cli.failures import Reported
from vmfs.cli.output import printable
from vmfs.cli.progress import Bars
from vmfs.cli.targets import mount_or_none
from vmfs.client import Mount
from vmfs.cluster.fencing import NoFence
from vmfs.devices import Device, open_device
from vmfs.errors import VmfsError
from vmfs.facts import open_to_look
from vmfs.volume import Volume, open_volume

_WARNING = (
    "Files that cannot be mended, and journals that cannot be replayed, will be given up for good. "
    "See with --dry-run which. Go on?"
)


@click.command("check", short_help="Check a volume's structure, and mend it.")
@click.argument("targets", metavar="MOUNT|DEVICE...", nargs=-1, required=True)
@click.option("--repair", is_flag=True, help="Mend what can be mended. No host may have the volume mounted.")
@click.option("--dry-run", is_flag=True, help="With --repair: only say what it would do. Nothing is changed.")
@click.option("--remove-damaged", is_flag=True, help="With --repair: remove files that cannot be mended.")
@click.option("--discard-journal", is_flag=True, help="With --repair: give up journals that cannot be replayed.")
@click.option("--yes", is_flag=True, help="With --remove-damaged and --discard-journal: do not ask.")
@click.option("--progress", is_flag=True, help="Say what is being looked at, also where that is no terminal.")
@credentials_option
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def check_command(
    targets: tuple[str, ...], repair: bool, dry_run: bool, remove_damaged: bool, discard_journal: bool, yes: bool,
    progress: bool, as_json: bool,
) -> None:  # fmt: skip
    """Check the structure of the volume on DEVICE... (all its devices), or of the one mounted at MOUNT.

    On DEVICE everything is compared with everything; no host may have the volume mounted. A host that died left a
    journal: the volume is then judged as it will be after that host's recovery. At MOUNT, while hosts work, every
    block's checksum is looked at, and what can be known without holding anybody up; nothing is locked or changed.
    File data carries no checksums and is not looked at. docs/check.md lists what can be found.

    Exits 0 when the volume is clean, 1 when all that was found has been mended, 4 when something is left, 8 when it
    could not be looked at; as fsck(8) does.

    \b
    Examples:
      vmfsctl check /dev/sdb
      vmfsctl check /mnt/ds1
      vmfsctl check --repair --dry-run /dev/sdb
      vmfsctl check --repair /dev/sdb
    """  # fmt: skip
    if not repair and (dry_run or remove_damaged or discard_journal or yes):
        raise click.UsageError("--dry-run, --remove-damaged, --discard-journal and --yes go with --repair")
    try:
        mount = mount_or_none(targets)
        if repair and mount is not None:
            raise Reported(f"{targets[0]} is mounted; unmount it on every host, and give its devices", EXIT_NOT_CHECKED)
        if (remove_damaged or discard_journal) and not dry_run and not yes:
            confirm(_WARNING)
        with Bars("checking", wanted=progress or None) as bars:
            if repair:
                done = _repair(targets, dry_run, remove_damaged, discard_journal, bars)
                exit_code, result = done.exit_code, done.as_dict()
            else:
                report = _scrub(mount, bars) if mount is not None else _check(targets, bars)
                exit_code, result = report.exit_code, report.as_dict()
    except JournalUnreadable as error:
        raise Reported(f"not repaired: {error}", EXIT_LEFT) from error
    except (VmfsError, OSError) as error:
        reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        raise Reported(f"not checked: {reason}", EXIT_NOT_CHECKED) from error
    if as_json:
        click.echo(json.dumps(result, indent=2))
    elif repair:
        _show_repair(done, dry_run)
    else:
        _show(report)
    click.get_current_context().exit(exit_code)


def _check(targets: Sequence[str], bars: Bars) -> Report:
    with open_to_look(targets) as volume:
        return check_volume(volume, bars.step, waiting=_say)


def _scrub(mount: Mount, bars: Bars) -> Report:
    with open_to_look([d.path for d in mount.info().volume.devices]) as volume:
        return scrub_volume(volume, bars.step)


def _repair(
    targets: Sequence[str], dry_run: bool, remove_damaged: bool, discard_journals: bool, bars: Bars
) -> Repaired:
    with _opened(targets, dry_run) as volume:
        return repair_volume(
            volume, bars.step, waiting=_say, remove_damaged=remove_damaged, discard_journals=discard_journals,
            fence=NoFence() if dry_run else None,
        )  # fmt: skip


@contextmanager
def _opened(targets: Sequence[str], dry_run: bool) -> Iterator[Volume]:
    """The volume for a repair; in a dry run, on disks that keep what is written in memory."""
    with ExitStack() as opened:
        devices: list[Device] = []
        for target in targets:
            device = open_device(target, read_only=dry_run)
            opened.callback(device.close)
            devices.append(ScratchDevice(device) if dry_run else device)
        yield open_volume(devices)


def _say(text: str) -> None:
    click.echo(text, err=True)


# -- for people ------------------------------------------------------------------------------------


def _show(report: Report) -> None:
    _show_findings(report)
    for note in report.notes:
        click.echo(printable(f"note: {note}"))
    looked_at = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in asdict(report.counts).items() if count)
    click.echo(f"looked at {looked_at}")
    verdict = "clean" if report.clean else f"{sum(report.totals.values())} findings"
    click.echo(printable(f"volume {report.label} ({report.volume}): {verdict}"))


def _show_findings(report: Report) -> None:
    for finding in report.findings:
        _show_finding(finding)
    for kind, total in sorted(report.totals.items()):
        left = total - sum(f.kind is kind for f in report.findings)
        if left:
            click.echo(f"... and {left} more of the kind {kind}")


def _show_finding(finding: Finding) -> None:
    path = f"{finding.path}: " if finding.path is not None else ""
    click.echo(printable(f"{finding.severity}: {path}{finding.message} [{finding.kind}]"))
    where = f"at {finding.address:#x}: " if finding.address is not None else ""
    click.echo(f"    {where}{finding.meaning}")
    click.echo(f"    --repair: {finding.repair or 'cannot mend it'}")


def _show_repair(done: Repaired, dry_run: bool) -> None:
    _show_findings(done.found)
    for text in done.done:
        click.echo(printable(f"{'would be done' if dry_run else 'done'}: {text}"))
    if done.problem is not None:
        click.echo(printable(f"the repair could not go on: {done.problem}"))
    if done.found.clean:
        verdict = "clean"
    else:
        left = sum(done.left.totals.values())
        click.echo("left:" if left else "nothing is left")
        _show_findings(done.left)
        verdict = f"{sum(done.found.totals.values())} findings, {left} {'would be ' if dry_run else ''}left"
    for note in done.left.notes:
        click.echo(printable(f"note: {note}"))
    click.echo(printable(f"volume {done.found.label} ({done.found.volume}): {verdict}"))
