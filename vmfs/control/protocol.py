"""The control protocol, version 1: lines of JSON (UTF-8, ended by a newline) over a Unix stream socket.

A request is one line of at most REQUEST_MAX_BYTES:

    {"v": 1, "op": NAME, "args": {...}}

Each is answered, in order, by any number of lines that carry parts of a list, and one line that ends the answer; no
line is longer than REPLY_MAX_BYTES:

    {"v": 1, "part": [...]}
    {"v": 1, "result": ...}                          a list's result is null: it has arrived in parts
    {"v": 1, "error": {"class": NAME, "message": TEXT, "exit_code": N, "errno": N}}

    op        args                                                      result
    info                                                                VolumeInfo
    hosts                                                               list of HostInfo
    locks     inode: number or null                                     list of LockInfo
    clone     source, parent: inode numbers; name: hex of its bytes;    inode number
              uid, gid: the clone's owner (root may choose it)
    diff      old, new: inode numbers                                   list of [offset, length]
    unmount                                                             null, when the unmount has begun

Records are as `vmfs.control.records` writes them. After a line that is too long, or is not JSON, the server answers
with an error and closes the connection; after any other error it goes on.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable, Iterator
from typing import Final

from vmfs.control.errors import ProtocolError
from vmfs.control.records import Json, to_json

PROTOCOL_VERSION: Final = 1
REQUEST_MAX_BYTES: Final = 16 << 10  # the longest is a clone, with a name of 255 bytes: some 700
REPLY_MAX_BYTES: Final = 1 << 20
PART_TARGET_BYTES: Final = 64 << 10  # a line is sent when it has grown to this; one record more is far below the rest
_RECEIVE_BYTES: Final = 64 << 10


class LineReader:
    """Lines from a socket, never holding more than `limit_bytes` and one receive. For one thread."""

    def __init__(self, connection: socket.socket, limit_bytes: int) -> None:
        self._connection = connection
        self._limit = limit_bytes
        self._pending = bytearray()
        self._searched = 0

    def next_line(self) -> bytes | None:
        """The next line without its newline; None at the end of the stream.

        Raises ProtocolError for a line that is too long or that the end of the stream cuts short, OSError and
        TimeoutError as the socket does.
        """
        while True:
            end = self._pending.find(b"\n", self._searched)
            if end >= 0:
                line = bytes(self._pending[:end])
                del self._pending[: end + 1]
                self._searched = 0
                break
            self._searched = len(self._pending)
            if self._searched > self._limit:
                raise ProtocolError(f"a line of more than {self._limit} bytes")
            received = self._connection.recv(_RECEIVE_BYTES)
            if not received:
                if self._pending:
                    raise ProtocolError("the stream ended within a line")
                return None
            self._pending += received
        if len(line) > self._limit:
            raise ProtocolError(f"a line of more than {self._limit} bytes")
        return line


def encode(message: dict[str, Json]) -> bytes:
    """A message as its line. Text that is not valid Unicode (undecodable names) survives as escapes."""
    return json.dumps({"v": PROTOCOL_VERSION, **message}, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> dict[str, Json]:
    """The message on a line. Raises ProtocolError when it is none, or of another version."""
    try:
        message: object = json.loads(line)
    except (ValueError, RecursionError):  # ValueError: not JSON, not UTF-8, or an integer of thousands of digits
        raise ProtocolError("a line that is not JSON") from None
    if not isinstance(message, dict):
        raise ProtocolError("a message that is not an object")
    if message.get("v") != PROTOCOL_VERSION:
        raise ProtocolError(
            f"version {str(message.get('v'))[:20]!r}, where this side speaks {PROTOCOL_VERSION}: "
            "the mount was made by another version of Azekura; mount it again, or use that version"
        )
    return message


def encode_list(items: Iterable[object]) -> Iterator[bytes]:
    """The lines of a list's answer, its end included. Each item is anything that `to_json` takes."""
    part: list[Json] = []
    size = 0
    for item in items:
        plain = to_json(item)
        # An estimate that errs upwards a little is enough: lines may be REPLY_MAX_BYTES long.
        size += 64 if isinstance(plain, list) else len(json.dumps(plain))
        part.append(plain)
        if size >= PART_TARGET_BYTES:
            yield encode({"part": part})
            part, size = [], 0
    if part:
        yield encode({"part": part})
    yield encode({"result": None})
