"""Manifests: one restore point each. Written and read here only.

A document (document.py) of magic `AZKPOINT` whose body is

    format 1; store: the store's UUID; id: 16 hexadecimal digits; vm: name; sequence: 1, 2, 3 ... for each VM
    created, finished: RFC 3339, UTC; previous: id of the VM's restore point before, or null
    quiesced: whether the guest was asked to flush first; configuration: the VM's definition, or null
    retain_until: RFC 3339, before which it may not be deleted, or null
    disks: a list of
        name, folder: the file's name, and a folder for it ("" but where two disks have the same name)
        size: bytes; root: id of the top page of chunk ids; levels: of pages (tree.py)
        descriptor: null, or {name, text}: the VMDK descriptor that goes with the file
        source: where it was read from; rung, reason: how its changes were found, and why so
        point_in_time: false where it was read from a file that may have been written meanwhile
        baseline: null, or what the next backup compares with (an object, read by the source that made it)
        figures: logical, read, changed, stored, deduplicated (bytes), seconds

Keys that are not known are ignored; what may not be ignored gets a feature bit.
"""

from __future__ import annotations

import uuid
from dataclasses import asdict, dataclass

from datarecovery.store import document, fields

MAGIC = b"AZKPOINT"
KNOWN_FEATURES = document.Features()
POINT_ID_BYTES = 8
# As many disks as a VM may have; also what a hostile manifest may make us work through.
DISKS_LIMIT = 256
# 2^60 bytes: sums of sizes stay far from 64 bits, and no disk comes near.
DISK_LIMIT_BYTES = 1 << 60
LEVELS_LIMIT = 8
NAME_LIMIT_BYTES = 255
_DESCRIPTOR_LIMIT_CHARS = 1 << 20
_COUNT_LIMIT = 1 << 62


@dataclass(frozen=True, slots=True)
class Figures:
    """What a backup did, in bytes and seconds.

    `logical` is the size of the disks, `read` what was read from them, `changed` the chunks that differ from the
    restore point before, `stored` what was appended to the store (headers and pages of ids included), `deduplicated`
    the changed chunks that were in the store already.
    """

    logical: int = 0
    read: int = 0
    changed: int = 0
    stored: int = 0
    deduplicated: int = 0
    seconds: float = 0.0

    @property
    def ratio(self) -> float | None:
        """Logical bytes to a byte stored; None where nothing had to be stored."""
        return self.logical / self.stored if self.stored else None


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A VMDK descriptor: file name and text."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Disk:
    """One disk of a restore point."""

    name: str
    folder: str
    size: int
    root: bytes
    levels: int
    descriptor: Descriptor | None
    source: str
    rung: str
    reason: str
    point_in_time: bool
    baseline: dict[str, object] | None
    figures: Figures

    @property
    def label(self) -> str:
        """What tells it from the VM's other disks."""
        return f"{self.folder}/{self.name}" if self.folder else self.name


@dataclass(frozen=True, slots=True)
class Manifest:
    """One restore point."""

    store: uuid.UUID
    id: str
    vm: str
    sequence: int
    created: str
    finished: str
    previous: str | None
    disks: tuple[Disk, ...]
    retain_until: str | None = None
    quiesced: bool = False
    configuration: str | None = None

    @property
    def figures(self) -> Figures:
        """The sum over the disks; disks are read at the same time, so seconds are those of the slowest."""
        parts = [disk.figures for disk in self.disks]
        return Figures(
            sum(p.logical for p in parts),
            sum(p.read for p in parts),
            sum(p.changed for p in parts),
            sum(p.stored for p in parts),
            sum(p.deduplicated for p in parts),
            max((p.seconds for p in parts), default=0.0),
        )


def is_file_name(name: str) -> bool:
    """Whether a name can only be a file right in its folder, whoever made it up."""
    return (
        name not in ("", ".", "..")
        and "/" not in name
        and "\0" not in name
        and len(name.encode(errors="surrogateescape")) <= NAME_LIMIT_BYTES
    )


