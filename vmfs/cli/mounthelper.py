"""`mount.vmfs` and `umount.fuse.vmfs`: what mount(8) and umount(8) run for volumes, and so fstab and systemd.

mount(8) runs `mount.vmfs SPEC DIR [-sfnv] [-N NAMESPACE] [-t TYPE] [-o OPTIONS]`, umount(8) runs `umount.fuse.vmfs DIR
[-flnrv] [-N NAMESPACE] [-t TYPE]` (the type as /proc/mounts has it). Both hand on the exit code: 1 wrong invocation,
4 internal error, 8 interrupted, 32 failed. They find these programs in /sbin: see `vmfs.mounthelpers`.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Final

import click

from vmfs.cli.failures import EXIT_INTERNAL, EXIT_INTERRUPTED, run
from vmfs.cli.mountoptions import Request, translate

NOTE_SECONDS: Final = 10.0  # it writes one line
EXIT_USAGE: Final = 1
EXIT_BUG: Final = 4
EXIT_BY_USER: Final = 8
EXIT_MOUNT_FAILED: Final = 32
_EXITS: Final = {0: 0, EXIT_INTERNAL: EXIT_BUG, EXIT_INTERRUPTED: EXIT_BY_USER}
_UHELPER: Final = "uhelper=fuse.vmfs"
_CONTEXT: Final = {"help_option_names": ["-h", "--help"]}


def mount_main() -> None:
    """The console script `mount.vmfs`."""
    sys.exit(_main(mount_helper))


def umount_main() -> None:
    """The console script `umount.fuse.vmfs`."""
    sys.exit(_main(umount_helper))


@click.command("mount.vmfs", context_settings=_CONTEXT)
@click.argument("spec")
@click.argument("directory")
@click.option("-o", "options", multiple=True, metavar="OPTIONS", help="Separated by commas; see docs/mounting.md.")
@click.option("-s", "sloppy", is_flag=True, help="Pass over options that are not known.")
@click.option("-f", "fake", is_flag=True, help="Check what was given, and mount nothing.")
@click.option("-n", "no_mtab", is_flag=True, expose_value=False, help="Nothing: there is no /etc/mtab to be written.")
@click.option("-v", "verbose", is_flag=True, help="Say what was mounted.")
@click.option("-t", "fstype", metavar="TYPE", expose_value=False, help="vmfs, or fuse.vmfs.")
@click.option("-N", "namespace", metavar="NAMESPACE", help="Refused: run mount in that namespace, by nsenter.")
def mount_helper(
    spec: str, directory: str, options: tuple[str, ...], sloppy: bool, fake: bool, verbose: bool, namespace: str | None
) -> int:
    """Mount the volume SPEC at DIRECTORY, as `vmfsctl mount` does. mount(8) runs this.

    SPEC: vmfs:NAME, LABEL=NAME or UUID=UUID (searched among this machine's devices), a device, several devices
    separated by commas, or an iscsi:// address.

    \b
    Examples:
      mount -t vmfs vmfs:ds1 /mnt/ds1
      mount -t vmfs /dev/sdb /mnt/ds1 -o ro,host=esx1
    """
    if namespace is not None:
        raise click.UsageError(f"-N: use `nsenter --mount={namespace} mount ...` instead")
    request = translate(spec, directory, options, sloppy=sloppy)
    if fake or _is_mounted(request, verbose):
        return 0
    from vmfs.cli.group import vmfsctl

    said = contextlib.nullcontext() if verbose else contextlib.redirect_stdout(io.StringIO())
    with said:
        code = _exit_code(run(vmfsctl, request.arguments()))
    if code == 0:
        _note(os.path.realpath(directory))
    return code


@click.command("umount.fuse.vmfs", context_settings=_CONTEXT)
@click.argument("directory")
@click.option("-l", "lazy", is_flag=True, help="Take the name away now; end when the last file is closed; do not wait.")
@click.option("-v", "verbose", is_flag=True, help="Say what was unmounted.")
@click.option("-f", "force", is_flag=True, expose_value=False, help="As without: a dead mount needs no force.")
@click.option("-n", "no_mtab", is_flag=True, expose_value=False, help="Nothing: there is no /etc/mtab to be written.")
@click.option("-r", "read_only", is_flag=True, expose_value=False, help="As without: it is not made read-only instead.")
@click.option("-t", "fstype", metavar="TYPE", expose_value=False, help="vmfs, or fuse.vmfs.")
@click.option("-N", "namespace", metavar="NAMESPACE", help="Refused: run umount in that namespace, by nsenter.")
def umount_helper(directory: str, lazy: bool, verbose: bool, namespace: str | None) -> int:
    """Unmount the volume at DIRECTORY, and wait until it has been put in order. umount(8) runs this.

    \b
    Example:
      umount /mnt/ds1
    """
    if namespace is not None:
        raise click.UsageError(f"-N: use `nsenter --mount={namespace} umount ...` instead")
    from vmfs.cli.group import vmfsctl

    said = contextlib.nullcontext() if verbose else contextlib.redirect_stdout(io.StringIO())
    with said:
        return _exit_code(run(vmfsctl, ["umount", *(["--lazy"] if lazy else []), "--", directory]))


def _main(command: click.Command, arguments: Sequence[str] | None = None) -> int:
    """Run a helper; wrong arguments exit as mount(8) has it, and not as vmfsctl."""
    try:
        result = command.main(arguments, prog_name=command.name, standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        error.show()
        return EXIT_USAGE
    except (click.Abort, KeyboardInterrupt):
        return EXIT_BY_USER
    except Exception as error:
        click.echo(f"Error: internal error ({type(error).__name__})", err=True)
        return EXIT_BUG


def _exit_code(code: int) -> int:
    return _EXITS.get(code, EXIT_MOUNT_FAILED)


def _note(target: str) -> None:
    """Have libmount remember which program unmounts this, and that it is to be unmounted before the network goes.

    Its file (/run/mount/utab) is its own to write: a mount(8) that mounts nothing does that. Without the note umount(8)
    goes by statfs(2), which says `fuse`, finds no helper, and does not wait for the mount's process; and systemd takes
    a mount that is not in fstab for a local one.
    """
    from vmfs.fuse.mount import FSTYPE, mounted_at

    present = mounted_at(target)
    if present is None:
        return
    known = ["findmnt", "--mtab", "--noheadings", "--output", "OPTIONS", "--mountpoint", target]
    note = ["mount", "--fake", "--internal-only", "-t", FSTYPE, "-o", f"{_UHELPER},_netdev", present.source, target]
    try:
        # What an unmounting by `vmfsctl umount` has left there still holds.
        if _UHELPER not in _run(known):
            _run(note)
    except (OSError, subprocess.SubprocessError) as error:
        click.echo(f"{target} is mounted; umount(8) does not know how ({error}): use `vmfsctl umount`", err=True)


def _run(command: Sequence[str]) -> str:
    return subprocess.run(command, check=True, timeout=NOTE_SECONDS, capture_output=True, text=True).stdout


def _is_mounted(request: Request, verbose: bool) -> bool:
    """Whether this very volume is there already: then `mount -a` has nothing to do.

    mount(8) itself compares sources only, and knows nothing of the volume on a device.
    """
    from vmfs.fuse.mount import FSTYPE, mounted_at
    from vmfs.registry import ask_mount
    from vmfs.scanning import scan

    target = os.path.realpath(request.directory)
    present = mounted_at(target)
    if present is None or present.fstype != FSTYPE:
        return False
    info = ask_mount(target, present.source).info
    if info is None:
        return False  # dead: mounting says so, and what to do
    mounted = {info.volume.label, str(info.volume.uuid)}
    if request.volume is not None:
        same = {request.volume, request.volume.lower()} & mounted
    else:
        same = {str(v.uuid) for v in scan(request.devices[:1]).volumes} & mounted
    if same and verbose:
        click.echo(f"{present.source} is mounted at {target} already")
    return bool(same)
