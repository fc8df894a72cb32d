"""Sizes as people write them."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thin.errors import SizeInvalid, ThinError
from thin.size import SizeChange, format_size, parse_change, parse_size

KIB, MIB, GIB, TIB = (1 << shift for shift in (10, 20, 30, 40))


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512", 512),
        ("512B", 512),
        ("20G", 20 * GIB),
        ("20g", 20 * GIB),
        ("20GB", 20 * GIB),
        ("20GiB", 20 * GIB),
        (" 64 KiB ", 64 * KIB),
        ("1.5T", TIB + TIB // 2),
        ("0.5M", 512 * KIB),
        ("0", 0),
    ],
)
def test_reads_binary_units(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "G", "-1G", "1e3", "0x10", "1 2", "20GG", "20GiBB", "1.G", ".5G", "1,5G", "++1G", "1.3", "inf", "٣G", "20ﬁ",
     "9999999P", "9" * 400, "20İB", "20\u017f"],
)  # fmt: skip
def test_refuses_what_is_no_size(text: str) -> None:
    with pytest.raises(SizeInvalid):
        parse_size(text)


def test_a_relative_size_is_relative_to_what_the_disk_has() -> None:
    assert parse_change("+10G") == SizeChange(10 * GIB, relative=True)
    assert parse_change("+10G").apply(5 * GIB) == 15 * GIB
    assert parse_change("10G").apply(5 * GIB) == 10 * GIB
    with pytest.raises(SizeInvalid, match="relative"):
        parse_size("+10G")


@given(st.text(max_size=30))
def test_any_text_is_a_size_or_a_clear_error(text: str) -> None:
    with suppress(ThinError):  # anything else fails the test
        assert parse_change(text).size_bytes >= 0


@given(st.integers(0, 1 << 53))
def test_a_printed_size_is_exact_or_shows_two_decimals(size: int) -> None:
    number, unit = format_size(size).split()
    factor = parse_size(f"1{unit}")
    if len(number.partition(".")[2]) < 2:
        assert float(number) * factor == size
    else:
        assert abs(float(number) * factor - size) <= factor * 0.0051


def test_sizes_are_printed_as_people_say_them() -> None:
    assert [format_size(size) for size in (0, 512, 20 * GIB, TIB + TIB // 2, 2043)] == [
        "0 B",
        "512 B",
        "20 GiB",
        "1.5 TiB",
        "2.00 KiB",
    ]
