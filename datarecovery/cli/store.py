"""`datarecovery store`: make a store, rebuild its index."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from datarecovery.cli import output
from datarecovery.store import config
from datarecovery.store.store import Store


@click.group()
def store() -> None:
    """Make and maintain stores."""


@store.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, readable=False))
@click.option("--level", type=click.IntRange(*config.LEVEL_RANGE), default=config.DEFAULT_LEVEL, show_default=True,
              help="zstd compression level of everything stored.")
@click.option("--append-only", is_flag=True, help="Those who back up may never delete restore points.")
@output.json_option
def create(folder: Path, level: int, append_only: bool, as_json: bool) -> None:
    """Make a store in DIR, a new or empty folder.

    \b
    Examples:
      datarecovery store create /backup
      datarecovery store create --append-only --level 3 /backup
    """
    made = Store.create(folder, level, append_only, datetime.now(UTC))
    if as_json:
        output.print_json({"store": str(folder), "uuid": str(made.config.store)})
    else:
        click.echo(f"store {folder} created, {made.config.store}")


@store.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, readable=False))
@output.json_option
def reindex(folder: Path, as_json: bool) -> int:
    """Rebuild the index of the store in DIR from its packs.

    Needed only when a command says so. Backups may go on meanwhile. Exit code 1 when packs are damaged.

    \b
    Example:
      datarecovery store reindex /backup
    """
    opened = Store.open(folder, writing=True)
    entries, problems = opened.reindex()
    if as_json:
        output.print_json({"entries": entries, "problems": problems})
    else:
        for problem in problems:
            click.echo(problem, err=True)
        click.echo(f"index of {folder} rebuilt: {entries} chunks")
    return 1 if problems else 0
