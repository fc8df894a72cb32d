"""A question before something that cannot be undone."""

from __future__ import annotations

import sys

import click

from vmfs.cli.failures import Reported
from vmfs.errors import EXIT_NOT_TRIED


def confirm(question: str) -> None:
    """Return when the answer is yes.

    Raises Reported when it is no, click.UsageError when nobody is there to answer, click.Abort at Ctrl-C.
    """
    try:
        agreed = click.confirm(question, err=True)
    except click.Abort:
        if sys.stdin.isatty():
            raise
        click.echo(err=True)  # the question's line has no end yet
        raise click.UsageError("nobody answers on standard input; --yes goes on without asking") from None
    if not agreed:
        raise Reported("nothing was changed, as you answered", EXIT_NOT_TRIED)
