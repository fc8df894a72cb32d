"""How errors become a message and an exit code, for all of `vmfsctl`.

0: done; 1: tried and failed; 2: not tried, nothing changed (also a wrong command line); 70: an error in the program;
130: interrupted; 141: whoever read the output has gone. `check` exits as fsck(8) does.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import click

from thin.errors import ThinError
from vmfs.errors import EXIT_FAILED, VmfsError

EXIT_INTERNAL: Final = 70  # EX_SOFTWARE of sysexits.h
EXIT_INTERRUPTED: Final = 130  # 128 + SIGINT, as shells have it
EXIT_BROKEN_PIPE: Final = 141  # 128 + SIGPIPE


@dataclass(slots=True)
class Invocation:
    """One run of the program: what its outermost options say."""

    debug: bool = False


class Reported(click.ClickException):
    """An error of ours as click shows it: its message on standard error, and its own exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click reads it from the instance


class ReaderGone(Exception):
    """Whoever read the output has closed it. (click would take a BrokenPipeError for a failure.)"""


def reported(error: VmfsError | ThinError | OSError) -> Reported:
    """The error as click shows it."""
    if isinstance(error, OSError):
        named = f"{error.filename}: " if error.filename is not None else ""
        return Reported(f"{named}{error.strerror or error}", EXIT_FAILED)
    return Reported(str(error), error.exit_code)


def run(command: click.Command, args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. Nothing is raised and no traceback printed, but with --debug."""
    invocation = Invocation()
    try:
        result = command.main(args, prog_name="vmfsctl", standalone_mode=False, obj=invocation)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return EXIT_INTERRUPTED
    except (ReaderGone, BrokenPipeError):
        # Python flushes standard output once more at its end: let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except Exception as error:
        _show_internal(error, invocation.debug)
        return EXIT_INTERNAL


def _show_internal(error: Exception, debug: bool) -> None:
    if debug:
        logging.getLogger(__name__).debug("internal error", exc_info=error)
        click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
    hint = "" if debug else "; run it again as `vmfsctl --debug ...` for the details"
    click.echo(f"Error: internal error ({type(error).__name__}){hint}", err=True)
