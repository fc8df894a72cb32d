"""The file `store`: who this store is, and how everything in it is written.

A document (document.py) of magic `AZKSTORE` whose body is

    store         the store's UUID, 32 hexadecimal digits; in every pack, segment and manifest too
    created       time of creation, RFC 3339, UTC
    chunk_size    bytes; disks are cut at multiples of it
    identity      "sha256": how a chunk's id is made from its bytes
    compression   {"codec": "zstd", "level": n}
    append_only   true: restore points may be added but never deleted by those who back up
    encryption    null, or the key envelope (needs an incompatible feature bit)
    parity        null, or the parity scheme of pack groups (needs a read-only-compatible feature bit)

A key that is not known is ignored: what may not be ignored has a feature bit.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from datarecovery.errors import StoreNotFoundError, StoreUnusableError, UnsupportedFeatureError, from_os_error
from datarecovery.store import document, durable, fields

MAGIC = b"AZKSTORE"
FILE_NAME = "store"
KNOWN_FEATURES = document.Features()
# 64 KiB: of the sizes tried on real guests it stores a day's change and random writes in a fifth to a third of what
# 1 MiB or 4 MiB need, while one SHA-256 of it still takes far longer than Python's share of the work.
CHUNK_BYTES = 64 << 10
# A later version may choose another power of two; what a hostile store may make us allocate for a chunk ends here.
CHUNK_LIMIT_BYTES = 4 << 20
DEFAULT_LEVEL = 1
LEVEL_RANGE = (1, 19)


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """What the store's configuration says."""

    store: uuid.UUID
    created: str
    chunk_bytes: int
    level: int
    append_only: bool


def new(level: int, append_only: bool, now: datetime) -> StoreConfig:
    """A configuration for a store that does not exist yet. Raises ValueError for a level zstd does not have."""
    if not LEVEL_RANGE[0] <= level <= LEVEL_RANGE[1]:
        raise ValueError(f"compression level {level} is not from {LEVEL_RANGE[0]} to {LEVEL_RANGE[1]}")
    created = now.astimezone(UTC).isoformat(timespec="seconds")
    return StoreConfig(uuid.uuid4(), created, CHUNK_BYTES, level, append_only)


def encode(config: StoreConfig) -> bytes:
    """The bytes of the file."""
    body: document.Json = {
        "store": config.store.hex,
        "created": config.created,
        "chunk_size": config.chunk_bytes,
        "identity": "sha256",
        "compression": {"codec": "zstd", "level": config.level},
        "append_only": config.append_only,
        "encryption": None,
        "parity": None,
    }
    return document.encode(MAGIC, document.Features(), body)


def decode(data: bytes, *, writing: bool = False) -> StoreConfig:
    """Parse the file. Raises ValueError when damaged, UnsupportedFeatureError when it asks for what is not known."""
    _, body = document.decode(MAGIC, KNOWN_FEATURES, data, writing=writing)
    identity = fields.text(body, "identity")
    compression = fields.mapping(body.get("compression"), "field 'compression'")
    if identity != "sha256" or fields.text(compression, "codec") != "zstd" or body.get("encryption") is not None:
        raise UnsupportedFeatureError("identity, codec or encryption is not known here; use a newer datarecovery")
    chunk = fields.integer(body, "chunk_size", 4096, CHUNK_LIMIT_BYTES)
    if chunk & (chunk - 1):
        raise ValueError(f"chunk size {chunk} is not a power of two")
    return StoreConfig(
        uuid.UUID(bytes=fields.identifier(body, "store", 16)),
        fields.text(body, "created"),
        chunk,
        fields.integer(compression, "level", *LEVEL_RANGE),
        fields.boolean(body, "append_only"),
    )


def load(folder: Path, *, writing: bool = False) -> StoreConfig:
    """The configuration of the store in `folder`.

    Raises StoreNotFoundError, StoreUnusableError, UnsupportedFeatureError.
    """
    path = folder / FILE_NAME
    try:
        return decode(durable.read_file(path, document.FILE_LIMIT_BYTES), writing=writing)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreNotFoundError(f"{folder} is not a backup store; make one with: "
                                 f"datarecovery store create {folder}") from error
    except UnsupportedFeatureError as error:
        raise UnsupportedFeatureError(f"store {folder}: {error}") from error
    except ValueError as error:
        raise StoreUnusableError(f"store {folder}: its configuration {path} is damaged ({error}); put back a copy of "
                                 "that file") from error
    except OSError as error:
        raise from_os_error(error, f"reading {path}") from error
