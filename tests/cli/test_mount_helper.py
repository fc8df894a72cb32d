"""`mount -t vmfs`, `umount`, fstab and mount units: mount(8) and systemd's own tools on real volumes."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.luns.lun import Lun
from tests.vmfs.datastore import QUICK_TIMERS, Datastore, datastore_in, vmfsctl
from vmfs.cli.mountoptions import translate
from vmfs.fuse.mount import mounted_at
from vmfs.mounthelpers import install, remove

REPOSITORY = Path(__file__).parents[2]
FSTAB_GENERATOR = "/lib/systemd/system-generators/systemd-fstab-generator"
SECONDS = 60


def run(*command: object, code: int = 0) -> str:
    """What it says on both its outputs; it must exit with `code`."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == code, (command, done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module", autouse=True)
def helpers() -> Iterator[None]:
    """The links in /sbin, taken away again unless they were there before."""
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("mounting needs root and /dev/fuse")
    made = install()
    yield
    if made:
        remove()


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Datastore]:
    with datastore_in(tmp_path_factory.mktemp("volume")) as made:
        yield made


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Path]:
    """A mount point; whatever is mounted there at the end goes."""
    path = tmp_path / "mnt"
    path.mkdir()
    yield path
    if mounted_at(str(path)) is not None:
        subprocess.run(["umount", str(path)], check=True, timeout=SECONDS)


def options(at: Path, *more: str) -> str:
    return ",".join((f"log-file={at.parent}/log", "host=esx1", *more))


def pid_of(at: Path) -> int:
    pid = json.loads(vmfsctl("info", "--json", at).stdout)["mount"]["pid"]
    assert isinstance(pid, int)
    return pid


def shown(at: Path) -> list[str]:
    return run("findmnt", "--noheadings", "--output", "FSTYPE,SOURCE", "--mountpoint", at).split()


def test_mount_and_umount(volume: Datastore, at: Path) -> None:
    assert run("mount", "-t", "vmfs", volume.lun, at, "-o", options(at)) == ""
    assert shown(at) == ["fuse.vmfs", "vmfs:ds1"]
    (at / "file").write_text("kept")
    pid = pid_of(at)
    assert run("umount", at) == ""
    assert not Path(f"/proc/{pid}").exists(), "umount returns when the volume has been put in order"
    assert mounted_at(str(at)) is None
    given = options(at, "allow-dev", "noexec")
    assert "mounted at" in run("mount", "-v", "-t", "vmfs", "-r", volume.lun, at, "-o", given)
    assert (at / "file").read_text() == "kept"
    with pytest.raises(OSError, match="Read-only"):
        (at / "new").touch()
    flags = run("findmnt", "--noheadings", "--output", "OPTIONS", "--mountpoint", at).strip().split(",")
    assert {"ro", "noexec", "nosuid"} <= set(flags)
    assert "nodev" not in flags


@pytest.mark.parametrize("by", ["device", "name"])
def test_fstab(volume: Datastore, at: Path, by: str) -> None:
    spec = volume.lun if by == "device" else "vmfs:ds1"
    fstab = at.parent / "fstab"
    more = ("_netdev", "nofail", "x-systemd.before=libvirtd.service", f"scan-in={volume.folder}/*.img")
    fstab.write_text(f"{spec} {at} vmfs {options(at, *more)} 0 0\nvmfs:other {at} vmfs noauto 0 0\n")
    run("mount", "-T", fstab, "-a")
    pid = pid_of(at)
    run("mount", "-T", fstab, "-a")
    assert pid_of(at) == pid, "what is mounted already is left alone"
    assert sum(line.split()[4] == str(at) for line in Path("/proc/self/mountinfo").read_text().splitlines()) == 1
    run("umount", at)
    assert not Path(f"/proc/{pid}").exists()


def test_another_volume_is_not_taken_for_the_one_that_is_mounted(volume: Datastore, at: Path) -> None:
    other = at.parent / "other.img"
    vmfsctl("format", "--name", "ds2", "--create-size", "1G", *QUICK_TIMERS, other)
    run("mount", "-t", "vmfs", volume.lun, at, "-o", options(at))
    assert "is mounted at" in run("mount", "-t", "vmfs", other, at, "-o", options(at), code=32)
    assert "ds1 is mounted" in run("mount", "-v", "-t", "fuse.vmfs", volume.lun, at, "-o", options(at))


def test_several_extents(at: Path) -> None:
    a, b = (at.parent / name for name in ("a.img", "b.img"))
    for lun in (a, b):
        lun.touch()
        os.truncate(lun, 1 << 30)
    vmfsctl("format", "--name", "wide", *QUICK_TIMERS, a, b)
    uuid = json.loads(vmfsctl("info", "--json", a, b).stdout)["volume"]["uuid"]
    for program, spec, more in (
        (("mount", "-t", "vmfs"), f"{b},{a}", ()),
        (("mount", "-t", "vmfs"), a, (f"extent={b}",)),
        (("mount.vmfs",), f"UUID={uuid}", (f"scan-in={at.parent}",)),
    ):
        run(*program, spec, at, "-o", options(at, *more))
        assert shown(at) == ["fuse.vmfs", "vmfs:wide"]
        run("umount", at)


