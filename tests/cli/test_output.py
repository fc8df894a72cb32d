"""Tables, fields and texts."""

from __future__ import annotations

import json
import os
import sys
from uuid import UUID

import pytest

from vmfs.cli.output import fitted, printable, seconds_text, show_fields, show_json, show_table, size_text


def test_columns_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [("a", "1", "x"), ("数据", "1234567", ""), ("e\u0301e", "22", "y")]
    show_table(("NAME", "SIZE", "X"), rows, right=("SIZE",))
    assert capsys.readouterr().out.splitlines() == [
        "NAME     SIZE  X",
        "a           1  x",
        "数据  1234567",
        "e\u0301e         22  y",
    ]


def test_fields_are_aligned_and_absent_ones_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    show_fields([("volume", "ds1"), ("lock method", None), ("host", "esx1\n")])
    assert capsys.readouterr().out == "volume:  ds1\nhost:    esx1\\n\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("web-flat.vmdk", "web-flat.vmdk"),
        ("数据 ä", "数据 ä"),
        ("a\nb\x1b[31m", "a\\nb\\x1b[31m"),
        (os.fsdecode(b"\xff\xfe"), "\\xff\\xfe"),
        ("\u202e", "\\u202e"),
    ],
)
def test_nothing_steers_the_terminal(text: str, shown: str) -> None:
    assert printable(text) == shown
    printable(text).encode()


def test_json_of_records_and_plain_values(capsys: pytest.CaptureFixture[str]) -> None:
    show_json({"a": None, "b": [(1, 2)], "c": UUID(int=1), "d": os.fsdecode(b"\xff")})
    shown = capsys.readouterr().out
    assert json.loads(shown) == {"a": None, "b": [[1, 2]], "c": str(UUID(int=1)), "d": "\udcff"}
    assert shown.isascii()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0, "0.0 s"), (59.94, "59.9 s"), (60, "1 min 0 s"), (3599, "59 min 59 s"), (3600, "1 h 0 min"),
     (172799, "47 h 59 min"), (172800, "2 d 0 h")],
)  # fmt: skip
def test_durations(seconds: float | None, text: str) -> None:
    assert seconds_text(seconds) == text


def test_sizes() -> None:
    assert (size_text(None), size_text(0), size_text(1536 << 20)) == ("-", "0 B", "1.5 GiB")


def test_a_table_is_cut_to_the_terminal_and_to_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"hypervisor-{i}.rack-{i}.site-one.example.com-{'x' * 20}{i}" for i in range(8)]
    rows = [(str(i), name, "1.2 s ago", "recovering by " + names[0]) for i, name in enumerate(names)]
    headers = ("SLOT", "HOST", "HEARTBEAT", "STATE")
    show_table(headers, rows, right=("SLOT", "HEARTBEAT"))
    assert all(name in line for name, line in zip(names, capsys.readouterr().out.splitlines()[1:], strict=True))

    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    show_table(headers, rows, right=("SLOT", "HEARTBEAT"))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) == 80
    assert all("1.2 s ago" in line for line in lines[1:])
    assert len({line.split()[1] for line in lines[1:]}) == 8  # their ends tell them apart


def test_columns_that_cannot_be_narrower_stay() -> None:
    assert fitted([4, 30, 40], [4, 4, 5], 40) == [4, 18, 18]
    assert fitted([4, 30], [4, 4], 5) == [4, 8]
    assert fitted([4, 6], [4, 4], 80) == [4, 6]
