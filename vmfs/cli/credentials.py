"""`--credentials FILE`, for every command that opens devices."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from vmfs.devices.iscsi.credentials import DEFAULT_FILE, choose_file

F = TypeVar("F", bound=Callable[..., Any])


def _choose(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    choose_file(None if value is None else Path(os.path.abspath(value)))


def credentials_option(command: F) -> F:
    """The option. Its value is the process's from then on; the command does not see it."""
    return click.option(
        "--credentials",
        metavar="FILE",
        expose_value=False,
        callback=_choose,
        help=f"Where iSCSI targets' users and passwords are; root's alone to read.  [default: {DEFAULT_FILE}]",
    )(command)
