"""One flipped bit in each kind of metadata block: who needs the block is told where it is, and nobody else suffers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from tests.damage.probe import probe
from tests.damage.scene import MANY_NAMES, CopiedDatastore, Scene, flip, opened
from tests.vmfs.datastore import Mount, until, vmfsctl
from vmfs.check import check_volume

BIT = 8 * 100 + 3  # within the fields of every kind of block
LISTINGS = {"./": "7 names", "sub/": "1 names", "many/": f"{MANY_NAMES + 1} names"}
ACCESS_SECONDS = 5.0  # for one access to something damaged; a torn block is waited for half a second


def healthy(scene: Scene) -> dict[str, str]:
    """What everything gives while nothing is damaged."""
    return {**scene.digests, **LISTINGS, "link": "plain"}


def told_of(log: str, address: int) -> bool:
    """Whether a WARNING or ERROR names the address."""
    return any(f"{address:#x}" in line for line in log.splitlines() if " ERROR " in line or " WARNING " in line)


@pytest.fixture
def damaged(tmp_path: Path, scene: Scene) -> Iterator[CopiedDatastore]:
    datastore = CopiedDatastore(tmp_path, scene)
    yield datastore
    for mount in datastore.mounts:
        assert "Traceback" not in mount.log_text()
    datastore.close()


def check_finds(datastore: CopiedDatastore, address: int) -> None:
    """The checker names the block (`vmfsctl check` itself: where it is all that a test looks at)."""
    with opened(datastore.lun) as volume:
        report = check_volume(volume)
    assert report.exit_code == 4
    assert address in {finding.address for finding in report.findings}


def outcome(action: object) -> str:
    """What a call comes to: "done", or the errno's name; within ACCESS_SECONDS."""
    began = time.monotonic()
    assert callable(action)
    try:
        action()
        result = "done"
    except OSError as error:
        result = os.strerror(error.errno or 0)
    assert time.monotonic() - began < ACCESS_SECONDS
    return result


EIO = os.strerror(5)


def check_finds_each(datastore: CopiedDatastore, scene: Scene, kinds: Collection[str]) -> None:
    """Flip one bit in each: the checker names every block, and `vmfsctl check` exits 4."""
    for kind in kinds:
        flip(datastore.lun, scene.blocks[kind], BIT)
        check_finds(datastore, scene.blocks[kind])
    done = vmfsctl("check", datastore.lun, check=False)
    assert done.returncode == 4, (done.stdout, done.stderr)
    assert all(f"at {scene.blocks[kind]:#x}" in done.stdout for kind in kinds)
    assert "Traceback" not in done.stderr


def test_what_is_there_twice_or_not_needed(damaged: CopiedDatastore, scene: Scene) -> None:
    """Superblock copies, a slot, the superblock's lock, a journal's header: the volume serves as if nothing were."""
    kinds = ("superblock", "last superblock", "superblock lock", "slot", "journal header")
    check_finds_each(damaged, scene, kinds)
    mount = damaged.mount("esx1")
    wanted = healthy(scene)
    assert probe(mount.path, wanted) == wanted
    until("the log names the slot", lambda: told_of(mount.log_text(), scene.blocks["slot"]), 2)
    assert outcome(lambda: (mount / "new").write_bytes(b"n" * 200_000)) == "done"
    assert (mount / "new").read_bytes() == b"n" * 200_000
    mount.umount()


def test_only_the_files_that_need_the_blocks_are_lost(damaged: CopiedDatastore, scene: Scene) -> None:
    """Inodes of a file, a directory, a layer and a link, and a map's node: what stands on them gives EIO, all else its
    content. Neighbours in one directory are listed."""
    lost = {"inode": ["plain"], "directory": ["sub/", "sub/inner"], "layer": ["base", "copy"], "node": ["big"],
            "symlink": ["link"]}  # fmt: skip
    check_finds_each(damaged, scene, lost)
    mount = damaged.mount("esx1")
    wanted = healthy(scene)
    found = probe(mount.path, wanted)
    assert found == wanted | {name: "EIO" for names in lost.values() for name in names}
    for kind in lost:
        assert told_of(mount.log_text(), scene.blocks[kind]), kind
    assert outcome((mount / "plain").unlink) == EIO
    assert outcome((mount / "sub").rmdir) == EIO
    assert outcome(lambda: (mount / "new").write_bytes(b"n" * 200_000)) == "done"
    mount.umount()
    done = vmfsctl("check", damaged.lun, check=False)
    assert all(f"at {scene.blocks[kind]:#x}" in done.stdout for kind in lost)


