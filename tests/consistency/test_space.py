"""Space among hosts: the last block is had by whoever asks, and every block is counted once."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.consistency.filler import BLOCK, verify
from tests.vmfs.datastore import Datastore, Mount, until
from vmfs.devices import open_device
from vmfs.ondisk.group import parse
from vmfs.ondisk.header import METADATA_BLOCK_BYTES
from vmfs.volume import open_volume

FILL_SECONDS = 300
AGREE_SECONDS = 10  # a busy machine's second
SEED = int(os.environ.get("AZEKURA_SEED") or random.randrange(1 << 32))
SOAK_ROUNDS = 20
_FILLER = Path(__file__).with_name("filler.py")


def _start(folder: Path, prefix: str, seed: int) -> subprocess.Popen[str]:
    command = [sys.executable, str(_FILLER), str(folder), prefix, str(seed)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _ended(programs: Iterable[subprocess.Popen[str]]) -> dict[str, int]:
    """What they wrote."""
    made: dict[str, int] = {}
    programs = list(programs)
    try:
        for program in programs:
            out, err = program.communicate(timeout=FILL_SECONDS)
            assert program.returncode == 0, err
            made |= json.loads(out)
    finally:
        for program in programs:
            program.kill()
            program.wait()
    return made


def _free(mount: Mount) -> int:
    return os.statvfs(mount.path).f_bfree


def _blocks(sizes: Iterable[int]) -> int:
    return sum(-(-size // BLOCK) for size in sizes)


def _metadata_blocks(lun: Path) -> tuple[int, int]:
    """(blocks of the volume, those that are metadata chunks), read off the volume, which is mounted nowhere."""
    device = open_device(str(lun), read_only=True)
    try:
        volume = open_volume([device], read_only=True)
        geometry = volume.geometry
        chunks = 0
        for index in range(geometry.group_count):
            address = geometry.group_block_address(index)
            block = volume.extents.read(address, METADATA_BLOCK_BYTES)
            group = parse(block, address, volume.uuid, index, geometry.group_blocks(index))
            chunks += group.meta.bit_count()
        return geometry.total_blocks(), chunks
    finally:
        device.close()


def _accounts(hosts: tuple[Mount, ...], files: dict[str, int]) -> None:
    """No host sees a free block, and the files that are there are what was written, to the byte."""
    for mount in hosts:
        until(f"{mount.host} sees a full volume", lambda m=mount: _free(m) == 0, AGREE_SECONDS)  # type: ignore[misc]
    for mount in hosts:
        folder = mount / "files"
        until("all names", lambda f=folder: sorted(os.listdir(f)) == sorted(files), AGREE_SECONDS)  # type: ignore[misc]
    for name, size in files.items():
        assert (hosts[0] / "files" / name).stat().st_size == size
        assert (hosts[0] / "files" / name).stat().st_blocks * 512 == _blocks([size]) * BLOCK


def _fill_delete_fill(datastore: Datastore, hosts: tuple[Mount, ...], seed: int, round_: int) -> None:
    """Three fill at once, one deletes half, another fills again; and one more empties it all."""
    rng = random.Random(seed)
    folders = [m / "files" for m in hosts]
    files = _ended(_start(f, f"a{round_}-{i}", rng.getrandbits(32)) for i, f in enumerate(folders))
    _accounts(hosts, files)
    for name in rng.sample(sorted(files), len(files) // 2):
        (folders[1] / name).unlink()
        del files[name]
    files |= _ended([_start(folders[2], f"b{round_}", rng.getrandbits(32))])
    _accounts(hosts, files)
    for name, size in files.items():
        verify(folders[rng.randrange(3)] / name, size)
    total, chunks = 0, 0
    for mount in hosts:
        mount.umount()
    datastore.check()
    total, chunks = _metadata_blocks(datastore.lun)
    assert _blocks(files.values()) == total - chunks, "a block is neither a file's nor metadata"


def _three(datastore: Datastore) -> tuple[Mount, ...]:
    hosts = tuple(datastore.mount(f"esx{i}") for i in (1, 2, 3))
    (hosts[0] / "files").mkdir(exist_ok=True)
    os.sync()
    for mount in hosts:
        until("the folder", (mount / "files").is_dir, AGREE_SECONDS)
    return hosts


@pytest.fixture
def small(tmp_path: Path) -> Iterable[Datastore]:
    datastore = Datastore(tmp_path, "96M", "--max-hosts", "3")
    datastore.expect("is full: no room for")
    yield datastore
    try:
        assert datastore.problems() == []
    finally:
        datastore.close()


def test_three_hosts_fill_it_one_deletes_half_another_fills_again(small: Datastore) -> None:
    print(f"AZEKURA_SEED={SEED}")
    _fill_delete_fill(small, _three(small), SEED, 0)


@pytest.mark.soak
def test_three_hosts_fill_and_empty_it_for_long(small: Datastore) -> None:
    print(f"AZEKURA_SEED={SEED}")
    for round_ in range(int(os.environ.get("AZEKURA_ROUNDS") or SOAK_ROUNDS)):
        hosts = _three(small)
        for path in (hosts[round_ % 3] / "files").iterdir():
            path.unlink()
        _fill_delete_fill(small, hosts, SEED + round_, round_)
