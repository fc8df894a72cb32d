"""`vmfsctl extend`: what can be made larger."""

from __future__ import annotations

import click

from vmfs.cli.disk import extend_disk


@click.group("extend", short_help="Make something larger.")
def extend_group() -> None:
    """Make something larger; nothing ever shrinks.

    \b
    Example:
      vmfsctl extend disk /mnt/ds1/web/web.vmdk +10G
    """


extend_group.add_command(extend_disk)
