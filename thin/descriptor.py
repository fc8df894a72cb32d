"""The VMDK descriptor: the text file NAME.vmdk that says what a disk is and which file holds its data.

Format, after VMware's technical notes "Virtual Disk Format 1.1" (2007) and "5.0" (2011): lines of text ended
by LF (CRLF is read too), keywords in any case, `#` starts a comment line. At most MAX_DESCRIPTOR_BYTES.

    # Disk DescriptorFile
    version=1                         the first line that is no comment; 1, 2 and 3 (changed block tracking)
    encoding="UTF-8"                  of this text; absent in old descriptors: then it is UTF-8 too
    CID=5a1e03c4                      content id, 8 hex digits, new whenever the content is replaced
    parentCID=ffffffff                ffffffff: no parent; anything else is a link of a snapshot chain
    createType="vmfs"                 one of CreateType
    # Extent description
    RW 41943040 VMFS "NAME-flat.vmdk"           access, size in sectors of 512 bytes, type, file
    RW 41943040 FLAT "NAME-flat.vmdk" 0         monolithicFlat: with the first sector in that file
    # The Disk Data Base
    ddb.adapterType = "lsilogic"      ide, buslogic, lsilogic, legacyESX
    ddb.geometry.cylinders|heads|sectors = "2610"
    ddb.longContentID = "..."         128 bits in hex, the last 32 of them are the CID
    ddb.thinProvisioned = "1"         only in thin disks
    ddb.uuid = "60 00 C2 9x .. ..-.. .."        16 bytes; 6000C29 is what VMware's own begin with
    ddb.virtualHWVersion = "7"
    ddb.azekura.zeroed = "eager"      ours: thick and zeroed ahead; VMware has no entry for it

The text is untrusted (a disk may come from anywhere): every field is bounds-checked, a key given twice is
refused (two readers could believe different ones), and an extent's file is a plain name in the descriptor's
own directory. Keys that are not known are kept; comments are not, as with VMware's own rewriting.
Crash rule: a descriptor is only ever replaced whole, by rename (see `thin.descriptor_file`).
"""

from __future__ import annotations

import dataclasses
import enum
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from thin.errors import DescriptorInvalid, SizeInvalid, Unsupported
from thin.geometry import SECTOR_BYTES, Geometry

MAX_DESCRIPTOR_BYTES = 64 * 1024
"""A descriptor with one extent has under 1 KiB; VMware reserves 10 KiB for an embedded one. Bounds memory."""

MAX_DISK_BYTES = 62 << 40
"""62 TiB, as VMFS-5 has it: a 64 TiB volume with 2 TiB left for the disk's snapshots. (vSphere 4 stopped at
2 TiB - 512 B, the end of 32-bit sector numbers, which nothing here uses.)"""

MAX_NAME_BYTES = 255
"""NAME_MAX of Linux file systems."""

CID_NO_PARENT = 0xFFFFFFFF
SUPPORTED_VERSIONS = (1, 2, 3)
KNOWN_ADAPTERS = ("ide", "buslogic", "lsilogic", "legacyESX", "pvscsi", "lsisas1068")

# Declared encoding -> Python codec. Others are refused: a wrong guess would open another file.
_CODECS = {"utf-8": "utf-8", "us-ascii": "ascii", "windows-1252": "cp1252", "iso-8859-1": "iso8859-1"}

_SPARSE_MAGICS = (b"KDMV", b"COWD")
_ENCODING = re.compile(rb'^[ \t]*encoding[ \t]*=[ \t]*"?([A-Za-z0-9._-]{1,40})"?[ \t]*\r?$', re.M | re.I)
_KEY_VALUE = re.compile(r'([A-Za-z][A-Za-z0-9_.:-]*)[ \t]*=[ \t]*(?:"([^"]*)"|([^"\s]+))')
_EXTENT = re.compile(
    r'(RW|RDONLY|NOACCESS)[ \t]+([0-9]{1,19})[ \t]+([A-Z0-9]+)(?:[ \t]+"([^"]*)"(?:[ \t]+([0-9]{1,19}))?)?',
    re.IGNORECASE | re.ASCII,
)
_CID = re.compile(r"[0-9a-fA-F]{1,8}")
_UUID = re.compile(r"(?:[0-9a-fA-F]{2} ){7}[0-9a-fA-F]{2}-(?:[0-9a-fA-F]{2} ){7}[0-9a-fA-F]{2}")
_COUNT = re.compile(r"[0-9]{1,12}", re.ASCII)


