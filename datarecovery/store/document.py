"""The envelope of the store's small documents (configuration, manifest): feature words and checksums around JSON.

Format, version 1, little-endian; the file is the 64-byte header and then the payload, nothing after it.

    offset size
    0      8    magic, of the kind of document
    8      2    version: 1
    10     2    header size in bytes: 64
    12     4    reserved, 0
    16     8    compatible features: unknown bits may be ignored
    24     8    read-only-compatible features: unknown bits forbid writing
    32     8    incompatible features: unknown bits forbid any use
    40     4    payload size in bytes
    44     4    reserved, 0
    48     8    xxh3-64 of the payload
    56     8    xxh3-64 of bytes 0 to 55
    64     n    payload: one JSON object, UTF-8, keys sorted

Documents are never changed in place: a new one is written under a temporary name, flushed and renamed.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass

import xxhash

from datarecovery.errors import UnsupportedFeatureError

VERSION = 1
HEADER = struct.Struct("<8sHHIQQQIIQ")
HEADER_BYTES = 64
# A manifest of 64 disks with their descriptors and a VM's configuration stays far below this; a hostile file may not
# make us allocate more.
PAYLOAD_LIMIT_BYTES = 16 << 20
FILE_LIMIT_BYTES = HEADER_BYTES + PAYLOAD_LIMIT_BYTES

Json = dict[str, object]


@dataclass(frozen=True, slots=True)
class Features:
    """The three feature words: bits that a reader must know to use, to write, or not at all."""

    compat: int = 0
    ro_compat: int = 0
    incompat: int = 0


def encode(magic: bytes, features: Features, body: Json) -> bytes:
    """The bytes of a document. Raises ValueError when the body is larger than a document may be."""
    payload = json.dumps(body, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    if len(payload) > PAYLOAD_LIMIT_BYTES:
        raise ValueError(f"document of {len(payload)} bytes, at most {PAYLOAD_LIMIT_BYTES} are allowed")
    head = HEADER.pack(
        magic,
        VERSION,
        HEADER_BYTES,
        0,
        features.compat,
        features.ro_compat,
        features.incompat,
        len(payload),
        0,
        xxhash.xxh3_64_intdigest(payload),
    )
    return head + struct.pack("<Q", xxhash.xxh3_64_intdigest(head)) + payload


def decode(magic: bytes, known: Features, data: bytes, *, writing: bool = False) -> tuple[Features, Json]:
    """Feature words and body of a document that nobody vouches for.

    Raises ValueError (the reason, without the file's name) when it is damaged, and UnsupportedFeatureError when its
    version or features are unknown.
    """
    if len(data) < HEADER_BYTES:
        raise ValueError(f"only {len(data)} bytes long")
    if data[:8] != magic:
        raise ValueError("wrong magic")
    (checksum,) = struct.unpack_from("<Q", data, HEADER.size)
    if xxhash.xxh3_64_intdigest(data[: HEADER.size]) != checksum:
        raise ValueError("header checksum does not match")
    _, version, size, _, compat, ro_compat, incompat, length, _, digest = HEADER.unpack_from(data)
    if version != VERSION or size != HEADER_BYTES:
        raise UnsupportedFeatureError(f"version {version} is not known here; use a newer datarecovery")
    if incompat & ~known.incompat:
        raise UnsupportedFeatureError(f"incompatible features {incompat & ~known.incompat:#x} are not known here; "
                                      "use a newer datarecovery")
    if writing and ro_compat & ~known.ro_compat:
        raise UnsupportedFeatureError(f"features {ro_compat & ~known.ro_compat:#x} are not known here, so it may be "
                                      "read but not written; use a newer datarecovery")
    payload = data[HEADER_BYTES:]
    if len(payload) != length:
        raise ValueError(f"payload of {len(payload)} bytes where {length} belong")
    if xxhash.xxh3_64_intdigest(payload) != digest:
        raise ValueError("payload checksum does not match")
    try:
        body = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"payload is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise ValueError("payload is not a JSON object")
    return Features(compat, ro_compat, incompat), body
