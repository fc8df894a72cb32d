"""Real processes on one file: no addition is lost under a lock, whoever is killed, whenever."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from pathlib import Path

from tests.cluster.world import COUNTER_AT, SIZE, format_volume
from vmfs.devices.file import FileDevice

PROCESSES = 4
SECONDS = 6.0
SEED = 20_100


def test_a_counter_survives_killed_hosts(tmp_path: Path) -> None:
    """A killed process may have written its addition and not yet said so: one more than said, for each kill."""
    path = tmp_path / "lun"
    with path.open("wb") as file:
        file.truncate(SIZE)
    device = FileDevice.open(str(path), sector_bytes=512)
    format_volume(device)
    rng = random.Random(SEED)
    said: list[int] = []
    problems: list[str] = []
    readers: list[threading.Thread] = []
    running: dict[str, subprocess.Popen[str]] = {}

    def listen(process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for text in process.stdout:
            words = text.split(maxsplit=2)
            if words[0] == "did":
                said.append(int(words[1]))
            elif words[0] == "error":
                problems.append(text)

    def start(name: str) -> None:
        arguments = [sys.executable, "-m", "tests.cluster.actor", str(path), name, "count", "1000000"]
        running[name] = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        readers.append(threading.Thread(target=listen, args=(running[name],)))
        readers[-1].start()

    for i in range(PROCESSES):
        start(f"esx{i}")
    end, kills = time.monotonic() + SECONDS, 0
    while time.monotonic() < end:
        time.sleep(rng.uniform(0.2, 0.7))
        victim = rng.choice(sorted(running))
        running[victim].kill()
        running[victim].wait()
        kills += 1
        start(victim)
    for process in running.values():
        process.kill()
        process.wait()
    for reader in readers:
        reader.join()
    counter = int.from_bytes(device.read(COUNTER_AT, 512)[:8], "little")
    device.close()
    assert problems == [], f"seed {SEED}"
    assert len(said) == len(set(said)), f"seed {SEED}: an addition was lost"
    assert len(said) <= counter <= len(said) + kills + PROCESSES
    assert counter > 100, f"seed {SEED}: only {counter} additions in {SECONDS} s with {kills} kills"
