"""`vmfsctl hosts`: who has a volume mounted."""

from __future__ import annotations

import click

from vmfs.cli.output import NOTHING, seconds_text, show_json, show_table
from vmfs.cli.targets import mount_or_none
from vmfs.control.contract import HostInfo


@click.command("hosts", short_help="Show which hosts use a volume.")
@click.argument("targets", metavar="MOUNT|DEVICE...", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON.")
def hosts_command(targets: tuple[str, ...], as_json: bool) -> None:
    """Show the hosts that have a volume mounted: its mount point MOUNT, or all its devices DEVICE....

    HEARTBEAT is how long ago a host's slot was last seen to change. That takes a host that watches, so it is known
    through a mount point only; from a device the slots are shown as they are now. --json shows more of each host.

    \b
    Examples:
      vmfsctl hosts /mnt/ds1
      vmfsctl hosts /dev/sdb
    """
    mount = mount_or_none(targets)
    problems: list[str] = []
    if mount is not None:
        hosts = mount.hosts()
    else:
        from vmfs.facts import look_at_hosts, open_to_look

        with open_to_look(targets) as volume:
            hosts, problems = look_at_hosts(volume)
    if as_json:
        show_json({"hosts": hosts, "problems": problems})
        return
    if hosts:
        headers = ("SLOT", "HOST", "HEARTBEAT", "INCARNATION", "PID", "STATE")
        show_table(headers, [_row(h) for h in hosts], right=("SLOT", "HEARTBEAT", "INCARNATION", "PID"))
    else:
        click.echo("no host uses the volume")
    for problem in problems:
        click.echo(problem, err=True)


def _row(host: HostInfo) -> tuple[str, ...]:
    name = f"{host.name} (here)" if host.is_self else host.name
    beat = NOTHING if host.unchanged_seconds is None else f"{seconds_text(host.unchanged_seconds)} ago"
    return str(host.slot), name, beat, str(host.incarnation), str(host.pid), host.state
