"""Names, sizes and places that cannot be: the right errno or a sentence, and nothing changed."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.vmfs.datastore import Datastore, Mount, datastore_in, vmfsctl
from vmfs.core.slowwrite import FILE_MAX_BYTES
from vmfs.ondisk.inode import TAIL_MAX_BYTES

LONGEST = "n" * 255
TOO_LONG = "n" * 256
SMALL = ("--max-hosts", "4", "--journal-size", "256K")


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Datastore]:
    with datastore_in(tmp_path_factory.mktemp("arguments"), "96M", *SMALL) as made:
        yield made


@pytest.fixture(scope="module")
def mount(volume: Datastore) -> Mount:
    mounted = volume.mount("esx1")
    (mounted / "file").write_bytes(b"content")
    return mounted


def errno_name(action: Callable[[], object]) -> str:
    """The name of the errno that it fails with."""
    with pytest.raises(OSError) as caught:
        action()
    return errno.errorcode[caught.value.errno or 0]


def test_a_name_of_256_bytes(mount: Mount) -> None:
    long, file = mount / TOO_LONG, mount / "file"
    before = sorted(os.listdir(mount.path))
    for action in (
        long.touch, long.mkdir, lambda: file.rename(long), lambda: os.link(file, long),
        lambda: long.symlink_to("file"), long.stat, long.unlink, long.rmdir, lambda: os.mknod(long, stat.S_IFIFO),
    ):  # fmt: skip
        assert errno_name(action) == "ENAMETOOLONG"
    done = vmfsctl("clone", file, long, check=False)
    assert done.returncode in (1, 2)
    assert "255" in done.stderr or "too long" in done.stderr.lower()
    assert sorted(os.listdir(mount.path)) == before
    # Bytes count, not characters; and 255 of them are a name.
    assert errno_name((mount / ("ü" * 128)).touch) == "ENAMETOOLONG"
    (mount / LONGEST).touch()
    file.rename(mount / ("ü" * 127))
    (mount / ("ü" * 127)).rename(file)
    (mount / LONGEST).unlink()
    assert file.read_bytes() == b"content"


def test_limits_of_contents(mount: Mount) -> None:
    file = mount / "file"
    assert errno_name(lambda: (mount / "link").symlink_to("t" * (TAIL_MAX_BYTES + 1))) == "ENAMETOOLONG"
    (mount / "link").symlink_to("t" * TAIL_MAX_BYTES)
    assert os.readlink(mount / "link") == "t" * TAIL_MAX_BYTES
    (mount / "link").unlink()
    assert errno_name(lambda: os.setxattr(file, "user.large", b"v" * TAIL_MAX_BYTES)) == "ENOSPC"
    assert errno_name(lambda: os.setxattr(file, "user." + "n" * 251, b"v")) in ("ERANGE", "ENAMETOOLONG")
    assert errno_name(lambda: os.setxattr(file, "system.posix_acl_access", b"v")) in ("EOPNOTSUPP", "EINVAL")
    assert os.listxattr(file) == []
    os.setxattr(file, "user.fits", b"v" * 3000)
    assert os.getxattr(file, "user.fits") == b"v" * 3000
    os.removexattr(file, "user.fits")
    with file.open("r+b") as opened:
        for action in (
            lambda: os.ftruncate(opened.fileno(), FILE_MAX_BYTES + 1),
            lambda: os.pwrite(opened.fileno(), b"x", FILE_MAX_BYTES),
            lambda: os.posix_fallocate(opened.fileno(), FILE_MAX_BYTES, 1),
        ):
            assert errno_name(action) == "EFBIG"
    assert file.read_bytes() == b"content"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--block-size", "96K"), "block"),
        (("--block-size", "many"), "many"),
        (("--max-hosts", "0"), "hosts"),
        (("--max-hosts", "257"), "hosts"),
        (("--lease", "0"), "lease"),
        (("--lease", "nan"), "lease"),
        (("--lease", "1", "--heartbeat", "5"), "heartbeat"),
        (("--journal-size", "1K"), "journal"),
        (("--journal-size", "1G"), "journal"),
        (("--sector-size", "520"), "520"),
        (("--create-size", "1M"), "1048576"),
        (("--create-size", "-4G"), "-4G"),
    ],
)
def test_format_with_bad_options(tmp_path: Path, arguments: tuple[str, str], says: str) -> None:
    lun = tmp_path / "lun.img"
    size = () if "--create-size" in arguments else ("--create-size", "64M")
    done = vmfsctl("format", "--name", "ds1", *size, *arguments, lun, check=False)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not lun.exists()


def test_mount_points_that_do_not_do(volume: Datastore, mount: Mount, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    log = ("--log-file", tmp_path / "log")
    for place, says in (
        (tmp_path / "missing", "missing"), (tmp_path / "file", "directory"), (mount.path, "mount"),
    ):  # fmt: skip
        done = vmfsctl("mount", volume.lun, place, "--host", "esx9", *log, check=False)
        assert done.returncode in (1, 2), done.stdout
        assert str(place) in done.stderr
        assert says in done.stderr
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert (mount / "file").read_bytes() == b"content"


def test_one_host_name_twice(volume: Datastore, mount: Mount, tmp_path: Path) -> None:
    log = ("--log-file", tmp_path / "log")
    began = time.monotonic()
    done = vmfsctl("mount", volume.lun, tmp_path, "--host", "esx1", *log, check=False)
    assert time.monotonic() - began < 10
    assert done.returncode == 2
    assert f"already mounted by a host named esx1 (process {mount.pid} on this machine)" in done.stderr
    for name in ("", "h" * 200, "with\nnewline"):
        done = vmfsctl("mount", volume.lun, tmp_path, "--host", name, *log, check=False)
        assert done.returncode == 2
        assert "host name" in done.stderr
    assert (mount / "file").read_bytes() == b"content"


def test_umount_while_busy_names_the_process(volume: Datastore, mount: Mount) -> None:
    with (mount / "file").open("rb"):
        done = vmfsctl("umount", mount.path, check=False)
        assert done.returncode == 1
        assert f"(pid {os.getpid()}: {mount.path}/file)" in done.stderr
    assert (mount / "file").read_bytes() == b"content"
