"""Each kind of error as a message and an exit code, and never a traceback."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from typing import NoReturn

import click
import pytest

from thin.errors import SizeInvalid
from vmfs.cli.failures import Invocation, run
from vmfs.cli.group import LazyGroup, vmfsctl
from vmfs.control.errors import ControlForbidden
from vmfs.errors import DamagedBlock, LeaseLost, NotAVmfsMount
from vmfs.registry import ask_mount


def command_that(does: Callable[[], object]) -> click.Command:
    """A group like `vmfsctl` whose one command does that."""

    class Group(LazyGroup):
        def resolve_command(
            self, ctx: click.Context, args: list[str]
        ) -> tuple[str | None, click.Command | None, list[str]]:
            return args[0], click.Command(args[0], callback=does), args[1:]

    @click.group(cls=Group)
    @click.option("--debug", is_flag=True)
    @click.pass_obj
    def group(invocation: Invocation, debug: bool) -> None:
        invocation.debug = debug

    return group


def raising(error: BaseException) -> click.Command:
    def fail() -> None:
        raise error

    return command_that(fail)


@pytest.mark.parametrize(
    ("error", "exit_code", "message"),
    [
        (NotAVmfsMount("/tmp"), 2, "/tmp is not in a mounted volume"),
        (LeaseLost("ds1", "gone"), 1, "this host's lease is lost"),
        (DamagedBlock(0x1000, "torn"), 1, "damaged block at volume address 0x1000"),
        (SizeInvalid("'x' is not a size"), 2, "'x' is not a size"),
        (OSError(errno.ENOENT, "No such file or directory", "/missing"), 1, "/missing: No such file or directory"),
        (OSError("odd"), 1, "odd"),
        (click.UsageError("say more"), 2, "say more"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (click.Abort(), 130, "interrupted"),
        (RuntimeError("planted secret"), 70, "internal error (RuntimeError); run it again as `vmfsctl --debug"),
        (RecursionError(), 70, "internal error (RecursionError)"),
    ],
)
def test_errors(capsys: pytest.CaptureFixture[str], error: BaseException, exit_code: int, message: str) -> None:
    assert run(raising(error), ["do"]) == exit_code
    shown = capsys.readouterr()
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert "secret" not in shown.err
    assert shown.out == ""


def test_debug_shows_where_an_internal_error_came_from(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    assert run(raising(RuntimeError("planted")), ["--debug", "do"]) == 70
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert "RuntimeError: planted" in shown
    assert any(r.exc_info for r in caplog.records)


def test_a_commands_number_is_the_exit_code() -> None:
    assert run(command_that(lambda: 1), ["do"]) == 1
    assert run(command_that(lambda: None), ["do"]) == 0
    assert run(command_that(lambda: click.get_current_context().exit(3)), ["do"]) == 3


def test_a_reader_that_has_gone_is_no_error() -> None:
    code = (
        "import sys, click; from tests.cli.test_failures import command_that; from vmfs.cli.failures import run;"
        "sys.exit(run(command_that(lambda: [click.echo('x' * 99) for _ in range(99999)] and None), ['do']))"
    )
    reading, writing = os.pipe()
    with subprocess.Popen([sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, text=True) as program:
        os.close(writing)
        os.read(reading, 10)
        os.close(reading)
        _, err = program.communicate(timeout=20)
    assert (program.returncode, err) == (141, "")


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(vmfsctl, ["--version"]) == 0
    assert capsys.readouterr().out.startswith("vmfsctl, version ")


def test_list_shows_what_root_alone_may_know_without_complaint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def forbidden(path: str, *, answer_seconds: float) -> NoReturn:
        raise ControlForbidden(f"the mount at {path}")

    monkeypatch.setattr("vmfs.registry.Mount.for_path", forbidden)
    monkeypatch.setattr("vmfs.cli.listing.mounted_volumes", lambda: [ask_mount("/mnt/ds1", "ds1")])
    assert run(vmfsctl, ["list"]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[1].split() == ["ds1", "/mnt/ds1", "-", "known", "to", "root", "only", "-", "-", "-"]
    assert shown.err == ""
