"""What fstab and `mount -o` may say, as `vmfsctl mount` gets it; and the links in /sbin."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

import click
import pytest

from vmfs.cli.mountoptions import translate
from vmfs.mounthelpers import HELPERS, HelperNotOurs, install, remove

TRANSLATED = [
    ("/dev/sdb", "rw", ["mount", "--", "/dev/sdb", "/m"]),
    ("/dev/sdb,/dev/sdc", "", ["mount", "--", "/dev/sdb", "/dev/sdc", "/m"]),
    ("/dev/sdb", "extent=/dev/sdc,extent=/dev/sdd", ["mount", "--", "/dev/sdb", "/dev/sdc", "/dev/sdd", "/m"]),
    ("vmfs:ds1", "ro", ["mount", "--volume=ds1", "-o", "ro", "--", "/m"]),
    ("LABEL=ds1", "", ["mount", "--volume=ds1", "--", "/m"]),
    ('LABEL="ds1"', "", ["mount", "--volume=ds1", "--", "/m"]),
    ("UUID=1b4e28ba", "", ["mount", "--volume=1b4e28ba", "--", "/m"]),
    ("/dev/sdb", "volume=ds1,scan", ["mount", "--scan", "--volume=ds1", "--", "/dev/sdb", "/m"]),
    ("iscsi://h/iqn.a:b/0", "credentials=/c,host=esx1",
     ["mount", "--credentials=/c", "--host=esx1", "--", "iscsi://h/iqn.a:b/0", "/m"]),
    ("/dev/sdb", "rw,noauto,_netdev,nofail,users,user=joe,comment=a,x-systemd.automount,X-mount.mkdir,noatime",
     ["mount", "--", "/dev/sdb", "/m"]),
    ("/dev/sdb", "ro,rw", ["mount", "--", "/dev/sdb", "/m"]),
    ("/dev/sdb", "defaults,suid,dev,noexec,nosuid", ["mount", "-o", "dev,noexec", "--", "/dev/sdb", "/m"]),
    ("/dev/sdb", "defaults,allow-suid,allow-dev", ["mount", "-o", "suid,dev", "--", "/dev/sdb", "/m"]),
    ("/dev/sdb", "data_threads=2,data_threads=4", ["mount", "-o", "data_threads=4", "--", "/dev/sdb", "/m"]),
    ("/dev/sdb", "in-flight=5,watchdog=/dev/watchdog,log-file=syslog,no-supervisor,",
     ["mount", "--in-flight=5", "--watchdog=/dev/watchdog", "--log-file=syslog", "--no-supervisor", "--",
      "/dev/sdb", "/m"]),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "options", "command"), TRANSLATED)
def test_what_vmfsctl_is_told(spec: str, options: str, command: list[str]) -> None:
    assert translate(spec, "/m", [options]).arguments() == command


def test_a_device_whose_name_has_a_comma(tmp_path: Path) -> None:
    (tmp_path / "a,b").touch()
    assert translate(f"{tmp_path}/a,b", "/m", []).devices == (f"{tmp_path}/a,b",)


@pytest.mark.parametrize(
    ("spec", "options", "part"),
    [
        ("", "", "names no volume"),
        ("vmfs:", "", "names no volume"),
        ("/dev/sdb,", "", "names no volume"),
        ("/dev/sdb", "bogus", "bogus"),
        ("/dev/sdb", "sync", "sync"),
        ("/dev/sdb", "host", "lacks its value"),
        ("/dev/sdb", "extent=", "lacks its value"),
        ("/dev/sdb", "scan=yes", "scan=yes"),
        ("/dev/sdb", "ro,remount", "cannot be remounted"),
        ("/dev/sdb", "json", "json"),
    ],
)
def test_what_is_refused(spec: str, options: str, part: str) -> None:
    with pytest.raises(click.UsageError, match=part):
        translate(spec, "/m", [options])


def test_sloppy_passes_over_what_is_not_known_and_nothing_else() -> None:
    assert translate("/dev/sdb", "/m", ["bogus,sync,host=a"], sloppy=True).options == ("--host=a",)
    with pytest.raises(click.UsageError):
        translate("/dev/sdb", "/m", ["host"], sloppy=True)


def _scripts(folder: Path) -> dict[str, str]:
    return {path.name: os.readlink(path) for path in folder.iterdir()}


def test_links_come_and_go(tmp_path: Path) -> None:
    wanted = {name: f"{sysconfig.get_path('scripts')}/{script}" for name, script in HELPERS.items()}
    assert len(install(str(tmp_path), dry_run=True)) == len(wanted)
    assert not list(tmp_path.iterdir())
    assert {Path(path).name: target for path, target in install(str(tmp_path))} == wanted
    assert _scripts(tmp_path) == wanted
    assert install(str(tmp_path)) == []
    (tmp_path / "mount.vmfs").unlink()
    (tmp_path / "mount.vmfs").symlink_to("/where/it/was/once/mount.vmfs")
    assert len(install(str(tmp_path))) == 1
    assert _scripts(tmp_path) == wanted
    assert len(remove(str(tmp_path), dry_run=True)) == len(wanted)
    assert len(remove(str(tmp_path))) == len(wanted)
    assert not list(tmp_path.iterdir())
    assert remove(str(tmp_path)) == []


@pytest.mark.parametrize("foreign", ["file", "link"])
def test_a_program_of_another_origin_is_left_alone(tmp_path: Path, foreign: str) -> None:
    path = tmp_path / "umount.fuse.vmfs"
    path.write_text("another's") if foreign == "file" else path.symlink_to("/bin/true")
    for action in (install, remove):
        with pytest.raises(HelperNotOurs, match=r"umount\.fuse\.vmfs"):
            action(str(tmp_path))
        assert [p.name for p in tmp_path.iterdir()] == [path.name]
