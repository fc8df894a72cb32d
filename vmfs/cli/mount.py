"""`vmfsctl mount`: starts the process that serves a volume at a mount point."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Sequence
from dataclasses import replace
from typing import Final
from uuid import UUID

import click

from vmfs.cli.credentials import credentials_option
from vmfs.cli.output import printable, show_json
from vmfs.control.contract import DATA_THREADS, MountOptions
from vmfs.daemon import run_background, run_foreground
from vmfs.devices.iscsi.credentials import chosen_file
from vmfs.fuse.errors import NotRoot
from vmfs.metrics.address import check_installed, parse_address
from vmfs.mountlog import JOURNAL, JSON, STDERR, SYSLOG, TEXT, MountLog, default_log_file
from vmfs.supervisor.launch import run_supervised

_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING}
_IN_FLIGHT_MAX_SECONDS: Final = 3600  # what stays on its way for longer than any lease is not on its way
_DATA_THREADS_MAX: Final = 64  # more than a queue depth of 32 can use


@click.command("mount", short_help="Mount a volume on this host.")
@click.argument("devices", metavar="DEVICE...", nargs=-1)
@click.argument("mountpoint", metavar="MOUNTPOINT")
@click.option("--scan", is_flag=True, help="Find the extents that are not given among this machine's devices.")
@click.option(
    "--scan-in", "places", multiple=True, metavar="DIR|PATTERN", help="As --scan, among these files and devices too."
)
@click.option("--volume", metavar="NAME|UUID", help="As --scan, of this volume.")
@click.option("--host", metavar="NAME", help="This host's name among the volume's.  [default: the machine's name]")
@click.option(
    "--boot-id",
    type=click.UUID,
    metavar="UUID",
    help="Count as another machine, booted under this id: simulates several hosts on one machine.",
)
@click.option(
    "-o",
    "options",
    multiple=True,
    metavar="NAME[=VALUE],...",
    help="ro: read only. data_threads=N: threads that move data. init_mask=0xN: FUSE features not to be used.",
)
@click.option(
    "--in-flight",
    type=float,
    metavar="SECONDS",
    help="Without storage fencing: how long a write of this host may stay on its way to the storage.",
)
@click.option("--watchdog", metavar="DEVICE", help="Have this device reset the machine when the lease is gone.")
@click.option("--foreground", is_flag=True, help="Stay, and log to standard error, until it is unmounted.")
@click.option(
    "--no-supervisor", is_flag=True, help="Let the mount die with its process, instead of starting another process."
)
@click.option(
    "--metrics",
    metavar="[ADDR:]PORT",
    help="Serve metrics for Prometheus there, over HTTP; ADDR is 127.0.0.1 unless given. Nobody is asked who they are: "
    "at another address whoever reaches the port reads them.",
)
@click.option(
    "--log-file",
    metavar="FILE|journal|syslog|stderr",
    help="Where to log: stderr with --foreground only.  [default: a file in /run/azekura/log]",
)
@click.option(
    "--log-format", type=click.Choice([TEXT, JSON]), default=TEXT, show_default=True,
    help="json: a line of JSON a record, with its event and mount as members. The journal gets them as fields anyway.",
)
@click.option("--log-level", type=click.Choice(list(_LEVELS)), default="info", show_default=True)
@credentials_option
@click.option("--json", "as_json", is_flag=True, help="Print what was mounted as JSON.")
def mount_command(
    devices: tuple[str, ...],
    mountpoint: str,
    scan: bool,
    places: tuple[str, ...],
    volume: str | None,
    host: str | None,
    boot_id: UUID | None,
    options: tuple[str, ...],
    in_flight: float | None,
    watchdog: str | None,
    foreground: bool,
    no_supervisor: bool,
    metrics: str | None,
    log_file: str | None,
    log_level: str,
    log_format: str,
    as_json: bool,
) -> int:
    """Mount the volume on DEVICE... (all its extents, in any order) at the directory MOUNTPOINT, as root.

    Returns when the mount serves; its process stays until `vmfsctl umount`. Other hosts may have the volume mounted
    at the same time. A supervisor starts another process should that one die: whoever uses the mount only waits.

    \b
    Examples:
      vmfsctl mount /dev/sdb /mnt/ds1
      vmfsctl mount lun.img /mnt/a --host esx1
      vmfsctl mount /dev/sdb /mnt/ds1 -o ro --foreground
      vmfsctl mount --scan --volume ds1 /mnt/ds1
      vmfsctl mount iscsi://10.0.0.5/iqn.2026-01.com.example:vol1/0 /mnt/ds1
    """
    looks = scan or bool(places) or volume is not None
    if not devices and not looks:
        raise click.UsageError(f"{mountpoint!r} alone does not do: give the volume's devices, then the mount point")
    if in_flight is not None and not 0 <= in_flight <= _IN_FLIGHT_MAX_SECONDS:
        raise click.UsageError(f"--in-flight: {in_flight} is not between 0 and {_IN_FLIGHT_MAX_SECONDS}")
    if metrics is not None:
        parse_address(metrics)
        check_installed(metrics)
    wanted = replace(
        _mount_options(devices, mountpoint, host, boot_id, options, _LEVELS[log_level]),
        in_flight_s=in_flight,
        watchdog=None if watchdog is None else os.path.abspath(watchdog),
        metrics=metrics,
        log_format=_log_format(log_file, log_format, foreground=foreground),
    )
    if os.geteuid() != 0:
        raise NotRoot(f"mounting at {mountpoint}")
    if looks:
        from vmfs.scanning import complete

        wanted = replace(wanted, devices=complete(wanted.devices, volume, places))
    if foreground:
        from vmfs.core.mounting import serve

        return run_foreground(wanted, serve, MountLog(_log_place(log_file), log_format))
    where = _log_place(log_file) or default_log_file(wanted.mountpoint)
    pid, supervisor = _start(wanted, where, supervised=not no_supervisor)
    if as_json:
        show_json({
            "mountpoint": wanted.mountpoint, "host": wanted.host, "pid": pid, "supervisor": supervisor, "log": where,
        })  # fmt: skip
    else:
        click.echo(printable(f"mounted at {wanted.mountpoint} as host {wanted.host} (process {pid}, log {where})"))
    return 0


def _start(wanted: MountOptions, where: str, *, supervised: bool) -> tuple[int, int | None]:
    """(pid of the mount's process, the supervisor's)."""
    if supervised:
        return run_supervised(wanted, where)
    from vmfs.core.mounting import serve

    return run_background(wanted, serve, MountLog(where, wanted.log_format)), None


def _mount_options(
    devices: Sequence[str], mountpoint: str, host: str | None, boot_id: UUID | None, options: Sequence[str], level: int
) -> MountOptions:
    given = _split(options)
    read_only = given.pop("ro", None) is not None
    given.pop("rw", None)
    threads = _number(given, "data_threads")
    mask = _number(given, "init_mask")
    if threads is not None and not 1 <= threads <= _DATA_THREADS_MAX:
        raise click.UsageError(f"-o data_threads: {threads} is not between 1 and {_DATA_THREADS_MAX}")
    return MountOptions(
        # The process works in /: paths must hold there. Links are kept: /dev/disk/by-id names say more in messages.
        devices=tuple(d if "://" in d else os.path.abspath(d) for d in devices),
        mountpoint=os.path.realpath(mountpoint),
        host=socket.gethostname() if host is None else host,
        boot_id=boot_id,
        read_only=read_only,
        init_mask=mask or 0,
        credentials=None if (file := chosen_file()) is None else str(file),
        data_threads=DATA_THREADS if threads is None else threads,
        log_level=level,
        options=given,
    )


def _split(options: Sequence[str]) -> dict[str, str]:
    """`-o a,b=c -o d` as a mapping. A name given twice is a contradiction waiting to happen: refused."""
    found: dict[str, str] = {}
    for option in ",".join(options).split(",") if options else []:
        name, _, value = option.partition("=")
        if not name or name in found:
            raise click.UsageError(f"-o: {'an empty option' if not name else f'{name} is given twice'}")
        found[name] = value
    if "ro" in found and "rw" in found:
        raise click.UsageError("-o: ro and rw exclude each other")
    return found


def _number(given: dict[str, str], name: str) -> int | None:
    text = given.pop(name, None)
    if text is None:
        return None
    try:
        number = int(text, 0)
    except ValueError:
        number = -1
    if number < 0:
        raise click.UsageError(f"-o {name}: {text!r} is not a number")
    return number


def _log_place(log_file: str | None) -> str | None:
    if log_file is None or log_file == STDERR:
        return None
    return log_file if log_file in (SYSLOG, JOURNAL) else os.path.abspath(log_file)


def _log_format(log_file: str | None, log_format: str, *, foreground: bool) -> str:
    if log_file == STDERR and not foreground:
        raise click.UsageError("--log-file stderr goes with --foreground: a mount in the background has none")
    if log_file == JOURNAL and log_format == JSON:
        raise click.UsageError("--log-format json: the journal has them as fields of its own (journalctl -o json)")
    return log_format