def test_the_roots_inode(damaged: CopiedDatastore, scene: Scene) -> None:
    """Nothing has a name any more, and everything says so at once."""
    flip(damaged.lun, scene.blocks["root"], BIT)
    check_finds(damaged, scene.blocks["root"])
    mount = damaged.mount("esx1")
    found = probe(mount.path, healthy(scene), 3 * ACCESS_SECONDS)
    assert set(found.values()) == {"EIO"}
    assert outcome((mount / "new").touch) == EIO
    assert told_of(mount.log_text(), scene.blocks["root"])
    mount.umount()


def test_a_directory_block(damaged: CopiedDatastore, scene: Scene) -> None:
    """The names in it are lost, and the listing says so instead of leaving them out."""
    flip(damaged.lun, scene.blocks["directory block"], BIT)
    check_finds(damaged, scene.blocks["directory block"])
    mount = damaged.mount("esx1")
    wanted = healthy(scene)
    found = probe(mount.path, wanted)
    lost = {name for name in wanted if found[name] == "EIO"}
    assert {name: found[name] for name in wanted if name not in lost} == {n: wanted[n] for n in wanted if n not in lost}
    assert "many/" in lost
    assert all(name.startswith("many/") for name in lost)
    assert 1 < len(lost) < MANY_NAMES, "other buckets are whole"
    victim = next(name for name in lost if name != "many/")
    assert outcome((mount / victim).unlink) == EIO
    assert told_of(mount.log_text(), scene.blocks["directory block"])
    mount.umount()
    check_finds(damaged, scene.blocks["directory block"])


@pytest.mark.parametrize("kind", ["group lock", "group", "chunk"])
def test_what_lies_in_damaged_space_cannot_be_freed_but_removed(
    damaged: CopiedDatastore, scene: Scene, kind: str
) -> None:
    """The removal waits on its list; the name is gone, space elsewhere is used."""
    flip(damaged.lun, scene.blocks[kind], BIT)
    mount = damaged.mount("esx1")
    assert outcome((mount / "plain").unlink) == "done"
    assert outcome(lambda: (mount / "new").write_bytes(b"n" * 1_000_000)) == "done"
    assert outcome((mount / "dir").mkdir) == "done"
    until("the log names the block", lambda: told_of(mount.log_text(), scene.blocks[kind]), 5)
    mount.umount()
    again = damaged.mount("esx1")
    wanted = healthy(scene) | {"./": "8 names", "plain": "ENOENT", "link": "plain"}
    assert probe(again.path, wanted) == wanted
    again.umount()


def test_an_inodes_lock(damaged: CopiedDatastore, scene: Scene) -> None:
    """The file can be read and not changed."""
    flip(damaged.lun, scene.blocks["inode lock"], BIT)
    mount = damaged.mount("esx1")
    assert outcome(lambda: (mount / "plain").open("r+b")) == EIO
    assert outcome((mount / "plain").unlink) == EIO
    assert outcome(lambda: os.truncate(mount / "plain", 0)) == EIO
    assert outcome(lambda: os.chmod(mount / "plain", 0o600)) == EIO
    assert told_of(mount.log_text(), scene.blocks["inode lock"])
    wanted = healthy(scene)
    assert probe(mount.path, wanted) == wanted
    mount.umount()


def test_a_damaged_part_of_a_map_is_not_overwritten(damaged: CopiedDatastore, scene: Scene) -> None:
    """A write through a damaged node, or into a file above a damaged layer, is refused: nothing is made up."""
    flip(damaged.lun, scene.blocks["node"], BIT)
    flip(damaged.lun, scene.blocks["layer"], BIT)
    mount = damaged.mount("esx1")
    for name in ("big", "base"):
        with (mount / name).open("r+b", buffering=0) as file:
            assert outcome(lambda f=file: f.write(b"x" * 4096)) == EIO  # type: ignore[misc]
            assert outcome(lambda f=file: f.read(4096)) == EIO  # type: ignore[misc]
    mount.umount()
    check_finds(damaged, scene.blocks["node"])
    check_finds(damaged, scene.blocks["layer"])


