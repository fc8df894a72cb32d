"""`vmfsctl dump`: what it prints, refuses, and exits with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.check.small_volume import SIZE_BYTES, SmallVolume
from vmfs.cli.dumptext import hex_lines
from vmfs.cli.group import vmfsctl


@pytest.fixture
def small() -> SmallVolume:
    return SmallVolume()


@pytest.fixture
def image(small: SmallVolume, tmp_path: Path) -> Path:
    path = tmp_path / "small.img"
    path.write_bytes(small.device.read(0, SIZE_BYTES))
    return path


def dump(*words: object) -> Result:
    return CliRunner().invoke(vmfsctl, ["dump", *map(str, words)])


def test_every_command_on_a_volume_that_nobody_has_mounted(small: SmallVolume, image: Path) -> None:
    chunk, node = next(iter(small.chunks)), next(iter(small.nodes))
    for words in (
        ["superblock"], ["slot", 1], ["lock", "superblock"], ["lock", "group:1"], ["lock", f"inode:{small.root}"],
        ["group", 0], ["chunk", hex(chunk)], ["inode", small.root], ["inode", "/sub/inner"], ["map", "/big"],
        ["node", hex(node)], ["directory", "/many", "--bucket", 1], ["orphans", 3], ["journal", 2, "--all", "--images"],
        ["block", hex(chunk)],
    ):  # fmt: skip
        text = dump(*words, image)
        assert (text.exit_code, text.stderr) == (0, ""), words
        assert " at 0x" in text.output.splitlines()[0], words
        shown = json.loads(dump(*words, image, "--json").output)["structures"]
        assert shown
        assert all(s["valid"] and "raw" not in s for s in shown)
    assert image.read_bytes() == small.device.read(0, SIZE_BYTES)


def test_a_damaged_block_is_shown_with_its_bytes_and_exit_1(small: SmallVolume, image: Path) -> None:
    small.flip(small.geometry.group_block_address(1), 8 * 26)
    image.write_bytes(small.device.read(0, SIZE_BYTES))
    result = dump("group", 1, image)
    assert result.exit_code == 1
    assert "damaged: group block: checksum does not match" in result.output
    assert "free blocks:" in result.output
    assert "00000000  41 5a 4d 44" in result.output
    shown = json.loads(dump("group", 1, image, "--json", "--raw").output)["structures"]
    assert bytes.fromhex(shown[0]["raw"]) == small.read(small.geometry.group_block_address(1))


def test_superblocks_are_shown_where_none_is_good(small: SmallVolume, image: Path) -> None:
    for copy in ("superblock", "superblock 2", "last superblock"):
        small.flip(small.all_blocks()[copy], 8 * 26)
    image.write_bytes(small.device.read(0, SIZE_BYTES))
    result = dump("superblock", image)
    assert result.exit_code == 1
    assert result.output.count("label:") == 3
    refused = dump("slot", 0, image)
    assert refused.exit_code != 0
    assert "Error: " in refused.stderr


@pytest.mark.parametrize(
    "words", ["slot 4", "slot -1", "slot x", "group 0x10000000000000000", "lock nosuch:3", "lock group:x", "chunk 0",
              "inode 1", "inode /nosuch", "map /sub/nosuch", "directory /plain", "directory / --bucket 9", "block 4097",
              "block 0xffffffffffffffff", "node 0xff00000000000000"]
)  # fmt: skip
def test_what_is_not_there_is_refused(image: Path, words: str) -> None:
    result = dump(*words.split(), image)
    assert result.exit_code == 2
    assert "Error: " in result.stderr
    assert result.stdout == ""


def test_bytes_that_repeat_are_told_once() -> None:
    assert list(hex_lines(b"A" * 16 + bytes(64) + b"\xff")) == [
        "00000000  41 41 41 41 41 41 41 41  41 41 41 41 41 41 41 41  AAAAAAAAAAAAAAAA",
        "00000010  00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00  ................",
        "*",
        "00000050  ff" + " " * 48 + ".",
        "00000051",
    ]
