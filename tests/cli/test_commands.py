"""The commands as a person types them, on one real volume that two hosts have mounted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vmfs.client import Mount
from vmfs.fuse.mount import mounted_at, unmount
from vmfs.processes import ProcessEnd

OTHER_BOOT = "11111111-2222-3333-4444-555555555555"
VMFSCTL = str(Path(sys.executable).with_name("vmfsctl"))
TIMEOUT_SECONDS = 60


def vmfsctl(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [VMFSCTL, *map(str, arguments)], capture_output=True, text=True, cwd=cwd, timeout=TIMEOUT_SECONDS, check=False
    )
    assert "Traceback" not in done.stderr
    return done


def said(*arguments: object) -> str:
    """The output of a command that must succeed."""
    done = vmfsctl(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def listed() -> str:
    """What `list` shows. It may complain of other mounts of this machine, which are not ours."""
    done = vmfsctl("list")
    assert done.returncode == 0
    return done.stdout


def as_json(*arguments: object) -> Any:
    return json.loads(said(*arguments, "--json"))


def refused(exit_code: int, *arguments: object) -> str:
    """The message of a command that must fail with that exit code, on one line."""
    done = vmfsctl(*arguments)
    assert (done.returncode, done.stdout) == (exit_code, "")
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


class Lab:
    """A volume of 1 GiB with a lease of 4 s, and what has been mounted of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lun = folder / "lun.img"
        self.a, self.b = folder / "a", folder / "b"
        self.a.mkdir()
        self.b.mkdir()
        said("format", "--name", "ds1", self.lun, "--create-size", "1G", "--lease", "4", "--max-hosts", "8")

    def mount(self, at: Path, host: str, *options: object) -> int:
        log = self.folder / f"{at.name}.log"
        pid = as_json("mount", self.lun, at, "--host", host, "--log-file", log, *options)["pid"]
        assert isinstance(pid, int)
        return pid

    def end(self) -> None:
        for at in (self.a, self.b, self.folder / "folder"):
            while mounted_at(str(at)):
                try:
                    pid: int | None = Mount.for_path(at, answer_seconds=5).info().mount.pid
                except Exception:
                    pid = None
                unmount(str(at), lazy=True, force=True)
                if pid is not None:
                    with ProcessEnd.of(pid) as process:
                        assert process.wait(20)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("mounting needs root and /dev/fuse")
    with tempfile.TemporaryDirectory(prefix="vmfsctl-") as folder:
        os.chmod(folder, 0o755)  # pytest's own folders are closed to the other user of `test_without_root`
        found = Lab(Path(folder))
        try:
            found.mount(found.a, "esx1")
            found.mount(found.b, "esx2", "--boot-id", OTHER_BOOT)
            yield found
        finally:
            found.end()


def test_list(lab: Lab) -> None:
    lines = {line.split()[1]: line.split() for line in listed().splitlines()[1:]}
    assert lines[str(lab.a)][:4] == ["ds1", str(lab.a), "esx1", "serving"]
    assert lines[str(lab.b)][2] == "esx2"
    mounts = {m["mountpoint"]: m for m in as_json("list")["mounts"]}
    assert mounts[str(lab.a)]["info"]["volume"]["devices"][0]["path"] == str(lab.lun)
    assert mounts[str(lab.a)]["problem"] is None


def test_info_of_a_mount_and_of_its_device_agree(lab: Lab) -> None:
    mount, device = as_json("info", lab.a), as_json("info", lab.lun)
    # A mount has proved its lock method, and says so.
    proved = mount["volume"].pop("lock_method_reason")
    assert proved.startswith(device["volume"].pop("lock_method_reason"))
    assert "proved on" in proved
    assert mount["volume"] == device["volume"]
    assert mount["size_bytes"] == device["size_bytes"]
    assert device["mount"] is None
    assert mount["mount"]["state"] == "serving"
    assert 0 < mount["mount"]["lease_remaining_seconds"] <= 4
    assert mount["volume"]["timers"]["lease_seconds"] == 4
    text = said("info", lab.b)
    assert "volume:         ds1\n" in text
    assert "host:           esx2 (slot 1, incarnation 1, process " in text
    assert "no storage fencing" in text


