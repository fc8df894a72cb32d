"""Runs the product's commands as a person would type them, shows each, and insists on its exit code."""

import json
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from demo.errors import CommandError

_TIMEOUT_SECONDS = 60.0


class Commands:
    """The commands of one installation, run in one directory so that paths stay short."""

    def __init__(
        self, programs: Path, directory: Path, environment: dict[str, str], show: Callable[[str], None]
    ) -> None:
        """`programs` is the directory with `vmfsctl` and `datarecovery`; `show` gets each command line."""
        self._programs = programs
        self._directory = directory
        self._environment = environment
        self._show = show

    def run(self, *words: str) -> str:
        """Run a command and return its standard output. Raises CommandError when it fails or hangs."""
        self._show("$ " + shlex.join(words))
        result = self.attempt(*words)
        if result.returncode:
            said = (result.stderr.strip() or result.stdout.strip()).splitlines()
            raise CommandError(f"{shlex.join(words)} exited {result.returncode}: " + "\n".join(said[-5:]))
        return result.stdout

    def json(self, *words: str) -> Any:
        """Run a command with `--json` and return what it printed, parsed. Raises CommandError."""
        output = self.run(*words, "--json")
        try:
            return json.loads(output)
        except ValueError as error:
            raise CommandError(f"{shlex.join(words)} --json printed no JSON: {output[:200]!r}") from error

    def attempt(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command without showing it or judging its exit code. Raises CommandError when it hangs."""
        try:
            # A session of its own: Ctrl-C at the terminal reaches the demo alone, which then puts things in order.
            return subprocess.run(
                [str(self._programs / words[0]), *words[1:]],
                cwd=self._directory,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_SECONDS,
                start_new_session=True,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise CommandError(f"{shlex.join(words)} did not end within {_TIMEOUT_SECONDS:g} s") from error
        except OSError as error:
            raise CommandError(f"{words[0]} cannot be run: {error}; run `make setup`") from error
