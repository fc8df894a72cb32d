"""`vmfsctl install-helpers`: makes `mount -t vmfs`, fstab and systemd's mount units work."""

from __future__ import annotations

import click

from vmfs.cli.output import printable, show_json


@click.command("install-helpers", short_help="Have mount(8), fstab and systemd mount volumes.")
@click.option("--into", "directory", default="/sbin", show_default=True, metavar="DIR", help="Where mount(8) looks.")
@click.option("--remove", "removes", is_flag=True, help="Take the links away again.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
def install_helpers_command(directory: str, removes: bool, dry_run: bool, as_json: bool) -> None:
    """Link mount.vmfs, mount.fuse.vmfs and umount.fuse.vmfs into /sbin, as root.

    From then on `mount -t vmfs`, fstab and systemd's mount units work; docs/mounting.md has examples. To be run once,
    and again where this program has moved to another place.

    \b
    Examples:
      vmfsctl install-helpers
      vmfsctl install-helpers --remove
    """
    from vmfs.mounthelpers import install, remove

    if removes:
        gone = remove(directory, dry_run=dry_run)
        if as_json:
            show_json({"removed": gone, "dry_run": dry_run})
            return
        lines = [f"{'would remove' if dry_run else 'removed'} {path}" for path in gone] or ["none were there"]
    else:
        made = install(directory, dry_run=dry_run)
        if as_json:
            links = [{"path": path, "leads_to": target} for path, target in made]
            show_json({"installed": links, "dry_run": dry_run})
            return
        lines = [f"{'would link' if dry_run else 'linked'} {path} to {target}" for path, target in made]
        lines = lines or ["all were there"]
    for line in lines:
        click.echo(printable(line))