def test_hosts(lab: Lab) -> None:
    seen = {h["name"]: h for h in as_json("hosts", lab.a)["hosts"]}
    assert seen["esx1"]["is_self"]
    assert seen["esx2"]["boot_id"] == OTHER_BOOT
    from_device = {h["name"]: h for h in as_json("hosts", lab.lun)["hosts"]}
    for name in ("esx1", "esx2"):
        assert from_device[name]["unchanged_seconds"] is None
        for field in ("slot", "pid", "state", "incarnation"):
            assert from_device[name][field] == seen[name][field]
    assert "esx1 (here)" in said("hosts", lab.a)


def test_locks_name_the_holder_from_everywhere(lab: Lab) -> None:
    (lab.a / "locked").write_bytes(b"x")
    with (lab.a / "locked").open("r+b"):
        for at in (lab.a, lab.b):
            (lock,) = as_json("locks", at / "locked")["locks"]
            assert (lock["mode"], lock["holders"], lock["path"]) == ("exclusive", ["esx1"], "/locked")
        assert lock["inode"] in [k["inode"] for k in as_json("locks", lab.a)["locks"]]
        (line,) = [k for k in said("locks", lab.a).splitlines() if "/locked" in k]
        assert line.split() == ["file", "exclusive", "esx1", "1", str(lock["inode"]), "/locked"]
    (groups,) = {tuple(k["holders"]) for k in as_json("locks", lab.lun)["locks"] if k["what"] == "group 0"}
    assert groups == ("esx1",)


def test_clone_and_diff(lab: Lab) -> None:
    disk, one, two = (lab.a / n for n in ("disk", "one", "two"))
    disk.write_bytes(os.urandom(1 << 20))
    assert said("clone", disk, one) == f"cloned {disk} to {one} (inode {one.stat().st_ino})\n"
    with disk.open("r+b") as f:
        f.seek(3 << 16)
        f.write(b"changed" * 20000)
    made = as_json("clone", disk, two)
    assert made["inode"] == two.stat().st_ino
    assert two.read_bytes() == disk.read_bytes()
    found = as_json("diff", one, two)
    old, new = one.read_bytes(), two.read_bytes()
    named = bytearray(old)
    for offset, length in found["ranges"]:
        named[offset : offset + length] = new[offset : offset + length]
    assert named == new
    assert found["bytes"] < 1 << 19
    assert said("diff", one, one) == "0 ranges, 0 B\n"
    assert "OFFSET  LENGTH\n196608" in said("diff", one, two)
    assert "exists already" in refused(2, "clone", disk, one)
    assert "not in the volume mounted at" in refused(2, "clone", disk, lab.b / "three")
    assert "not a regular file" in refused(2, "clone", lab.a, lab.a / "three")