def test_all_superblocks(damaged: CopiedDatastore, scene: Scene) -> None:
    for kind in ("superblock", "superblock 2", "last superblock"):
        flip(damaged.lun, scene.blocks[kind], BIT)
    before = damaged.lun.read_bytes()
    for command in (("check", damaged.lun), ("info", damaged.lun), ("mount", damaged.lun, damaged.folder)):
        done = vmfsctl(*command, check=False)
        assert done.returncode == (8 if command[0] == "check" else 1), done.stderr
        assert "no superblock copy is intact: superblock: checksum does not match" in done.stderr
        assert str(damaged.lun) in done.stderr
    assert damaged.lun.read_bytes() == before


# -- what a dead host has left ---------------------------------------------------------------------


def die(mount: Mount) -> None:
    """Fill the journal with acknowledged records, and die."""
    for i in range(4):
        (mount / f"acked-{i}").write_bytes(bytes([i]) * 70_000)
        with (mount / f"acked-{i}").open("r+b") as file:
            os.fsync(file.fileno())
    os.kill(mount.pid, signal.SIGKILL)
    until("the process ends", lambda: not Path(f"/proc/{mount.pid}").exists(), 10)
    mount.put_away()


@pytest.mark.parametrize("what", ["headers", "record"])
def test_a_dead_hosts_journal_that_cannot_be_read(damaged: CopiedDatastore, scene: Scene, what: str) -> None:
    """It is not replayed in part: its slot is left for an operator, and the rest of the volume serves."""
    first = damaged.mount("esx1")
    die(first)
    header = scene.blocks["journal header"]
    # Two bits in each: a single one is put right.
    for bit in (BIT, BIT + 8):
        if what == "headers":
            flip(damaged.lun, header, bit)
            flip(damaged.lun, scene.blocks["journal header 2"], bit)
        else:
            flip(damaged.lun, header + 2 * 4096, bit)
    named = header if what == "headers" else header + 2 * 4096
    done = vmfsctl("check", damaged.lun, check=False)
    assert done.returncode == 4
    assert "cannot be replayed" in done.stdout
    assert f"{named:#x}" in done.stdout
    again = damaged.mount("esx1")
    assert told_of(again.log_text(), named)
    wanted = {name: value for name, value in healthy(scene).items() if name != "./"}
    assert probe(again.path, wanted) == wanted
    assert (again / "acked-0").read_bytes() == bytes(70_000)
    states = {line.split()[-1] for line in vmfsctl("hosts", again.path).stdout.splitlines()[1:]}
    assert "failed" in states
    again.umount()
    done = vmfsctl("check", damaged.lun, check=False)
    assert "slot-failed" in done.stdout


def test_the_last_record_torn_is_no_damage(damaged: CopiedDatastore, scene: Scene) -> None:
    """A crash tears what was never acknowledged: replay ends there, and the volume is clean."""
    die(damaged.mount("esx1"))
    with damaged.lun.open("r+b") as file:
        file.seek(scene.blocks["journal header"])
        ring = file.read(256 << 10)
        ends = [at for at in range(2 * 4096, len(ring), 4096) if ring[at : at + 6] == b"AZMD\x08\0"]
        file.seek(scene.blocks["journal header"] + ends[-1] + 600)
        file.write(b"torn")
    mount = damaged.mount("esx1")
    for i in range(4):
        assert (mount / f"acked-{i}").read_bytes() == bytes([i]) * 70_000
    mount.umount()
    damaged.check()


def test_the_list_of_removals(damaged: CopiedDatastore, scene: Scene) -> None:
    """A free slot whose list is damaged is used by nobody: mounts say so, and take another."""
    address = scene.blocks["orphans"]
    flip(damaged.lun, address, BIT)
    check_finds(damaged, address)
    damaged.expect("slot 0 is passed over")
    mount = damaged.mount("esx1")
    assert mount.info()["mount"]["slot"] == 1
    assert f"damaged block at volume address {address:#x}" in mount.log_text()
    wanted = healthy(scene)
    assert probe(mount.path, wanted) == wanted
    mount.umount()
    check_finds(damaged, address)
