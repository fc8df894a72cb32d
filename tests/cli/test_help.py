"""What `vmfsctl` says of itself, and what that costs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from vmfs.cli.group import COMMANDS, vmfsctl

WIDE = {"terminal_width": 200, "max_content_width": 200}


def all_commands() -> Iterator[tuple[str, click.Command]]:
    """(as typed, command) of every command, those of groups included."""
    context = click.Context(vmfsctl)
    for name in COMMANDS:
        command = vmfsctl.get_command(context, name)
        assert command is not None
        yield name, command
        if isinstance(command, click.Group):
            yield from ((f"{name} {inner}", c) for inner, c in command.commands.items())


TYPED = [typed for typed, command in all_commands() if not isinstance(command, click.Group)]


DUMPED = {
    "superblock": "MOUNT|DEVICE...", "slot": "SLOT MOUNT|DEVICE...",
    "lock": "superblock|group:N|inode:N|ADDRESS MOUNT|DEVICE...", "group": "GROUP MOUNT|DEVICE...",
    "chunk": "ADDRESS MOUNT|DEVICE...", "orphans": "SLOT MOUNT|DEVICE...", "journal": "SLOT MOUNT|DEVICE...",
    "node": "ADDRESS MOUNT|DEVICE...", "block": "ADDRESS MOUNT|DEVICE...", "inode": "INODE|PATH [MOUNT|DEVICE...]",
    "map": "INODE|PATH [MOUNT|DEVICE...]", "directory": "INODE|PATH [MOUNT|DEVICE...]",
}  # fmt: skip


def help_of(typed: str) -> str:
    result = CliRunner().invoke(vmfsctl, [*typed.split(), "--help"], **WIDE)  # type: ignore[arg-type]
    assert result.exit_code == 0
    return result.output


def test_all_that_there_is() -> None:
    assert [
        "format", "mount", "umount", "restart", "scan", "list", "info", "hosts", "locks", "fence", "recover", "check",
        *(f"dump {w}" for w in DUMPED), "clone", "diff", "disk create", "disk info", "extend disk", "install-helpers",
    ] == TYPED  # fmt: skip


@pytest.mark.parametrize("typed", TYPED)
def test_each_has_an_example_that_could_be_typed(typed: str) -> None:
    text = help_of(typed)
    _, found, examples = text.partition("Example")
    assert found
    assert f"vmfsctl {typed} " in examples or f"vmfsctl {typed}\n" in examples
    assert "--json" in text


@pytest.mark.parametrize("typed", TYPED)
def test_each_says_what_it_takes(typed: str) -> None:
    usage = help_of(typed).splitlines()[0]
    takes = {
        "format": "DEVICE...", "mount": "DEVICE... MOUNTPOINT", "umount": "MOUNT", "restart": "MOUNT",
        "scan": "[OPTIONS]", "list": "[OPTIONS]",
        "info": "MOUNT|DEVICE...", "hosts": "MOUNT|DEVICE...", "locks": "MOUNT|FILE|DEVICE...",
        "check": "MOUNT|DEVICE...",
        "fence": "HOST [MOUNT...]", "recover": "SLOT|HOST [MOUNT]",
        "clone": "SRC DST", "diff": "OLD NEW", "disk create": "PATH", "disk info": "PATH", "extend disk": "PATH SIZE",
        "install-helpers": "[OPTIONS]",
        **{f"dump {what}": takes for what, takes in DUMPED.items()},
    }  # fmt: skip
    assert takes[typed] in usage


def test_the_lines_of_the_list_are_the_commands_own() -> None:
    context = click.Context(vmfsctl)
    for name, (_, line) in COMMANDS.items():
        command = vmfsctl.get_command(context, name)
        assert command is not None
        assert command.get_short_help_str(100) == line
        assert command.name == name
    shown = CliRunner().invoke(vmfsctl, ["--help"], **WIDE).output  # type: ignore[arg-type]
    assert all(f"  {name} " in shown and line in shown for name, (_, line) in COMMANDS.items())


def test_help_loads_no_more_than_it_needs() -> None:
    """It starts in a tenth of a second because it does not load the file system."""
    code = (
        "import sys; from vmfs.cli.failures import run; from vmfs.cli.group import vmfsctl; run(vmfsctl, ['--help']);"
        "print(*(m for m in sys.modules if m.startswith(('vmfs.', 'thin.', 'ctypes', 'xxhash'))), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    needed = ["thin.errors", "vmfs.cli", "vmfs.cli.failures", "vmfs.cli.group", "vmfs.errors"]
    assert sorted(done.stderr.split()) == needed


@pytest.mark.parametrize("line", ["nosuch", "disk nosuch", "mount", "mount one", "list --nosuch", "mount a b -o x,x"])
def test_a_wrong_command_line_exits_2(line: str) -> None:
    result = CliRunner().invoke(vmfsctl, line.split())
    assert result.exit_code == 2
    assert "Error: " in result.stderr
