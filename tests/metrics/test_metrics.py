"""Metrics of a real mount, as Prometheus reads them."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from vmfs.cli.group import vmfsctl
from vmfs.client import Mount
from vmfs.metrics.address import MetricsUnusable, parse_address

SECONDS = 60.0  # for what takes a moment; the machine may be busy
ROOT = Path(__file__).parents[2]


def command(*words: object) -> None:
    subprocess.run([sys.executable, "-c", "from vmfs.cli import main; main()", *map(str, words)], check=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def scrape(port: int) -> dict[str, float]:
    """The samples by name and labels; asked for again while a new process takes the mount over."""
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=SECONDS) as answer:
                text = answer.read().decode()
            break
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
    found = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            found[name] = float(value)
    return found


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def mountpoint(tmp_path: Path, port: int) -> Iterator[Path]:
    image, place, log = tmp_path / "lun.img", tmp_path / "mnt", tmp_path / "log"
    image.touch()
    os.truncate(image, 96 << 20)
    place.mkdir()
    command("format", "--name", "m1", image)
    command("mount", image, place, "--host", "esx1", "--metrics", port, "--log-file", log)
    yield place
    command("umount", place)


def test_a_mount_counts_what_it_does(mountpoint: Path, port: int) -> None:
    before = scrape(port)
    assert before['azekura_data_bytes_total{direction="write"}'] == 0
    data = os.urandom(1 << 20)
    with open(mountpoint / "f", "wb") as file:
        file.write(data)
        os.fsync(file.fileno())
    fd = os.open(mountpoint / "f", os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    assert os.pread(fd, len(data), 0) == data
    os.close(fd)
    with pytest.raises(FileNotFoundError):
        (mountpoint / "nosuch").stat()
    after = scrape(port)
    assert after['azekura_data_bytes_total{direction="write"}'] == len(data)
    assert after['azekura_data_bytes_total{direction="read"}'] >= 0
    assert after['azekura_request_seconds_count{opcode="WRITE"}'] > 0
    assert after['azekura_request_seconds_count{opcode="CREATE"}'] == 1
    assert after['azekura_request_errors_total{errno="ENOENT",opcode="LOOKUP"}'] >= 1
    assert after['azekura_storage_seconds_count{kind="data",operation="write"}'] > 0
    assert after['azekura_storage_seconds_count{kind="metadata",operation="flush"}'] > 0
    assert after["azekura_commit_seconds_count"] > before["azekura_commit_seconds_count"]
    assert after['azekura_lock_seconds_count{guards="inode"}'] > 0
    assert after["azekura_lease_remaining_seconds"] > 0
    assert after['azekura_hosts{state="live"}'] == 1
    assert after["azekura_volume_free_bytes"] < after["azekura_volume_size_bytes"]
    assert 'host="esx1"' in next(name for name in after if name.startswith("azekura_mount_info"))


def test_the_process_that_takes_over_goes_on_serving_them(mountpoint: Path, port: int) -> None:
    assert scrape(port)["azekura_takeovers_total"] == 0
    os.kill(Mount.for_path(mountpoint).info().mount.pid, signal.SIGKILL)
    (mountpoint / "after").touch()
    assert scrape(port)["azekura_takeovers_total"] == 1


def test_a_port_in_use_is_refused_before_anything_is_mounted(tmp_path: Path) -> None:
    image, place = tmp_path / "lun.img", tmp_path / "mnt"
    image.touch()
    os.truncate(image, 96 << 20)
    place.mkdir()
    command("format", "--name", "m2", image)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = CliRunner().invoke(
            vmfsctl, ["mount", str(image), str(place), "--metrics", str(port), "--log-file", str(tmp_path / "log")]
        )
    assert refused.exit_code == 2
    assert f"metrics cannot be served at {port}: Address already in use" in refused.output
    assert not os.path.ismount(place)


def test_addresses() -> None:
    assert parse_address("9100") == ("127.0.0.1", 9100)
    assert parse_address("10.0.0.5:9100") == ("10.0.0.5", 9100)
    assert parse_address("[::1]:9100") == ("::1", 9100)
    for wrong in ("", "x", "0", "65536", ":9100", "::1:9100", "host:", "1.2.3.4", "-1", "٣"):
        with pytest.raises(MetricsUnusable):
            parse_address(wrong)


def test_every_metric_is_documented_and_the_rules_use_none_that_is_not_there(mountpoint: Path, port: int) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=SECONDS) as answer:
        served = set(re.findall(r"^# TYPE (azekura_\w+)", answer.read().decode(), re.MULTILINE))
    served = {name for name in served if not name.endswith("_created")}
    documented = set(re.findall(r"`(azekura_\w+)`", (ROOT / "docs" / "operations.md").read_text()))
    assert documented == served
    rules = (ROOT / "packaging" / "prometheus" / "azekura.rules.yml").read_text()
    used = {re.sub(r"_(bucket|count|sum)$", "", name) for name in re.findall(r"azekura_\w+", rules)}
    assert used <= served
