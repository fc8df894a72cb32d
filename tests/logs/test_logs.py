"""Logs that programs read: the journal's native protocol, JSON lines, and names of events that stay."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from vmfs import logfields
from vmfs.cli.group import vmfsctl
from vmfs.errors import DamagedBlock, NotAVmfsMount
from vmfs.events import Event, event, event_of
from vmfs.journald import JournalHandler
from vmfs.mountlog import JSON, MountLog

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"


class Journal:
    """Listens as journald does, and reads records by the protocol's own rules."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(60)

    def next_record(self) -> dict[str, str]:
        data, fds, _, _ = socket.recv_fds(self._socket, 1 << 20, 1)
        if fds:
            assert not data
            with open(fds[0], "rb") as file:
                data = os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0)
        fields = {}
        while data:
            line, _, rest = data.partition(b"\n")
            name, equals, value = line.partition(b"=")
            if equals:
                data = rest
            else:
                (length,) = struct.unpack_from("<Q", rest)
                value, end, data = rest[8 : 8 + length], rest[8 + length : 9 + length], rest[9 + length :]
                assert end == b"\n"
            fields[name.decode()] = value.decode()
        return fields

    def close(self) -> None:
        self._socket.close()
        self.path.unlink()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    listening = Journal(tmp_path / "socket")
    yield listening
    listening.close()


@pytest.fixture
def mount_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logfields, "_about", {})
    logfields.about(volume="ds1", host="esx1", slot="3", mountpoint="/mnt/ds1")


def record(message: str, *, name: Event | None = None, exc: BaseException | None = None) -> logging.LogRecord:
    info = None if exc is None else (type(exc), exc, exc.__traceback__)
    made = logging.LogRecord("vmfs.core", logging.ERROR, "/x/y.py", 7, message, (), info, "work")
    if name is not None:
        made.__dict__.update(event(name))
    return made


def handler_at(path: Path) -> JournalHandler:
    handler = JournalHandler(str(path))
    handler.setFormatter(logging.Formatter("%(message)s"))
    return handler


@pytest.mark.usefixtures("mount_fields")
def test_a_record_in_the_journal(journal: Journal) -> None:
    handler = handler_at(journal.path)
    handler.emit(record("fenced by esx2", name=Event.FENCED))
    found = journal.next_record()
    assert found == {
        "MESSAGE": "fenced by esx2", "PRIORITY": "3", "SYSLOG_IDENTIFIER": "vmfs", "SYSLOG_PID": str(os.getpid()),
        "CODE_FILE": "/x/y.py", "CODE_LINE": "7", "CODE_FUNC": "work", "THREAD_NAME": "MainThread",
        "LOGGER": "vmfs.core", "AZEKURA_EVENT": "fenced", "AZEKURA_VOLUME": "ds1", "AZEKURA_HOST": "esx1",
        "AZEKURA_SLOT": "3", "AZEKURA_MOUNTPOINT": "/mnt/ds1",
    }  # fmt: skip
    handler.close()


def test_lines_equal_signs_and_bytes_that_are_no_text_survive(journal: Journal) -> None:
    handler = handler_at(journal.path)
    for message in ("a\nb=c\n", "=", "", "ö\udcff", "x" * 5_000_000 + "\n"):  # the last one goes by a file
        handler.emit(record(message))
        expected = message.encode("utf-8", "backslashreplace").decode()
        assert journal.next_record()["MESSAGE"] == expected
    try:
        raise ValueError("deep")
    except ValueError as error:
        handler.emit(record("bug", exc=error))
    assert "ValueError: deep" in journal.next_record()["MESSAGE"]
    handler.close()


def test_a_journal_that_restarts_gets_the_next_records(journal: Journal) -> None:
    handler = handler_at(journal.path)
    journal.close()
    handler.emit(record("lost, and nothing else happens"))
    again = Journal(journal.path)
    handler.emit(record("here again"))
    assert again.next_record()["MESSAGE"] == "here again"
    again._socket.close()
    handler.close()


@pytest.mark.usefixtures("mount_fields")
def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "log"
    handler = MountLog(str(path), JSON)._handler()
    handler.setFormatter(MountLog(str(path), JSON)._formatter())
    try:
        raise ValueError("deep")
    except ValueError as error:
        handler.emit(record("two\nlines", name=Event.DAMAGED, exc=error))
    handler.emit(record("plain"))
    handler.close()
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert (first["event"], first["message"], first["level"]) == ("damaged", "two\nlines", "error")
    assert "ValueError: deep" in first["traceback"]
    assert first["time"].endswith("+00:00")
    assert set(second) == {
        "time", "level", "logger", "thread", "process", "message", "volume", "host", "slot", "mountpoint",
    }  # fmt: skip


def test_what_failed_says_which_event_it_is() -> None:
    assert event_of(DamagedBlock(1, "x")) == {"event": "damaged"}
    assert event_of(NotAVmfsMount("/x")) == {"event": "io-failed"}


def test_every_event_is_in_the_runbook_and_somewhere_in_the_code() -> None:
    section = OPERATIONS.read_text().partition("## Events")[2].partition("## Metrics")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    documented = {name for row in rows for name in re.findall(r"`([\w-]+)`", row)}
    assert documented == {e.value for e in Event}
    sources = [p.read_text() for p in (OPERATIONS.parents[1] / "vmfs").rglob("*.py") if p.name != "events.py"]
    derived = {Event.DAMAGED, Event.IO_FAILED}
    assert [e for e in Event if e not in derived and not any(f"Event.{e.name}" in s for s in sources)] == []


@pytest.mark.parametrize(
    "words", [["--log-file", "stderr"], ["--log-file", "journal", "--log-format", "json"], ["--log-format", "xml"]]
)
def test_what_does_not_go_together_is_refused(words: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(vmfsctl, ["mount", str(tmp_path / "x"), str(tmp_path), *words])
    assert result.exit_code == 2
    assert "--log-f" in result.stderr
