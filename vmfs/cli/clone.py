"""`vmfsctl clone`: a new file that shares all its blocks with another."""

from __future__ import annotations

import os

import click

from vmfs.cli.output import printable, show_json
from vmfs.client import Mount


@click.command("clone", short_help="Clone a file in an instant.")
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST")
@click.option("--json", "as_json", is_flag=True, help="Print the new file as JSON.")
def clone_command(source: str, target: str, as_json: bool) -> None:
    """Clone the file SRC as the new file DST, in constant time. Both are paths in one mounted volume.

    The two share their blocks until either is written to. SRC may be in use on this host. DST must not exist.

    \b
    Example:
      vmfsctl clone /mnt/ds1/web/web-flat.vmdk /mnt/ds1/web/monday-flat.vmdk
    """
    inode = Mount.for_path(source).clone(source, target)
    if as_json:
        show_json({"source": os.path.abspath(source), "target": os.path.abspath(target), "inode": inode})
    else:
        click.echo(printable(f"cloned {source} to {target} (inode {inode})"))
