"""`vmfsctl scan`: which volumes this machine's devices hold."""

from __future__ import annotations

import click

from vmfs.cli.output import show_json, show_table, size_text


@click.command("scan", short_help="Find volumes among this machine's devices.")
@click.option(
    "--scan-in", "places", multiple=True, metavar="DIR|PATTERN", help="Look at these files and devices too. Repeatable."
)
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON.")
def scan_command(places: tuple[str, ...], as_json: bool) -> None:
    """Find volumes among this machine's disks, partitions and loop devices, by what their superblocks say.

    Each extent of a volume is listed with the devices on which it was seen; an extent that was not seen is missing.
    Nothing is changed. LUNs behind iscsi:// are not looked for.

    \b
    Examples:
      vmfsctl scan
      vmfsctl scan --scan-in /srv/luns --scan-in '/dev/mapper/lun-*' --json
    """
    from vmfs.scanning import candidates, scan

    looked = scan(candidates(places))
    if as_json:
        show_json({
            "volumes": [
                {"label": v.label, "uuid": v.uuid, "complete": not v.missing, "extents": v.extents}
                for v in looked.volumes
            ],
            "silent": looked.silent,
        })  # fmt: skip
        return
    rows = [
        (v.label, str(v.uuid), str(e.index), str(e.uuid), size_text(e.size_bytes), ", ".join(e.devices) or "MISSING")
        for v in looked.volumes
        for e in v.extents
    ]
    show_table(("volume", "uuid", "extent", "extent's uuid", "size", "devices"), rows, right=("extent", "size"))
    for path in looked.silent:
        click.echo(f"{path} does not answer", err=True)
