"""Volumes that released versions made are read, checked, mounted and changed by this one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import zstandard

from tests.format import released
from tests.vmfs.datastore import vmfsctl

IMAGES = sorted((Path(__file__).parent / "images").glob("*.img.zst"))


def test_there_is_an_image_of_every_version() -> None:
    assert [p.name for p in IMAGES] == ["v1.img.zst"]


@pytest.mark.expected_log("")
@pytest.mark.parametrize("image", IMAGES, ids=lambda p: p.name)
def test_a_released_volume_is_read_and_changed(image: Path, tmp_path: Path) -> None:
    lun, at = tmp_path / "lun.img", tmp_path / "mnt"
    at.mkdir()
    lun.write_bytes(zstandard.ZstdDecompressor().decompress(image.read_bytes(), released.VOLUME_BYTES))
    vmfsctl("check", lun)
    log = tmp_path / "log"
    for host in ("esx1", "esx2"):
        vmfsctl("mount", lun, at, "--host", host, "--log-file", log)
        try:
            released.verify(at)
            (at / f"from-{host}").write_bytes(os.urandom(300_000))
        finally:
            vmfsctl("umount", at)
        vmfsctl("check", lun)
