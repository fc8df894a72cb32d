"""The command `datarecovery`: one file a command, each a thin face over one operation.

`main` is where every error of the package becomes one line on stderr and an exit code (errors.py lists the codes).
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

import click

from datarecovery.cli.backup import backup
from datarecovery.cli.listing import list_points
from datarecovery.cli.restore import restore
from datarecovery.cli.show import show
from datarecovery.cli.store import store
from datarecovery.cli.verify import verify
from datarecovery.errors import EXIT_INTERRUPTED, DataRecoveryError, from_os_error


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="azekura", prog_name="datarecovery")
def cli() -> None:
    """Back up virtual machines' disks into a deduplicating store, and restore them.

    \b
    Examples:
      datarecovery store create /backup
      datarecovery backup --store /backup --vm web1 /vmfs/ds1/web1/web1.vmdk
      datarecovery list --store /backup
      datarecovery restore --store /backup web1@latest /vmfs/ds1/web1-restored
      datarecovery verify --store /backup

    \b
    Exit codes: 0 success, 1 verify found damage, 2 wrong usage, 3 no usable store,
    4 no such restore point, 5 stored data damaged, 6 a disk cannot be read,
    7 target exists, 8 no space, 9 busy, 10 made by a newer version,
    11 other input/output error, 130 interrupted.
    """


for _command in (store, backup, list_points, show, restore, verify):
    cli.add_command(_command)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Run the command line; the process ends with the exit code."""
    # A write over a file size limit is to be an error that we report, not the end of the process. SIGTERM cleans up as
    # Ctrl-C does.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(_run())


def _run() -> int:
    try:
        result = cli.main(standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except DataRecoveryError as error:
        click.echo(f"datarecovery: {error}", err=True)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("datarecovery: interrupted; nothing was left half done", err=True)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away; there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_INTERRUPTED
    except OSError as error:
        converted = from_os_error(error, f"using {error.filename}" if error.filename else "the system call failed")
        click.echo(f"datarecovery: {converted}", err=True)
        return converted.exit_code