def test_a_relative_path_is_the_callers(lab: Lab) -> None:
    (lab.a / "here").write_bytes(b"x")
    done = vmfsctl("clone", "here", "there", cwd=lab.a)
    assert (done.returncode, done.stderr) == (0, "")
    assert (lab.a / "there").read_bytes() == b"x"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("info {missing}", "No such file or directory"),
        ("hosts {missing}", "No such file or directory"),
        ("locks {missing}", "No such file or directory"),
        ("info {folder}", "is not in a mounted volume"),
        ("locks {folder}", "is not in a mounted volume"),
        ("info {a} {b}", "give one mount point, or the devices of one volume"),
        ("info {empty}", "holds no Azekura VMFS volume"),
        ("hosts {empty}", "holds no Azekura VMFS volume"),
        ("locks {empty}", "holds no Azekura VMFS volume"),
        ("info iscsi://host/target/0", "is no iSCSI name"),
        ("umount {folder}", "is not in a mounted volume"),
        ("mount {missing} {folder}", "no such file or block device"),
        ("mount {empty} {folder}", "holds no Azekura VMFS volume"),
        ("mount {lun} {missing}", "create it with `mkdir"),
        ("mount {lun} {lun}", "is not a directory"),
        ("mount {lun} {a}", "is mounted at"),
        ("mount {lun} {folder} --host esx1", "already mounted by a host named esx1"),
        ("mount {lun} {folder} -o nonsense", "nonsense"),
        ("mount {lun} {folder} --host " + "h" * 64, "hhhh"),
        ("mount {lun} {folder} --log-file {missing}/log", "choose another with --log-file"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(lab: Lab, arguments: str, message: str) -> None:
    folder, empty = lab.folder / "folder", lab.folder / "empty.img"
    folder.mkdir(exist_ok=True)
    if not empty.exists():
        with empty.open("xb") as f:
            f.truncate(64 << 20)
    missing = lab.folder / "missing"
    typed = arguments.format(missing=missing, folder=folder, empty=empty, lun=lab.lun, a=lab.a, b=lab.b).split()
    if typed[0] == "mount" and "--log-file" not in typed:
        typed += ["--log-file", str(lab.folder / "refused.log")]
    assert message in refused(2, *typed)
    assert mounted_at(str(folder)) is None


def test_without_root(lab: Lab) -> None:
    """In one line. All modules are loaded first: this interpreter may lie where nobody else may look."""
    code = (
        "import os, sys, runpy, click; from vmfs.cli.group import COMMANDS, vmfsctl; from vmfs.cli.failures import run;"
        "import vmfs.core.mounting, vmfs.facts, encodings.idna, click.shell_completion;"
        "[vmfsctl.get_command(click.Context(vmfsctl), n) for n in COMMANDS];"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534); sys.exit(run(vmfsctl, sys.argv[1:]))"
    )
    for typed, message in (
        (("mount", "/dev/null", "/mnt"), "mounting at /mnt needs root"),
        (("umount", "."), "needs root"),
        (("info", "."), "answers root only; run this with sudo"),
        (("clone", "f", "g"), "answers root only; run this with sudo"),
        (("hosts", "../lun.img"), "permission denied"),
        (("extend", "disk", "root.vmdk", "2G"), "Permission denied"),
    ):
        (lab.a / "f").touch()
        (lab.a / "root.vmdk").touch(mode=0o600)
        done = subprocess.run(
            [sys.executable, "-c", code, *typed], cwd=lab.a, capture_output=True, text=True, timeout=20, check=False
        )
        assert done.returncode in (1, 2), done.stderr
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1


# -- mounting and unmounting -----------------------------------------------------------------------


@pytest.fixture
def free(lab: Lab, tmp_path: Path) -> Iterator[Path]:
    """A third mount point, unmounted afterwards."""
    at = tmp_path / "c"
    at.mkdir()
    yield at
    if mounted_at(str(at)):
        unmount(str(at), lazy=True, force=True)


def third(lab: Lab, at: Path, *options: object) -> int:
    boot = "22222222-3333-4444-5555-666666666666"
    return lab.mount(at, "esx3", "--boot-id", boot, *options)


def test_umount_waits_for_the_process_and_names_who_keeps_it(lab: Lab, free: Path) -> None:
    pid = third(lab, free)
    with (free / "open").open("wb") as kept:
        message = refused(1, "umount", free)
        assert f"(pid {os.getpid()}: {free}/open)" in message
        assert "--lazy" in message
        kept.write(b"x")
    assert as_json("umount", free)["pid"] == pid
    with ProcessEnd.of(pid) as process:
        assert process.wait(0)
    assert "esx3" not in [h["name"] for h in as_json("hosts", lab.lun)["hosts"]]


def test_umount_names_loop_devices_and_mounts_below(lab: Lab, free: Path) -> None:
    third(lab, free)
    with (free / "img").open("wb") as f:
        f.truncate(1 << 20)
    (free / "below").mkdir()
    loop = subprocess.check_output(["losetup", "--find", "--show", free / "img"], text=True).strip()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", free / "below"], check=True)
        try:
            message = refused(1, "umount", free)
        finally:
            subprocess.run(["umount", free / "below"], check=True)
    finally:
        subprocess.run(["losetup", "--detach", loop], check=True)
    assert f"{loop} (loop device over {free}/img)" in message
    assert f"tmpfs mounted at {free}/below" in message
    wait_until(lambda: vmfsctl("umount", free).returncode == 0)  # a loop device lets go of its file a little later


