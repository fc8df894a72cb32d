"""CHAP: who proves itself gets in, nobody else does, and the secrets are seen nowhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.luns.array import CHAP_PASSWORD, CHAP_TARGET, CHAP_TARGET_PASSWORD, CHAP_TARGET_USER, CHAP_USER, LioArray
from tests.luns.datastore import datastore_on
from tests.luns.lun import Lun
from tests.vmfs.datastore import vmfsctl
from vmfs.devices import open_device
from vmfs.errors import DeviceNotUsable

_SECRETS = (CHAP_PASSWORD, CHAP_TARGET_PASSWORD)
_RUN = Path("/run/azekura")

Writer = Callable[..., Path]


@pytest.fixture
def chap_lun(lio_array: LioArray) -> Lun:
    """A LUN of the target that asks for CHAP."""
    lio_array.lun(2).empty()
    return lio_array.lun(2, CHAP_TARGET)


@pytest.fixture
def write_credentials(tmp_path: Path) -> Writer:
    """write_credentials(password, target_password=None) -> the file."""

    def write(password: str, target_password: str | None = None) -> Path:
        lines = [f'["{CHAP_TARGET}"]', f'user = "{CHAP_USER}"', f'password = "{password}"']
        if target_password is not None:
            lines += [f'target_user = "{CHAP_TARGET_USER}"', f'target_password = "{target_password}"']
        path = tmp_path / "credentials.toml"
        path.touch(0o600)
        path.write_text("\n".join(lines))
        return path

    return write


@pytest.mark.parametrize("target_password", [None, CHAP_TARGET_PASSWORD])
def test_the_right_secrets(chap_lun: Lun, write_credentials: Writer, target_password: str | None) -> None:
    device = open_device(chap_lun.url, credentials=write_credentials(CHAP_PASSWORD, target_password))
    device.write(0, b"x" * 512)
    assert device.read(0, 512) == b"x" * 512
    device.close()


@pytest.mark.parametrize(
    ("password", "target_password"),
    [("not-the-hosts-secret", None), (CHAP_PASSWORD, "not-the-arrays-secret"), ("wrong-both", "wrong-both-too")],
)
def test_wrong_secrets(
    chap_lun: Lun,
    write_credentials: Writer,
    password: str,
    target_password: str | None,
    capfd: pytest.CaptureFixture[str],
) -> None:
    file = write_credentials(password, target_password)
    with pytest.raises(DeviceNotUsable, match="cannot log in") as caught:
        open_device(chap_lun.url, credentials=file)
    told = str(caught.value) + "".join(capfd.readouterr())
    assert password not in told
    assert target_password is None or target_password not in told


def test_no_secrets(chap_lun: Lun) -> None:
    with pytest.raises(DeviceNotUsable, match=r"cannot log in.*credentials file"):
        open_device(chap_lun.url)


def test_the_commands_keep_the_secrets(chap_lun: Lun, write_credentials: Writer, tmp_path: Path) -> None:
    """Neither a command line, nor an environment, nor a log, nor what commands print, nor /run shows one."""
    wrong = write_credentials("not-the-hosts-secret")
    refused = vmfsctl("info", "--credentials", wrong, chap_lun.url, check=False)
    assert refused.returncode == 2
    assert "credentials file" in refused.stderr
    assert "not-the-hosts-secret" not in refused.stdout + refused.stderr
    file = write_credentials(CHAP_PASSWORD, CHAP_TARGET_PASSWORD)
    option = ("--credentials", str(file))
    with datastore_on(chap_lun, tmp_path, "--lease", "3", options_everywhere=option) as datastore:
        mount = datastore.mount("esx1", *option, "--log-level", "debug", supervised=True)
        (mount / "file").write_bytes(b"content")
        printed = vmfsctl("info", mount.path).stdout + vmfsctl("hosts", mount.path).stdout
        printed += vmfsctl("info", *option, chap_lun.url).stdout
        _assert_no_secret("what commands print", printed.encode())
        assert mount.supervisor is not None
        for pid in (mount.pid, mount.supervisor):
            for name in ("cmdline", "environ"):
                _assert_no_secret(f"{name} of {pid}", Path(f"/proc/{pid}/{name}").read_bytes())
        _assert_no_secret("the log", mount.log.read_bytes())
        for path in _RUN.rglob("*"):
            if path.is_file() and (content := path.read_bytes()):
                _assert_no_secret(str(path), content)


def _assert_no_secret(where: str, content: bytes) -> None:
    assert content, f"{where} is empty, so it shows nothing"
    for secret in _SECRETS:
        assert secret.encode() not in content, f"a secret is in {where}"