def _disk_body(disk: Disk) -> document.Json:
    body: document.Json = {
        field: getattr(disk, field)
        for field in ("name", "folder", "size", "levels", "source", "rung", "reason", "point_in_time", "baseline")
    }
    body["root"] = disk.root.hex()
    body["descriptor"] = asdict(disk.descriptor) if disk.descriptor else None
    body["figures"] = asdict(disk.figures)
    return body


def encode(manifest: Manifest) -> bytes:
    """The bytes of the file. Raises ValueError when it would be too large."""
    body: document.Json = {
        "format": 1,
        "store": manifest.store.hex,
        "id": manifest.id,
        "vm": manifest.vm,
        "sequence": manifest.sequence,
        "created": manifest.created,
        "finished": manifest.finished,
        "previous": manifest.previous,
        "retain_until": manifest.retain_until,
        "quiesced": manifest.quiesced,
        "configuration": manifest.configuration,
        "disks": [_disk_body(disk) for disk in manifest.disks],
    }
    return document.encode(MAGIC, document.Features(), body)


def decode(data: bytes) -> Manifest:
    """Parse a file that nobody vouches for. Raises ValueError with the reason, UnsupportedFeatureError."""
    _, body = document.decode(MAGIC, KNOWN_FEATURES, data)
    fields.integer(body, "format", 1, 1)
    disks = tuple(_decode_disk(item) for item in fields.sequence(body, "disks", DISKS_LIMIT))
    if not disks:
        raise ValueError("it has no disks")
    targets = [label for disk in disks for label in _targets(disk)]
    if len(set(targets)) != len(targets):
        raise ValueError("two of its files have the same name")
    previous = fields.optional_text(body, "previous", 2 * POINT_ID_BYTES)
    return Manifest(
        uuid.UUID(bytes=fields.identifier(body, "store", 16)),
        fields.identifier(body, "id", POINT_ID_BYTES).hex(),
        fields.text(body, "vm"),
        fields.integer(body, "sequence", 1, _COUNT_LIMIT),
        fields.text(body, "created"),
        fields.text(body, "finished"),
        previous,
        disks,
        fields.optional_text(body, "retain_until"),
        fields.boolean(body, "quiesced"),
        fields.optional_text(body, "configuration", document.PAYLOAD_LIMIT_BYTES),
    )


def _targets(disk: Disk) -> list[str]:
    names = [disk.name] + ([disk.descriptor.name] if disk.descriptor else [])
    return [f"{disk.folder}/{name}" for name in names]


def _name(body: fields.Fields, key: str) -> str:
    name = fields.text(body, key)
    if not is_file_name(name):
        raise ValueError(f"{name!r} is not a file name")
    return name


def _decode_figures(body: fields.Fields) -> Figures:
    def count(key: str) -> int:
        return fields.integer(body, key, 0, _COUNT_LIMIT)

    return Figures(
        count("logical"),
        count("read"),
        count("changed"),
        count("stored"),
        count("deduplicated"),
        fields.number(body, "seconds"),
    )


def _decode_disk(item: object) -> Disk:
    body = fields.mapping(item, "a disk")
    folder = fields.text(body, "folder")
    if folder and not is_file_name(folder):
        raise ValueError(f"{folder!r} is not a folder's name")
    descriptor = None
    if body.get("descriptor") is not None:
        given = fields.mapping(body["descriptor"], "a descriptor")
        descriptor = Descriptor(_name(given, "name"), fields.text(given, "text", _DESCRIPTOR_LIMIT_CHARS))
    baseline = body.get("baseline")
    return Disk(
        _name(body, "name"),
        folder,
        fields.integer(body, "size", 0, DISK_LIMIT_BYTES),
        fields.identifier(body, "root", 32),
        fields.integer(body, "levels", 1, LEVELS_LIMIT),
        descriptor,
        fields.text(body, "source"),
        fields.text(body, "rung"),
        fields.text(body, "reason"),
        fields.boolean(body, "point_in_time"),
        None if baseline is None else dict(fields.mapping(baseline, "a baseline")),
        _decode_figures(fields.mapping(body.get("figures"), "the figures of a disk")),
    )
