"""Descriptors: what is read, what is refused, and that what is written reads back the same."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thin.descriptor import (
    MAX_DESCRIPTOR_BYTES,
    MAX_DISK_BYTES,
    Access,
    CreateType,
    Descriptor,
    DiskKind,
    check_disk_size,
    name_fault,
    parse,
)
from thin.errors import DescriptorInvalid, SizeInvalid, ThinError, Unsupported
from thin.geometry import Geometry, for_disk

ESX = b"""# Disk DescriptorFile
version=1
encoding="UTF-8"
CID=1c071021
parentCID=ffffffff
isNativeSnapshot="no"
createType="vmfs"

# Extent description
RW 83886080 VMFS "Win2k12-01-flat.vmdk"

# The Disk Data Base
#DDB

ddb.adapterType = "lsilogic"
ddb.geometry.cylinders = "5221"
ddb.geometry.heads = "255"
ddb.geometry.sectors = "63"
ddb.longContentID = "5a5f0a8c3e3f3f0d2c8ab2b71c071021"
ddb.thinProvisioned = "1"
ddb.toolsVersion = "8384"
ddb.uuid = "60 00 C2 93 54 19 90 f8-f1 8f 7b 25 7b 72 e2 3a"
ddb.virtualHWVersion = "8"
"""

WORKSTATION = (
    b'# Disk DescriptorFile\r\nVersion=1\r\nENCODING="windows-1252"\r\ncid=fffffffe\r\nparentCID=ffffffff\r\n'
    b'CREATETYPE="MONOLITHICFLAT"\r\n\r\n# Extent description\r\nrw 27648000 flat "B\xfcro-flat.vmdk" 0\r\n\r\n'
    b'ddb.adapterType = "ide"\r\nddb.geometry.cylinders = "16383"\r\nddb.geometry.heads = "16"\r\n'
    b'ddb.geometry.sectors = "63"\r\n'
)


def test_reads_what_esx_writes() -> None:
    found = parse(ESX, "a.vmdk")
    assert found.create_type is CreateType.VMFS
    assert found.size_bytes == 40 << 30
    assert found.flat_name == "Win2k12-01-flat.vmdk"
    assert found.cid == 0x1C071021
    assert found.kind is DiskKind.THIN
    assert found.geometry == Geometry(5221, 255, 63)
    assert found.entry("VIRTUALhwversion") == "8"
    assert found.other_headers == (("isNativeSnapshot", "no"),)
    assert found.problems() == []


def test_reads_what_workstation_writes_on_windows() -> None:
    found = parse(WORKSTATION, "a.vmdk")
    assert found.create_type is CreateType.MONOLITHIC_FLAT
    assert found.flat_name == "Büro-flat.vmdk"
    assert found.kind is DiskKind.LAZY_ZEROED
    # Written again it is UTF-8, says so, and means the same.
    assert 'encoding="UTF-8"' in found.to_bytes().decode("utf-8")
    assert parse(found.to_bytes(), "a.vmdk") == found


def changed(old: bytes, new: bytes) -> bytes:
    assert old in ESX
    return ESX.replace(old, new)


EXTENT = b'RW 83886080 VMFS "Win2k12-01-flat.vmdk"'
HOSTILE = {
    "empty": (b"", "no content"),
    "only comments": (b"# Disk DescriptorFile\n", "no content"),
    "binary": (ESX + b"\0", "binary data"),
    "too large": (ESX + b"#" * MAX_DESCRIPTOR_BYTES, "more than 65536 bytes"),
    "not utf-8": (ESX + b"# \xff\n", "is not utf-8"),
    "wrong start": (b"CID=1\n" + ESX, "line 1 is not version"),
    "garbage line": (ESX + b"hello\n", "line 24 is not understood"),
    "terminal escape": (ESX + b'ddb.comment = "\x1b[2J"\n', "control character"),
    "lone carriage return": (ESX + b'ddb.comment = "a\rb"\n', "control character"),
    "line separator": (ESX + 'ddb.comment = "a\u2028b"\n'.encode(), "control character"),
    "no CID": (changed(b"CID=1c071021\n", b""), "has no CID"),
    "CID not hex": (changed(b"1c071021\nparent", b"xyz\nparent"), "CID 'xyz'"),
    "CID of 33 bits": (changed(b"CID=1c071021", b"CID=11c071021"), "32-bit"),
    "no createType": (changed(b'createType="vmfs"\n', b""), "has no createType"),
    "header twice": (changed(b"CID=1c071021\n", b"CID=1c071021\ncid=1\n"), "gives 'cid' again"),
    "entry twice": (ESX + b'DDB.uuid = ""\n', "gives 'DDB.uuid' again"),
    "parent dir": (changed(EXTENT, b'RW 8 VMFS "../../etc/shadow"'), "not a plain file name"),
    "absolute": (changed(EXTENT, b'RW 8 VMFS "/etc/shadow"'), "not a plain file name"),
    "subdirectory": (changed(EXTENT, b'RW 8 VMFS "a/b-flat.vmdk"'), "not a plain file name"),
    "windows path": (changed(EXTENT, b'RW 8 VMFS "C:\\\\x-flat.vmdk"'), "not a plain file name"),
    "dots": (changed(EXTENT, b'RW 8 VMFS ".."'), "not a plain file name"),
    "no name": (changed(EXTENT, b'RW 8 VMFS ""'), "not a plain file name"),
    "no file": (changed(EXTENT, b"RW 8 VMFS"), "names no file"),
    "long name": (changed(EXTENT, b'RW 8 VMFS "%s"' % (b"n" * 256)), "longer than 255"),
    "no sectors": (changed(EXTENT, b'RW 0 VMFS "a"'), "0 sectors"),
    "huge": (changed(EXTENT, b'RW 9223372036854775807 VMFS "a"'), "sectors"),
    "huger": (changed(EXTENT, b'RW 99999999999999999999999 VMFS "a"'), "not understood"),
    "negative": (changed(EXTENT, b'RW -8 VMFS "a"'), "not understood"),
    "flat without start": (changed(b'"vmfs"', b'"monolithicFlat"').replace(b" VMFS ", b" FLAT "), "first sector"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_refuses_a_damaged_or_hostile_descriptor(case: str) -> None:
    data, message = HOSTILE[case]
    with pytest.raises(DescriptorInvalid, match=message) as caught:
        parse(data, "evil.vmdk")
    assert caught.value.exit_code == 2
    assert str(caught.value).startswith("evil.vmdk: ")


UNSUPPORTED = {
    "sparse": (changed(b'"vmfs"', b'"monolithicSparse"'), "createType 'monolithicSparse'"),
    "split": (changed(b'"vmfs"', b'"twoGbMaxExtentFlat"'), "createType 'twoGbMaxExtentFlat'"),
    "delta": (changed(b'"vmfs"', b'"vmfsSparse"'), "createType 'vmfsSparse'"),
    "stream": (b"KDMV" + bytes(508), "sparse"),
    "cow": (b"COWD" + bytes(508), "sparse"),
    "version": (changed(b"version=1", b"version=9"), "version '9'"),
    "encoding": (changed(b"UTF-8", b"Shift_JIS"), "encoding 'shift_jis'"),
    "encoding that is no name": (changed(b"UTF-8", b"UTF 8"), "encoding 'UTF 8'"),
    "child": (changed(b"parentCID=ffffffff", b"parentCID=12345678"), "snapshot chain"),
    "hinted child": (changed(b"isNativeSnapshot", b"parentFileNameHint"), "snapshot chain"),
    "two extents": (changed(EXTENT, EXTENT + b"\n" + EXTENT), "2 extents"),
    "no extent": (changed(EXTENT, b""), "0 extents"),
    "wrong type": (changed(b" VMFS ", b" ZERO "), "type 'ZERO'"),
    "offset": (changed(EXTENT, EXTENT + b" 63"), "starts at sector 63"),
    "no access": (changed(b"RW 8", b"NOACCESS 8"), "NOACCESS"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_names_what_is_supported_instead(case: str) -> None:
    data, message = UNSUPPORTED[case]
    with pytest.raises(Unsupported, match=message) as caught:
        parse(data, "other.vmdk")
    assert "; supported: " in str(caught.value)


def test_reports_what_is_odd_but_harmless() -> None:
    odd = changed(b'"255"', b'"300"').replace(b'"lsilogic"', b'"floppy"').replace(b"60 00 C2 93", b"60")
    problems = "\n".join(parse(odd, "a.vmdk").problems())
    assert "300 heads" in problems
    assert "'floppy' is unknown" in problems
    assert "ddb.uuid" in problems


PLAIN = st.characters(codec="utf-8", exclude_categories=["Cc", "Zl", "Zp", "Cs"], exclude_characters='"')
KEYS = st.from_regex(r"[A-Za-z][A-Za-z0-9_.:-]{0,20}", fullmatch=True)
RESERVED = {"version", "encoding", "cid", "parentcid", "createtype", "parentfilenamehint"}


def entries(keys: st.SearchStrategy[str]) -> st.SearchStrategy[tuple[tuple[str, str], ...]]:
    pairs = st.tuples(keys, st.text(PLAIN, max_size=40))
    return st.lists(pairs, max_size=6, unique_by=lambda pair: pair[0].casefold()).map(tuple)


DESCRIPTORS = st.builds(
    Descriptor,
    create_type=st.sampled_from(CreateType),
    size_sectors=st.integers(1, MAX_DISK_BYTES // 512),
    flat_name=st.text(PLAIN, min_size=1, max_size=60).filter(lambda name: name_fault(name) is None),
    cid=st.integers(0, 0xFFFFFFFF),
    ddb=entries(KEYS),
    access=st.sampled_from(Access),
    version=st.sampled_from([1, 2, 3]),
    other_headers=entries(
        KEYS.filter(lambda key: key.casefold() not in RESERVED and not key.casefold().startswith("ddb."))
    ),
)


@given(DESCRIPTORS)
def test_what_is_written_reads_back_the_same(descriptor: Descriptor) -> None:
    assert parse(descriptor.to_bytes(), "x") == descriptor


@given(st.data())
def test_damaged_bytes_give_a_descriptor_or_a_clear_error(data: st.DataObject) -> None:
    damaged = bytearray(data.draw(st.sampled_from([ESX, WORKSTATION])))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(damaged)))
        end = data.draw(st.integers(start, min(len(damaged), start + 12)))
        damaged[start:end] = data.draw(st.binary(max_size=12) | st.sampled_from([b'"', b"/", b"..", b"\n", b"=", b"9"]))
    with suppress(ThinError):  # anything else fails the test
        found = parse(bytes(damaged), "x")
        assert name_fault(found.flat_name) is None
        assert 0 < found.size_bytes <= MAX_DISK_BYTES
        found.problems()
        assert parse(found.to_bytes(), "x") == found


@given(st.binary(max_size=300))
def test_any_bytes_give_a_clear_error(data: bytes) -> None:
    with pytest.raises(ThinError):
        parse(data, "x")


@pytest.mark.parametrize(("key", "value"), [("comment", 'a"b'), ("comment", "a\nb"), ("a b", "c"), ("uuid", "again")])
def test_never_writes_what_it_could_not_read(key: str, value: str) -> None:
    broken = Descriptor(CreateType.VMFS, 8, "a-flat.vmdk", 1, (("uuid", ""), (key, value)))
    with pytest.raises(ThinError):
        broken.to_bytes()


def test_a_grown_disk_keeps_everything_but_size_and_cylinders() -> None:
    old = parse(ESX, "a.vmdk")
    new = old.with_size(80 << 30)
    assert new.size_bytes == 80 << 30
    assert new.geometry == Geometry((80 << 30) // (255 * 63 * 512), 255, 63)
    unchanged = [pair for pair in old.ddb if pair[0] != "geometry.cylinders"]
    assert [pair for pair in new.ddb if pair[0] != "geometry.cylinders"] == unchanged
    assert (new.cid, new.flat_name, new.other_headers) == (old.cid, old.flat_name, old.other_headers)


@pytest.mark.parametrize(
    ("size", "adapter", "geometry"),
    [
        (512, "lsilogic", Geometry(1, 64, 32)),
        (500 << 20, "lsilogic", Geometry(500, 64, 32)),
        (1 << 30, "buslogic", Geometry(512, 128, 32)),
        (20 << 30, "lsilogic", Geometry(2610, 255, 63)),
        (62 << 40, "lsilogic", Geometry(8287829, 255, 63)),
        (1 << 30, "ide", Geometry(2080, 16, 63)),
        (1 << 40, "IDE", Geometry(16383, 16, 63)),
    ],
)
def test_geometry_is_what_vmware_computes(size: int, adapter: str, geometry: Geometry) -> None:
    assert for_disk(size, adapter) == geometry
    assert geometry.problem() is None


def test_disk_sizes_are_whole_sectors_within_the_limit() -> None:
    check_disk_size(512)
    check_disk_size(MAX_DISK_BYTES)
    for size in (0, -512, 513, MAX_DISK_BYTES + 512):
        with pytest.raises(SizeInvalid):
            check_disk_size(size)