def test_an_iscsi_lun(tgt_lun: Lun, at: Path) -> None:
    vmfsctl("format", "--name", "remote", *QUICK_TIMERS, tgt_lun.url)
    run("mount", "-t", "vmfs", tgt_lun.url, at, "-o", options(at, "_netdev"))
    assert shown(at) == ["fuse.vmfs", "vmfs:remote"]
    run("umount", at)


def test_umount_of_a_mount_in_use(volume: Datastore, at: Path) -> None:
    run("mount", "-t", "vmfs", volume.lun, at, "-o", options(at))
    with open(at / "open", "w") as file:
        with subprocess.Popen(["sleep", str(SECONDS)], stdin=file) as user:
            said = run("umount", at, code=32)
            assert f"sleep (pid {user.pid}" in said
            user.kill()
        run("umount", "--lazy", at)
        assert mounted_at(str(at)) is None
        file.write("after")
    # The process ends with the last file; the next mount of this host waits for that, or recovers what it left.


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (("-t", "vmfs", "LUN", "AT", "-o", "bogus"), 1, "-o bogus"),
        (("-t", "vmfs", "LUN", "AT", "-o", "data_threads=0"), 32, "data_threads"),
        (("-t", "vmfs", "LUN", "AT", "-o", "log-file=/nosuch/log"), 32, "/nosuch/log"),
        (("-t", "vmfs", "/nosuch/lun", "AT"), 32, "/nosuch/lun"),
        (("-t", "vmfs", "vmfs:nosuch", "AT"), 32, "nosuch"),
        (("-t", "vmfs", "/etc/hostname", "AT"), 32, "no Azekura VMFS volume"),
        (("-t", "vmfs", "LUN", "/nosuch/point"), 32, "/nosuch/point"),
        (("-t", "vmfsx", "LUN", "AT"), 32, "vmfsx"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_mounted(
    volume: Datastore, at: Path, arguments: tuple[str, ...], code: int, part: str
) -> None:
    given = [{"LUN": str(volume.lun), "AT": str(at)}.get(word, word) for word in arguments]
    assert part in run("mount", *given, code=code)
    assert mounted_at(str(at)) is None


def test_a_mount_that_is_only_tried(volume: Datastore, at: Path) -> None:
    run("mount", "--fake", "-t", "vmfs", volume.lun, at)
    assert mounted_at(str(at)) is None
    run("mount", "--fake", "-t", "vmfs", volume.lun, at, "-o", "bogus", code=1)
    run("mount", "--fake", "-s", "-t", "vmfs", volume.lun, at, "-o", "bogus")


def _fstab_of_the_docs() -> str:
    text = (REPOSITORY / "docs" / "mounting.md").read_text()
    return text.partition("```fstab\n")[2].partition("```")[0]


def test_the_documented_fstab(tmp_path: Path) -> None:
    """systemd makes units of it that it likes, ordered as the text says; and all its options are known."""
    lines = [line.split() for line in _fstab_of_the_docs().splitlines()]
    assert len(lines) > 3
    for spec, point, fstype, given, *_ in lines:
        assert fstype == "vmfs"
        translate(spec, point, [given])
    fstab, units = tmp_path / "fstab", tmp_path / "units"
    fstab.write_text(_fstab_of_the_docs())
    units.mkdir()
    generate = [FSTAB_GENERATOR, *[str(units)] * 3]
    subprocess.run(generate, env=os.environ | {"SYSTEMD_FSTAB": str(fstab)}, check=True, timeout=SECONDS)
    made = sorted(units.glob("*.mount"))
    assert [unit.stem for unit in made] == sorted(point.strip("/").replace("/", "-") for _, point, *_ in lines)
    assert all("Before=remote-fs.target" in unit.read_text() for unit in made)
    alone = tmp_path / "alone"  # what else the generator makes is about this machine
    alone.mkdir()
    for unit in made:
        unit.rename(alone / unit.name)
    assert run("systemd-analyze", "verify", "--man=no", *sorted(alone.iterdir())) == ""


def test_the_units_that_are_shipped() -> None:
    units = sorted((REPOSITORY / "packaging" / "systemd").glob("*.mount"))
    assert run("systemd-analyze", "verify", "--man=no", *units) == ""
    for unit in units:
        found = dict(line.split("=", 1) for line in unit.read_text().splitlines() if "=" in line and line[0] != "#")
        assert unit.stem == found["Where"].strip("/").replace("/", "-")
        assert {"remote-fs.target", "libvirtd.service", "virtqemud.service"} <= set(found["Before"].split())
        assert {"network-online.target", "iscsid.service"} <= set(found["After"].split())
        translate(found["What"], found["Where"], [found["Options"]])
