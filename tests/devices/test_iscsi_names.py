"""iSCSI URLs and the credentials file: what is taken, and that no secret gets out of what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmfs.devices import open_device
from vmfs.devices.iscsi.address import IscsiAddress, own_name, parse_address
from vmfs.devices.iscsi.credentials import Credentials, load_credentials
from vmfs.errors import CredentialsRefused, DeviceNotUsable

TARGET = "iqn.2026-01.com.example:vol1"
ADDRESS = IscsiAddress("10.0.0.5:3260", TARGET, 0)
SECRET = "s3cret-of-esx1"
NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="the credentials file must be root's")


@pytest.mark.parametrize(
    ("url", "address"),
    [
        (f"iscsi://10.0.0.5/{TARGET}/0", ADDRESS),
        (f"iscsi://array.example:3261/{TARGET}/17", IscsiAddress("array.example:3261", TARGET, 17)),
        (f"iscsi://[fe80::1]:3262/{TARGET}/1", IscsiAddress("[fe80::1]:3262", TARGET, 1)),
        ("iscsi://a/eui.02004567A425678D/3", IscsiAddress("a:3260", "eui.02004567A425678D", 3)),
    ],
)
def test_urls(url: str, address: IscsiAddress) -> None:
    assert parse_address(url) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("iscsi://", "is no iSCSI URL.*iscsi://PORTAL"),
        ("iscsi://a", "is no iSCSI URL"),
        (f"iscsi://a/{TARGET}", "is no iSCSI URL"),
        (f"iscsi://a/{TARGET}/x", "is no iSCSI URL"),
        (f"iscsi://a/{TARGET}/1/2", "is no iSCSI URL"),
        (f"iscsi://a:0/{TARGET}/1", "out of range"),
        (f"iscsi://a:99999/{TARGET}/1", "out of range"),
        (f"iscsi://a/{TARGET}/16384", "out of range"),
        ("iscsi://a/vol1/0", "'vol1' is no iSCSI name"),
        (f"iscsi://a/{TARGET}{'x' * 223}/0", "is no iSCSI name"),
    ],
)
def test_what_is_no_url(url: str, says: str) -> None:
    with pytest.raises(DeviceNotUsable, match=says) as caught:
        open_device(url)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("form", ["esx1%{}@", "esx1:{}@", "esx1:{}@x:"])
def test_credentials_in_a_url_are_refused_and_not_repeated(form: str) -> None:
    with pytest.raises(DeviceNotUsable, match="credentials file") as caught:
        open_device(f"iscsi://{form.format(SECRET)}10.0.0.5/{TARGET}/0")
    assert SECRET not in str(caught.value)
    with pytest.raises(DeviceNotUsable, match="credentials file") as caught:
        open_device(f"iscsi://10.0.0.5/{TARGET}/0?target_password={SECRET}")
    assert SECRET not in str(caught.value)


def test_own_name(tmp_path: Path) -> None:
    file = tmp_path / "initiatorname.iscsi"
    file.write_text("# made by open-iscsi\nInitiatorName=iqn.1993-08.org.debian:01:abc\n")
    assert own_name(1, file) == "iqn.1993-08.org.debian:01:abc"
    file.write_text("InitiatorName=nonsense\n")
    made = own_name(1, file)
    assert made == own_name(1, tmp_path / "missing") != own_name(2, file)
    parse_address(f"iscsi://a/{made}/0")  # it is a name by the same rules


def _file(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "credentials.toml"
    path.write_text(text)
    path.chmod(mode)
    return path


@NEEDS_ROOT
def test_the_most_particular_table_counts(tmp_path: Path) -> None:
    file = _file(
        tmp_path,
        f'["{TARGET}"]\nuser = "any"\npassword = "{SECRET}"\n'
        f'["10.0.0.5:3260/{TARGET}"]\nuser = "u"\npassword = "{SECRET}"\ntarget_user = "t"\n'
        f'target_password = "back"\ninitiator = "iqn.2026-01.com.example:esx1"\n',
    )
    found = load_credentials(ADDRESS, file)
    assert found == Credentials("u", SECRET, "t", "back", "iqn.2026-01.com.example:esx1")
    assert SECRET not in repr(found)
    assert "back" not in repr(found)
    assert load_credentials(IscsiAddress("10.0.0.6:3260", TARGET, 0), file).user == "any"
    assert load_credentials(IscsiAddress("10.0.0.6:3260", TARGET + "2", 0), file) == Credentials()


@NEEDS_ROOT
@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f'["{TARGET}"]\nuser = "u"\npassword = "{SECRET}"\nsecret = 1', "not known: secret"),
        (f'["{TARGET}"]\npassword = "{SECRET}"', "user and password together"),
        (f'["{TARGET}"]\nuser = "u"\npassword = "{SECRET}"\ntarget_user = "t"', "target_user and target_password"),
        (f'["{TARGET}"]\ntarget_user = "t"\ntarget_password = "{SECRET}"', "mutual CHAP"),
        (f'["{TARGET}"]\nuser = "u"\npassword = 12345', "password that is no text"),
        (f'["{TARGET}"]\nuser = "u"\npassword = "{SECRET * 30}"', "password that is no text of 1 to 255"),
        (f'["{TARGET}"]\nuser = "u"\npassword = "{SECRET}"\ninitiator = "me"', "no iSCSI name"),
        (f'"{TARGET}" = "{SECRET}"', "is no table"),
        (f'["{TARGET}"\npassword = "{SECRET}"', "no valid TOML"),
    ],
)
def test_bad_files_are_refused_without_their_secrets(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises((CredentialsRefused, DeviceNotUsable), match=says) as caught:
        load_credentials(ADDRESS, _file(tmp_path, text))
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


@NEEDS_ROOT
def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    text = f'["{TARGET}"]\nuser = "u"\npassword = "{SECRET}"\n'
    for mode in (0o644, 0o640, 0o620, 0o601):
        with pytest.raises(CredentialsRefused, match="chmod 600"):
            load_credentials(ADDRESS, _file(tmp_path, text, mode))
    file = _file(tmp_path, text)
    os.chown(file, 1000, 1000)
    with pytest.raises(CredentialsRefused, match="chown root"):
        load_credentials(ADDRESS, file)
    with pytest.raises(CredentialsRefused, match="is not there"):
        load_credentials(ADDRESS, tmp_path / "missing")
    with pytest.raises(CredentialsRefused, match="no file"):
        load_credentials(ADDRESS, Path("/dev/null"))
    assert load_credentials(ADDRESS) == Credentials()  # there need not be the default file
