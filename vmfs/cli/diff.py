"""`vmfsctl diff`: where two files of one ancestry differ."""

from __future__ import annotations

import click

from vmfs.cli.output import show_json, show_table, size_text
from vmfs.client import Mount


@click.command("diff", short_help="Show where a clone differs from another.")
@click.argument("old", metavar="OLD")
@click.argument("new", metavar="NEW")
@click.option("--json", "as_json", is_flag=True, help="Print the ranges as JSON: [offset, length] in bytes.")
def diff_command(old: str, new: str, as_json: bool) -> None:
    """Show the ranges in which the file NEW may differ from the file OLD, without reading data.

    Both are paths in one mounted volume, where one was cloned from the other or both from a third. What is not named
    is the same in both; what is named may be, too.

    \b
    Example:
      vmfsctl diff /mnt/ds1/web/monday-flat.vmdk /mnt/ds1/web/tuesday-flat.vmdk
    """
    ranges = Mount.for_path(old).diff(old, new)
    total = sum(length for _, length in ranges)
    if as_json:
        show_json({"ranges": ranges, "bytes": total})
        return
    if ranges:
        rows = [(str(offset), str(length)) for offset, length in ranges]
        show_table(("OFFSET", "LENGTH"), rows, right=("OFFSET", "LENGTH"))
    click.echo(f"{len(ranges)} {'range' if len(ranges) == 1 else 'ranges'}, {size_text(total)}")