class CreateType(enum.Enum):
    """The kinds of disk that are supported: one descriptor, one flat extent."""

    VMFS = "vmfs"
    MONOLITHIC_FLAT = "monolithicFlat"

    @property
    def extent_type(self) -> str:
        """The word in the extent line that goes with it."""
        return "VMFS" if self is CreateType.VMFS else "FLAT"


class DiskKind(enum.Enum):
    """When a disk's space is taken from the volume, and when it is zeroed."""

    THIN = "thin"
    LAZY_ZEROED = "lazyzeroed"
    EAGER_ZEROED = "eagerzeroed"


class Access(enum.Enum):
    """What an extent may be used for."""

    READ_WRITE = "RW"
    READ_ONLY = "RDONLY"


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A descriptor's content. `ddb` has the keys without their `ddb.`, in their order in the file."""

    create_type: CreateType
    size_sectors: int
    flat_name: str
    cid: int
    ddb: tuple[tuple[str, str], ...] = ()
    access: Access = Access.READ_WRITE
    version: int = 1
    other_headers: tuple[tuple[str, str], ...] = ()

    @property
    def size_bytes(self) -> int:
        """The disk's size as the descriptor says it, in bytes."""
        return self.size_sectors * SECTOR_BYTES

    def entry(self, key: str) -> str | None:
        """The value of `ddb.<key>`, the key in any case; None when there is none."""
        wanted = key.casefold()
        return next((value for name, value in self.ddb if name.casefold() == wanted), None)

    @property
    def kind(self) -> DiskKind:
        """Thin when it says so; thick otherwise, and eager-zeroed only when our own entry says that."""
        if self.entry("thinProvisioned") == "1":
            return DiskKind.THIN
        return DiskKind.EAGER_ZEROED if self.entry("azekura.zeroed") == "eager" else DiskKind.LAZY_ZEROED

    @property
    def geometry(self) -> Geometry | None:
        """The recorded geometry, in range or not; None when it is absent or not made of numbers."""
        values = [self.entry(f"geometry.{part}") or "" for part in ("cylinders", "heads", "sectors")]
        if not all(_COUNT.fullmatch(value) for value in values):
            return None
        return Geometry(*map(int, values))

    def problems(self) -> list[str]:
        """What is wrong but endangers no data, a sentence each."""
        found = []
        geometry = self.geometry
        fault = "no readable geometry" if geometry is None else geometry.problem()
        if fault:
            found.append(f"descriptor has {fault}")
        adapter = self.entry("adapterType")
        if adapter is None or adapter.casefold() not in {name.casefold() for name in KNOWN_ADAPTERS}:
            found.append(f"adapter type {adapter!a} is unknown (known: {', '.join(KNOWN_ADAPTERS)})")
        uuid = self.entry("uuid")
        if uuid is not None and not _UUID.fullmatch(uuid):
            found.append(f"ddb.uuid {uuid[:60]!a} is not 16 hexadecimal bytes")
        return found

    def with_size(self, size_bytes: int) -> Descriptor:
        """The same disk with another size (bytes, a multiple of 512) and the geometry that goes with it."""
        check_disk_size(size_bytes)
        ddb = self.ddb
        geometry = self.geometry
        if geometry is not None and geometry.problem() is None:
            new = geometry.resized(size_bytes, self.entry("adapterType") or "")
            ddb = tuple((k, str(new.cylinders) if k.casefold() == "geometry.cylinders" else v) for k, v in ddb)
        return dataclasses.replace(self, size_sectors=size_bytes // SECTOR_BYTES, ddb=ddb)

    def to_bytes(self) -> bytes:
        """The descriptor's text, in UTF-8. Raises DescriptorInvalid when a value cannot be written."""
        where = self.flat_name
        lines = ["# Disk DescriptorFile", f"version={self.version}", 'encoding="UTF-8"']
        lines += [f"CID={self.cid:08x}", f"parentCID={CID_NO_PARENT:08x}", f'createType="{self.create_type.value}"']
        lines += [f'{key}="{value}"' for key, value in self.other_headers]
        offset = " 0" if self.create_type is CreateType.MONOLITHIC_FLAT else ""
        extent = f'{self.access.value} {self.size_sectors} {self.create_type.extent_type} "{self.flat_name}"{offset}'
        lines += ["", "# Extent description", extent, "", "# The Disk Data Base", "#DDB", ""]
        lines += [f'ddb.{key} = "{value}"' for key, value in self.ddb]
        try:
            data = ("\n".join(lines) + "\n").encode("utf-8")
        except UnicodeEncodeError as error:
            raise DescriptorInvalid(ascii(where), "a name or value is not UTF-8") from error
        # What is written must be readable, and mean the same: the cheapest proof is to read it.
        if parse(data, where) != self:
            raise DescriptorInvalid(where, "a name or value cannot be written in a descriptor")
        return data


def format_uuid(uuid: bytes) -> str:
    """16 bytes as `ddb.uuid` has them."""
    pairs = [f"{byte:02x}" for byte in uuid]
    return " ".join(pairs[:8]) + "-" + " ".join(pairs[8:])


def check_disk_size(size_bytes: int) -> None:
    """Raise SizeInvalid unless a disk can have this size in bytes."""
    if size_bytes <= 0:
        raise SizeInvalid(f"a disk cannot have {size_bytes} bytes; give a size of at least 1M")
    if size_bytes % SECTOR_BYTES:
        raise SizeInvalid(f"{size_bytes} bytes are no multiple of {SECTOR_BYTES}; round the size up")
    if size_bytes > MAX_DISK_BYTES:
        raise SizeInvalid(f"{size_bytes} bytes are more than a disk can have ({MAX_DISK_BYTES} bytes, 62 TiB)")


def name_fault(name: str) -> str | None:
    """Why `name` cannot be the file name of an extent, or None. It must be one plain name."""
    if name in ("", ".", "..") or "/" in name or "\\" in name:
        return f"extent file {name[:80]!a} is not a plain file name in the descriptor's directory"
    if '"' in name or any(map(_forbidden, name)):
        return f"extent file {name[:80]!a} has a quote or a control character"
    try:
        length = len(name.encode("utf-8"))
    except UnicodeEncodeError:
        return f"extent file {name[:80]!a} is not UTF-8"
    if length > MAX_NAME_BYTES:
        return f"extent file name of {length} bytes is longer than {MAX_NAME_BYTES}"
    return None


def parse(data: bytes, name: str) -> Descriptor:
    """Read a descriptor's bytes; `name` stands in the messages. Raises DescriptorInvalid, Unsupported."""
    headers: dict[str, tuple[str, str]] = {}
    ddb: dict[str, tuple[str, str]] = {}
    extents: list[re.Match[str]] = []
    text, encoding = _decode(data, name)
    for number, line in _lines(text, name):
        if not headers and not re.match(r"version\s*=", line, re.IGNORECASE):
            raise DescriptorInvalid(name, f"line {number} is not version=...")
        if extent := _EXTENT.fullmatch(line):
            extents.append(extent)
            continue
        pair = _KEY_VALUE.fullmatch(line)
        if pair is None:
            raise DescriptorInvalid(name, f"line {number} is not understood: {line[:60]!a}")
        key, value = pair[1], pair[2] if pair[2] is not None else pair[3]
        table = headers
        if key.casefold().startswith("ddb."):
            table, key = ddb, key[4:]
        if key.casefold() in table:
            raise DescriptorInvalid(name, f"line {number} gives {pair[1]!a} again")
        table[key.casefold()] = (key, value)
    if not headers:
        raise DescriptorInvalid(name, "it has no content")
    declared = headers.pop("encoding", ("", encoding))[1]
    if declared.casefold() != encoding:
        raise Unsupported(name, f"encoding {declared[:40]!a}", _CODECS)
    return _assemble(name, headers, extents, tuple(ddb.values()))


def _decode(data: bytes, name: str) -> tuple[str, str]:
    """The text, and the encoding that it was read in."""
    if data[:4] in _SPARSE_MAGICS:
        raise Unsupported(name, "a sparse (hosted or COW) extent", _supported())
    if len(data) > MAX_DESCRIPTOR_BYTES:
        raise DescriptorInvalid(name, f"it has more than {MAX_DESCRIPTOR_BYTES} bytes")
    if b"\0" in data:
        raise DescriptorInvalid(name, "it is binary data")
    declared = _ENCODING.search(data)
    encoding = declared[1].decode("ascii").lower() if declared else "utf-8"
    if encoding not in _CODECS:
        raise Unsupported(name, f"encoding {encoding!a}", _CODECS)
    try:
        return data.decode(_CODECS[encoding]), encoding
    except UnicodeDecodeError as error:
        raise DescriptorInvalid(name, f"byte {error.start} is not {encoding}") from error


def _lines(text: str, name: str) -> Iterable[tuple[int, str]]:
    """The lines that matter, numbered from 1, without surrounding blanks."""
    # Split at LF alone: str.splitlines would end a line in the middle of a value at U+0085 and its like.
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.strip(" \t\r")
        if any(map(_forbidden, line)):
            raise DescriptorInvalid(name, f"line {number} has a control character")
        if line and not line.startswith("#"):
            yield number, line


def _assemble(
    name: str,
    headers: dict[str, tuple[str, str]],
    extents: list[re.Match[str]],
    ddb: tuple[tuple[str, str], ...],
) -> Descriptor:
    def take(key: str) -> str:
        if key.casefold() not in headers:
            raise DescriptorInvalid(name, f"it has no {key}")
        return headers.pop(key.casefold())[1]

    version = take("version")
    if version not in map(str, SUPPORTED_VERSIONS):
        raise Unsupported(name, f"descriptor version {version[:20]!a}", map(str, SUPPORTED_VERSIONS))
    create_type = _create_type(name, take("createType"))
    cid = _content_id(name, "CID", take("CID"))
    parent = _content_id(name, "parentCID", take("parentCID"))
    if parent != CID_NO_PARENT or "parentfilenamehint" in headers:
        raise Unsupported(name, "a link of a snapshot chain (it has a parent disk)", _supported())
    if len(extents) != 1:
        raise Unsupported(name, f"a disk of {len(extents)} extents", ["exactly one extent"])
    access, sectors, flat_name = _extent(name, extents[0], create_type)
    return Descriptor(
        create_type, sectors, flat_name, cid, ddb, access, int(version), other_headers=tuple(headers.values())
    )


def _create_type(name: str, value: str) -> CreateType:
    for known in CreateType:
        if value.casefold() == known.value.casefold():
            return known
    raise Unsupported(name, f"createType {value[:40]!a}", _supported())


def _content_id(name: str, key: str, value: str) -> int:
    if not _CID.fullmatch(value):
        raise DescriptorInvalid(name, f"{key} {value[:20]!a} is not a 32-bit hexadecimal number")
    return int(value, 16)


def _extent(name: str, match: re.Match[str], create_type: CreateType) -> tuple[Access, int, str]:
    access, count, kind, file_name, offset = match.groups()
    if access.upper() == "NOACCESS":
        raise Unsupported(name, "an extent with NOACCESS", [item.value for item in Access])
    if kind.upper() != create_type.extent_type:
        needed = f"{create_type.extent_type} with createType {create_type.value}"
        raise Unsupported(name, f"an extent of type {kind[:20]!a}", [needed])
    sectors = int(count)
    if not 0 < sectors <= MAX_DISK_BYTES // SECTOR_BYTES:
        raise DescriptorInvalid(name, f"an extent of {sectors} sectors (1 to {MAX_DISK_BYTES // SECTOR_BYTES})")
    fault = "the extent names no file" if file_name is None else name_fault(file_name)
    if file_name is None or fault:
        raise DescriptorInvalid(name, fault or "")
    if create_type is CreateType.MONOLITHIC_FLAT and offset is None:
        raise DescriptorInvalid(name, "a FLAT extent without its first sector")
    # The hypervisor opens the flat file as raw, from its first byte.
    if offset is not None and int(offset) != 0:
        raise Unsupported(name, f"an extent that starts at sector {offset} of its file", ["0"])
    return Access(access.upper()), sectors, file_name


def _supported() -> list[str]:
    return [f"createType {known.value}" for known in CreateType]


def _forbidden(character: str) -> bool:
    """Controls, line and paragraph separators, surrogates: what could change a line, or a terminal."""
    return character != "\t" and unicodedata.category(character) in ("Cc", "Zl", "Zp", "Cs")
