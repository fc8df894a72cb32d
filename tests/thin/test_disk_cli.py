"""`vmfsctl disk create`, `disk info` and `extend disk`, as a person or a script types them."""

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from thin import disk
from vmfs.cli.disk import disk_group, extend_disk

GIB = 1 << 30


def vmfsctl(*arguments: str, answer: str = "") -> Result:
    root, grow = click.Group("vmfsctl"), click.Group("extend")
    grow.add_command(extend_disk)
    root.add_command(disk_group)
    root.add_command(grow)
    result = CliRunner().invoke(root, arguments, input=answer, prog_name="vmfsctl")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.mark.parametrize("kind", ["thin", "lazyzeroed", "eagerzeroed"])
def test_create_then_info(tmp_path: Path, kind: str) -> None:
    path = str(tmp_path / "a.vmdk")
    made = vmfsctl("disk", "create", path, "--size", "4M", "--type", kind, "--json")
    assert made.exit_code == 0
    shown = json.loads(made.stdout)
    assert (shown["kind"], shown["virtual_size_bytes"], shown["problems"]) == (kind, 4 << 20, [])
    assert json.loads(vmfsctl("disk", "info", path, "--json").stdout) == shown
    text = vmfsctl("disk", "info", path).stdout
    assert "4 MiB (4194304 bytes)" in text
    assert kind in text
    assert "problem:" not in text


def test_extend_asks_first(tmp_path: Path) -> None:
    path = tmp_path / "a.vmdk"
    disk.create(path, GIB)
    for answer, why in (("", "--yes goes on without asking"), ("n\n", "nothing was changed")):
        refused = vmfsctl("extend", "disk", str(path), "+1G", answer=answer)
        assert refused.exit_code == 2
        assert "grows from 1 GiB" in refused.stderr
        assert why in refused.stderr
        assert disk.info(path).virtual_size_bytes == GIB
    assert vmfsctl("extend", "disk", str(path), "+1G", answer="y\n").exit_code == 0
    assert disk.info(path).virtual_size_bytes == 2 * GIB
    # Run again with the size that it has: nothing to ask, nothing to do.
    assert vmfsctl("extend", "disk", str(path), "2G").exit_code == 0


def test_extend_for_scripts(tmp_path: Path) -> None:
    path = tmp_path / "a.vmdk"
    disk.create(path, GIB)
    plan = json.loads(vmfsctl("extend", "disk", str(path), "3G", "--dry-run", "--json").stdout)
    assert (plan["dry_run"], plan["old_size_bytes"], plan["new_size_bytes"]) == (True, GIB, 3 * GIB)
    assert "dry run" in vmfsctl("extend", "disk", str(path), "3G", "--dry-run").stdout
    assert disk.info(path).virtual_size_bytes == GIB
    done = vmfsctl("extend", "disk", str(path), "3G", "--yes", "--json")
    assert json.loads(done.stdout)["virtual_size_bytes"] == 3 * GIB


def test_errors_are_sentences_with_exit_codes(tmp_path: Path) -> None:
    path = str(tmp_path / "a.vmdk")
    disk.create(path, GIB)
    (tmp_path / "bad.vmdk").write_bytes(b"\x00\xff")
    for arguments, code, message in [
        (("disk", "create", path, "--size", "1G"), 2, "exists already"),
        (("disk", "create", str(tmp_path / "b.vmdk"), "--size", "lots"), 2, "'lots' is not a size"),
        (("disk", "create", str(tmp_path / "b.img"), "--size", "1G"), 2, "NAME.vmdk"),
        (("disk", "create", str(tmp_path / "no/b.vmdk"), "--size", "1G"), 1, "No such file"),
        (("disk", "info", str(tmp_path / "bad.vmdk")), 2, "not a valid VMDK descriptor"),
        (("extend", "disk", path, "1M", "--yes"), 2, "never shrinks"),
        (("extend", "disk", path, "99T", "--yes"), 2, "62 TiB"),
    ]:
        result = vmfsctl(*arguments)
        assert result.exit_code == code
        assert message in result.stderr
        assert result.stdout == ""


def test_problems_are_shown(tmp_path: Path) -> None:
    disk.create(tmp_path / "a.vmdk", GIB)
    (tmp_path / "a-flat.vmdk").unlink()
    assert "problem:          flat extent a-flat.vmdk is missing" in vmfsctl(
        "disk", "info", str(tmp_path / "a.vmdk")
    ).stdout


@pytest.mark.parametrize("command", [("disk", "create"), ("disk", "info"), ("extend", "disk")])
def test_every_help_has_an_example(command: tuple[str, str]) -> None:
    text = vmfsctl(*command, "--help").stdout
    assert f"Example:\n    vmfsctl {' '.join(command)} " in text
