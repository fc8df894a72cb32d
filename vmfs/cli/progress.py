"""Progress on a terminal: one line on standard error, rewritten; nothing when that is no terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Final, TextIO

_REDRAW_SECONDS: Final = 0.1
_CLEAR_LINE: Final = "\r\x1b[K"


class Bars:
    """Shows the stage that work is in and how far it has come. Use as a context manager: the line goes at its end."""

    def __init__(self, verb: str, *, wanted: bool | None = None, stream: TextIO | None = None) -> None:
        """`wanted`: True shows it on any stream, a line a stage; None only on a terminal."""
        self._verb = verb
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._shown = self._terminal if wanted is None else wanted
        self._drawn_at = 0.0
        self._stage = ""

    def __enter__(self) -> Bars:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown and self._terminal:
            self._stream.write(_CLEAR_LINE)
            self._stream.flush()

    def step(self, stage: str, done: int, total: int) -> None:
        """Show that `done` of `total` of a stage is done; called as often as convenient."""
        if not self._shown:
            return
        now = time.monotonic()
        if stage == self._stage and (not self._terminal or now - self._drawn_at < _REDRAW_SECONDS):
            return
        self._stage, self._drawn_at = stage, now
        percent = 100 * done // total if total else 100
        text = f"{self._verb} {stage}: {percent} %" if self._terminal else f"{self._verb} {stage}\n"
        self._stream.write((_CLEAR_LINE if self._terminal else "") + text)
        self._stream.flush()
