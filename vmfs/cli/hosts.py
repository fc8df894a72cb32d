"""`vmfsctl hosts`: who has a volume mounted."""

from __future__ import annotations

import click

from vmfs.cli.credentials import credentials_option
from vmfs.cli.output import NOTHING, seconds_text, show_json, show_table
from vmfs.cli.targets import mount_or_none
from vmfs.control.contract import HostInfo


@click.command("hosts", short_help="Show which hosts use a volume.")
@click.argument("targets", metavar="MOUNT|DEVICE...", nargs=-1, required=True)
@click.option("--all", "show_free", is_flag=True, help="Show the free slots too.")
@credentials_option
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON.")
def hosts_command(targets: tuple[str, ...], show_free: bool, as_json: bool) -> None:
    """Show the hosts that have a volume mounted: its mount point MOUNT, or all its devices DEVICE....

    HEARTBEAT is how long ago a host's slot was last seen to change. That takes a host that watches, so it is known
    through a mount point only; from a device the slots are shown as they are now. GROUPS is how many groups of blocks
    it holds. A host in the state "failed" waits for `vmfsctl recover`. --json shows more of each host.

    \b
    Examples:
      vmfsctl hosts /mnt/ds1
      vmfsctl hosts /dev/sdb
    """
    mount = mount_or_none(targets)
    problems: list[str] = []
    if mount is not None:
        hosts, slots = mount.hosts(), mount.info().volume.max_hosts
    else:
        from vmfs.facts import look_at_hosts, open_to_look

        with open_to_look(targets) as volume:
            hosts, problems = look_at_hosts(volume)
            slots = volume.superblock.max_hosts
    free = sorted(set(range(slots)) - {h.slot for h in hosts}) if not problems else []
    if as_json:
        show_json({"hosts": hosts, "free_slots": free, "problems": problems})
        return
    rows = [_row(h) for h in hosts]
    if show_free:
        rows = sorted(rows + [_free_row(slot) for slot in free], key=lambda row: int(row[0]))
    if rows:
        headers = ("SLOT", "HOST", "HEARTBEAT", "INCARNATION", "PID", "GROUPS", "STATE")
        show_table(headers, rows, right=("SLOT", "HEARTBEAT", "INCARNATION", "PID", "GROUPS"))
    else:
        click.echo("no host uses the volume")
    for problem in problems:
        click.echo(problem, err=True)


def _row(host: HostInfo) -> tuple[str, ...]:
    name = f"{host.name} (here)" if host.is_self else host.name
    beat = NOTHING if host.unchanged_seconds is None else f"{seconds_text(host.unchanged_seconds)} ago"
    groups = NOTHING if host.groups_held is None else str(host.groups_held)
    return str(host.slot), name, beat, str(host.incarnation), str(host.pid), groups, host.state


def _free_row(slot: int) -> tuple[str, ...]:
    return str(slot), NOTHING, NOTHING, NOTHING, NOTHING, NOTHING, "free"
