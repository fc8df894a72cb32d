"""The commands of `vmfsctl`. A command's module is imported when the command is run or its own help is asked for."""

from __future__ import annotations

import importlib
import logging
from typing import Any, Final

import click

from thin.errors import ThinError
from vmfs.cli.failures import Invocation, ReaderGone, reported
from vmfs.errors import VmfsError

# name: (where its object lies, its line in the list of commands: the same as its own short help, see the tests)
COMMANDS: Final = {
    "format": ("vmfs.cli.format:format_command", "Make a new volume on a device."),
    "mount": ("vmfs.cli.mount:mount_command", "Mount a volume on this host."),
    "umount": ("vmfs.cli.umount:umount_command", "Unmount a volume from this host."),
    "restart": ("vmfs.cli.restart:restart_command", "Replace a mount's process, as after an upgrade."),
    "scan": ("vmfs.cli.scan:scan_command", "Find volumes among this machine's devices."),
    "list": ("vmfs.cli.listing:list_command", "List the volumes that are mounted here."),
    "info": ("vmfs.cli.info:info_command", "Show what a volume is."),
    "hosts": ("vmfs.cli.hosts:hosts_command", "Show which hosts use a volume."),
    "locks": ("vmfs.cli.locks:locks_command", "Show which host holds which lock."),
    "fence": ("vmfs.cli.recover:fence_command", "Declare a host dead."),
    "recover": ("vmfs.cli.recover:recover_command", "Recover a host whose recovery has failed."),
    "check": ("vmfs.cli.check:check_command", "Check a volume's structure, and mend it."),
    "dump": ("vmfs.cli.dump:dump_group", "Show a volume's structures as they lie on its devices."),
    "clone": ("vmfs.cli.clone:clone_command", "Clone a file in an instant."),
    "diff": ("vmfs.cli.diff:diff_command", "Show where a clone differs from another."),
    "disk": ("vmfs.cli.disk:disk_group", "Make virtual disks and look at them."),
    "extend": ("vmfs.cli.extend:extend_group", "Make something larger."),
    "install-helpers": ("vmfs.cli.helpers:install_helpers_command", "Have mount(8), fstab and systemd mount volumes."),
}


class LazyGroup(click.Group):
    """A group that knows its commands' names and lines without importing them, and reports their errors."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        found = getattr(importlib.import_module(module), attribute)
        if not isinstance(found, click.Command):
            raise TypeError(f"{module}.{attribute} is no command")
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            ctx.fail(f"there is no command {name!r}; `vmfsctl --help` lists them")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise ReaderGone from error
        except (VmfsError, ThinError, OSError) as error:
            raise reported(error) from error


@click.group("vmfsctl", cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="azekura", prog_name="vmfsctl")
@click.option("--debug", is_flag=True, help="Say more on standard error, and show where an internal error came from.")
@click.pass_obj
def vmfsctl(invocation: Invocation | None, debug: bool) -> None:
    """Make, mount and look after volumes that many hosts share.

    A DEVICE is a block device or a file that stands in for one. A MOUNT is the mount point of a mounted volume.

    \b
    Example:
      vmfsctl format --name ds1 /dev/sdb
      vmfsctl mount /dev/sdb /mnt/ds1
      vmfsctl list
    """
    if debug:
        logging.basicConfig(level=logging.DEBUG, format="%(levelname)s %(name)s: %(message)s")
    if invocation is not None:
        invocation.debug = debug
