"""`vmfsctl check`: whether a volume's structure agrees with itself. The work is `vmfs.check`'s."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from vmfs.check import Report, check_volume
from vmfs.cli.failures import Reported
from vmfs.cli.output import printable
from vmfs.cli.progress import Bars
from vmfs.cli.targets import mount_or_none
from vmfs.errors import EXIT_NOT_TRIED, VmfsError, VolumeInUse
from vmfs.facts import open_to_look


@click.command("check", short_help="Check a volume's structure.")
@click.argument("targets", metavar="DEVICE...", nargs=-1, required=True)
@click.option("--progress", is_flag=True, help="Say what is being looked at, also where that is no terminal.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def check_command(targets: tuple[str, ...], progress: bool, as_json: bool) -> None:
    """Check the structure of the volume on DEVICE... (all its devices). Nothing is changed.

    No host may have it mounted. A host that died left a journal: the volume is then checked as it will be after that
    host's recovery. File data carries no checksums and is not looked at.

    Exits 0 when the volume is clean, 1 when something was found, 2 when it could not be looked at.

    \b
    Examples:
      vmfsctl check /dev/sdb
      vmfsctl check lun.img --json
    """
    try:
        mount = mount_or_none(targets)
        if mount is not None:
            raise VolumeInUse(targets[0], "this host's mount (unmount it on every host, and give the device)")
        with open_to_look(targets) as volume, Bars("checking", wanted=progress or None) as bars:
            report = check_volume(volume, bars.step, waiting=lambda text: click.echo(text, err=True))
    except VmfsError as error:
        raise Reported(f"not checked: {error}", EXIT_NOT_TRIED) from error
    except OSError as error:
        raise Reported(f"not checked: {error.strerror or error}", EXIT_NOT_TRIED) from error
    if as_json:
        click.echo(json.dumps(report.as_dict(), indent=2))
    else:
        _show(report)
    click.get_current_context().exit(report.exit_code)


def _show(report: Report) -> None:
    for finding in report.findings:
        click.echo(printable(f"{finding.severity}: {finding.message} [{finding.kind}]"))
        where = f"at {finding.address:#x}: " if finding.address is not None else ""
        click.echo(f"    {where}{finding.meaning}")
    for kind, total in sorted(report.totals.items()):
        left = total - sum(f.kind is kind for f in report.findings)
        if left:
            click.echo(f"... and {left} more of the kind {kind}")
    for note in report.notes:
        click.echo(printable(f"note: {note}"))
    counts = asdict(report.counts)
    click.echo(
        "looked at {groups} groups, {chunks} chunks, {inodes} inodes ({files} files, {directories} directories, "
        "{layers} layers), {entries} names, {data_blocks} data blocks".format(**counts)
    )
    verdict = "clean" if report.clean else f"{sum(report.totals.values())} findings"
    click.echo(printable(f"volume {report.label} ({report.volume}): {verdict}"))
