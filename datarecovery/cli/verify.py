"""`datarecovery verify`."""

from __future__ import annotations

from pathlib import Path

import click

from datarecovery import verify as operation
from datarecovery.cli import output
from datarecovery.errors import EXIT_DAMAGE_FOUND
from datarecovery.store.store import Store


def _json(report: operation.Report) -> dict[str, object]:
    return {
        "clean": report.clean,
        "points": report.points,
        "packs": report.packs,
        "records": report.records,
        "bytes_read": report.bytes_read,
        "findings": [
            {"kind": one.kind, "detail": one.detail, "points": sorted(one.points), "restorable": one.harmless}
            for one in report.findings
        ],
        "more_findings": report.more_findings,
        "damaged_points": report.damaged_points,
    }


@click.command()
@output.store_option
@click.option("--quick", is_flag=True, help="Do not read the chunks: only check that each is where it should be.")
@output.json_option
def verify(store_dir: Path, quick: bool, as_json: bool) -> int:
    """Check the store, and name the restore points that cannot be restored whole.

    Everything stored is read and proved. Backups may go on meanwhile. Exit code 1 when something is wrong.

    \b
    Examples:
      datarecovery verify --store /backup
      datarecovery verify --store /backup --quick --json
    """
    opened = Store.open(store_dir)
    with output.shown_progress("verify") as tell:
        report = operation.verify(opened, quick, tell)
    if as_json:
        output.print_json(_json(report))
    else:
        for one in report.findings:
            points = ", ".join(sorted(one.points)) or "none"
            click.echo(f"{one.kind}: {one.detail}\n  restore points that use it: {points}")
        if report.more_findings:
            click.echo(f"and {report.more_findings} more findings")
        for point, vm in sorted(report.damaged_points.items()):
            click.echo(f"cannot be restored whole: {point} (VM {vm})")
        what = "clean" if report.clean else output.count(len(report.findings) + report.more_findings, "finding")
        looked_at = (
            output.count(report.points, "restore point"),
            output.count(report.packs, "pack"),
            f"{output.count(report.records, 'record')} read",
        )
        click.echo(f"{', '.join(looked_at)}: {what}")
    return 0 if report.clean else EXIT_DAMAGE_FOUND
