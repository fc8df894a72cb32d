"""`vmfsctl info`: what a volume is, and how this host has it mounted."""

from __future__ import annotations

import click

from vmfs.cli.credentials import credentials_option
from vmfs.cli.output import seconds_text, show_fields, show_json, size_text, time_text
from vmfs.cli.targets import mount_or_none
from vmfs.control.contract import MountFacts, Timers, VolumeFacts


@click.command("info", short_help="Show what a volume is.")
@click.argument("targets", metavar="MOUNT|DEVICE...", nargs=-1, required=True)
@credentials_option
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def info_command(targets: tuple[str, ...], as_json: bool) -> None:
    """Show what a volume is: its mount point MOUNT, or all its devices DEVICE..., mounted or not.

    Through a mount point it also shows how this host stands: its slot, its lease, what its kernel can do.

    \b
    Examples:
      vmfsctl info /mnt/ds1
      vmfsctl info /dev/sdb --json
    """
    mount = mount_or_none(targets)
    here: MountFacts | None = None
    if mount is not None:
        found = mount.info()
        volume, here, size, free = found.volume, found.mount, found.size_bytes, found.free_bytes
    else:
        from vmfs.facts import look_at_space, look_at_volume, open_to_look

        with open_to_look(targets) as opened:
            volume = look_at_volume(opened)
            size, free = look_at_space(opened)
    if as_json:
        show_json({"volume": volume, "mount": here, "size_bytes": size, "free_bytes": free})
        return
    show_fields(_volume_fields(volume, size, free) + _mount_fields(here))


def _volume_fields(volume: VolumeFacts, size_bytes: int, free_bytes: int) -> list[tuple[str, str | None]]:
    words = ("compatible", volume.compat), ("read-only", volume.ro_compat), ("incompatible", volume.incompat)
    features = ", ".join(f"{kind} {word:#x}" for kind, word in words if word) or "none beyond the format's version"
    fields: list[tuple[str, str | None]] = [
        ("volume", volume.label),
        ("uuid", str(volume.uuid)),
        ("format", f"version {volume.format_version}"),
        ("features", features),
        ("created", time_text(volume.created_ns)),
        ("size", size_text(size_bytes)),
        ("free", size_text(free_bytes)),
        ("block size", size_text(volume.block_bytes)),
        ("hosts at most", str(volume.max_hosts)),
        ("locks by", f"{volume.lock_method} ({volume.lock_method_reason})"),
        ("fencing", volume.fencing),
        ("timers", _timers_text(volume.timers)),
    ]
    for device in volume.devices:
        text = f"{device.path} ({size_text(device.size_bytes)}, sectors of {device.sector_bytes} bytes)"
        fields.append((f"extent {device.extent}", text))
    return fields


def _timers_text(t: Timers) -> str:
    return (
        f"heartbeat {t.heartbeat_seconds:g} s, lease {t.lease_seconds:g} s (margin {t.margin_seconds:g} s), "
        f"break {t.break_seconds:g} s, validity {t.validity_seconds:g} s, quarantine {t.quarantine_seconds:g} s, "
        f"drift {t.drift_ppm / 10_000:g} %"
    )


def _supervisor_text(mount: MountFacts) -> str:
    if not mount.supervisor:
        return "none: the mount dies with its process"
    text = f"process {mount.supervisor}"
    if "resend" not in mount.kernel.capabilities:
        return f"{text}, but this kernel is too old: the mount dies with its process"
    return f"{text}, {mount.takeovers} take-overs so far" if mount.takeovers else text


def _mount_fields(mount: MountFacts | None) -> list[tuple[str, str | None]]:
    if mount is None:
        return []
    kernel = mount.kernel
    protocol = f"FUSE {kernel.protocol_major}.{kernel.protocol_minor}, writes of {size_text(kernel.max_write_bytes)}"
    return [
        ("mounted at", mount.mountpoint),
        ("since", time_text(mount.mounted_since_ns)),
        ("supervisor", _supervisor_text(mount)),
        ("state", f"{mount.state}, read only" if mount.read_only else mount.state),
        ("host", f"{mount.host} (slot {mount.slot}, incarnation {mount.incarnation}, process {mount.pid})"),
        ("lease", mount.lease or f"valid for {seconds_text(mount.lease_remaining_seconds)}"),
        ("fencing here", mount.fencing or None),
        ("kernel", protocol),
        ("uses", ", ".join(kernel.capabilities) or None),
    ]
