"""One stored chunk or page of ids: a 64-byte header and the stored bytes. Written and read here only.

Format, little-endian; records follow each other in a pack without gaps.

    offset size
    0      4    magic "AZRC"
    4      1    kind: 1 chunk of a disk, 2 page of ids
    5      1    codec: 0 stored as it is, 1 zstd frame with its content size
    6      2    key: 0 not encrypted; else the number of the key in the envelope
    8      4    stored size in bytes
    12     4    plain size in bytes
    16     32   id: SHA-256 of the plain bytes (of a page: see identity())
    48     8    xxh3-64 of the stored bytes, so that a store is verified without any key
    56     8    xxh3-64 of bytes 0 to 55
    64     n    stored bytes

The two checksums find damage; that a chunk is what was asked for is proved by its id, computed again at every read.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Final

import xxhash
import zstandard

from datarecovery.store import config

MAGIC = b"AZRC"
KIND_CHUNK: Final = 1
KIND_PAGE: Final = 2
CODEC_RAW: Final = 0
CODEC_ZSTD: Final = 1
HEADER = struct.Struct("<4sBBHII32sQ")
SUM = struct.Struct("<Q")
HEADER_BYTES = 64
ID_BYTES = 32
# Stands for a chunk, or a whole page of chunks, of zeros. It is never stored.
ZERO_ID = bytes(ID_BYTES)
# Keeps the ids of pages apart from those of chunks: a guest that writes the text of a page makes a chunk, not a page.
_PAGE_DOMAIN = b"azekura page of ids 1\0"

Buffer = bytes | bytearray | memoryview


def identity(kind: int, plain: Buffer) -> bytes:
    """The id of a chunk or a page of ids."""
    if kind == KIND_CHUNK:
        return hashlib.sha256(plain).digest()
    digest = hashlib.sha256(_PAGE_DOMAIN)
    digest.update(plain)
    return digest.digest()


@dataclass(frozen=True, slots=True)
class Header:
    """A record's header, checked against its own checksum and against the limits."""

    kind: int
    codec: int
    stored_bytes: int
    plain_bytes: int
    id: bytes
    checksum: int


@dataclass(slots=True)
class Encoded:
    """A record ready to be written."""

    id: bytes
    kind: int
    codec: int
    plain_bytes: int
    header: bytes
    stored: Buffer

    @property
    def total_bytes(self) -> int:
        """Header and stored bytes."""
        return HEADER_BYTES + len(self.stored)


class Encoder:
    """Makes records. One a thread: a zstd context must not be shared."""

    def __init__(self, level: int) -> None:
        self._zstd = zstandard.ZstdCompressor(level=level, write_content_size=True, write_checksum=False)

    def encode(self, identifier: bytes, kind: int, plain: Buffer) -> Encoded:
        """The record of `plain`. It refers to the caller's buffer where the bytes do not shrink."""
        packed = self._zstd.compress(plain)
        codec, stored = (CODEC_ZSTD, packed) if len(packed) < len(plain) else (CODEC_RAW, plain)
        checksum = xxhash.xxh3_64_intdigest(stored)
        head = HEADER.pack(MAGIC, kind, codec, 0, len(stored), len(plain), identifier, checksum)
        return Encoded(
            identifier, kind, codec, len(plain), head + SUM.pack(xxhash.xxh3_64_intdigest(head)), stored
        )


def parse_header(data: Buffer) -> Header:
    """The header at the start of `data`. Raises ValueError with the reason when it cannot be trusted."""
    if len(data) < HEADER_BYTES:
        raise ValueError("record header is cut short")
    head = bytes(data[: HEADER.size])
    if head[:4] != MAGIC:
        raise ValueError("no record begins here")
    if SUM.unpack_from(data, HEADER.size)[0] != xxhash.xxh3_64_intdigest(head):
        raise ValueError("record header checksum does not match")
    _, kind, codec, key, stored, plain, identifier, checksum = HEADER.unpack(head)
    if kind not in (KIND_CHUNK, KIND_PAGE) or codec not in (CODEC_RAW, CODEC_ZSTD) or key:
        raise ValueError(f"record of unknown kind {kind}, codec {codec} or key {key}")
    if not 0 < plain <= config.CHUNK_LIMIT_BYTES or not 0 < stored <= plain:
        raise ValueError(f"record sizes {stored} and {plain} are not possible")
    return Header(kind, codec, stored, plain, identifier, checksum)


class Decoder:
    """Reads records back. One a thread: a zstd context must not be shared."""

    def __init__(self) -> None:
        self._zstd = zstandard.ZstdDecompressor(max_window_size=config.CHUNK_LIMIT_BYTES)

    def decode(self, header: Header, stored: Buffer) -> Buffer:
        """The plain bytes of a record, proved by its id. Raises ValueError with the reason when they are not."""
        if len(stored) != header.stored_bytes:
            raise ValueError("record is cut short")
        if xxhash.xxh3_64_intdigest(stored) != header.checksum:
            raise ValueError("checksum of the stored bytes does not match")
        plain: Buffer = stored
        if header.codec == CODEC_ZSTD:
            try:
                # The frame's own claim is compared before anything is allocated for it.
                if zstandard.get_frame_parameters(stored).content_size != header.plain_bytes:
                    raise ValueError("compressed frame is not of the size that its header gives")
                plain = self._zstd.decompress(stored, max_output_size=header.plain_bytes)
            except zstandard.ZstdError as error:
                raise ValueError(f"stored bytes do not decompress: {error}") from error
        if len(plain) != header.plain_bytes:
            raise ValueError("plain size does not match")
        if identity(header.kind, plain) != header.id:
            raise ValueError("bytes do not have the id that they are stored under")
        return plain
