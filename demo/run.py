"""`python -m demo.run`: the seven steps, each with its figures and time, and a verdict.

Exit codes: 0 all steps did what they show and nothing was left behind; 1 otherwise; 130 stopped by a signal.
"""

import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

import click

from appliance.tinyguest import TinyGuestError, build
from demo import accelerator
from demo.errors import DemoError, OutOfTimeError, StoppedError
from demo.stage import Stage
from demo.steps import STEPS, Story

_TIME_LIMIT_SECONDS = 300
_CACHE = Path(__file__).resolve().parents[1] / ".cache"
# Not /tmp: where that is kept in memory, older kernels have no O_DIRECT on it.
_DEFAULT_PARENT = Path("/var/tmp")
_STOPPING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command()
@click.option(
    "--dir",
    "parent",
    type=click.Path(path_type=Path, exists=True, file_okay=False, writable=True, resolve_path=True),
    default=_DEFAULT_PARENT,
    show_default=True,
    help="Where the demo makes its directory, which it removes at the end.",
)
@click.option(
    "--programs",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=Path(sys.executable).parent,
    hidden=True,
    help="The directory with the commands to show.",
)
def main(parent: Path, programs: Path) -> None:
    """Carry one virtual machine through the whole product: share, run, lock, back up, grow, lose, restore, check."""
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a TextIOWrapper in a process of ours
    if os.geteuid() != 0:
        raise click.ClickException("mounting needs root")
    begun = time.monotonic()
    for number in _STOPPING_SIGNALS:
        signal.signal(number, _stop)
    signal.signal(signal.SIGALRM, _out_of_time)
    signal.alarm(_TIME_LIMIT_SECONDS)
    try:
        problem, code = _perform(parent, programs), 1
    except (DemoError, TinyGuestError) as error:
        problem, code = str(error), error.exit_code
    elapsed = time.monotonic() - begun
    if problem:
        print(f"\nVERDICT: FAILED after {elapsed:.0f} s: {problem}")
        sys.exit(code)
    print(f"\nVERDICT: all {len(STEPS)} steps did what they show, in {elapsed:.0f} s; nothing is left behind")


def _perform(parent: Path, programs: Path) -> str:
    """Run the steps; returns what is left behind, or an empty string."""
    guest = build(_CACHE / "tinyguest")
    chosen = accelerator.choose(guest, _CACHE / "accelerator.json")
    print(f"QEMU's accelerator: {chosen.name} ({chosen.reason})")
    stage = Stage(parent, programs, guest, chosen.name, _show_line)
    with stage:
        try:
            _run_steps(stage)
        finally:
            _ignore_signals()
    return "; ".join(stage.left)


def _run_steps(stage: Stage) -> None:
    story = Story(stage)
    for number, (title, step) in enumerate(STEPS, 1):
        print(f"\n{number}. {title}")
        begun = time.monotonic()
        try:
            figures = step(story)
        except (DemoError, OSError) as error:
            print(stage.log_tails())
            raise _in_step(number, error) from error
        print(f"   {figures}\n   ok, {time.monotonic() - begun:.1f} s")


def _show_line(text: str) -> None:
    print(f"   {text}")


def _in_step(number: int, error: Exception) -> DemoError:
    """The same kind of error, saying in which step it happened."""
    kind = type(error) if isinstance(error, DemoError) else DemoError
    return kind(f"step {number}: {error}")


def _stop(number: int, _frame: FrameType | None) -> None:
    _ignore_signals()
    raise StoppedError(f"stopped by {signal.Signals(number).name}")


def _out_of_time(_number: int, _frame: FrameType | None) -> None:
    _ignore_signals()
    raise OutOfTimeError(f"it took longer than {_TIME_LIMIT_SECONDS} s")


def _ignore_signals() -> None:
    """From here on putting things in order is all that is left to do, and is not interrupted."""
    signal.alarm(0)
    for number in _STOPPING_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    main()