def test_lazy_umount_lets_open_files_finish(lab: Lab, free: Path) -> None:
    pid = third(lab, free)
    with ProcessEnd.of(pid) as process:
        with (free / "lazy").open("wb") as kept:
            assert "its process ends when its last file is closed" in said("umount", "--lazy", free)
            assert mounted_at(str(free)) is None
            assert kept.write(b"after") == 5
        assert process.wait(20)
    wait_until(lambda: (lab.a / "lazy").read_bytes() == b"after")


def test_a_mount_that_another_namespace_keeps(lab: Lab, free: Path) -> None:
    """Services with mounts of their own keep a copy of every mount that was there when they began."""
    pid = third(lab, free)
    keeper = subprocess.Popen(["unshare", "--mount", "--propagation", "private", "sleep", "60"])
    try:
        wait_until(lambda: os.readlink(f"/proc/{keeper.pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt"))
        wait_until(lambda: Path(f"/proc/{keeper.pid}/comm").read_text() == "sleep\n")
        message = refused(1, "umount", "--wait", "0.5", free)
        assert f"its process {pid} has not ended after 0.5 s" in message
        assert str(keeper.pid) in message.split("those of pids")[1]
    finally:
        keeper.kill()
        keeper.wait()
    with ProcessEnd.of(pid) as process:
        assert process.wait(20)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_unmounts_in_order(lab: Lab, free: Path, number: signal.Signals) -> None:
    pid = third(lab, free)
    with ProcessEnd.of(pid) as process:
        os.kill(pid, number)
        assert process.wait(20)
    assert mounted_at(str(free)) is None
    assert "esx3" not in [h["name"] for h in as_json("hosts", lab.lun)["hosts"]]


def test_foreground_stays_and_logs(lab: Lab, free: Path) -> None:
    boot = "22222222-3333-4444-5555-666666666666"
    command = [VMFSCTL, "mount", str(lab.lun), str(free), "--host", "esx3", "--boot-id", boot, "--foreground"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        try:
            wait_until(lambda: mounted_at(str(free)) is not None and (free / ".").stat().st_ino > 0)
            wait_until(lambda: str(free) in listed() and "esx3" in listed())
            assert program.poll() is None
            program.send_signal(signal.SIGINT)
            _, err = program.communicate(timeout=20)
        finally:
            program.kill()
    assert program.returncode == 0
    assert f"mounted at {free} as host esx3" in err
    assert f"unmounted {free}" in err


def test_read_only(lab: Lab, free: Path) -> None:
    (lab.a / "readable").write_bytes(b"x")
    third(lab, free, "-o", "ro")
    wait_until((free / "readable").exists)
    assert (free / "readable").read_bytes() == b"x"
    with pytest.raises(OSError, match="Read-only file system"):
        (free / "new").touch()
    assert "serving, read only" in listed()
    said("umount", free)


def test_after_kill_9(lab: Lab, free: Path) -> None:
    pid = third(lab, free, "--no-supervisor")
    (free / "kept").write_bytes(b"kept")
    with (free / "kept").open("r+b") as f:
        os.fsync(f.fileno())
    os.kill(pid, signal.SIGKILL)
    with ProcessEnd.of(pid) as process:
        assert process.wait(20)
    done = vmfsctl("list")
    assert done.returncode == 0
    (line,) = (line for line in done.stdout.splitlines() if str(free) in line)
    assert line.split()[2:6] == ["-", "dead", "(umount", "it)"]
    for command in ("info", "hosts", "locks"):
        assert "clear it with `vmfsctl umount`" in refused(2, command, free)
    assert "which no process served any more" in said("umount", free)
    third(lab, free)
    assert (free / "kept").read_bytes() == b"kept"
    said("umount", free)


def wait_until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 15
    while not holds():
        assert time.monotonic() < deadline, "in vain"
        time.sleep(0.02)
